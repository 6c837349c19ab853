//! The `bridge` plugin as gateway: its address, forwarding, default routes.

use serde_json::{Value, json};

use crate::support::{Node, assert_same, require_netns};
use crate::{bridge_config, dual_stack_config, with, with_static};

/// A gateway configuration for one static address.
fn config(node: &Node, address: &str, gateway: &str, force: bool) -> Value {
    let config = with(bridge_config(node), json!({"forceAddress": force}));
    with_static(config, json!([{"address": address, "gateway": gateway}]), json!([]))
}

#[test]
fn another_ipv4_address_is_a_conflict_unless_forced() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add cni0 type bridge", "addr add 10.9.0.1/24 dev cni0", "link set cni0 up"]);
    let container = node.container();
    let before = node.snapshot();
    let refused = config(&node, "10.1.0.5/24", "10.1.0.1", false);
    node.request("ADD", &container, "eth0", &refused).err().names(&["cni0", "10.9.0.1"]);
    assert_same(&before, &node.snapshot());
    assert!(container.links().is_empty());
    node.attach(&container, "eth0", &config(&node, "10.1.0.5/24", "10.1.0.1", true));
    assert_eq!(node.addresses("cni0"), ["10.1.0.1/24"]);
    assert!(container.pings("10.1.0.1"));
}

#[test]
fn an_overlapping_ipv6_address_is_a_conflict_unless_forced() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add cni0 type bridge", "addr add fd00:1::9/48 dev cni0 nodad", "link set cni0 up"]);
    let container = node.container();
    let before = node.snapshot();
    let refused = config(&node, "fd00:1:0:1::5/64", "fd00:1:0:1::1", false);
    node.request("ADD", &container, "eth0", &refused).err().names(&["cni0", "fd00:1::9"]);
    assert_same(&before, &node.snapshot());
    node.attach(&container, "eth0", &config(&node, "fd00:1:0:1::5/64", "fd00:1:0:1::1", true));
    assert_eq!(node.addresses("cni0"), ["fd00:1:0:1::1/64"]);
}

#[test]
fn separate_ipv6_networks_live_together() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add cni0 type bridge", "addr add fd00:9::1/64 dev cni0 nodad", "link set cni0 up"]);
    for force in [false, true] {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config(&node, "fd00:1::5/64", "fd00:1::1", force));
        let mut addresses = node.addresses("cni0");
        addresses.sort();
        assert_eq!(addresses, ["fd00:1::1/64", "fd00:9::1/64"]);
        attachment.del();
    }
}

#[test]
fn the_gateway_address_may_be_there_as_a_second_one() {
    require_netns!();
    let node = Node::new();
    node.ip(&[
        "link add cni0 type bridge",
        "addr add 10.9.0.1/24 dev cni0",
        "addr add 10.1.0.1/24 dev cni0",
        "link set cni0 up",
    ]);
    for force in [false, true] {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config(&node, "10.1.0.5/24", "10.1.0.1", force));
        assert_eq!(node.addresses("cni0"), ["10.9.0.1/24", "10.1.0.1/24"]);
        attachment.del();
    }
}

#[test]
fn a_gateway_that_ipam_leaves_out_is_the_first_address_of_the_network() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let addresses = json!([{"address": "10.1.0.5/24"}, {"address": "fd00:1::5/64"}]);
    let attachment =
        node.attach(&container, "eth0", &with_static(bridge_config(&node), addresses, json!([])));
    assert_eq!(node.addresses("cni0"), ["10.1.0.1/24", "fd00:1::1/64"]);
    assert_eq!(attachment.result["ips"][0]["gateway"], "10.1.0.1");
    assert_eq!(attachment.result["ips"][1]["gateway"], "fd00:1::1");
}

#[test]
fn without_is_gateway_the_bridge_has_no_address_and_nothing_is_forwarded() {
    require_netns!();
    let node = Node::new();
    let config = with(dual_stack_config(&node), json!({"isGateway": false}));
    let container = node.container();
    node.attach(&container, "eth0", &config);
    assert!(node.addresses("cni0").is_empty());
    assert_eq!(node.sysctl("net/ipv4/ip_forward"), "0");
    assert_eq!(node.sysctl("net/ipv6/conf/all/forwarding"), "0");
}

#[test]
fn a_gateway_forwards_the_families_it_serves() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    node.attach(&container, "eth0", &bridge_config(&node));
    assert_eq!(node.sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(node.sysctl("net/ipv6/conf/all/forwarding"), "0");
    let another = node.container();
    node.attach(
        &another,
        "eth0",
        &with(dual_stack_config(&node), json!({"name": "two", "forceAddress": true})),
    );
    assert_eq!(node.sysctl("net/ipv6/conf/all/forwarding"), "1");
}

/// The default routes of a container, as gateways.
fn defaults(container: &crate::support::Container, family: u8) -> Vec<String> {
    let routes = container.routes(family, "table main");
    let defaults = routes.iter().filter(|route| route["dst"] == "default");
    defaults.map(|route| route["gateway"].as_str().unwrap_or("none").to_owned()).collect()
}

#[test]
fn is_default_gateway_adds_a_default_route_of_each_family() {
    require_netns!();
    let node = Node::new();
    let mut config = with(dual_stack_config(&node), json!({"isDefaultGateway": true, "isGateway": false}));
    config["ipam"]["routes"] = json!([]);
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(defaults(&container, 4), ["10.1.0.1"]);
    assert_eq!(defaults(&container, 6), ["fd00:1::1"]);
    assert_eq!(node.addresses("cni0").len(), 2, "isDefaultGateway implies isGateway");
    let expected = json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}]);
    assert_eq!(attachment.result["routes"], expected);
    attachment.check();
}

#[test]
fn a_default_route_from_ipam_is_not_made_twice() {
    require_netns!();
    let node = Node::new();
    for routes in [
        json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]),
        json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}]),
    ] {
        let mut config = with(dual_stack_config(&node), json!({"isDefaultGateway": true}));
        config["ipam"]["routes"] = routes;
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config);
        assert_eq!(defaults(&container, 4), ["10.1.0.1"]);
        assert_eq!(defaults(&container, 6), ["fd00:1::1"]);
        assert_eq!(attachment.result["routes"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn a_default_route_to_another_router_wins_over_is_default_gateway() {
    require_netns!();
    let node = Node::new();
    let mut config = with(bridge_config(&node), json!({"isDefaultGateway": true}));
    config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.254"}]);
    let container = node.container();
    node.attach(&container, "eth0", &config);
    assert_eq!(defaults(&container, 4), ["10.1.0.254"]);
}

#[test]
fn the_bridge_and_its_address_stay_after_the_last_del() {
    require_netns!();
    let node = Node::new();
    node.attach(&node.container(), "eth0", &bridge_config(&node)).del();
    assert_eq!(node.links(), ["cni0"]);
    assert_eq!(node.addresses("cni0"), ["10.1.0.1/24"]);
}
