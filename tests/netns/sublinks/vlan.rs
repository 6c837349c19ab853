//! What only vlan has: the id.

use serde_json::json;

use super::{config, node_with_neighbour, settings};
use crate::support::require_kind;
use crate::with;

#[test]
fn the_link_has_the_vlan_that_was_asked_for() {
    require_kind!("vlan");
    let (node, _outside) = node_with_neighbour("vlan");
    for id in [0, 1, 5, 4094] {
        let container = node.container();
        let config = with(config(&node, "vlan"), json!({"vlanId": id}));
        let attachment = node.attach(&container, "eth0", &config);
        let found = settings(&container, "eth0");
        assert_eq!((&found["id"], &found["protocol"]), (&json!(id), &json!("802.1Q")));
        attachment.check();
        let other = with(config, json!({"vlanId": 4094 - id, "prevResult": attachment.result}));
        attachment.call_with("CHECK", &other).fails(100).names(&["VLAN"]);
        attachment.del();
    }
}

#[test]
fn a_master_that_is_down_is_named_before_anything_is_done() {
    require_kind!("vlan");
    let (node, _outside) = node_with_neighbour("vlan");
    node.ip(&["link set uplink down"]);
    let container = node.container();
    let failure = node.request("ADD", &container, "eth0", &config(&node, "vlan")).err();
    failure.names(&["master", "uplink", "down"]);
    assert!(container.links().is_empty() && node.leases("net").is_empty());
}
