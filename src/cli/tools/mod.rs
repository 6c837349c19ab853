//! What people's scripts call by name: `cnitool` and the scripts of the CNI repository, as links to this executable.

mod cnitool;
mod docker_run;
mod scripts;

use crate::personality::Process;

/// One tool.
pub struct Tool {
    /// The name of the link, and of the command.
    pub name: &'static str,
    /// Arguments and purpose, in one line.
    pub about: &'static str,
    /// Serves the arguments after the name; returns the exit status.
    pub run: fn(&[String], &mut Process<'_>) -> i32,
}

/// Every tool, in order of name.
pub static TOOLS: [Tool; 4] = [
    Tool {
        name: "cnitool",
        about: "add|check|del|gc|status NETWORK NETNS: as cnitool 1.3",
        run: cnitool::run,
    },
    Tool {
        name: "docker-run",
        about: "ARGUMENT...: docker run (or podman run), the network made by plugins",
        run: docker_run::run,
    },
    Tool {
        name: "exec-plugins",
        about: "add|del|check ID NETNS: all *.conf of NETCONFPATH on eth0, eth1, ...",
        run: scripts::exec_plugins,
    },
    Tool {
        name: "priv-net-run",
        about: "COMMAND...: a command in a namespace with all *.conf of NETCONFPATH",
        run: scripts::priv_net_run,
    },
];

/// The tool of this name; the scripts' also with `.sh`.
pub fn find(name: &str) -> Option<&'static Tool> {
    let name = name.strip_suffix(".sh").unwrap_or(name);
    TOOLS.iter().find(|tool| tool.name == name)
}
