//! `--dry-run`: what an operation would change, one line for each change as an operator would type it.
//!
//! Changes of the kernel are recorded where they would be made. Files are written for real, into copies: plugins are told
//! other directories, and what is different in them afterwards are the lines.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cni::json::Value;
use crate::cni::{Error, Result};
use crate::kernel::dry_run::record;
use crate::runtime::{NetworkList, Runtime, plugin_type};

/// Plugins that write files: their type, where they write unless told otherwise, and whether each network has a folder
/// there. The key that tells is `dataDir`.
const WRITERS: [(&str, &str, bool); 3] = [
    ("host-local", "/var/lib/cni/networks", true),
    ("tuning", "/run/cni/tuning", false),
    ("flannel", "/var/lib/cni/flannel", false),
];

/// A directory and the copy that is written to in its place.
struct Copy {
    original: PathBuf,
    copy: PathBuf,
    before: Files,
}

/// Files below a directory, by their relative paths, and what is in them.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A directory that is removed with the value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// When files of plugins are written, as against what is done in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// ADD: addresses are reserved first, the result is kept last.
    FilesFirst,
    /// DEL: addresses are released last.
    FilesLast,
}

/// Runs an operation without doing it; what it would do.
///
/// # Errors
/// That of the operation.
pub fn preview<T>(
    runtime: &Runtime,
    network: &NetworkList,
    order: Order,
    operate: impl FnOnce(&Runtime, &NetworkList) -> Result<T>,
) -> Result<String> {
    let scratch = scratch()?;
    let cache = Copy::new(&runtime.cache_dir, "results", &scratch.0.join("cache"))?;
    let (network, copies) = redirected(network, &scratch.0)?;
    let runtime = Runtime { cache_dir: scratch.0.join("cache"), ..runtime.clone() };
    let (outcome, changes) = record(|| operate(&runtime, &network));
    outcome?;
    let mut files = Vec::new();
    for copy in &copies {
        files.extend(copy.lines()?);
    }
    let kept = cache.lines()?;
    let lines = match order {
        Order::FilesFirst => [files, changes.lines.clone(), kept],
        Order::FilesLast => [changes.lines.clone(), files, kept],
    };
    Ok(lines.concat().iter().map(|line| changes.describe(line) + "\n").collect())
}

fn scratch() -> Result<Scratch> {
    let path = std::env::temp_dir().join(format!("cni-all-dry-run.{}", std::process::id()));
    fs::create_dir(&path).map_err(|e| Error::io(format_args!("mkdir {}", path.display()), &e))?;
    Ok(Scratch(path))
}

/// The network with its writers told to write into copies below `scratch`.
fn redirected(network: &NetworkList, scratch: &Path) -> Result<(NetworkList, Vec<Copy>)> {
    let mut network = network.clone();
    let mut copies: Vec<Copy> = Vec::new();
    for plugin in &mut network.plugins {
        if let Some(ipam) = plugin.get("ipam").map(|ipam| ipam.into_owned()) {
            let ipam = redirect(ipam, &network.name, scratch, &mut copies)?;
            set(plugin, "ipam", ipam);
        }
        *plugin = redirect(plugin.clone(), &network.name, scratch, &mut copies)?;
    }
    Ok((network, copies))
}

fn redirect(mut plugin: Value, network: &str, scratch: &Path, copies: &mut Vec<Copy>) -> Result<Value> {
    let name = plugin_type(&plugin).unwrap_or_default();
    let Some((_, default, by_network)) = WRITERS.iter().find(|(writer, ..)| *writer == name) else {
        return Ok(plugin);
    };
    let dir = match plugin.get("dataDir").as_deref() {
        Some(Value::String(dir)) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(default),
    };
    let folder = if *by_network { network } else { "" };
    let known = copies.iter().find(|copy| copy.original == dir.join(folder)).map(|copy| copy.copy.clone());
    let place = match known {
        Some(copy) if *by_network => copy.parent().unwrap_or(scratch).to_owned(),
        Some(copy) => copy,
        None => {
            let place = scratch.join(copies.len().to_string());
            copies.push(Copy::new(&dir, folder, &place)?);
            place
        }
    };
    set(&mut plugin, "dataDir", Value::String(place.display().to_string()));
    Ok(plugin)
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(members) = object {
        members.retain(|(name, _)| !name.eq_ignore_ascii_case(key));
        members.push((key.to_owned(), value));
    }
}

impl Copy {
    /// A copy of `dir/folder` as `place/folder`.
    fn new(dir: &Path, folder: &str, place: &Path) -> Result<Copy> {
        let (original, copy) = (dir.join(folder), place.join(folder));
        let before = read(&original)?;
        let failed = |e: std::io::Error| Error::io(format_args!("copy {}", original.display()), &e);
        fs::create_dir_all(place).map_err(failed)?;
        for (path, content) in &before {
            let path = copy.join(path);
            fs::create_dir_all(path.parent().unwrap_or(&copy)).map_err(failed)?;
            fs::write(path, content).map_err(failed)?;
        }
        Ok(Copy { original, copy, before })
    }

    /// What is different now, as commands on the original.
    fn lines(&self) -> Result<Vec<String>> {
        let after = read(&self.copy)?;
        let mut lines = Vec::new();
        if self.before.is_empty() && !after.is_empty() && !self.original.exists() {
            lines.push(format!("mkdir -p {}", self.original.display()));
        }
        for (path, content) in &after {
            if self.before.get(path) != Some(content) {
                let text = escaped(&String::from_utf8_lossy(content));
                lines.push(format!("printf '{text}' >{}", self.original.join(path).display()));
            }
        }
        let gone = self.before.keys().filter(|path| !after.contains_key(*path));
        lines.extend(gone.map(|path| format!("rm {}", self.original.join(path).display())));
        Ok(lines)
    }
}

/// The regular files below a directory. Hidden folders hold indexes that can be made again, and are left out.
fn read(dir: &Path) -> Result<Files> {
    let failed = |path: &Path, e: &std::io::Error| Error::io(format_args!("read {}", path.display()), e);
    let mut files = Files::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(failed(&path, &e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| failed(&path, &e))?;
            let kind = entry.file_type().map_err(|e| failed(&path, &e))?;
            let relative = folder.join(entry.file_name());
            if kind.is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
                folders.push(relative);
            } else if kind.is_file() {
                let content = fs::read(entry.path()).map_err(|e| failed(&entry.path(), &e))?;
                files.insert(relative, content);
            }
        }
    }
    Ok(files)
}

/// As printf(1) takes it, in single quotes.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("'\\''"),
            '%' => out.push_str("%%"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out
}
