//! What only macvlan has: MAC addresses, modes, layer 2 alone.

use std::time::Duration;

use serde_json::{Value, json};

use super::{config, node_with_neighbour, settings};
use crate::support::{assert_same, patience, require_kind};
use crate::with;

#[test]
fn the_mac_comes_from_the_strongest_of_its_sources() {
    require_kind!("macvlan");
    let (node, _outside) = node_with_neighbour("macvlan");
    let capability = json!({"mac": "c2:00:00:00:00:03"});
    for (changes, args, mac) in [
        (json!({"mac": "c2:00:00:00:00:01"}), "", "c2:00:00:00:00:01"),
        (json!({"mac": "c2:00:00:00:00:01"}), "IgnoreUnknown=1;MAC=c2:00:00:00:00:02", "c2:00:00:00:00:02"),
        (
            json!({"mac": "c2:00:00:00:00:01", "RuntimeConfig": capability}),
            "MAC=c2:00:00:00:00:02",
            "c2:00:00:00:00:03",
        ),
    ] {
        let config = with(config(&node, "macvlan"), changes);
        let container = node.container();
        let result = node.request("ADD", &container, "eth0", &config).env("CNI_ARGS", args).ok();
        assert_eq!(container.link("eth0")["address"], mac);
        assert_eq!(result["interfaces"][0]["mac"], mac);
        let checked = with(config, json!({"prevResult": result}));
        node.request("CHECK", &container, "eth0", &checked).env("CNI_ARGS", args).silent();
        node.request("DEL", &container, "eth0", &checked).env("CNI_ARGS", args).silent();
    }
}

#[test]
fn every_mode_and_the_length_of_the_broadcast_queue_are_set_and_checked() {
    require_kind!("macvlan");
    let (node, _outside) = node_with_neighbour("macvlan");
    for mode in [Value::Null, json!("bridge"), json!("private"), json!("vepa"), json!("passthru")] {
        let config = with(config(&node, "macvlan"), json!({"mode": mode, "bcqueuelen": 200}));
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config);
        let found = settings(&container, "eth0");
        assert_eq!(found["mode"], mode.as_str().unwrap_or("bridge"));
        assert!(found["bcqueuelen"].is_null() || found["bcqueuelen"] == 200, "{found}");
        assert!(container.pings("10.1.0.1"), "{mode}");
        attachment.check();
        let other = if mode == "private" { "vepa" } else { "private" };
        let other = with(config, json!({"mode": other, "prevResult": attachment.result}));
        attachment.call_with("CHECK", &other).fails(100).names(&["mode"]);
        attachment.del();
    }
}

#[test]
fn passthru_takes_the_mac_that_was_asked_for_and_gives_the_masters_back() {
    require_kind!("macvlan");
    let (node, _outside) = node_with_neighbour("macvlan");
    let own = node.link("uplink")["address"].clone();
    let before = node.snapshot();
    let config = with(config(&node, "macvlan"), json!({"mode": "passthru", "mac": "c2:00:00:00:00:01"}));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(container.link("eth0")["address"], "c2:00:00:00:00:01");
    assert_eq!(attachment.mac(), "c2:00:00:00:00:01");
    let another = node.container();
    node.request("ADD", &another, "eth0", &config).err().names(&["master", "uplink", "passthru"]);
    assert!(another.links().is_empty());
    attachment.check();
    attachment.del();
    assert_eq!(node.link("uplink")["address"], own);
    assert_same(&before, &node.snapshot());
}

#[test]
fn without_ipam_the_interface_is_up_and_has_no_addresses() {
    require_kind!("macvlan");
    let (node, _outside) = node_with_neighbour("macvlan");
    let dns = json!({"nameservers": ["192.0.2.53"]});
    let config = with(config(&node, "macvlan"), json!({"ipam": {}, "dns": dns}));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert!(container.link_has("eth0", "UP") && container.addresses("eth0").is_empty());
    assert_eq!(attachment.result["dns"], dns);
    assert!(attachment.result["ips"].is_null());
    attachment.check();
    container.ip(&["link set eth0 down"]);
    attachment.call("CHECK").fails(100).names(&["eth0", "down"]);
    attachment.del();
    assert!(container.links().is_empty());
    for version in ["0.1.0", "0.2.0"] {
        let config = with(config.clone(), json!({"cniVersion": version}));
        node.request("ADD", &container, "eth0", &config).fails(2);
        assert!(container.links().is_empty());
    }
}

#[test]
fn a_master_in_other_use_is_named() {
    require_kind!("macvlan");
    let (node, _outside) = node_with_neighbour("macvlan");
    node.ip(&["link add br0 type bridge", "link set uplink master br0"]);
    let container = node.container();
    let failure = node.request("ADD", &container, "eth0", &config(&node, "macvlan")).err();
    failure.names(&["master", "uplink", "port"]);
    assert!(container.links().is_empty() && node.leases("net").is_empty());
}

#[test]
fn on_a_master_that_is_down_add_does_not_wait_and_the_interface_works_later() {
    require_kind!("macvlan");
    let (node, _outside) = node_with_neighbour("macvlan");
    node.ip(&["link set uplink down"]);
    let container = node.container();
    let add = node.request("ADD", &container, "eth0", &config(&node, "macvlan")).run();
    add.ok();
    assert!(add.elapsed < patience(Duration::from_millis(700)), "ADD waited: {:?}", add.elapsed);
    node.ip(&["link set uplink up"]);
    container.eventually("the neighbour answers", |container| {
        container.pings("10.1.0.1") && container.pings("fd00:1::1")
    });
}
