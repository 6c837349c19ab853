//! A network namespace that belongs to a test, and what it looks like from inside.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

/// A network namespace, bind-mounted at a path; gone on drop.
///
/// Commands are given as one line, split at white space: `netns.run("ip link set lo up")`.
pub struct Netns {
    path: PathBuf,
    fd: OwnedFd,
}

/// What a new namespace inherits from the host and hosts often change (below /proc/sys/net/ipv4/conf), with the kernel's
/// own values. The tests set what they need otherwise.
const INHERITED: [(&str, &str); 3] =
    [("all/forwarding", "0"), ("all/rp_filter", "0"), ("default/rp_filter", "0")];

impl Netns {
    /// Makes a namespace and mounts it at `path`, which must not exist. Its settings are the kernel's, not this host's.
    pub fn create(path: &Path) -> io::Result<Netns> {
        fs::write(path, "")?;
        let made = std::thread::scope(|scope| {
            let maker = scope.spawn(|| -> io::Result<OwnedFd> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                for (key, value) in INHERITED {
                    fs::write(format!("/proc/sys/net/ipv4/conf/{key}"), value)?;
                }
                let own = Path::new("/proc/thread-self/ns/net");
                mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                Ok(fs::File::open(own)?.into())
            });
            maker.join().unwrap()
        });
        match made {
            Ok(fd) => Ok(Netns { path: path.to_owned(), fd }),
            Err(err) => {
                let _ = fs::remove_file(path);
                Err(err)
            }
        }
    }

    /// The path for `CNI_NETNS`.
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// A descriptor of the namespace.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes the path away, as a runtime does that deletes the namespace before it calls DEL.
    pub fn unmount(&self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }

    /// Runs a closure on a thread inside the namespace. A socket made there stays in the namespace wherever it is used.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.fd, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The command, to be started inside the namespace.
    pub fn command(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().expect("a command"));
        command.args(words).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        let fd = self.fd.try_clone().unwrap();
        // SAFETY: setns is one system call; it allocates nothing.
        unsafe { command.pre_exec(move || Ok(setns(&fd, CloneFlags::CLONE_NEWNET)?)) };
        command
    }

    /// Runs a command inside, whatever its exit status.
    #[track_caller]
    pub fn try_run(&self, line: &str) -> Output {
        self.command(line).output().unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// Runs a command inside, which must succeed; its standard output.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs several `ip` commands in one process: `netns.ip(&["link set lo up", "addr add …"])`.
    #[track_caller]
    pub fn ip(&self, lines: &[&str]) {
        use std::io::Write;
        let mut command = self.command("ip -batch -");
        command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "ip {lines:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a command inside that prints JSON (`ip -j …`, `nft -j …`); null when it prints nothing.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        let text = self.run(line);
        if text.trim().is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}: {text}"))
    }

    /// A file below /proc/sys, trimmed: `netns.sysctl("net/ipv4/ip_forward")`.
    #[track_caller]
    pub fn sysctl(&self, key: &str) -> String {
        let path = format!("/proc/sys/{key}");
        self.enter(|| fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))).trim().to_owned()
    }

    /// Writes a file below /proc/sys.
    #[track_caller]
    pub fn set_sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.enter(|| fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    /// `ip -j -d link show NAME`, or `None` when there is no such link.
    pub fn find_link(&self, name: &str) -> Option<Value> {
        let output = self.try_run(&format!("ip -j -d link show dev {name}"));
        let links: Value = serde_json::from_slice(&output.stdout).ok()?;
        links.get(0).cloned()
    }

    /// `ip -j -d link show NAME` of a link that must exist.
    #[track_caller]
    pub fn link(&self, name: &str) -> Value {
        self.find_link(name).unwrap_or_else(|| panic!("no link {name}; there are {:?}", self.links()))
    }

    /// The names of all links but `lo`, sorted.
    pub fn links(&self) -> Vec<String> {
        self.links_where(|_| true)
    }

    /// The names of all links of a kind (`veth`, `bridge`), sorted.
    pub fn links_of_kind(&self, kind: &str) -> Vec<String> {
        self.links_where(|link| link["linkinfo"]["info_kind"] == kind)
    }

    fn links_where(&self, wanted: impl Fn(&Value) -> bool) -> Vec<String> {
        let links = self.json("ip -j -d link show");
        let links = links.as_array().cloned().unwrap_or_default();
        let mut names: Vec<String> = links
            .iter()
            .filter(|link| wanted(link))
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .filter(|name| name != "lo")
            .collect();
        names.sort();
        names
    }

    /// Whether a link has one of the flags that `ip link` shows in angle brackets (`UP`, `PROMISC`).
    #[track_caller]
    pub fn link_has(&self, name: &str, flag: &str) -> bool {
        self.link(name)["flags"].as_array().is_some_and(|flags| flags.iter().any(|f| f == flag))
    }

    /// The global addresses of a link as `ip addr` shows them, IPv4 first: `10.1.0.2/24`.
    #[track_caller]
    pub fn addresses(&self, link: &str) -> Vec<String> {
        let mut found = Vec::new();
        for entry in self.address_objects(link) {
            if entry["scope"] == "global" {
                found.push(format!("{}/{}", entry["local"].as_str().unwrap(), entry["prefixlen"]));
            }
        }
        found
    }

    /// The `addr_info` objects of `ip -j addr show dev LINK`.
    #[track_caller]
    pub fn address_objects(&self, link: &str) -> Vec<Value> {
        let shown = self.json(&format!("ip -j addr show dev {link}"));
        shown[0]["addr_info"].as_array().cloned().unwrap_or_default()
    }

    /// The objects of `ip -j -d -FAMILY route show SELECTOR`: `netns.routes(4, "table all")`.
    #[track_caller]
    pub fn routes(&self, family: u8, selector: &str) -> Vec<Value> {
        let shown = self.json(&format!("ip -j -d -{family} route show {selector}"));
        shown.as_array().cloned().unwrap_or_default()
    }

    /// The route of the main table to a destination as `ip -j route` shows it (`default`, `10.1.0.0/24`).
    #[track_caller]
    pub fn find_route(&self, family: u8, dst: &str) -> Option<Value> {
        self.routes(family, "table main").into_iter().find(|route| route["dst"] == dst)
    }

    /// `nft list ruleset`, without counters.
    #[track_caller]
    pub fn nft(&self) -> String {
        self.run("nft -s list ruleset")
    }

    /// Waits until a condition holds, 2 s at most: for state that the kernel reaches by itself.
    #[track_caller]
    pub fn eventually(&self, what: &str, condition: impl Fn(&Netns) -> bool) {
        let deadline = std::time::Instant::now() + super::patience(std::time::Duration::from_secs(2));
        while !condition(self) {
            assert!(std::time::Instant::now() < deadline, "still not so in time: {what}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.unmount();
    }
}
