//! Telling what would be changed, without changing it: everything in this folder that changes something asks here first.
//!
//! While [`record`] runs, changes become lines, and what is read afterwards is as if they had been made: new links have
//! indexes and addresses of our own invention. One thread's business; others go on as usual.

mod files;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use self::files::Copies;
use super::rtnl::{Address, Change, Link};
use crate::cni::Result;

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// A network namespace, by device and inode.
pub(super) type Place = (u64, u64);

/// What was recorded.
#[derive(Default)]
pub(super) struct Recording {
    lines: Vec<String>,
    /// The namespaces entered, innermost last.
    inside: Vec<(Place, String)>,
    /// What is different from what the kernel says, in each namespace.
    pub(super) places: HashMap<Place, Difference>,
    /// Settings that were written: namespace (`None`: the host's), path and value.
    settings: HashMap<(Option<Place>, String), String>,
    /// Addresses that the kernel would choose, and whose they are.
    invented: Vec<(String, String)>,
    /// Directories that are written to in the place of others.
    copies: Copies,
}

/// Links and addresses of one namespace that were changed.
#[derive(Default)]
pub(super) struct Difference {
    /// New or changed links; `None` for removed ones. By index.
    pub(super) links: HashMap<u32, Option<Link>>,
    /// Addresses that were added.
    pub(super) added: Vec<Address>,
    /// Addresses that were removed.
    pub(super) removed: Vec<Address>,
    /// Changes of routes, in their order, with those that the kernel makes for addresses.
    pub(super) routes: Vec<Change>,
    /// The other ends of new pairs: index here, namespace and index there.
    pub(super) peers: HashMap<u32, (Place, u32)>,
}

/// Whether changes are recorded and not made.
pub fn is_on() -> bool {
    RECORDING.with_borrow(Option::is_some)
}

/// What would have been changed.
pub struct Recorded {
    /// One line for each change of the kernel.
    pub lines: Vec<String>,
    /// Directories, and a line for each change of a file in them.
    pub files: Vec<(PathBuf, Vec<String>)>,
    invented: Vec<(String, String)>,
}

impl Recorded {
    /// The text with hardware addresses described that the kernel would choose.
    fn describe(&self, text: &str) -> String {
        self.invented.iter().fold(text.to_owned(), |text, (mac, description)| text.replace(mac, description))
    }
}

/// Runs `work` without changing anything: its outcome, and what it would have changed.
///
/// # Errors
/// Files cannot be copied.
pub fn record<T>(work: impl FnOnce() -> T) -> (T, Result<Recorded>) {
    RECORDING.with_borrow_mut(|recording| *recording = Some(Recording::default()));
    let outcome = work();
    let mut recording = RECORDING.with_borrow_mut(Option::take).unwrap_or_default();
    let recorded = recording.copies.lines().map(|files| {
        let invented = std::mem::take(&mut recording.invented);
        let mut recorded = Recorded { lines: Vec::new(), files: Vec::new(), invented };
        let described = |lines: &[String]| lines.iter().map(|line| recorded.describe(line)).collect();
        let (lines, files): (Vec<String>, Vec<(PathBuf, Vec<String>)>) = (
            described(&recording.lines),
            files.iter().map(|(dir, lines)| (dir.clone(), described(lines))).collect(),
        );
        recorded.lines = lines;
        recorded.files = files;
        recorded
    });
    (outcome, recorded)
}

/// Where files of a directory are to be read and written: there, or in a copy while changes are recorded. Whoever keeps
/// files asks this for the directory.
pub fn files(dir: PathBuf) -> PathBuf {
    let copy = |dir: &Path| with(|recording| recording.copies.of(dir));
    copy(&dir).unwrap_or(dir)
}

/// What stands in front of commands for the namespace that the thread is in.
pub(super) fn prefix() -> String {
    with(|recording| recording.prefix()).unwrap_or_default()
}

/// Adds a line, as an operator would type it in the host's namespace.
pub fn note(line: impl Display) {
    with(|recording| recording.push("", &line.to_string()));
}

/// Runs `work` on the recording, if there is one.
pub(super) fn with<T>(work: impl FnOnce(&mut Recording) -> T) -> Option<T> {
    RECORDING.with_borrow_mut(|recording| recording.as_mut().map(work))
}

/// Remembers that the thread is inside a namespace until the value is dropped.
pub(super) fn enter(place: Place, path: &str) -> Inside {
    with(|recording| recording.inside.push((place, path.to_owned())));
    Inside
}

/// Inside a namespace.
pub(super) struct Inside;

impl Drop for Inside {
    fn drop(&mut self) {
        with(|recording| recording.inside.pop());
    }
}

impl Recording {
    pub(super) fn prefix(&self) -> String {
        self.inside.last().map_or(String::new(), |(_, path)| match path.strip_prefix("/run/netns/") {
            Some(name) => format!("ip netns exec {name} "),
            None => format!("nsenter --net={path} "),
        })
    }

    /// Adds a line: one command, or several joined by `&&`, each with the prefix.
    pub(super) fn push(&mut self, prefix: &str, line: &str) {
        let commands: Vec<String> = line.split(" && ").map(|command| format!("{prefix}{command}")).collect();
        self.lines.push(commands.join(" && "));
    }

    /// As [`Recording::push`], unless the same was said before: for what is made only if it is not there.
    pub(super) fn push_once(&mut self, line: &str) {
        if !self.lines.iter().any(|said| said == line) {
            self.push("", line);
        }
    }

    /// A number that no link has: the kernel counts from 1.
    pub(super) fn next_index(&self) -> u32 {
        const FIRST: u32 = 0x4000_0000;
        let made = self.places.values().flat_map(|place| place.links.keys()).filter(|index| **index >= FIRST);
        FIRST + made.count() as u32
    }

    /// A hardware address for the link `name`, in the place of the one that the kernel would choose.
    pub(super) fn invent(&mut self, name: &str) -> [u8; 6] {
        let number = (self.invented.len() as u16).to_be_bytes();
        let mac = [0x02, 0xd7, 0x00, 0x00, number[0], number[1]];
        let text: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        self.invented.push((text.join(":"), format!("<address of {name}>")));
        mac
    }

    /// What was written to a setting of the namespace that the thread is in.
    pub(super) fn setting(&self, path: &str) -> Option<String> {
        let place = self.inside.last().map(|(place, _)| *place);
        self.settings.get(&(place, path.to_owned())).cloned()
    }

    /// Writes a setting.
    pub(super) fn set(&mut self, path: &str, value: &str) {
        let place = self.inside.last().map(|(place, _)| *place);
        let before = self.settings.insert((place, path.to_owned()), value.to_owned());
        if before.as_deref() != Some(value) {
            let prefix = self.prefix();
            self.push(&prefix, &format!("sysctl -w {path}={value}"));
        }
    }
}
