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
use crate::cni::place::{Place, Position, position};
use crate::cni::{Code, Error, Result, Version};
use crate::plugins;

/// A network: the plugins that are called one after the other to attach a container.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// `name`.
    pub name: String,
    /// `cniVersion` as written; empty when absent.
    pub version: String,
    /// The plugins' own objects, as written; each has a `type`.
    pub plugins: Vec<Value>,
    /// `disableCheck`: CHECK does nothing.
    pub disable_check: bool,
    /// `disableGC`: GC does nothing.
    pub disable_gc: bool,
    /// `log`: where a line about every operation goes, `stderr` or a file; empty for nowhere.
    pub log: String,
    /// The bytes it was read from, for the result cache.
    pub bytes: Vec<u8>,
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
            Some(_) => NetworkList::from_list(&document, Vec::new(), bytes),
            None => NetworkList::from_single(&document, bytes),
        }
    }

    /// Reads the file at `path`, of whatever extension, with its folder of plugins if it is a list.
    ///
    /// # Errors
    /// As for [`NetworkList::parse`], the path in front; for a value that is not valid, its line and column, too.
    pub fn load(path: &Path) -> Result<NetworkList> {
        let bytes = read(path).context(path.display())?;
        let load = || {
            let document = parse(&bytes)?;
            let is_list = has_extension(path, "conflist") || member(&document, "plugins").is_some();
            match is_list {
                true => {
                    let folder = Folder::of(&document, path)?;
                    Ok((document, Some(folder)))
                }
                false => Ok((document, None)),
            }
        };
        let (document, folder) = load().map_err(|e| located(e, path, &bytes))?;
        match folder {
            Some(folder) => {
                let more = folder.plugins()?;
                NetworkList::from_list(&document, more, &bytes)
            }
            None => NetworkList::from_single(&document, &bytes),
        }
        .map_err(|e| located(e, path, &bytes))
    }

    /// The capabilities that a plugin of the list declares and has not turned off, each once, in order of name.
    pub fn capabilities(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.plugins.iter().filter_map(|plugin| capabilities(plugin).ok()).flatten().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// A list: its own keys match exactly, those of the plugins without regard to case. `more`: plugins of the folder.
    fn from_list(document: &Value, more: Vec<Value>, bytes: &[u8]) -> Result<NetworkList> {
        let name = text(document, "name")?.unwrap_or_default().into_owned();
        check_network_name(&name)?;
        let mut plugins = match member(document, "plugins") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err(Error::new(Code::DECODING, "plugins: expected a list")),
        };
        for (i, plugin) in plugins.iter().enumerate() {
            plugin_type(plugin).and_then(|_| capabilities(plugin)).context(format_args!("plugins[{i}]"))?;
        }
        plugins.extend(more);
        if plugins.is_empty() {
            return Err(Error::config("no plugin configs found"));
        }
        Ok(NetworkList {
            name,
            version: negotiate(document)?,
            plugins,
            disable_check: flag(document, "disableCheck")?,
            disable_gc: flag(document, "disableGC")?,
            log: log(document),
            bytes: bytes.to_vec(),
        })
    }

    /// A single configuration as a list of one. A name is needed, except by plugins that use it for nothing.
    fn from_single(document: &Value, bytes: &[u8]) -> Result<NetworkList> {
        let plugin = plugins::find(&plugin_type(document)?);
        capabilities(document)?;
        let read = |key: &str| match document.get(key).as_deref() {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(Error::new(Code::DECODING, format!("{key}: expected a string"))),
        };
        let name = read("name")?;
        if !(name.is_empty() && plugin.is_some_and(|plugin| plugin.nameless())) {
            check_network_name(&name)?;
        }
        Ok(NetworkList {
            name,
            version: read("cniVersion")?,
            plugins: vec![document.clone()],
            disable_check: false,
            disable_gc: false,
            log: log(document),
            bytes: bytes.to_vec(),
        })
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

/// The files of the folder of plugins that belongs to the list at `path`, in order; none when the list cannot be used.
pub(crate) fn folder_files(document: &Value, path: &Path) -> Vec<PathBuf> {
    Folder::of(document, path).and_then(|folder| folder.files()).unwrap_or_default()
}

/// The folder beside a list that is called as its network: `*.conf` in order of names, each one plugin.
struct Folder {
    /// `None` when the list wants inlined plugins only.
    path: Option<PathBuf>,
}

impl Folder {
    fn of(document: &Value, list: &Path) -> Result<Folder> {
        if flag(document, "loadOnlyInlinedPlugins")? {
            return match member(document, "plugins") {
                Some(_) => Ok(Folder { path: None }),
                None => Err(Error::config("loadOnlyInlinedPlugins is set, and there is no \"plugins\" key")),
            };
        }
        let name = text(document, "name")?.unwrap_or_default();
        check_network_name(&name)?;
        Ok(Folder { path: Some(list.parent().unwrap_or(Path::new("")).join(name.as_ref())) })
    }

    fn plugins(&self) -> Result<Vec<Value>> {
        self.files()?.iter().map(|file| Folder::load(file)).collect()
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let Some(path) = &self.path else { return Ok(Vec::new()) };
        Ok(files(path)?.into_iter().filter(|file| has_extension(file, "conf")).collect())
    }

    fn load(file: &Path) -> Result<Value> {
        let bytes = read(file).context(file.display())?;
        let load = || {
            let plugin = parse(&bytes)?;
            plugin_type(&plugin).and_then(|_| capabilities(&plugin))?;
            Ok(plugin)
        };
        load().map_err(|e| located(e, file, &bytes))
    }
}

/// The capabilities that a plugin's object declares and has not turned off.
///
/// # Errors
/// `capabilities` is not an object of booleans.
pub(crate) fn capabilities(plugin: &Value) -> Result<Vec<String>> {
    let wrong = |key: &str| Error::new(Code::DECODING, format!("{key}: expected true or false"));
    match plugin.get("capabilities").as_deref() {
        None => Ok(Vec::new()),
        Some(Value::Object(members)) => members
            .iter()
            .filter_map(|(name, on)| match on {
                Value::Bool(true) => Some(Ok(name.clone())),
                Value::Bool(false) | Value::Null => None,
                _ => Some(Err(wrong(&format!("capabilities.{name}")))),
            })
            .collect(),
        Some(_) => Err(Error::new(Code::DECODING, "capabilities: expected an object")),
    }
}

/// The error with path, line and column: those of the key that its message begins with, unless it says them already.
fn located(err: Error, path: &Path, bytes: &[u8]) -> Error {
    let text = String::from_utf8_lossy(bytes);
    if err.msg().contains(" at line ") || Value::parse(bytes).is_err() {
        return err.context(path.display());
    }
    // `plugins[1]: capabilities.mac: expected …` is about `plugins[1].capabilities.mac`.
    let words = err.msg().split(": ").take_while(|word| !word.contains(' '));
    let key = words.collect::<Vec<_>>().join(".");
    let Position { line, column } = position(&text, Place::of(&text).find(&key));
    let msg = format!("{}: {} at line {line} column {column}", path.display(), err.msg());
    Error::new(err.code(), msg).with_details(err.details())
}

/// Where the log goes. Other plugins may mean something else by this key, of another type.
fn log(document: &Value) -> String {
    match member(document, "log") {
        Some(Value::String(target)) => target.clone(),
        _ => String::new(),
    }
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
    files.sort_unstable();
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
    fn a_wrong_value_has_line_and_column_also_in_a_folder() {
        for (file, text, says) in [
            (
                "a.conflist",
                "{\"name\":\"n\",\n \"plugins\":[{\"type\":\"x\"},\n  {}]}",
                "plugins[1]: missing 'type' at line 3 column 3",
            ),
            (
                "a.conf",
                "{\"name\":\"n\",\"type\":\"x\",\n\"capabilities\":{\"mac\": 1}}",
                "capabilities.mac: expected true or false at line 2 column 24",
            ),
            ("a.conf", "{\"type\":\"x\"}", "missing network name at line 1 column 1"),
            ("n/a.conf", "{\n  \"type\": 5}", "type: expected a string at line 2 column 11"),
        ] {
            let dir = dir("located", &[("list.conflist", "{\"name\":\"n\"}"), (file, text)]);
            let load = if file.starts_with("n/") { "list.conflist" } else { file };
            let err = NetworkList::load(&dir.join(load)).unwrap_err();
            assert!(err.msg().contains(&format!("{file}: {says}")), "{err}");
            fs::remove_dir_all(&dir).unwrap();
        }
    }

    #[test]
    fn checks_and_collection_can_be_disabled_in_words_too() {
        let list = |keys: &str| {
            NetworkList::parse(format!(r#"{{"name":"n","plugins":[{{"type":"x"}}]{keys}}}"#).as_bytes())
        };
        let read = list(r#","disableCheck":"TRUE","disableGC":true"#).unwrap();
        assert!(read.disable_check && read.disable_gc);
        assert!(!list("").unwrap().disable_check);
        assert!(list(r#","disableCheck":null"#).is_err() && list(r#","disableGC":1"#).is_err());
    }

    #[test]
    fn declared_capabilities_are_listed_once() {
        let text = r#"{"name":"n","plugins":[{"type":"x","capabilities":{"mac":true,"ips":false}},
            {"type":"y","capabilities":{"portMappings":true,"mac":true}}]}"#;
        assert_eq!(NetworkList::parse(text.as_bytes()).unwrap().capabilities(), ["mac", "portMappings"]);
    }

    #[test]
    fn only_a_plugin_without_use_for_it_needs_no_name() {
        assert_eq!(NetworkList::parse(br#"{"type":"loopback"}"#).unwrap().name, "");
        assert!(NetworkList::parse(br#"{"type":"bridge"}"#).is_err());
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
