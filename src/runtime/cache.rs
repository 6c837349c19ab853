//! What ADD returned, kept for CHECK, DEL and GC in libcni's place and format, so that either finds what the other
//! attached: `<cache directory>/results/NETWORK-CONTAINER-IFNAME` (reference: core.md 4.2).
//!
//! A file appears complete, by rename. The names in it decide whose it is: those of the file can mean several.
//! The directory is locked (flock(2)) shared by ADD, DEL and update, and exclusively by GC; an attachment's file shared by
//! its DEL, and exclusively by its update.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use super::base64;
use crate::cni::json::Value;
use crate::cni::{CniResult, Code, Error, Result, ResultExt, Version};
use crate::kernel::{dry_run, lock};

/// `kind` of a file in today's format.
const KIND: &str = "cniCacheV1";

/// What the names of files begin with that are being written.
const NEW: &str = ".cni-all-result.";

/// What the result cache holds about one attachment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CachedAttachment {
    /// The network's name.
    pub network: String,
    /// The container's id.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// Path of the container's network namespace; empty when it was not told.
    pub netns: String,
    /// `CNI_ARGS` of ADD.
    pub args: Vec<(String, String)>,
    /// The capability arguments of ADD: name and value.
    pub capability_args: Vec<(String, Value)>,
    /// The bytes of the network's configuration at ADD; empty in files of old releases.
    pub config: Vec<u8>,
    /// What ADD returned, in the version it was returned in.
    pub(super) result: Option<Value>,
}

impl CachedAttachment {
    /// What ADD returned; `None` when that was not kept.
    ///
    /// # Errors
    /// [`Code::DECODING`] when it is no result of a known version.
    pub fn result(&self) -> Result<Option<CniResult>> {
        let Some(value) = &self.result else { return Ok(None) };
        let version = match value.get("cniVersion").as_deref() {
            None => Version::V0_1_0,
            Some(Value::String(text)) => Version::from_text(text).ok_or_else(|| {
                Error::new(Code::DECODING, format!("unsupported CNI result version {text:?}"))
            })?,
            Some(_) => return Err(Error::new(Code::DECODING, "the result's cniVersion is not a string")),
        };
        CniResult::from_json(value, version).map(Some)
    }

    /// Path of the container's namespace, also where it is only told by the result, as by older releases of libcni.
    pub fn namespace(&self) -> Option<String> {
        let result = || self.result().ok().flatten().unwrap_or_default();
        let told = || result().interfaces.into_iter().map(|interface| interface.sandbox);
        Some(self.netns.clone()).into_iter().chain(told()).find(|path| !path.is_empty())
    }

    /// Reads a file: today's format, or the bare result that libcni wrote before 0.8.
    fn parse(bytes: &[u8]) -> Result<CachedAttachment> {
        let document = Value::parse(bytes)?;
        let text = |key: &str| match document.get(key).as_deref() {
            Some(Value::String(text)) => text.clone(),
            _ => String::new(),
        };
        if text("kind") != KIND {
            return Ok(CachedAttachment { result: Some(document), ..CachedAttachment::default() });
        }
        let config = base64::decode(&text("config"))
            .ok_or_else(|| Error::new(Code::DECODING, "config: expected base 64"))?;
        let args = match document.get("cniArgs").as_deref() {
            Some(Value::Array(pairs)) => pairs
                .iter()
                .map(pair)
                .collect::<Option<_>>()
                .ok_or_else(|| Error::new(Code::DECODING, "cniArgs: expected pairs of strings"))?,
            _ => Vec::new(),
        };
        let capability_args = match document.get("capabilityArgs").as_deref() {
            Some(Value::Object(members)) => members.clone(),
            _ => Vec::new(),
        };
        Ok(CachedAttachment {
            network: text("networkName"),
            container_id: text("containerId"),
            ifname: text("ifName"),
            netns: text("netns"),
            args,
            capability_args,
            config,
            result: document.get("result").map(|result| result.into_owned()),
        })
    }

    fn to_text(&self) -> String {
        let text = |value: &str| Value::String(value.to_owned());
        let mut members = vec![
            ("kind", text(KIND)),
            ("containerId", text(&self.container_id)),
            ("config", Value::String(base64::encode(&self.config))),
            ("ifName", text(&self.ifname)),
            ("networkName", text(&self.network)),
        ];
        if !self.netns.is_empty() {
            members.push(("netns", text(&self.netns)));
        }
        if !self.args.is_empty() {
            let pairs = self.args.iter().map(|(key, value)| Value::Array(vec![text(key), text(value)]));
            members.push(("cniArgs", Value::Array(pairs.collect())));
        }
        if !self.capability_args.is_empty() {
            members.push(("capabilityArgs", Value::Object(self.capability_args.clone())));
        }
        members.extend(self.result.clone().map(|result| ("result", result)));
        let members = members.into_iter().map(|(key, value)| (key.to_owned(), value));
        Value::Object(members.collect()).to_text()
    }
}

/// A pair of strings.
fn pair(value: &Value) -> Option<(String, String)> {
    match value {
        Value::Array(items) => match items.as_slice() {
            [Value::String(key), Value::String(value)] => Some((key.clone(), value.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// The cache below one directory.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    results: PathBuf,
}

/// Held while the cache and what it tells about are changed; see the module.
pub(super) struct Lock {
    _lock: Option<Flock<File>>,
}

impl Cache {
    /// The cache below `dir`, such as `/var/lib/cni`. Nothing is made yet.
    pub(super) fn below(dir: &Path) -> Cache {
        let results = dry_run::files(dir.join("results"));
        let dir = results.parent().unwrap_or(dir).to_owned();
        Cache { dir, results }
    }

    /// Waits until nobody changes everything (`exclusive`: anything). A directory that does not exist is made with
    /// `make`, and needs no lock otherwise.
    ///
    /// # Errors
    /// The failed system call.
    pub(super) fn lock(&self, exclusive: bool, make: bool) -> Result<Lock> {
        let results = &self.results;
        if make {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(results)
                .map_err(|e| Error::io(format_args!("mkdir -p {}", results.display()), &e))?;
        }
        let dir = match File::open(results) {
            Ok(dir) => dir,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Lock { _lock: None }),
            Err(e) => return Err(Error::io(format_args!("open {}", results.display()), &e)),
        };
        Ok(Lock { _lock: Some(lock::lock(dir, exclusive, &results.display())?) })
    }

    /// Waits until nobody updates an attachment (`exclusive`: or deletes it). What is not kept needs no lock.
    ///
    /// # Errors
    /// The failed system call.
    pub(super) fn lock_attachment(&self, of: (&str, &str, &str), exclusive: bool) -> Result<Lock> {
        let path = self.path(of.0, of.1, of.2);
        loop {
            let Ok(file) = File::open(&path) else { return Ok(Lock { _lock: None }) };
            let locked = lock::lock(file, exclusive, &path.display())?;
            // Who had it may have put another file in its place.
            let is_there =
                |there: fs::Metadata| locked.metadata().is_ok_and(|held| held.ino() == there.ino());
            if fs::metadata(&path).map_or(true, is_there) {
                return Ok(Lock { _lock: Some(locked) });
            }
        }
    }

    fn path(&self, network: &str, container_id: &str, ifname: &str) -> PathBuf {
        self.results.join(format!("{network}-{container_id}-{ifname}"))
    }

    /// Keeps an attachment, in the place of what was kept about it.
    ///
    /// # Errors
    /// The failed system call.
    pub(super) fn write(&self, attachment: &CachedAttachment) -> Result<()> {
        let CachedAttachment { network, container_id, ifname, .. } = attachment;
        let path = self.path(network, container_id, ifname);
        let failed = |e: std::io::Error| Error::io(format_args!("write {}", path.display()), &e);
        let (mut file, new) = self.create().map_err(failed)?;
        let written = file.write_all(attachment.to_text().as_bytes()).and_then(|()| fs::rename(&new, &path));
        written.map_err(|e| {
            let _ = fs::remove_file(&new);
            failed(e)
        })
    }

    /// A new file beside the directory of results, which libcni reads whole. Its name is nobody else's: other threads, and
    /// processes with the same number in another PID namespace, write here as well.
    fn create(&self) -> std::io::Result<(File, PathBuf)> {
        let mut number = 0;
        loop {
            let path = self.dir.join(format!("{NEW}{}.{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => number += 1,
                opened => return opened.map(|file| (file, path)),
            }
        }
    }

    /// Removes what writers left that were killed. Nobody may be writing: for one who has the lock for himself.
    pub(super) fn tidy(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(NEW) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// What is kept about an attachment; `None` when there is nothing, or only of another one under the same file name.
    ///
    /// # Errors
    /// [`Code::DECODING`], naming the file.
    pub(super) fn read(
        &self,
        network: &str,
        container_id: &str,
        ifname: &str,
    ) -> Result<Option<CachedAttachment>> {
        let path = self.path(network, container_id, ifname);
        // As in libcni, what cannot be read is not there.
        let Ok(bytes) = fs::read(&path) else { return Ok(None) };
        let mut found = CachedAttachment::parse(&bytes).context(path.display())?;
        if found.network.is_empty() && found.container_id.is_empty() {
            // A bare result has no names but the file's.
            found.network = network.to_owned();
            found.container_id = container_id.to_owned();
            found.ifname = ifname.to_owned();
        }
        let same = (found.network.as_str(), found.container_id.as_str(), found.ifname.as_str())
            == (network, container_id, ifname);
        Ok(Some(found).filter(|_| same))
    }

    /// Forgets an attachment.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub(super) fn remove(&self, network: &str, container_id: &str, ifname: &str) -> Result<()> {
        // One of another attachment stays.
        if matches!(self.read(network, container_id, ifname), Ok(None)) {
            return Ok(());
        }
        let path = self.path(network, container_id, ifname);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::io(format_args!("rm {}", path.display()), &e))
            }
            _ => Ok(()),
        }
    }

    /// All attachments in today's format, in order of file names. Files that cannot be read are left out.
    ///
    /// # Errors
    /// The directory is there and cannot be listed.
    pub(super) fn list(&self) -> Result<Vec<CachedAttachment>> {
        let failed = |e: std::io::Error| Error::io(format_args!("ls {}", self.results.display()), &e);
        let entries = match fs::read_dir(&self.results) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut paths =
            entries.map(|entry| entry.map(|e| e.path()).map_err(failed)).collect::<Result<Vec<PathBuf>>>()?;
        paths.sort();
        let read = |path: PathBuf| CachedAttachment::parse(&fs::read(path).ok()?).ok();
        let named = |a: &CachedAttachment| !a.network.is_empty() && !a.ifname.is_empty();
        Ok(paths.into_iter().filter_map(read).filter(named).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(name: &str) -> Cache {
        let dir = std::env::temp_dir().join(format!("cni-all-cache.{}.{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let cache = Cache::below(&dir);
        drop(cache.lock(false, true).unwrap());
        cache
    }

    fn value(json: &str) -> Value {
        Value::parse(json.as_bytes()).unwrap()
    }

    fn attachment() -> CachedAttachment {
        CachedAttachment {
            network: "net".into(),
            container_id: "a-b".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            args: vec![("IP".into(), "10.1.0.9".into())],
            capability_args: vec![("ips".into(), value(r#"["10.1.0.9"]"#))],
            config: br#"{"name":"net"}"#.to_vec(),
            result: Some(value(r#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.9/24"}]}"#)),
        }
    }

    #[test]
    fn a_file_is_what_libcni_writes_and_reads_back_equal() {
        let cache = cache("format");
        cache.write(&attachment()).unwrap();
        let path = cache.results.join("net-a-b-eth0");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"cniCacheV1","containerId":"a-b","config":"eyJuYW1lIjoibmV0In0=","ifName":"eth0","networkName":"net","netns":"/run/netns/x","cniArgs":[["IP","10.1.0.9"]],"capabilityArgs":{"ips":["10.1.0.9"]},"result":{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.9/24"}]}}"#
        );
        let read = cache.read("net", "a-b", "eth0").unwrap().unwrap();
        assert_eq!(read, attachment());
        assert_eq!(read.result().unwrap().unwrap().ips[0].address.to_string(), "10.1.0.9/24");
        assert_eq!(cache.list().unwrap(), [attachment()]);
        let mode =
            |path: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
        assert_eq!((mode(&path) & 0o777, mode(&cache.results) & 0o777), (0o600, 0o700));
        cache.remove("net", "a-b", "eth0").unwrap();
        cache.remove("net", "a-b", "eth0").unwrap();
        assert!(cache.read("net", "a-b", "eth0").unwrap().is_none() && cache.list().unwrap().is_empty());
        fs::remove_dir_all(&cache.dir).unwrap();
    }

    #[test]
    fn two_who_write_at_once_have_files_of_their_own_and_collecting_removes_left_ones() {
        let cache = cache("writers");
        let (first, second) = (cache.create().unwrap(), cache.create().unwrap());
        assert_ne!(first.1, second.1);
        cache.write(&attachment()).unwrap();
        assert!(first.1.exists() && second.1.exists());
        cache.tidy();
        assert!(!first.1.exists() && !second.1.exists());
        assert_eq!(cache.list().unwrap(), [attachment()]);
        fs::remove_dir_all(&cache.dir).unwrap();
    }

    #[test]
    fn another_attachment_under_the_same_file_name_is_left_alone() {
        let cache = cache("ambiguous");
        cache.write(&attachment()).unwrap();
        assert!(cache.read("net-a", "b", "eth0").unwrap().is_none());
        cache.remove("net-a", "b", "eth0").unwrap();
        assert!(cache.read("net", "a-b", "eth0").unwrap().is_some());
        fs::remove_dir_all(&cache.dir).unwrap();
    }

    #[test]
    fn a_bare_result_of_an_old_release_is_still_a_result() {
        let cache = cache("legacy");
        let text = r#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.1.0.9/24"}]}"#;
        fs::write(cache.results.join("net-c-eth0"), text).unwrap();
        fs::write(cache.results.join("net-d-eth0"), "{").unwrap();
        let read = cache.read("net", "c", "eth0").unwrap().unwrap();
        assert_eq!(read.result().unwrap().unwrap().ips.len(), 1);
        assert!(cache.read("net", "d", "eth0").unwrap_err().msg().contains("net-d-eth0"));
        assert!(cache.list().unwrap().is_empty());
        cache.remove("net", "d", "eth0").unwrap();
        assert!(cache.read("net", "d", "eth0").unwrap().is_none());
        fs::remove_dir_all(&cache.dir).unwrap();
    }
}
