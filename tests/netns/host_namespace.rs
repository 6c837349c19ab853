//! `CNI_NETNS` that is the host's own namespace: refused before anything is touched.

use serde_json::json;

use crate::bridge_config;
use crate::support::{Node, assert_same, require_netns};

const REFUSED: &str = "plugin's netns and netns from CNI_NETNS should not be the same";

#[test]
fn add_and_del_are_refused_and_touch_nothing() {
    require_netns!();
    let node = Node::new();
    let host = node.path().to_owned();
    node.ip(&["link add eth0 type veth peer name other", "link set eth0 up"]);
    let before = node.snapshot();
    for plugin in ["bridge", "ptp", "loopback"] {
        let config = crate::with(bridge_config(&node), json!({"type": plugin}));
        for command in ["ADD", "DEL"] {
            let call = node.call(plugin).command(command).config(&config).env("CNI_NETNS", &host);
            // One document only: err() fails on a result followed by an error.
            call.fails(8).says(REFUSED);
        }
    }
    assert!(node.link_has("lo", "UP"), "the host's own lo was taken down");
    assert!(node.link_has("eth0", "UP"));
    assert_same(&before, &node.snapshot());
}

#[test]
fn it_is_recognised_under_every_path() {
    require_netns!();
    let node = Node::new();
    let link = node.workdir().root().join("link-to-host");
    std::os::unix::fs::symlink(node.path(), &link).unwrap();
    for path in ["/proc/self/ns/net", "/proc/thread-self/ns/net", link.to_str().unwrap()] {
        let call = node.call("bridge").command("ADD").config(&bridge_config(&node)).env("CNI_NETNS", path);
        call.fails(8).says(REFUSED);
    }
    assert!(node.links().is_empty() && node.leases("net").is_empty());
}
