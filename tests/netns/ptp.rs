//! The `ptp` plugin.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Container, Node, VERSIONS, patience, require_netns};
use crate::{dual_stack_config, with, with_static};

fn config(node: &Node) -> Value {
    with(dual_stack_config(node), json!({"type": "ptp"}))
}

#[test]
fn the_gateway_answers_in_both_families_as_soon_as_add_returns() {
    require_netns!();
    let node = Node::new();
    for _ in 0..2 {
        let container = node.container();
        let add = node.request("ADD", &container, "eth0", &config(&node)).run();
        let result = add.ok();
        assert!(container.pings_within("10.1.0.1", "0.2") && container.pings_within("fd00:1::1", "0.2"));
        for ip in result["ips"].as_array().unwrap() {
            assert!(node.pings_within(ip["address"].as_str().unwrap().split('/').next().unwrap(), "0.2"));
        }
        assert!(add.elapsed < patience(Duration::from_millis(700)), "ADD waited: {:?}", add.elapsed);
    }
}

#[test]
fn the_result_says_what_the_kernel_says() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node));
    let veth = attachment.host_veth();
    assert_eq!(
        attachment.result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": veth, "mac": node.link(&veth)["address"], "mtu": 1500},
                {"name": "eth0", "mac": container.link("eth0")["address"], "mtu": 1500, "sandbox": container.path()},
            ],
            "ips": [
                {"interface": 1, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
                {"interface": 1, "address": "fd00:1::2/64", "gateway": "fd00:1::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        })
    );
}

/// A container's routes of the main table as `dst via gateway`, sorted; link-local and multicast ones left out.
fn routes(container: &Container, family: u8) -> Vec<String> {
    let mut lines: Vec<String> = container
        .routes(family, "table main")
        .iter()
        .filter(|r| !r["dst"].as_str().unwrap().starts_with("fe80:"))
        .map(|r| format!("{} via {}", r["dst"].as_str().unwrap(), r["gateway"].as_str().unwrap_or("link")))
        .collect();
    lines.sort();
    lines
}

#[test]
fn all_traffic_goes_through_the_host() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node));
    assert_eq!(
        routes(&container, 4),
        ["10.1.0.0/24 via 10.1.0.1", "10.1.0.1 via link", "default via 10.1.0.1"]
    );
    assert_eq!(
        routes(&container, 6),
        ["default via fd00:1::1", "fd00:1::/64 via fd00:1::1", "fd00:1::1 via link"]
    );
    assert_eq!(container.find_route(4, "10.1.0.0/24").unwrap()["prefsrc"], "10.1.0.2");
    let veth = attachment.host_veth();
    assert_eq!(node.addresses(&veth), ["10.1.0.1/32", "fd00:1::1/128"]);
    for (family, address) in [(4, "10.1.0.2"), (6, "fd00:1::2")] {
        assert_eq!(node.find_route(family, address).unwrap()["dev"], json!(veth));
    }
}

#[test]
fn two_containers_share_the_gateway_address_and_reach_each_other() {
    require_netns!();
    let node = Node::new();
    let (one, two) = (node.container(), node.container());
    let first = node.attach(&one, "eth0", &config(&node));
    let second = node.attach(&two, "eth0", &config(&node));
    for n in 0..2 {
        assert_eq!(one.seen_by(&two, &second.ip(n)).unwrap().to_string(), first.ip(n));
    }
    first.del();
    assert!(two.pings("10.1.0.1") && two.pings("fd00:1::1"));
    second.check();
}

#[test]
fn the_host_forwards_the_families_in_use() {
    require_netns!();
    let node = Node::new();
    let v4 =
        with_static(config(&node), json!([{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]), json!([]));
    let container = node.container();
    node.attach(&container, "eth0", &v4);
    assert_eq!(
        (node.sysctl("net/ipv4/ip_forward"), node.sysctl("net/ipv6/conf/all/forwarding")),
        ("1".into(), "0".into())
    );
    let another = node.container();
    node.attach(&another, "eth0", &config(&node));
    assert_eq!(node.sysctl("net/ipv6/conf/all/forwarding"), "1");
}

#[test]
fn single_addresses_work() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let addresses = json!([
        {"address": "10.1.2.5/32", "gateway": "10.1.2.1"},
        {"address": "fd00:2::5/128", "gateway": "fd00:2::1"},
    ]);
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let attachment = node.attach(&container, "eth0", &with_static(config(&node), addresses, routes));
    assert_eq!(container.addresses("eth0"), ["10.1.2.5/32", "fd00:2::5/128"]);
    for (gateway, own) in [("10.1.2.1", "10.1.2.5"), ("fd00:2::1", "fd00:2::5")] {
        assert!(container.pings(gateway) && node.pings(own), "{own}");
    }
    attachment.check();
    attachment.del();
    assert!(node.links().is_empty());
}

#[test]
fn a_route_may_lead_through_another_next_hop_of_the_containers_network() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let addresses = json!([
        {"address": "10.1.0.5/24", "gateway": "10.1.0.1"},
        {"address": "fd00:1::5/64", "gateway": "fd00:1::1"},
    ]);
    let given = json!([
        {"dst": "192.0.2.0/24", "gw": "10.1.0.2"}, {"dst": "2001:db8:7::/64", "gw": "fd00:1::2"},
    ]);
    let attachment = node.attach(&container, "eth0", &with_static(config(&node), addresses, given));
    assert_eq!(
        routes(&container, 4),
        ["10.1.0.0/24 via 10.1.0.1", "10.1.0.1 via link", "192.0.2.0/24 via 10.1.0.2"]
    );
    assert_eq!(
        routes(&container, 6),
        ["2001:db8:7::/64 via fd00:1::2", "fd00:1::/64 via fd00:1::1", "fd00:1::1 via link"]
    );
    assert!(container.pings("10.1.0.1") && container.pings("fd00:1::1"));
    attachment.check();
}

#[test]
fn an_address_without_gateway_is_refused_before_any_link_is_made() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let config = with_static(config(&node), json!([{"address": "10.1.0.5/24"}]), json!([]));
    node.request("ADD", &container, "eth0", &config).err().names(&["10.1.0.5", "gateway"]);
    assert!(node.links().is_empty() && container.links().is_empty());
}

#[test]
fn every_version_attaches_checks_and_detaches() {
    require_netns!();
    let node = Node::new();
    for version in VERSIONS {
        let container = node.container();
        let attachment =
            node.attach(&container, "eth0", &with(config(&node), json!({"cniVersion": version})));
        assert_eq!(attachment.result["cniVersion"], version);
        assert_eq!(container.addresses("eth0").len(), 2);
        if version >= "0.4.0" {
            attachment.check();
        }
        attachment.del();
        assert!(node.links().is_empty() && node.leases("net").is_empty());
    }
}

#[test]
fn dns_comes_from_ipam_unless_the_configuration_has_any() {
    require_netns!();
    let node = Node::new();
    for (dns, expected) in [
        (Value::Null, json!({"nameservers": ["192.0.2.53"], "domain": "a.example"})),
        (json!({"search": ["b.example"]}), json!({"search": ["b.example"]})),
        (json!({"nameservers": []}), Value::Null),
    ] {
        let mut config = config(&node);
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

#[test]
fn the_mtu_is_that_of_both_ends() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &with(config(&node), json!({"mtu": 1400})));
    assert_eq!(container.link("eth0")["mtu"], 1400);
    assert_eq!(node.link(&attachment.host_veth())["mtu"], 1400);
}

#[test]
fn a_second_add_for_the_same_interface_leaves_the_first_intact() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node));
    let before = node.snapshot();
    node.request("ADD", &container, "eth0", &config(&node)).err();
    crate::support::assert_same(&before, &node.snapshot());
    attachment.check();
    assert!(container.pings("10.1.0.1"));
}

#[test]
fn del_of_what_was_never_added_succeeds() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    node.request("DEL", &container, "eth0", &config(&node)).silent();
    assert!(node.links().is_empty());
}
