//! IPv6 on a bridge: usable when ADD returns, duplicate address detection only when asked for.

use std::time::Duration;

use serde_json::json;

use crate::support::{Netns, Node, patience, require_netns};
use crate::{dual_stack_config, with};

/// The flags of a link's global IPv6 address that say it cannot be used yet.
fn tentative(netns: &Netns, link: &str) -> bool {
    netns.address_objects(link).iter().any(|a| a["scope"] == "global" && a["tentative"] == true)
}

#[test]
fn the_gateway_answers_over_ipv6_as_soon_as_add_returns() {
    require_netns!();
    let node = Node::new();
    for _ in 0..3 {
        let container = node.container();
        let add = node.request("ADD", &container, "eth0", &dual_stack_config(&node)).run();
        add.ok();
        assert!(container.pings_within("fd00:1::1", "0.2"), "no answer at once");
        assert!(!tentative(&container, "eth0") && !tentative(&node, "cni0"));
        assert!(add.elapsed < patience(Duration::from_millis(700)), "ADD waited: {:?}", add.elapsed);
    }
}

#[test]
fn the_container_answers_the_host_over_ipv6_as_soon_as_add_returns() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &dual_stack_config(&node));
    assert!(node.pings_within(&attachment.ip(1), "0.2"));
}

#[test]
fn duplicate_address_detection_is_off_unless_enabled() {
    require_netns!();
    let node = Node::new();
    let off = node.container();
    node.attach(&off, "eth0", &dual_stack_config(&node));
    assert_eq!(off.sysctl("net/ipv6/conf/eth0/accept_dad"), "0");
    let on = node.container();
    node.attach(&on, "eth0", &with(dual_stack_config(&node), json!({"enabledad": true})));
    assert_eq!(on.sysctl("net/ipv6/conf/eth0/accept_dad"), "1");
    assert_eq!(on.sysctl("net/ipv6/conf/eth0/enhanced_dad"), "1");
    assert!(!tentative(&on, "eth0"), "ADD returns when detection has finished");
}

#[test]
fn an_address_in_use_is_detected_when_asked_for() {
    require_netns!();
    let node = Node::new();
    let config = |dad: bool| {
        crate::with_static(
            with(dual_stack_config(&node), json!({"enabledad": dad})),
            json!([{"address": "fd00:1::5/64", "gateway": "fd00:1::1"}]),
            json!([]),
        )
    };
    let (one, two) = (node.container(), node.container());
    node.attach(&one, "eth0", &config(false));
    node.request("ADD", &two, "eth0", &config(true)).err().names(&["fd00:1::5"]);
    assert!(two.links().is_empty());
    assert!(one.pings("fd00:1::1"));
}

#[test]
fn ipv6_is_enabled_where_it_was_disabled() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    container.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    container.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    node.attach(&container, "eth0", &dual_stack_config(&node));
    assert_eq!(container.sysctl("net/ipv6/conf/eth0/disable_ipv6"), "0");
    assert_eq!(container.sysctl("net/ipv6/conf/lo/disable_ipv6"), "0");
    assert!(container.pings("fd00:1::1"));
}

#[test]
fn without_ipv6_addresses_disabled_ipv6_is_left_alone() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    container.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    node.attach(&container, "eth0", &crate::bridge_config(&node));
    assert_eq!(container.sysctl("net/ipv6/conf/eth0/disable_ipv6"), "1");
}

#[test]
fn an_ipv6_address_survives_the_link_going_down() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    node.attach(&container, "eth0", &dual_stack_config(&node));
    container.ip(&["link set eth0 down", "link set eth0 up"]);
    assert_eq!(container.addresses("eth0").len(), 2);
}

#[test]
fn the_hosts_ends_ignore_router_advertisements() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &dual_stack_config(&node));
    for link in ["cni0", &attachment.host_veth()] {
        assert_eq!(node.sysctl(&format!("net/ipv6/conf/{link}/accept_ra")), "0", "{link}");
    }
}
