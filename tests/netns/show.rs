//! `cni-all show` and `doctor` on a node with a running container.

use std::process::Child;

use serde_json::Value;

use crate::support::{Container, Node, executable, require_netns, require_tool};
use crate::{bridge_config, with};

/// A process in a container's namespace, as every running container has; killed in the end.
struct Running(Child);

impl Running {
    fn start(container: &Container) -> Running {
        Running(container.command("sleep 600").spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The node's network as the only configuration of a directory.
fn configuration(node: &Node, config: &Value) -> String {
    let dir = node.workdir().root().join("net.d");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("10-net.conf"), config.to_string()).unwrap();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn show_tells_which_container_is_on_which_link_of_the_host() {
    crate::sublinks::require_kind!("macvlan");
    let node = Node::new();
    let _outside = node.outside();
    let mut config = with(bridge_config(&node), serde_json::json!({"type": "macvlan", "master": "uplink"}));
    config["ipam"]["routes"] = serde_json::json!([]);
    let dir = configuration(&node, &config);
    let container = node.container();
    node.attach(&container, "eth0", &config);
    let _running = Running::start(&container);
    let state = node.json(&format!("{} show net --json --conf-dir {dir}", executable().display()));
    let attached = &state["attachments"][0];
    assert_eq!((&attached["container"], &attached["link"]), (&container.id().into(), &"uplink".into()));
    let addresses = attached["addresses"].as_array().unwrap();
    assert!(addresses.contains(&"10.1.0.2/24".into()), "{addresses:?}");
    assert_eq!(state["stale"], Value::Array(Vec::new()));
}

#[test]
fn show_tells_which_container_is_attached_to_which_bridge_with_which_address() {
    require_netns!();
    let node = Node::new();
    let config = bridge_config(&node);
    let dir = configuration(&node, &config);
    let show =
        |options: &str| node.run(&format!("{} show net {options} --conf-dir {dir}", executable().display()));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    let running = Running::start(&container);

    let state: Value = serde_json::from_str(&show("--json")).unwrap();
    let attached = &state["attachments"][0];
    assert_eq!(attached["container"], container.id());
    assert_eq!((&attached["network"], &attached["ifname"]), (&"net".into(), &"eth0".into()));
    assert_eq!((&attached["bridge"], &attached["link"]), (&"cni0".into(), &attachment.host_veth().into()));
    assert_eq!(attached["netns"], format!("/proc/{}/ns/net", running.0.id()));
    let addresses: Vec<&str> =
        attached["addresses"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(addresses.contains(&"10.1.0.2/24"), "{addresses:?}");
    assert_eq!(state["bridges"][0]["ports"][0], attachment.host_veth());
    let lease = &state["networks"][0]["leases"][0];
    assert_eq!((&lease["address"], &lease["in_use"]), (&"10.1.0.2".into(), &true.into()));
    assert_eq!(state["networks"][0]["ranges"][0]["free"], "252");
    assert_eq!(state["stale"], Value::Array(Vec::new()));
    for picture in ["--dot", "--svg"] {
        let text = show(picture);
        for word in ["net", "cni0", container.id(), "10.1.0.2/24"] {
            assert!(text.contains(word), "{picture} without {word}: {text}");
        }
    }

    attachment.del();
    let state: Value = serde_json::from_str(&show("--json")).unwrap();
    assert_eq!(state["attachments"], Value::Array(Vec::new()));
    assert_eq!(state["networks"][0]["leases"], Value::Array(Vec::new()));
}

#[test]
fn doctor_warns_of_a_forward_chain_that_drops() {
    require_netns!();
    require_tool!("nft");
    let node = Node::new();
    let dir = configuration(&node, &with(bridge_config(&node), serde_json::json!({"ipMasq": true})));
    let findings = || {
        let line = format!("{} doctor --json --conf-dir {dir}", executable().display());
        let output = node.try_run(&line);
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = all["findings"].as_array().unwrap().clone();
        all.into_iter().filter(|f| f["subject"] == "iptables FORWARD").collect::<Vec<_>>()
    };
    node.run("nft add table ip filter");
    for (policy, found) in [("accept", 0), ("drop", 1)] {
        let chain = format!("type filter hook forward priority 0 ; policy {policy} ;");
        node.run(&format!("nft add chain ip filter FORWARD {{ {chain} }}"));
        assert_eq!(findings().len(), found, "{policy}");
    }
    assert_eq!(findings()[0]["mend"], "iptables -P FORWARD ACCEPT");
}
