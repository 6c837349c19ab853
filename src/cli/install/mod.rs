//! `cni-all install DIR`: this executable and one link per plugin into a directory such as /opt/cni/bin.
//!
//! Safe over a running host: whatever is there is replaced by rename(2) and never opened for writing, so that running
//! plugins keep their file, "text file busy" cannot happen and nobody ever sees half a file. What is made under a
//! temporary name and left behind by an interruption is removed by the next run.

mod site;

use argh::{ArgsInfo, FromArgValue, FromArgs};
use serde::Serialize;

use super::{fail, print, suggest::did_you_mean, usage};
use crate::cni::convert::pretty;
use crate::cni::{Error, Result};
use crate::personality::Process;
use crate::plugins::{self, PLUGINS};
use site::{Executable, Found, Site};
pub use site::{MARK, TEMPORARY};

/// Exit status when everything was done, except that files of others were in the way and were kept.
const KEPT: i32 = 3;

/// Arguments of `cni-all install`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "install",
    help_triggers("-h", "--help"),
    description = "install this executable and a link for each plugin\n\n\
        Puts this executable into DIR as cni-all and makes one link to it per plugin, so that\n\
        DIR can serve as the plugin directory of containerd, CRI-O, podman or kubelet. Files are\n\
        replaced atomically, also while plugins run. What is up to date is left alone.",
    example = "{command_name} /opt/cni/bin",
    example = "{command_name} /opt/cni/bin --only bridge,host-local,loopback",
    example = "{command_name} /opt/cni/bin --except flannel --keep",
    example = "{command_name} ./bin --link hard",
    note = "A file in DIR that has a plugin's name but is no part of cni-all is kept and reported, unless\n\
        --force is given. DIR/cni-all itself is always replaced: copying another plugin onto a\n\
        link, symbolic or hard, writes through it and damages the executable that all plugins\n\
        share. Where others do that, keep off their names with --except, or use --link copy.",
    error_code(0, "DIR is as asked"),
    error_code(1, "something failed; what was done up to then is listed"),
    error_code(2, "wrong arguments"),
    error_code(3, "done, but files of other programs were kept, and --keep was not given")
)]
pub struct Install {
    /// directory to install into; made when it is missing
    #[argh(positional, arg_name = "DIR")]
    dir: String,

    /// how a plugin refers to the executable: symlink (default), hard or copy
    #[argh(option, default = "Link::Symlink", arg_name = "LINK")]
    link: Link,

    /// only these plugins, separated by commas; others that are there already are left alone
    #[argh(option, arg_name = "NAMES")]
    only: Option<String>,

    /// all plugins but these, separated by commas; what is there under their names is left alone
    #[argh(option, arg_name = "NAMES")]
    except: Option<String>,

    /// replace files of other programs, too
    #[argh(switch)]
    force: bool,

    /// that files of other programs are kept is success
    #[argh(switch)]
    keep: bool,

    /// print what was done as JSON
    #[argh(switch)]
    json: bool,
}

/// How a plugin's name refers to the executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromArgValue, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// A relative symbolic link, `bridge -> cni-all`.
    Symlink,
    /// Another name of the same file.
    Hard,
    /// A file of its own.
    Copy,
}

/// What was done with one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Created,
    Replaced,
    Unchanged,
    Kept,
}

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    action: Action,
    /// What was there before, when it was not ours or not in order.
    #[serde(skip_serializing_if = "String::is_empty")]
    was: String,
}

#[derive(Serialize)]
struct Report {
    dir: String,
    link: Link,
    files: Vec<Entry>,
}

impl Install {
    /// Installs, and prints what was done.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        let names = match self.names() {
            Ok(names) => names,
            Err(msg) => return usage(process, "cni-all install", &msg),
        };
        let mut report = Report { dir: self.dir.clone(), link: self.link, files: Vec::new() };
        let done = self.install(&names, &mut report.files);
        let text = if self.json { pretty(&report) } else { Ok(self.text(&report)) };
        let status = match text {
            Ok(text) if text.is_empty() => 0,
            Ok(text) => print(process, &text),
            Err(e) => return fail(process, "cni-all install", &e),
        };
        if let Err(e) = done {
            return fail(process, "cni-all install", &e);
        }
        let kept: Vec<&Entry> = report.files.iter().filter(|e| e.action == Action::Kept).collect();
        for Entry { name, was, .. } in &kept {
            let path = format!("{}/{name}", self.dir);
            let _ = writeln!(process.stderr, "cni-all install: kept {path}: {was} (--force replaces it)");
        }
        if kept.is_empty() || self.keep { status } else { KEPT }
    }

    /// The plugins to link.
    fn names(&self) -> Result<Vec<&'static str>, String> {
        if self.keep && self.force {
            return Err("--keep and --force contradict each other".to_owned());
        }
        let all = || PLUGINS.iter().map(|p| p.name());
        let listed = |option, words: &str| {
            let find = |word: &str| match (plugins::find(word), did_you_mean(word, all())) {
                (Some(plugin), _) => Ok(plugin.name()),
                (None, Some(close)) => Err(format!("{option}: {word:?} is no plugin; did you mean {close}?")),
                (None, None) => Err(format!("{option}: {word:?} is no plugin; see: cni-all list")),
            };
            words.split(',').map(|word| find(word.trim())).collect::<Result<Vec<_>, _>>()
        };
        let only = self.only.as_deref().map(|words| listed("--only", words)).transpose()?;
        let except = self.except.as_deref().map(|words| listed("--except", words)).transpose()?;
        let wanted = |name: &&str| {
            only.as_ref().is_none_or(|only| only.contains(name))
                && except.as_ref().is_none_or(|except| !except.contains(name))
        };
        Ok(all().filter(wanted).collect())
    }

    /// Looks first, so that nothing is changed when something is in the way that cannot be replaced.
    fn install(&self, names: &[&'static str], report: &mut Vec<Entry>) -> Result<()> {
        let site = Site::open(&self.dir)?;
        let (before, was) = site.executable()?;
        let found: Vec<(&'static str, Found)> =
            names.iter().map(|name| Ok((*name, site.find(name)?))).collect::<Result<_>>()?;
        site.remove_leftovers()?;
        let executable = match before {
            Action::Unchanged => Executable::Installed,
            _ => Executable::New(site.copy_executable("cni-all")?),
        };
        // Hard links come first: while DIR/cni-all is the old file, names that share it can still be told to be ours
        // after an interruption. Symbolic links come last: they never dangle.
        let mut place = |executable: Executable| -> Result<Executable> {
            report.push(Entry { name: "cni-all", action: before, was: was.clone() });
            match executable {
                Executable::New(temporary) => temporary.rename_to("cni-all").map(|()| Executable::Installed),
                Executable::Installed => Ok(Executable::Installed),
            }
        };
        let mut links = Vec::new();
        let linked = match self.link {
            Link::Hard => {
                let linked = self.link_all(&site, found, &executable, &mut links);
                linked.and_then(|()| place(executable).map(|_| ()))
            }
            Link::Symlink | Link::Copy => {
                place(executable).and_then(|placed| self.link_all(&site, found, &placed, &mut links))
            }
        };
        report.append(&mut links);
        linked?;
        site.sync()
    }

    fn link_all(
        &self,
        site: &Site,
        found: Vec<(&'static str, Found)>,
        executable: &Executable<'_>,
        report: &mut Vec<Entry>,
    ) -> Result<()> {
        for (name, found) in found {
            let (action, was) = match found {
                Found::Nothing => (Action::Created, String::new()),
                Found::Foreign(was) if !self.force => (Action::Kept, was),
                Found::Foreign(was) | Found::Broken(was) => (Action::Replaced, was),
                Found::Ours if site.is_linked(name, self.link, executable)? => {
                    (Action::Unchanged, String::new())
                }
                Found::Ours => (Action::Replaced, String::new()),
            };
            if matches!(action, Action::Created | Action::Replaced) {
                match self.link {
                    Link::Symlink => site.symlink(name)?,
                    Link::Hard => site.hard_link(name, executable)?,
                    Link::Copy => site.copy_executable(name)?.rename_to(name)?,
                }
            }
            report.push(Entry { name, action, was });
        }
        Ok(())
    }

    /// One line per change.
    fn text(&self, report: &Report) -> String {
        let mut out = String::new();
        for Entry { name, action, was } in &report.files {
            let verb = match action {
                Action::Created => "created",
                Action::Replaced => "replaced",
                Action::Unchanged | Action::Kept => continue,
            };
            let arrow = match self.link {
                Link::Symlink if *name != "cni-all" => " -> cni-all",
                _ => "",
            };
            let was = if was.is_empty() { String::new() } else { format!(" (was {was})") };
            out.push_str(&format!("{verb} {}/{name}{arrow}{was}\n", self.dir));
        }
        if !report.files.is_empty() && report.files.iter().all(|e| e.action == Action::Unchanged) {
            out = format!("{} is up to date, {} plugins\n", self.dir, report.files.len() - 1);
        }
        out
    }
}

/// A failed file operation; `what` is what an operator would have typed.
fn failed(what: impl std::fmt::Display, err: &std::io::Error) -> Error {
    match err.raw_os_error() {
        Some(errno) => Error::internal(format!("{what}: {}", nix::errno::Errno::from_raw(errno).desc())),
        None => Error::internal(format!("{what}: {err}")),
    }
}
