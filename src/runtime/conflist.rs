//! Network configurations: from files, by name, from a directory (reference: core.md 3.1, 3.4, 3.5, 4.4).
//!
//! As in libcni, except that a broken file is reported and does not hide the good ones after it.

use std::borrow::Cow;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::cni::error::ResultExt;
use crate::cni::json::Value;
use crate::cni::names::check_network_name;
use crate::cni::{Code, Error, Result, Version};

/// A network: the plugins that are called one after the other to attach a container.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// `name`.
    pub name: String,
    /// `cniVersion` as written; empty when absent.
    pub version: String,
    /// The plugins' own objects, as written; each has a `type`.
    pub plugins: Vec<Value>,
}

/// Network configurations of a directory, and what was wrong with the others.
pub struct Directory {
    dir: PathBuf,
    candidates: usize,
    /// Those that can be used: lists before single configurations, each in byte order of path.
    networks: Vec<(PathBuf, NetworkList)>,
    /// What cannot be used; each error names the file.
    pub broken: Vec<Error>,
}

impl NetworkList {
    /// Reads a list or a single plugin's configuration; `plugins` in it tells which.
    ///
    /// # Errors
    /// [`Code::DECODING`] or [`Code::INVALID_CONFIG`] with line and column, or the key.
    pub fn parse(bytes: &[u8]) -> Result<NetworkList> {
        let document = parse(bytes)?;
        match member(&document, "plugins") {
            Some(_) => NetworkList::from_list(&document, Vec::new()),
            None => NetworkList::from_single(&document),
        }
    }

    /// Reads the file at `path`, of whatever extension, with its folder of plugins if it is a list.
    ///
    /// # Errors
    /// As for [`NetworkList::parse`], the path in front.
    pub fn load(path: &Path) -> Result<NetworkList> {
        let load = || {
            let document = parse(&read(path)?)?;
            let is_list = has_extension(path, "conflist") || member(&document, "plugins").is_some();
            match is_list {
                true => NetworkList::from_list(&document, folder_plugins(path, &document)?),
                false => NetworkList::from_single(&document),
            }
        };
        load().context(path.display())
    }

    /// A list: its own keys match exactly, those of the plugins without regard to case. `more`: plugins of the folder.
    fn from_list(document: &Value, more: Vec<Value>) -> Result<NetworkList> {
        let name = text(document, "name")?.unwrap_or_default().into_owned();
        check_network_name(&name)?;
        let mut plugins = match member(document, "plugins") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err(Error::new(Code::DECODING, "plugins: expected a list")),
        };
        for (i, plugin) in plugins.iter().enumerate() {
            plugin_type(plugin).context(format_args!("plugins[{i}]"))?;
        }
        plugins.extend(more);
        if plugins.is_empty() {
            return Err(Error::config("no plugin configs found"));
        }
        Ok(NetworkList { name, version: negotiate(document)?, plugins })
    }

    /// A single configuration as a list of one.
    fn from_single(document: &Value) -> Result<NetworkList> {
        plugin_type(document)?;
        let read = |key: &str| match document.get(key).as_deref() {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(Error::new(Code::DECODING, format!("{key}: expected a string"))),
        };
        let name = read("name")?;
        check_network_name(&name)?;
        Ok(NetworkList { name, version: read("cniVersion")?, plugins: vec![document.clone()] })
    }
}

impl Directory {
    /// Reads all configurations of a directory: `.conflist`, then `.conf` and `.json`. A directory that is missing has
    /// none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(dir: &Path) -> Result<Directory> {
        let files = files(dir)?;
        let (lists, singles): (Vec<_>, Vec<_>) = files
            .into_iter()
            .filter(|path| ["conf", "conflist", "json"].iter().any(|e| has_extension(path, e)))
            .partition(|path| has_extension(path, "conflist"));
        let mut found = Directory {
            dir: dir.to_owned(),
            candidates: lists.len() + singles.len(),
            networks: Vec::new(),
            broken: Vec::new(),
        };
        for path in lists.into_iter().chain(singles) {
            match NetworkList::load(&path) {
                Ok(network) => found.networks.push((path, network)),
                Err(e) => found.broken.push(e),
            }
        }
        Ok(found)
    }

    /// The network of that name; a list wins over a single configuration.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<&NetworkList> {
        let found = self.networks.iter().find(|(_, network)| network.name == name);
        found.map(|(_, network)| network).ok_or_else(|| {
            let dir = self.dir.display();
            if self.candidates == 0 {
                return Error::config(format!("no net configurations found in {dir}"));
            }
            let known: Vec<&str> = self.networks.iter().map(|(_, n)| n.name.as_str()).collect();
            Error::config(format!("no net configuration with name {name:?} in {dir}"))
                .with_details(format!("there are: {}", known.join(", ")))
        })
    }

    /// The network that stands first in order of file names, as container runtimes choose theirs; `None` when the
    /// directory has no configurations.
    ///
    /// # Errors
    /// There are configurations, and none of them can be used.
    pub fn first(&self) -> Result<Option<&NetworkList>> {
        let first = self.networks.iter().min_by_key(|(path, _)| path.as_os_str());
        match first {
            None if self.candidates > 0 => Err(Error::config(format!(
                "none of the {} configurations in {} can be used",
                self.candidates,
                self.dir.display()
            ))),
            first => Ok(first.map(|(_, network)| network)),
        }
    }
}

/// The `type` of a plugin's object.
///
/// # Errors
/// It is missing, or no string.
pub fn plugin_type(plugin: &Value) -> Result<String> {
    if !matches!(plugin, Value::Object(_)) {
        return Err(Error::new(Code::DECODING, "expected an object"));
    }
    match plugin.get("type").as_deref() {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        None | Some(Value::String(_)) => Err(Error::config("missing 'type'")),
        Some(_) => Err(Error::new(Code::DECODING, "type: expected a string")),
    }
}

/// The version to use: the highest of `cniVersion` and `cniVersions` that we speak; what `cniVersion` says when there is
/// none.
fn negotiate(document: &Value) -> Result<String> {
    let written = text(document, "cniVersion")?.unwrap_or_default();
    let offered = match member(document, "cniVersions") {
        None => return Ok(written.into_owned()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(Error::new(Code::DECODING, "cniVersions: expected a list of strings")),
    };
    let mut best = Version::from_text(&written).filter(|_| !written.is_empty());
    for (i, item) in offered.iter().enumerate() {
        let Value::String(text) = item else {
            return Err(Error::new(Code::DECODING, format!("cniVersions[{i}]: expected a string")));
        };
        best = best.max(Version::from_text(text).filter(|_| !text.is_empty()));
    }
    Ok(best.map_or(written.into_owned(), |version| version.as_str().to_owned()))
}

/// The plugins in the folder beside a list that is called as its network: `*.conf` in order of names.
fn folder_plugins(path: &Path, document: &Value) -> Result<Vec<Value>> {
    if flag(document, "loadOnlyInlinedPlugins")? {
        return match member(document, "plugins") {
            Some(_) => Ok(Vec::new()),
            None => Err(Error::config("loadOnlyInlinedPlugins is set, and there is no \"plugins\" key")),
        };
    }
    let name = text(document, "name")?.unwrap_or_default();
    check_network_name(&name)?;
    let folder = path.parent().unwrap_or(Path::new("")).join(name.as_ref());
    let files = files(&folder)?.into_iter().filter(|file| has_extension(file, "conf"));
    let load = |file: PathBuf| {
        let plugin = read(&file).and_then(|bytes| parse(&bytes)).context(file.display())?;
        plugin_type(&plugin).context(file.display())?;
        Ok(plugin)
    };
    files.map(load).collect()
}

/// A switch of a list: a boolean, or the words true and false in any case.
fn flag(document: &Value, key: &str) -> Result<bool> {
    match member(document, key) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(Error::new(Code::DECODING, format!("{key}: expected true or false"))),
    }
}

/// A list's string; `None` when absent or null.
fn text<'a>(document: &'a Value, key: &str) -> Result<Option<Cow<'a, str>>> {
    match member(document, key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.into())),
        Some(_) => Err(Error::new(Code::DECODING, format!("{key}: expected a string"))),
    }
}

/// A list's member, its key written exactly so; the last one counts.
fn member<'a>(document: &'a Value, key: &str) -> Option<&'a Value> {
    match document {
        Value::Object(members) => members.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value),
        _ => None,
    }
}

fn parse(bytes: &[u8]) -> Result<Value> {
    if bytes.trim_ascii().is_empty() {
        return Err(Error::new(Code::DECODING, "the file is empty"));
    }
    Value::parse(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::io("read", &e))
}

/// The files of a directory in byte order, directories left out; none when it does not exist.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| Error::io(format_args!("read {}", dir.display()), &e);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("cni-all-conflist.{}.{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for (file, content) in files {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    fn types(network: &NetworkList) -> Vec<String> {
        network.plugins.iter().map(|p| plugin_type(p).unwrap()).collect()
    }

    #[test]
    fn lists_win_over_single_files_and_broken_files_hide_nothing() {
        let dir = dir(
            "order",
            &[
                ("00-broken.conflist", "{\n  \"name\": \"net\",\n  oops\n}"),
                ("05-net.conf", r#"{"Name":"net","TYPE":"single"}"#),
                ("10-net.conflist", r#"{"name":"net","plugins":[{"type":"list"}]}"#),
                ("20-net.conflist", r#"{"name":"net","plugins":[{"type":"later"}]}"#),
                ("30-list.conf", r#"{"name":"wrong","plugins":[{"type":"x"}]}"#),
                ("40-upper.CONF", r#"{"name":"upper","type":"x"}"#),
                ("50-single.conflist", r#"{"name":"single","type":"x"}"#),
                ("sub.conf/file", ""),
            ],
        );
        let read = Directory::read(&dir).unwrap();
        assert_eq!(types(read.find("net").unwrap()), ["list"]);
        assert_eq!(types(read.first().unwrap().unwrap()), ["single"]);
        assert!(read.find("upper").is_err() && read.find("single").is_err());
        let broken: Vec<String> = read.broken.iter().map(Error::to_string).collect();
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(
            broken[0].contains("00-broken.conflist") && broken[0].contains("line 3 column 3"),
            "{broken:?}"
        );
        assert!(broken[1].contains("50-single.conflist: no plugin configs found"), "{broken:?}");
        fs::remove_dir_all(&dir).unwrap();
        assert!(Directory::read(&dir).unwrap().first().unwrap().is_none());
    }

    #[test]
    fn a_folder_adds_plugins_after_the_inlined_ones() {
        let with = |keys: &str| format!(r#"{{"name":"net"{keys}}}"#);
        let files = |list: &str| {
            dir(
                "folder",
                &[
                    ("net.conflist", list),
                    ("net/20-b.conf", r#"{"type":"b"}"#),
                    ("net/10-a.conf", r#"{"type":"a"}"#),
                    ("net/30-c.json", r#"{"type":"c"}"#),
                ],
            )
        };
        let load = |keys: &str| NetworkList::load(&files(&with(keys)).join("net.conflist"));
        let inlined = r#","plugins":[{"type":"first"}]"#;
        assert_eq!(types(&load(inlined).unwrap()), ["first", "a", "b"]);
        assert_eq!(types(&load("").unwrap()), ["a", "b"]);
        let only = r#","loadOnlyInlinedPlugins":"True","plugins":[{"type":"first"}]"#;
        assert_eq!(types(&load(only).unwrap()), ["first"]);
        assert!(load(r#","loadOnlyInlinedPlugins":true"#).is_err());
        fs::remove_dir_all(files("{}")).unwrap();
    }

    #[test]
    fn the_highest_version_offered_is_used() {
        let version = |keys: &str| {
            let text = format!(r#"{{"name":"n","plugins":[{{"type":"x"}}]{keys}}}"#);
            NetworkList::parse(text.as_bytes()).map(|n| n.version)
        };
        assert_eq!(version("").unwrap(), "");
        assert_eq!(version(r#","cniVersion":"9.0.0""#).unwrap(), "9.0.0");
        assert_eq!(version(r#","cniVersion":"0.4.0","cniVersions":["1.0.0","2.0.0"]"#).unwrap(), "1.0.0");
        assert_eq!(version(r#","cniVersion":"2.0.0","cniVersions":["0.3.1"]"#).unwrap(), "0.3.1");
        assert_eq!(version(r#","cniVersion":"0.4.0","cniVersions":[]"#).unwrap(), "0.4.0");
        assert!(version(r#","cniVersions":null"#).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("", "the file is empty"),
            (r#"{"name":"n"}"#, "missing 'type'"),
            (r#"{"type":"x"}"#, "missing network name"),
            (r#"{"name":"n","plugins":[{"type":"x"},{}]}"#, "plugins[1]: missing 'type'"),
            (r#"{"name":"n","plugins":[]}"#, "no plugin configs found"),
            (r#"{"name":"n","plugins":{}}"#, "plugins: expected a list"),
            (r#"{"name":5,"plugins":[{"type":"x"}]}"#, "name: expected a string"),
        ] {
            let err = NetworkList::parse(text.as_bytes()).unwrap_err();
            assert!(err.msg().contains(says), "{text}: {err}");
        }
    }
}
