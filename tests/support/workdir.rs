//! A test's own directory: links to the plugins, host-local's store, scratch files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

use serde_json::Value;

use super::Call;

/// The personalities under test; each gets a link in [`Workdir::bin`].
pub const PLUGINS: &[&str] = &[
    "bandwidth",
    "bridge",
    "dhcp",
    "dummy",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tc-redirect-tap",
    "tuning",
    "vlan",
    "vrf",
];

const PREFIX: &str = "cni-all-test.";

/// The executable under test: cargo's build, or what `CNI_ALL_TEST_EXE` names.
pub fn executable() -> PathBuf {
    std::env::var_os("CNI_ALL_TEST_EXE")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_cni-all")), PathBuf::from)
}

/// The directory of plugins to test instead of ours (`CNI_ALL_TEST_PLUGINS`), if any.
pub fn foreign_plugins() -> Option<PathBuf> {
    std::env::var_os("CNI_ALL_TEST_PLUGINS").map(PathBuf::from)
}

/// A directory below the system's temporary one, removed on drop.
pub struct Workdir {
    root: PathBuf,
}

impl Workdir {
    /// A fresh directory with `bin/` (one link per plugin) and `data/` (for host-local).
    pub fn new() -> Arc<Workdir> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        SWEEP.call_once(remove_leftovers);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("{PREFIX}{}.{count}", std::process::id()));
        for dir in ["bin", "data", "netns"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        let workdir = Workdir { root };
        for name in PLUGINS {
            let target = foreign_plugins().map_or_else(executable, |dir| dir.join(name));
            std::os::unix::fs::symlink(target, workdir.bin().join(name)).unwrap();
        }
        Arc::new(workdir)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the links to the plugins are: the value of `CNI_PATH`.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// For `"dataDir"` of host-local.
    pub fn data_dir(&self) -> String {
        self.root.join("data").to_str().unwrap().to_owned()
    }

    /// The addresses that host-local's store holds for a network, sorted as text.
    pub fn leases(&self, network: &str) -> Vec<String> {
        leases_in(&self.root.join("data").join(network))
    }

    /// Writes a file below the directory (folders are made) and returns its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Writes an executable script below the directory and returns its path.
    ///
    /// Another process writes it: a descriptor open for writing here could be inherited for a moment by a fork of a
    /// parallel test, and executing the script would then fail with "text file busy".
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut child = Command::new("/bin/sh")
            .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "cannot write {}", path.display());
        path
    }

    /// A call of the plugin of that name through its link, with every `CNI_*` variable but `CNI_COMMAND` set: see
    /// [`Call::new`].
    pub fn call(&self, plugin: &str) -> Call {
        Call::new(&self.bin().join(plugin), &self.bin())
    }

    /// A call of the plugin that a configuration's `type` names, with that configuration on standard input.
    pub fn request(&self, command: &str, config: &Value) -> Call {
        let plugin = config["type"].as_str().expect("the configuration has a type");
        self.call(plugin).command(command).config(config)
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The names of the address files of one host-local directory, sorted.
pub fn leases_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
        .collect();
    names.sort();
    names
}

/// Removes the directories (and the namespaces mounted in them) of test processes that are gone.
fn remove_leftovers() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else { continue };
        let Some(pid) = rest.split('.').next().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        for mounted in fs::read_dir(entry.path().join("netns")).into_iter().flatten().flatten() {
            let _ = nix::mount::umount2(&mounted.path(), nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}
