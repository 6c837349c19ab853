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
const WRITERS: [(&str, &str, bool); 4] = [
    ("host-local", "/var/lib/cni/networks", true),
    ("tuning", "/run/cni/tuning", false),
    ("flannel", "/var/lib/cni/flannel", false),
    ("host-device", "/run/cni/host-device", false),
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
    // Of a process that was killed and had the same number.
    let _ = fs::remove_dir_all(&path);
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
    let own = if *by_network { dir.join(network) } else { dir.clone() };
    let known = copies.iter().find(|copy| copy.original == own).map(|copy| copy.copy.clone());
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
        let below = |dir: &Path| if folder.is_empty() { dir.to_owned() } else { dir.join(folder) };
        let (original, copy) = (below(dir), below(place));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::PLUGINS;

    #[test]
    fn every_plugin_that_can_be_told_where_to_write_is_told() {
        for plugin in PLUGINS.iter().filter(|plugin| plugin.keys().iter().any(|key| key.name == "dataDir")) {
            assert!(WRITERS.iter().any(|(name, ..)| *name == plugin.name()), "{}", plugin.name());
        }
    }

    #[test]
    fn plugins_write_into_copies_and_the_lines_are_about_the_originals() {
        let scratch = scratch().unwrap();
        let data = scratch.0.join("data");
        for (file, text) in
            [("net/10.1.0.2", "c1\r\neth0"), ("net/.cni-all/x", "index"), ("other/10.9.0.2", "c9")]
        {
            let path = data.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let text = format!(
            r#"{{"name":"net","plugins":[{{"type":"x","ipam":{{"type":"host-local","DataDir":"{0}"}}}},{{"type":"y","ipam":{{"type":"host-local","dataDir":"{0}"}}}}]}}"#,
            data.display()
        );
        let network = NetworkList::parse(text.as_bytes()).unwrap();
        let (told, copies) = redirected(&network, &scratch.0).unwrap();
        assert_eq!(copies.len(), 1);
        for plugin in &told.plugins {
            let ipam = plugin.get("ipam").unwrap().into_owned();
            let dir = scratch.0.join("0").display().to_string();
            assert_eq!(ipam.get("dataDir").unwrap().into_owned(), Value::String(dir));
        }
        let copy = scratch.0.join("0/net");
        fs::remove_file(copy.join("10.1.0.2")).unwrap();
        fs::write(copy.join("10.1.0.3"), "it's 5%\r\n").unwrap();
        let net = data.join("net").display().to_string();
        let lines = copies[0].lines().unwrap();
        assert_eq!(
            lines,
            [format!(r"printf 'it'\''s 5%%\r\n' >{net}/10.1.0.3"), format!("rm {net}/10.1.0.2")]
        );
    }
}
