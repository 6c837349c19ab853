//! `cnitool` as its release 1.3 is: arguments, variables, output and exit status (reference: core.md 4.6).
//!
//! It goes on past a broken configuration, which it reports, and an unknown command is an error.

use std::path::{Path, PathBuf};

use crate::cli::networks::{self, variable};
use crate::cli::verbs::{absolute, id_of};
use crate::cni::{Error, Result, Version};
use crate::personality::Process;
use crate::runtime::{Attachment, Directory, Runtime};

const USAGE: &str = "cnitool: Add, check, remove, gc or status network interfaces from a network namespace
  cnitool add    <net> <netns>
  cnitool check  <net> <netns>
  cnitool del    <net> <netns>
  cnitool gc     <net> <netns>
  cnitool status <net> <netns>
";

/// Does what the arguments say; exit status 0 or 1.
pub fn run(args: &[String], process: &mut Process<'_>) -> i32 {
    let [command, network, netns, ..] = args else {
        let _ = process.stderr.write_all(USAGE.as_bytes());
        return 1;
    };
    match operate(command, network, netns, process) {
        Ok(printed) => {
            let written = process.stdout.write_all(printed.as_bytes()).and_then(|()| process.stdout.flush());
            i32::from(written.is_err())
        }
        Err(e) => {
            let _ = writeln!(process.stderr, "{e}");
            1
        }
    }
}

fn operate(command: &str, network: &str, netns: &str, process: &mut Process<'_>) -> Result<String> {
    let directory = Directory::read(&networks::conf_dir(process, None))?;
    let network = directory.find(network).inspect_err(|_| {
        for broken in &directory.broken {
            let _ = writeln!(process.stderr, "{broken}");
        }
    })?;
    let capability_args = networks::capability_args(process, None)?;
    let args = networks::args(process, None)?;
    // Set and empty is not the same as not set.
    let ifname = (process.env)("CNI_IFNAME").unwrap_or_else(|| "eth0".to_owned());
    let netns = absolute(netns)?;
    let attachment = Attachment { args, capability_args, ..Attachment::new(id_of(&netns), netns, ifname) };
    let dirs = variable(process, "CNI_PATH").unwrap_or_default();
    let runtime = Runtime {
        plugin_dirs: dirs.split(':').map(PathBuf::from).filter(|dir| dir != Path::new("")).collect(),
        prefer_built_in: false,
        ..networks::runtime(process, networks::Options::default())
    };
    match command {
        "add" => {
            let result = runtime.add(network, &attachment)?;
            result.to_json(Version::from_text(&network.version).unwrap_or(Version::LATEST))
        }
        "check" => runtime.check(network, &attachment).map(|()| String::new()),
        "del" => runtime.del(network, &attachment).map(|()| String::new()),
        "gc" => runtime.gc(network, None).map(|()| String::new()),
        "status" => runtime.status(network).map(|()| String::new()),
        other => Err(Error::config(format!("unknown command {other:?}"))
            .with_details("there are: add, check, del, gc, status")),
    }
}
