//! A node on which `cni-all` is used.

use std::path::Path;
use std::process::{Command, Stdio};

use super::support::{Call, Node, executable, leases_in};

/// A node without configurations, whose /var/lib/cni is empty.
pub struct Host {
    /// The node.
    pub node: Node,
}

impl Host {
    /// A fresh one.
    pub fn new() -> Host {
        let node = Node::new();
        for dir in ["net.d", "state"] {
            std::fs::create_dir(node.workdir().root().join(dir)).unwrap();
        }
        Host { node }
    }

    /// A path below its directory.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.node.workdir().root().join(name)
    }

    /// `cni-all run ARGS…` on this host.
    pub fn run(&self, args: &[&str]) -> Command {
        self.command("cni-all", &[&["run"], args].concat())
    }

    /// This executable under another name, with these arguments, on this host.
    pub fn command(&self, name: &str, args: &[&str]) -> Command {
        self.started(name, args, |call| call)
    }

    /// As [`Host::command`], started by another program.
    pub fn command_through(&self, program: &str, before: &[&str], name: &str, args: &[&str]) -> Command {
        self.started(name, args, |call| call.through(program, before))
    }

    fn started(&self, name: &str, args: &[&str], by: impl FnOnce(Call) -> Call) -> Command {
        let link = self.path(name);
        if !link.exists() {
            std::os::unix::fs::symlink(executable(), &link).unwrap();
        }
        let mut call = Call::new(&link, Path::new("/nonexistent")).bare();
        for arg in args {
            call = call.arg(*arg);
        }
        let call = by(call).inside(&self.node).private_state(&self.path("state"));
        let mut command = call.env("NETCONFPATH", self.path("net.d")).to_command();
        command.stdin(Stdio::null());
        command
    }

    /// Writes a configuration into the directory of configurations.
    pub fn configure(&self, file: &str, text: &str) {
        self.node.workdir().file(&format!("net.d/{file}"), text);
    }

    /// The files of the result cache.
    pub fn cached(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("state/results")).into_iter().flatten();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Nothing of any attachment is left: links, addresses, nft elements.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.node.links_of_kind("veth"), Vec::<String>::new());
        let store = self.path("state/networks");
        for network in std::fs::read_dir(&store).into_iter().flatten() {
            assert_eq!(leases_in(&network.unwrap().path()), Vec::<String>::new());
        }
        assert_eq!(self.cached(), Vec::<String>::new());
        let rules = self.node.nft();
        assert!(!rules.contains("elements") && !rules.contains("10.22."), "{rules}");
    }
}
