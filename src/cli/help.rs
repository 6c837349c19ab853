//! `cni-all --help` and `cni-all --version`.

use std::fmt::Write;

use super::{definition, summary, tools::TOOLS};
use crate::plugins::{Kind, PLUGINS};

/// The variables of the CNI protocol: name, when it is needed, what it holds (reference: core.md 1.1).
pub const VARIABLES: [(&str, &str, &str); 6] = [
    ("CNI_COMMAND", "always", "what to do: ADD, DEL, CHECK, GC, STATUS or VERSION"),
    ("CNI_CONTAINERID", "ADD DEL CHECK", "the container's id: letters, digits, _ . -"),
    ("CNI_NETNS", "ADD CHECK", "path of its network namespace; optional for DEL"),
    ("CNI_IFNAME", "ADD DEL CHECK", "name of the interface inside the container"),
    ("CNI_PATH", "all but VERSION", "directories of plugins, separated by colons"),
    ("CNI_ARGS", "optional", "KEY=VALUE;KEY=VALUE, such as IP=10.22.0.9;IgnoreUnknown=1"),
];

/// Variables of our own and of cnitool: name, who looks at it, what it holds.
pub const OWN_VARIABLES: [(&str, &str, &str); 6] = [
    ("CNI_ALL_LOG", "all", "stderr or a file: one line of JSON for each operation"),
    ("CNI_ALL_WAIT", "all", "1: DEL waits until the kernel has freed everything"),
    ("NETCONFPATH", "commands, tools", "directory of network configurations"),
    ("CAP_ARGS", "commands, tools", "capability arguments, a JSON object"),
    ("CNI_ALL_ENGINE", "docker-run", "docker, podman or a path; default: the first that is installed"),
    ("CNI_ALL_IMAGE", "docker-run", "image with /bin/sleep; default: busybox:latest"),
];

/// A call of the bridge plugin by hand, ready to be pasted into a shell.
pub const BY_HAND: &str = r#"echo '{"cniVersion":"1.1.0","name":"mynet","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,
 "ipam":{"type":"host-local","subnet":"10.22.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}}' >mynet.json
ip netns add demo
export CNI_CONTAINERID=demo CNI_NETNS=/run/netns/demo CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin
CNI_COMMAND=ADD cni-all bridge <mynet.json
ip netns exec demo ping -c1 10.22.0.1
CNI_COMMAND=DEL cni-all bridge <mynet.json
ip netns delete demo
"#;

/// What the executable is, in one paragraph.
pub const ABOUT: &str = "\
The CNI plugins in one executable. Called by the name of a plugin (a link in
/opt/cni/bin, or `cni-all NAME`) it is that plugin: it reads a network
configuration from standard input, does what CNI_COMMAND says and prints the
result. Called as cni-all it has the commands below.
";

/// What `cni-all --help` prints.
pub fn text() -> String {
    let mut out =
        format!("{ABOUT}\nUsage: cni-all COMMAND [ARGUMENT…]\n       cni-all PLUGIN <CONFIGURATION\n");
    out.push_str("\nCommands (each has --help with examples):\n");
    for command in &definition().commands {
        let _ = writeln!(out, "  {:<17}{}", command.name, summary(&command.command));
    }
    out.push_str(
        "  --version        print the version, the compatible Go release and the protocol versions\n",
    );
    out.push_str("\nTools (also by a link of that name):\n");
    for tool in &TOOLS {
        let _ = writeln!(out, "  {:<17}{}", tool.name, tool.about);
    }
    for kind in [Kind::Main, Kind::Ipam, Kind::Meta] {
        let plugins: Vec<_> = PLUGINS.iter().filter(|p| p.kind() == kind).collect();
        if plugins.is_empty() {
            continue;
        }
        let what = match kind {
            Kind::Main => "that make an interface",
            Kind::Ipam => "that assign addresses, called by those above",
            Kind::Meta => "that change what an earlier one made",
        };
        let _ = writeln!(out, "\nPlugins {what}:");
        for plugin in plugins {
            let _ = writeln!(out, "  {:<17}{}", plugin.name(), plugin.about());
        }
    }
    out.push_str("\nEnvironment of a plugin:\n");
    for (name, needed, about) in VARIABLES {
        let _ = writeln!(out, "  {name:<16}{needed:<17}{about}");
    }
    out.push_str("\nEnvironment of our own:\n");
    for (name, used_by, about) in OWN_VARIABLES {
        let _ = writeln!(out, "  {name:<16}{used_by:<17}{about}");
    }
    out.push_str("\nTry it by hand, as root:\n");
    for line in BY_HAND.lines() {
        let _ = writeln!(out, "  {line}");
    }
    out
}
