//! Addresses and routes of an IPAM result, as the kernel holds them in the container.

use serde_json::{Value, json};

use crate::support::{Container, Node, require_netns};
use crate::{bridge_config, with, with_static};

/// The route to a destination in any table.
#[track_caller]
fn route(container: &Container, family: u8, dst: &str) -> Value {
    let all = container.routes(family, "table all");
    let found = all.iter().find(|route| route["dst"] == dst);
    found.unwrap_or_else(|| panic!("no route to {dst} in {all:#?}")).clone()
}

/// ADD with these routes, on a dual-stack layer 3 attachment.
fn attach(node: &Node, plugin: &str, routes: Value) -> Container {
    let addresses = json!([
        {"address": "10.1.0.5/24", "gateway": "10.1.0.1"},
        {"address": "fd00:1::5/64", "gateway": "fd00:1::1"},
    ]);
    let container = node.container();
    let config = with_static(with(bridge_config(node), json!({"type": plugin})), addresses, routes);
    let attachment = node.attach(&container, "eth0", &config);
    attachment.check();
    container
}

#[test]
fn every_attribute_of_a_route_is_programmed() {
    require_netns!();
    for plugin in ["bridge", "ptp"] {
        let node = Node::new();
        let container = attach(
            &node,
            plugin,
            json!([
                {"dst": "192.0.2.0/24", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1300, "priority": 10},
                {"dst": "198.51.100.0/24", "table": 5000},
                {"dst": "203.0.113.0/25", "scope": 253},
                {"dst": "2001:db8:7::/64", "mtu": 1380, "advmss": 1200, "priority": 77, "table": 300},
            ]),
        );
        let first = route(&container, 4, "192.0.2.0/24");
        assert_eq!((&first["gateway"], &first["metric"]), (&json!("10.1.0.1"), &json!(10)), "{plugin}");
        assert_eq!(
            (&first["metrics"][0]["mtu"], &first["metrics"][0]["advmss"]),
            (&json!(1400), &json!(1300))
        );
        let table = route(&container, 4, "198.51.100.0/24");
        assert_eq!((&table["table"], &table["gateway"]), (&json!("5000"), &json!("10.1.0.1")));
        let link = route(&container, 4, "203.0.113.0/25");
        assert_eq!((&link["scope"], &link["gateway"]), (&json!("link"), &Value::Null));
        let v6 = route(&container, 6, "2001:db8:7::/64");
        assert_eq!(
            (&v6["table"], &v6["metric"], &v6["gateway"]),
            (&json!("300"), &json!(77), &json!("fd00:1::1"))
        );
        assert_eq!((&v6["metrics"][0]["mtu"], &v6["metrics"][0]["advmss"]), (&json!(1380), &json!(1200)));
    }
}

#[test]
fn a_route_without_gateway_takes_the_first_of_its_family() {
    require_netns!();
    let node = Node::new();
    let container = attach(&node, "bridge", json!([{"dst": "192.0.2.0/24"}, {"dst": "2001:db8:7::/64"}]));
    assert_eq!(route(&container, 4, "192.0.2.0/24")["gateway"], "10.1.0.1");
    assert_eq!(route(&container, 6, "2001:db8:7::/64")["gateway"], "fd00:1::1");
}

#[test]
fn a_route_without_any_gateway_goes_to_the_link() {
    require_netns!();
    let node = Node::new();
    let config = with(bridge_config(&node), json!({"isGateway": false}));
    let config = with_static(config, json!([{"address": "10.1.0.5/24"}]), json!([{"dst": "192.0.2.0/24"}]));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(route(&container, 4, "192.0.2.0/24")["gateway"], Value::Null);
    attachment.check();
}

#[test]
fn a_gateway_outside_every_network_of_the_container_is_reached_on_the_link() {
    require_netns!();
    let node = Node::new();
    node.ip(&[
        "link add cni0 type bridge",
        "addr add 10.7.0.1/32 dev cni0",
        "link set cni0 up",
        "route add 10.1.2.5 dev cni0",
    ]);
    let config = with(bridge_config(&node), json!({"isGateway": false}));
    let config = with_static(
        config,
        json!([{"address": "10.1.2.5/32", "gateway": "10.7.0.1"}]),
        json!([{"dst": "0.0.0.0/0"}]),
    );
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert!(container.pings("10.7.0.1"));
    attachment.check();
}

#[test]
fn the_same_route_twice_is_one_route() {
    require_netns!();
    let node = Node::new();
    let routes = json!([{"dst": "192.0.2.0/24"}, {"dst": "192.0.2.0/24"}, {"dst": "2001:db8:7::/64"}, {"dst": "2001:db8:7::/64"}]);
    let container = attach(&node, "bridge", routes);
    let count =
        |family, dst: &str| container.routes(family, "table main").iter().filter(|r| r["dst"] == dst).count();
    assert_eq!((count(4, "192.0.2.0/24"), count(6, "2001:db8:7::/64")), (1, 1));
}

#[test]
fn a_route_may_lead_to_the_containers_own_network() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add up0 type veth peer name up1", "link set up0 up", "link set up1 up"]);
    let routes = json!([{"dst": "10.1.0.0/24"}, {"dst": "fd00:1::/64"}, {"dst": "0.0.0.0/0"}]);
    for plugin in ["bridge", "ptp", "macvlan"] {
        let addresses = json!([
            {"address": "10.1.0.5/24", "gateway": "10.1.0.1"},
            {"address": "fd00:1::5/64", "gateway": "fd00:1::1"},
        ]);
        let container = node.container();
        let config = with(bridge_config(&node), json!({"type": plugin, "master": "up0"}));
        let attachment = node.attach(&container, "eth0", &with_static(config, addresses, routes.clone()));
        attachment.check();
        // The kernel takes the first one.
        assert_eq!(route(&container, 4, "10.1.0.0/24")["gateway"], "10.1.0.1", "{plugin}");
        let v6 = container.routes(6, "table main");
        assert!(
            v6.iter().any(|r| r["dst"] == "fd00:1::/64" && r["gateway"] == "fd00:1::1"),
            "{plugin}: {v6:#?}"
        );
        attachment.del();
    }
}

#[test]
fn every_network_of_a_container_may_have_a_default_route() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attach = |n: u8| {
        let config =
            with(bridge_config(&node), json!({"bridge": format!("br{n}"), "name": format!("net{n}")}));
        let addresses = json!([
            {"address": format!("10.{n}.0.5/24"), "gateway": format!("10.{n}.0.1")},
            {"address": format!("fd00:{n}::5/64"), "gateway": format!("fd00:{n}::1")},
        ]);
        let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
        node.attach(&container, &format!("eth{n}"), &with_static(config, addresses, routes))
    };
    let attachments = [1, 2].map(attach);
    attachments.iter().for_each(crate::support::Attachment::check);
    // As with the Go plugins: IPv4 takes the last one, IPv6 all.
    assert_eq!(route(&container, 4, "default")["dev"], "eth2");
    let v6 = container.run("ip -6 route show default");
    assert!(v6.contains("via fd00:1::1 dev eth1") && v6.contains("via fd00:2::1 dev eth2"), "{v6}");
    attachments[1].del();
    attachments[0].check();
    assert_eq!(route(&container, 4, "default")["dev"], "eth1");
}

#[test]
fn two_gateways_for_one_destination_are_both_used() {
    require_netns!();
    let node = Node::new();
    let container = attach(
        &node,
        "bridge",
        json!([
            {"dst": "192.0.2.0/24", "gw": "10.1.0.1"}, {"dst": "192.0.2.0/24", "gw": "10.1.0.9"},
            {"dst": "2001:db8:7::/64", "gw": "fd00:1::1"}, {"dst": "2001:db8:7::/64", "gw": "fd00:1::9"},
        ]),
    );
    for (family, dst, gateways) in
        [(4, "192.0.2.0/24", ["10.1.0.1", "10.1.0.9"]), (6, "2001:db8:7::/64", ["fd00:1::1", "fd00:1::9"])]
    {
        let shown = container.run(&format!("ip -{family} route show {dst}"));
        assert!(gateways.iter().all(|gateway| shown.contains(&format!("via {gateway} "))), "{shown}");
    }
}

#[test]
fn addresses_have_their_prefix_and_broadcast_address() {
    require_netns!();
    let node = Node::new();
    let container = attach(&node, "bridge", json!([]));
    let objects = container.address_objects("eth0");
    let v4 = objects.iter().find(|a| a["family"] == "inet").unwrap();
    assert_eq!(
        (&v4["local"], &v4["prefixlen"], &v4["broadcast"]),
        (&json!("10.1.0.5"), &json!(24), &json!("10.1.0.255"))
    );
    let small = node.container();
    let config = with(bridge_config(&node), json!({"name": "small", "isGateway": false}));
    node.attach(&small, "eth0", &with_static(config, json!([{"address": "10.8.0.0/31"}]), json!([])));
    assert!(small.address_objects("eth0").iter().all(|a| a["broadcast"].is_null()));
}

#[test]
fn an_address_given_twice_is_refused_and_leaves_nothing() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let addresses = json!([{"address": "10.1.0.5/24"}, {"address": "10.1.0.5/24"}]);
    node.request("ADD", &container, "eth0", &with_static(bridge_config(&node), addresses, json!([]))).err();
    assert!(node.links_of_kind("veth").is_empty() && container.links().is_empty());
}
