//! The `dummy` plugin.

use serde_json::{Value, json};

use super::config;
use crate::support::{Node, VERSIONS, assert_same, require_kind};
use crate::with;

#[test]
fn a_dummy_holds_its_addresses_and_nothing_is_left_of_it() {
    require_kind!("dummy");
    let node = Node::new();
    node.ip(&["link add eth0 type veth peer name eth0peer"]);
    let before = node.snapshot();
    for version in VERSIONS {
        let container = node.container();
        let config = with(config(&node, "dummy"), json!({"cniVersion": version, "mtu": "whatever"}));
        let attachment = node.attach(&container, "eth0", &config);
        assert_eq!(container.addresses("eth0").len(), 2);
        assert_eq!(container.link("eth0")["linkinfo"]["info_kind"], "dummy");
        assert!(container.find_route(4, "default").is_some() && container.find_route(6, "default").is_some());
        if version >= "0.4.0" {
            attachment.check();
        }
        attachment.del();
        attachment.del();
        assert!(container.links().is_empty());
        assert_same(&before, &node.snapshot());
    }
    node.call("dummy").command("STATUS").config(&config(&node, "dummy")).silent();
}

#[test]
fn what_was_damaged_is_named_and_still_removed() {
    require_kind!("dummy");
    let node = Node::new();
    for (damage, word) in [
        ("ip link set eth0 down", "down"),
        ("ip addr flush dev eth0 scope global", "10.1.0."),
        ("ip -4 route del default", "default"),
        ("ip link del eth0", "missing"),
    ] {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config(&node, "dummy"));
        container.run(damage);
        attachment.call("CHECK").fails(100).names(&[word]);
        attachment.del();
        assert!(container.links().is_empty() && node.leases("net").is_empty());
    }
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    require_kind!("dummy");
    let node = Node::new();
    let mut bad = config(&node, "dummy");
    bad["ipam"]["routes"] = json!([{"dst": "198.51.100.0/24", "gw": "255.255.255.255"}]);
    let container = node.container();
    node.request("ADD", &container, "eth0", &bad).err().names(&["198.51.100.0/24"]);
    assert!(container.links().is_empty() && node.leases("net").is_empty());
}

#[test]
fn gc_releases_the_addresses_of_what_is_not_valid() {
    require_kind!("dummy");
    let node = Node::new();
    let config = config(&node, "dummy");
    let (kept, stale) = (node.container_named("kept"), node.container_named("stale"));
    let attachment = node.attach(&kept, "eth0", &config);
    node.attach(&stale, "eth0", &config);
    let valid = with(
        config,
        json!({"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}], "prevResult": Value::Null}),
    );
    node.call("dummy").command("GC").config(&valid).silent();
    assert_eq!(node.leases("net").len(), 2);
    attachment.check();
}
