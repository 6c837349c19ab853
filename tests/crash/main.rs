//! SIGKILL at every system call of ADD and of DEL: what a DEL with nothing but the network's name, the container's id and
//! the interface's name then leaves, which must be nothing, and whether the same container can be attached again.
//!
//! Each test has a node of its own, and tries every system call from the first that reads standard input on; of those
//! before it, in which the program is loaded, it tries some.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "../support/mod.rs"]
mod support;
mod tracer;

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use support::{Call, Container, Node, require_netns, require_tool};
use tracer::{Traced, Victim};

const IFNAME: &str = "eth0";

/// What a test repeats.
struct Scene {
    node: Node,
    container: Container,
    config: Value,
    /// The bridge and every nftables table are removed before each killed ADD, which then has to make them.
    fresh: bool,
    /// Lines of the ruleset that may stay: those that a whole ADD and DEL leave.
    settled: BTreeSet<String>,
}

impl Scene {
    fn new(fresh: bool, config: impl Fn(&Node) -> Value) -> Scene {
        let node = Node::new();
        let container = node.container_named("crash-test-container");
        let config = config(&node);
        let mut scene = Scene { node, container, config, fresh, settled: BTreeSet::new() };
        scene.call("ADD").ok();
        scene.call("DEL").silent();
        scene.settled = scene.ruleset();
        scene
    }

    fn call(&self, command: &str) -> Call {
        self.node.request(command, &self.container, IFNAME, &self.config)
    }

    /// DEL as after a crash: no result is known, and every second time no namespace either. A link that is in the
    /// container alone ends with it, which here lives on: the next DEL finds it.
    fn recover(&self, at: usize) {
        let mut config = self.config.clone();
        config.as_object_mut().unwrap().remove("prevResult");
        let call = self.node.request("DEL", &self.container, IFNAME, &config);
        if at.is_multiple_of(2) {
            call.unset("CNI_NETNS").silent()
        } else {
            call.silent()
        }
        if self.config["type"] == "macvlan" {
            assert!(self.leftovers().is_empty(), "DEL left {:#?}", self.leftovers());
            self.call("DEL").silent();
        }
    }

    /// The call, killed as it enters its n-th system call.
    fn kill(&self, command: &str, at: usize, victim: Victim) -> Traced {
        let stdin = self.config.to_string();
        tracer::run(self.call(command).to_command(), stdin.as_bytes(), self.node.workdir().root(), at, victim)
    }

    fn ruleset(&self) -> BTreeSet<String> {
        self.node.nft().lines().map(|line| line.trim().to_owned()).collect()
    }

    /// Everything of an attachment that is on the node.
    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.ruleset().difference(&self.settled).map(|l| format!("nft: {l}")).collect();
        for link in self.node.json("ip -j link show").as_array().into_iter().flatten() {
            let name = link["ifname"].as_str().unwrap_or_default();
            if !["lo", "cni0", "uplink", "out0"].contains(&name) {
                left.push(format!("link {name}"));
            }
        }
        let leases =
            fs::read_dir(self.node.workdir().root().join("data/net")).into_iter().flatten().flatten();
        for file in leases.map(|entry| entry.file_name().into_string().unwrap()) {
            if !(file == "lock" || file == ".cni-all" || file.starts_with("last_reserved_ip.")) {
                left.push(format!("file {file}"));
            }
        }
        left
    }

    fn assert_clean(&self, what: &str, traced: &Traced) {
        let left = self.leftovers();
        assert!(left.is_empty(), "{what}: DEL left {left:#?}\nthe killed call said: {}", traced.output);
    }

    /// The host as before its first container.
    fn forget_host(&self) {
        self.node.try_run("ip link del cni0");
        self.node.run("nft flush ruleset");
    }

    /// Kills ADD everywhere; each time DEL cleans up, and ADD, CHECK and DEL work as if nothing had been.
    fn add_survives(&self) {
        self.everywhere("ADD", |at| {
            if self.fresh {
                self.forget_host();
            }
            let traced = self.kill("ADD", at, Victim::Caller);
            self.recover(at);
            let what = format!("ADD killed at system call {at}");
            self.assert_clean(&what, &traced);
            let attachment = self.node.attach(&self.container, IFNAME, &self.config);
            attachment.check();
            attachment.del();
            traced
        });
    }

    /// Kills DEL everywhere; each time another DEL finishes the work, and ADD works as if nothing had been.
    fn del_survives(&self, victim: Victim) {
        self.everywhere("DEL", |at| {
            self.call("ADD").ok();
            let traced = self.kill("DEL", at, victim);
            if traced.status == Some(0) {
                let what = format!("DEL succeeded although a process of it was killed at system call {at}");
                self.assert_clean(&what, &traced);
            }
            self.recover(at);
            self.assert_clean(&format!("DEL ({victim:?} killed at system call {at})"), &traced);
            traced
        });
        self.node.attach(&self.container, IFNAME, &self.config).check();
    }

    /// Tries system calls until there is none of that number.
    fn everywhere(&self, command: &str, attempt: impl Fn(usize) -> Traced) {
        let whole = attempt(usize::MAX);
        assert_eq!(whole.status, Some(0), "{command} fails under ptrace: {}", whole.output);
        assert!(whole.reads_input > 0, "{command} reads no standard input");
        for at in (1..whole.reads_input).step_by(20) {
            assert!(attempt(at).killed);
        }
        let mut last = whole.reads_input;
        while attempt(last).killed {
            last += 1;
            assert!(last < whole.calls + 500, "{command} makes ever more system calls");
        }
        println!("{command}: system calls {} to {last}", whole.reads_input);
    }
}

/// A bridge with host-local on these ranges, and some more keys.
fn bridge(node: &Node, ranges: Value, more: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": node.data_dir(), "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    let Value::Object(more) = more else { panic!("keys are an object") };
    more.into_iter().for_each(|(key, value)| config[key] = value);
    config
}

/// firewall with isolation, behind a plugin whose result this is.
fn firewall() -> Value {
    let ips =
        json!([{"address": "10.1.0.5/24", "interface": 0}, {"address": "fd00:1::5/64", "interface": 0}]);
    let prev = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "cni0"}], "ips": ips});
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "firewall", "backend": "iptables", "ingressPolicy": "isolated",
        "prevResult": prev,
    })
}

/// A macvlan that the host can reach, on a link of the host that is there already.
fn macvlan(node: &Node) -> Value {
    node.ip(&[
        "link add uplink type veth peer name out0",
        "addr add 203.0.113.2/24 dev uplink",
        "link set uplink up",
        "link set out0 up",
    ]);
    let more = json!({"type": "macvlan", "master": "uplink", "hostShim": true});
    bridge(node, v4(), more)
}

fn v4() -> Value {
    json!([[{"subnet": "10.1.0.0/24"}]])
}

fn dual_stack() -> Value {
    json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]])
}

/// The tests of one configuration, each on a node of its own.
macro_rules! scenes {
    ($($name:ident: $fresh:expr, $config:expr;)+) => {
        $(mod $name {
            use super::*;

            #[test]
            fn a_killed_add_leaves_nothing_that_del_does_not_remove() {
                require_netns!();
                require_tool!("nft");
                Scene::new($fresh, $config).add_survives();
            }

            #[test]
            fn a_killed_del_is_finished_by_the_next() {
                require_netns!();
                require_tool!("nft");
                Scene::new(false, $config).del_survives(Victim::Caller);
            }
        })+
    };
}

scenes! {
    bridge_with_masquerade: true, |node| bridge(node, v4(), json!({"ipMasq": true}));
    bridge_dual_stack: false, |node| bridge(node, dual_stack(), json!({"ipMasq": true}));
    bridge_with_spoof_check: false, |node| bridge(node, v4(), json!({"macspoofchk": true}));
    bridge_with_iptables: false, |node| bridge(node, v4(), json!({"ipMasq": true, "ipMasqBackend": "iptables"}));
    ptp: false, |node| bridge(node, dual_stack(), json!({"type": "ptp", "ipMasq": true}));
    firewall_with_isolation: true, |_| firewall();
    macvlan_with_shim: false, macvlan;
}

#[test]
fn a_del_of_which_every_process_is_killed_is_finished_by_the_next() {
    require_netns!();
    require_tool!("nft");
    Scene::new(false, |node| bridge(node, v4(), json!({"ipMasq": true}))).del_survives(Victim::Everybody);
}
