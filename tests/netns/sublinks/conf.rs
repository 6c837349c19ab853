//! What ADD makes of a configuration, and what CHECK and STATUS say about it: the same for each kind.

use std::time::Duration;

use serde_json::{Value, json};

use super::{config, for_each_kind, node_with_neighbour};
use crate::support::{Node, Outside, VERSIONS, assert_same, has_kind, patience, require_netns};
use crate::{with, with_static};

for_each_kind![
    the_neighbour_answers_in_both_families_as_soon_as_add_returns,
    the_result_says_what_the_kernel_says,
    a_link_of_the_host_may_have_the_containers_interface_name,
    a_second_add_for_the_same_interface_leaves_the_first_intact,
    the_master_may_be_in_the_container,
    without_a_master_the_default_routes_link_is_taken,
    every_version_attaches_checks_and_detaches,
    dns_comes_from_ipam_unless_the_configuration_has_any,
    routes_have_their_mtu_and_advmss,
    addresses_of_a_reused_container_reach_the_neighbour_at_once,
    check_names_what_was_damaged,
    status_tells_of_a_master_that_is_missing_or_down,
    two_containers_on_one_master_do_not_disturb_each_other,
];

fn the_neighbour_answers_in_both_families_as_soon_as_add_returns(kind: &str) {
    let (node, outside) = node_with_neighbour(kind);
    let container = node.container();
    let add = node.request("ADD", &container, "eth0", &config(&node, kind)).run();
    add.ok();
    assert!(container.pings_within("10.1.0.1", "0.5") && container.pings_within("fd00:1::1", "0.5"));
    assert!(outside.pings("10.1.0.2") && outside.pings("fd00:1::2"));
    assert!(add.elapsed < patience(Duration::from_millis(700)), "ADD waited: {:?}", add.elapsed);
}

fn the_result_says_what_the_kernel_says(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node, kind));
    assert_eq!(
        attachment.result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{
                "name": "eth0", "mac": container.link("eth0")["address"], "mtu": container.link("eth0")["mtu"],
                "sandbox": container.path(),
            }],
            "ips": [
                {"interface": 0, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
                {"interface": 0, "address": "fd00:1::2/64", "gateway": "fd00:1::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        })
    );
    assert_eq!(container.links(), ["eth0"]);
    assert_eq!(container.link("eth0")["linkinfo"]["info_kind"], kind);
    let alias = format!("cni-all net {} eth0 10.1.0.2 fd00:1::2", container.id());
    assert_eq!(container.link("eth0")["ifalias"], alias);
    let index = node.link("uplink")["ifindex"].clone();
    assert_eq!(container.link("eth0")["link_index"], index);
    let sysctl = |family: u8, key: &str| container.sysctl(&format!("net/ipv{family}/conf/eth0/{key}"));
    assert_eq!((sysctl(4, "arp_notify"), sysctl(6, "ndisc_notify")), ("1".into(), "1".into()));
    attachment.check();
}

fn a_link_of_the_host_may_have_the_containers_interface_name(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    node.ip(&["link add eth0 type veth peer name eth0peer"]);
    let before = node.snapshot();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node, kind));
    assert_eq!(container.links(), ["eth0"]);
    assert!(container.pings("10.1.0.1"));
    attachment.check();
    attachment.del();
    assert!(container.links().is_empty());
    assert_same(&before, &node.snapshot());
}

fn a_second_add_for_the_same_interface_leaves_the_first_intact(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node, kind));
    let before = node.snapshot();
    node.request("ADD", &container, "eth0", &config(&node, kind)).err().names(&["eth0", "already exists"]);
    assert_same(&before, &node.snapshot());
    attachment.check();
    assert!(container.pings("10.1.0.1"));
}

fn the_master_may_be_in_the_container(kind: &str) {
    let node = Node::new();
    for key in ["linkInContainer", "linkContNs"] {
        let container = node.container();
        container.ip(&["link add below type veth peer name other", "link set below up", "link set other up"]);
        let config = with(config(&node, kind), json!({"master": "below", key: true}));
        let attachment = node.attach(&container, "eth0", &config);
        assert_eq!(container.links(), ["below", "eth0", "other"]);
        assert_eq!(container.link("eth0")["link"], "below");
        attachment.check();
        node.call(kind).command("STATUS").config(&config).silent();
        attachment.del();
        assert_eq!(container.links(), ["below", "other"]);
        container.run("ip link del below");
        let missing = node.request("ADD", &container, "eth0", &config).fails(7);
        missing.names(&["master", "below"]);
        attachment.del();
        assert!(node.leases("net").is_empty());
    }
}

fn without_a_master_the_default_routes_link_is_taken(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    node.ip(&[
        "link add decoy type veth peer name decoypeer",
        "addr add 198.51.100.1/24 dev decoy",
        "link set decoy up",
        "link set decoypeer up",
        "route add default via 198.51.100.9 dev decoy metric 500",
    ]);
    let config = with(config(&node, kind), json!({"master": null}));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(container.link("eth0")["link_index"], node.link("uplink")["ifindex"]);
    attachment.check();
    node.call(kind).command("STATUS").config(&config).silent();
    for family in ["-4", "-4", "-6"] {
        node.run(&format!("ip {family} route del default"));
    }
    attachment.check();
    attachment.del();
    assert!(container.links().is_empty() && node.leases("net").is_empty());
    node.request("ADD", &container, "eth0", &config).fails(7).names(&["master", "default route"]);
    node.call(kind).command("STATUS").config(&config).fails(50).names(&["master", "default route"]);
}

fn every_version_attaches_checks_and_detaches(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    for version in VERSIONS {
        let container = node.container();
        let attachment =
            node.attach(&container, "eth0", &with(config(&node, kind), json!({"cniVersion": version})));
        assert_eq!(attachment.result["cniVersion"], version);
        assert_eq!(attachment.result["interfaces"][0]["mtu"].is_null(), version < "1.0.0");
        assert_eq!(container.addresses("eth0").len(), 2);
        if version >= "0.4.0" {
            attachment.check();
        }
        attachment.del();
        assert!(container.links().is_empty() && node.leases("net").is_empty());
    }
}

fn dns_comes_from_ipam_unless_the_configuration_has_any(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    for (dns, expected) in [
        (Value::Null, json!({"nameservers": ["192.0.2.53"], "domain": "a.example"})),
        (json!({"search": ["b.example"]}), json!({"search": ["b.example"]})),
    ] {
        let mut config = config(&node, kind);
        config["ipam"] = json!({
            "type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
            "dns": {"nameservers": ["192.0.2.53"], "domain": "a.example"},
        });
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &with(config, json!({"dns": dns})));
        assert_eq!(attachment.result["dns"], expected);
        attachment.del();
    }
}

fn routes_have_their_mtu_and_advmss(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let config = with_static(
        config(&node, kind),
        json!([{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]),
        json!([{"dst": "10.9.0.0/16", "mtu": 1300, "advmss": 1200}]),
    );
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    let metrics = &container.find_route(4, "10.9.0.0/16").unwrap()["metrics"][0];
    assert_eq!((&metrics["mtu"], &metrics["advmss"]), (&json!(1300), &json!(1200)));
    attachment.check();
}

fn addresses_of_a_reused_container_reach_the_neighbour_at_once(kind: &str) {
    let (node, outside) = node_with_neighbour(kind);
    let config = with_static(
        config(&node, kind),
        json!([{"address": "10.1.0.5/24"}, {"address": "fd00:1::5/64"}]),
        json!([]),
    );
    for _ in 0..2 {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config);
        assert!(outside.pings_within("10.1.0.5", "0.5") && outside.pings_within("fd00:1::5", "0.5"));
        attachment.del();
    }
}

fn check_names_what_was_damaged(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let config = with(config(&node, kind), json!({"mtu": 1400}));
    let damages: &[(&str, &[&str])] = &[
        ("ip addr del 10.1.0.2/24 dev eth0", &["eth0", "10.1.0.2/24"]),
        ("ip -6 route del default", &["::/0"]),
        ("ip link set eth0 mtu 1300", &["MTU", "1300", "1400"]),
        ("ip link set eth0 down", &["eth0", "down"]),
        ("ip link del eth0", &["eth0", "missing"]),
    ];
    for (damage, words) in damages {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config);
        attachment.check();
        container.run(damage);
        let words: Vec<&str> =
            words.iter().map(|word| if *word == "::/0" { "default" } else { word }).collect();
        attachment.call("CHECK").fails(100).names(&words);
        attachment.del();
        assert!(container.links().is_empty() && node.leases("net").is_empty());
    }
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    node.ip(&["link add another type veth peer name anotherpeer"]);
    let moved = with(config, json!({"master": "another", "prevResult": attachment.result}));
    attachment.call_with("CHECK", &moved).fails(100).names(&["another"]);
    let gone = with(moved, json!({"master": "nowhere"}));
    attachment.call_with("CHECK", &gone).fails(100).names(&["nowhere"]);
}

fn status_tells_of_a_master_that_is_missing_or_down(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let config = config(&node, kind);
    let status = || node.call(kind).command("STATUS").config(&config);
    status().silent();
    node.ip(&["link set uplink down"]);
    status().fails(51).names(&["uplink", "down"]);
    node.ip(&["link del uplink"]);
    status().fails(51).names(&["uplink"]);
    let container = node.container();
    node.request("ADD", &container, "eth0", &config).fails(7).names(&["master", "uplink"]);
    assert!(node.leases("net").is_empty() && container.links().is_empty());
}

fn two_containers_on_one_master_do_not_disturb_each_other(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let (one, two) = (node.container(), node.container());
    let first = node.attach(&one, "eth0", &config(&node, kind));
    if kind == "vlan" {
        // The kernel has one link for each VLAN of a link.
        let failure = node.request("ADD", &two, "eth0", &config(&node, kind)).err();
        failure.names(&["vlanId", "5", "uplink", "File exists"]);
        let other = with(config(&node, kind), json!({"vlanId": 6}));
        node.attach(&two, "eth0", &other).del();
    } else {
        let second = node.attach(&two, "eth0", &config(&node, kind));
        assert!(one.pings("10.1.0.3") && two.pings("10.1.0.2"));
        second.del();
    }
    assert!(two.links().is_empty());
    assert_eq!(node.leases("net"), ["10.1.0.2", "fd00:1::2"]);
    first.check();
    assert!(one.pings(Outside::V4) || one.pings("10.1.0.1"));
}

#[test]
fn values_that_cannot_be_are_refused_by_name_before_anything_is_done() {
    require_netns!();
    let node = Node::new();
    let _outside = node.outside();
    let container = node.container();
    for (kind, changes, words) in [
        ("vlan", json!({"vlanId": 4095}), &["vlanId", "4095", "4094"][..]),
        ("vlan", json!({"vlanId": -1}), &["vlanId", "-1"]),
        ("vlan", json!({"mtu": -1}), &["mtu", "-1"]),
        ("vlan", json!({"ipam": {}}), &["ipam.type", "vlan"]),
        ("macvlan", json!({"mode": "bridged"}), &["mode", "bridged", "passthru"]),
        ("macvlan", json!({"mac": "01:00:00:00:00:01"}), &["mac", "01:00:00:00:00:01"]),
        ("macvlan", json!({"mtu": 1501}), &["mtu", "1501", "1500", "uplink"]),
        ("macvlan", json!({"master": "a/b"}), &["master", "a/b"]),
        ("ipvlan", json!({"mode": "l4"}), &["mode", "l4", "l3s"]),
        ("ipvlan", json!({"ipam": {}}), &["ipam.type", "ipvlan"]),
        ("ipvlan", json!({"mtu": 9000}), &["mtu", "9000", "1500", "uplink"]),
        ("dummy", json!({"ipam": {}}), &["ipam.type", "dummy"]),
    ] {
        let config = with(config(&node, kind), changes);
        node.request("ADD", &container, "eth0", &config).fails(7).names(words);
        assert!(container.links().is_empty() && node.leases("net").is_empty());
        node.request("DEL", &container, "eth0", &config).silent();
    }
}

#[test]
fn a_kernel_without_the_kind_says_so_and_nothing_is_left() {
    require_netns!();
    let node = Node::new();
    let _outside = node.outside();
    for kind in ["vlan", "macvlan", "ipvlan", "dummy"] {
        if has_kind(kind) {
            continue;
        }
        let container = node.container();
        let config = config(&node, kind);
        node.request("ADD", &container, "eth0", &config).fails(2).names(&["type", kind]);
        node.call(kind).command("STATUS").config(&config).fails(50).names(&["type", kind]);
        node.request("DEL", &container, "eth0", &config).silent();
        assert!(container.links().is_empty() && node.leases("net").is_empty());
    }
}
