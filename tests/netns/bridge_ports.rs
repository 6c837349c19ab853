//! What a bridge's port and the container's link can be told: hairpin, isolation, promiscuous mode, MTU, MAC.

use serde_json::{Value, json};

use crate::support::{Node, require_netns};
use crate::{bridge_config, with};

fn port_flag(node: &Node, veth: &str, flag: &str) -> Value {
    node.link(veth)["linkinfo"]["info_slave_data"][flag].clone()
}

#[test]
fn hairpin_mode_is_what_the_configuration_says() {
    require_netns!();
    let node = Node::new();
    for hairpin in [false, true] {
        let container = node.container();
        let attachment =
            node.attach(&container, "eth0", &with(bridge_config(&node), json!({"hairpinMode": hairpin})));
        assert_eq!(port_flag(&node, &attachment.host_veth(), "hairpin"), hairpin);
        attachment.check();
    }
}

#[test]
fn isolated_ports_reach_the_gateway_but_not_each_other() {
    require_netns!();
    let node = Node::new();
    for isolated in [false, true] {
        let config = with(bridge_config(&node), json!({"portIsolation": isolated}));
        let (one, two) = (node.container(), node.container());
        let first = node.attach(&one, "eth0", &config);
        let second = node.attach(&two, "eth0", &config);
        assert_eq!(port_flag(&node, &first.host_veth(), "isolated"), isolated);
        assert!(one.pings("10.1.0.1"));
        assert_eq!(one.pings_within(&second.ip(0), "0.3"), !isolated);
        first.check();
    }
}

#[test]
fn promiscuous_mode_is_set_on_the_bridge() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment =
        node.attach(&container, "eth0", &with(bridge_config(&node), json!({"promiscMode": true})));
    assert_eq!(node.link("cni0")["promiscuity"], 1);
    attachment.check();
    let plain = with(bridge_config(&node), json!({"bridge": "cni1", "name": "plain"}));
    node.attach(
        &container,
        "eth1",
        &crate::with_static(plain, json!([{"address": "10.2.0.2/24"}]), json!([])),
    );
    assert_eq!(node.link("cni1")["promiscuity"], 0);
}

#[test]
fn the_mtu_is_that_of_both_ends_and_of_a_new_bridge() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &with(bridge_config(&node), json!({"mtu": 1400})));
    assert_eq!(container.link("eth0")["mtu"], 1400);
    assert_eq!(node.link(&attachment.host_veth())["mtu"], 1400);
    assert_eq!(node.link("cni0")["mtu"], 1400);
    let plain = node.container();
    node.attach(&plain, "eth0", &with(bridge_config(&node), json!({"mtu": 0})));
    assert_eq!(plain.link("eth0")["mtu"], 1500);
}

#[test]
fn a_big_mtu_lets_big_frames_through() {
    require_netns!();
    let node = Node::new();
    let (one, two) = (node.container(), node.container());
    let config = with(bridge_config(&node), json!({"mtu": 9000}));
    node.attach(&one, "eth0", &config);
    let other = node.attach(&two, "eth0", &config);
    let line = format!("ping -n -q -c 1 -W 1 -M do -s 8900 {}", other.ip(0));
    assert!(one.try_run(&line).status.success());
}

#[test]
fn the_mac_comes_from_the_runtime_before_args_before_cni_args() {
    require_netns!();
    let node = Node::new();
    let (runtime, args, env) = ("02:00:00:00:00:01", "02:00:00:00:00:02", "MAC=02:00:00:00:00:03");
    for (runtime, args, env, expected) in [
        (json!({}), json!({}), env, "02:00:00:00:00:03"),
        (json!({}), json!({"cni": {"mac": args}}), env, args),
        (json!({"mac": runtime}), json!({"cni": {"mac": args}}), env, runtime),
        (json!({"mac": runtime}), json!({}), "", runtime),
    ] {
        let container = node.container();
        let config = with(bridge_config(&node), json!({"runtimeConfig": runtime, "args": args}));
        // IgnoreUnknown is for host-local, which is called with the same CNI_ARGS and knows no MAC.
        let env = if env.is_empty() { String::new() } else { format!("IgnoreUnknown=1;{env}") };
        let result = node.request("ADD", &container, "eth0", &config).env("CNI_ARGS", env).ok();
        assert_eq!(container.link("eth0")["address"], expected);
        assert_eq!(result["interfaces"][2]["mac"], expected);
    }
}

#[test]
fn a_mac_that_cannot_be_is_refused_before_any_change() {
    require_netns!();
    let node = Node::new();
    for (mac, path) in [
        (json!({"runtimeConfig": {"mac": "nonsense"}}), "runtimeConfig.mac"),
        (json!({"args": {"cni": {"mac": "02:00:00:00:00"}}}), "args.cni.mac"),
        (json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}), "runtimeConfig.mac"),
    ] {
        let container = node.container();
        let failure = node.request("ADD", &container, "eth0", &with(bridge_config(&node), mac)).fails(7);
        failure.names(&[path]);
        assert!(node.links().is_empty() && container.links().is_empty());
    }
    let container = node.container();
    let call = node.request("ADD", &container, "eth0", &bridge_config(&node));
    call.env("CNI_ARGS", "IgnoreUnknown=1;MAC=nonsense").fails(4).names(&["MAC", "nonsense"]);
    assert!(node.links().is_empty());
}

#[test]
fn the_hosts_end_is_called_veth_something() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &bridge_config(&node));
    let name = attachment.host_veth();
    assert_eq!(node.links_of_kind("veth"), std::slice::from_ref(&name));
    assert!(name.len() <= 15 && node.link_has(&name, "UP"));
}

#[test]
fn the_hosts_end_says_whose_it_is() {
    require_netns!();
    if crate::support::foreign_plugins().is_some() {
        return;
    }
    let node = Node::new();
    let container = node.container_named("alias-test");
    let attachment = node.attach(&container, "eth0", &bridge_config(&node));
    let alias = node.link(&attachment.host_veth())["ifalias"].to_string();
    for part in ["net", "alias-test", "eth0"] {
        assert!(alias.contains(part), "{alias}");
    }
}

#[test]
fn a_very_long_container_id_and_network_name_are_no_problem() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let config =
        with(bridge_config(&node), json!({"name": "n".repeat(200), "ipMasq": true, "macspoofchk": true}));
    let call = |command: &str| {
        node.request(command, &container, "eth0", &config).env("CNI_CONTAINERID", "c".repeat(64))
    };
    call("ADD").ok();
    assert!(container.pings("10.1.0.1"));
    call("DEL").silent();
    assert!(node.links_of_kind("veth").is_empty());
    assert_eq!(node.snapshot().mentions(&"c".repeat(20)), [""; 0]);
}
