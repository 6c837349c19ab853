//! `macspoofchk`: frames with another source address than the container's own are dropped.

use serde_json::json;

use crate::support::{Container, Node, require_netns, require_tool};
use crate::{bridge_config, with};

/// The number of rules of table `bridge nat` whose comment is that of an attachment.
fn rules(node: &Node, id: &str, ifname: &str) -> usize {
    let listed = node.json("nft -j list ruleset");
    let objects = listed["nftables"].as_array().unwrap();
    let comment = format!("macspoofchk-{id}-{ifname}");
    let ours = |rule: &serde_json::Value| {
        rule["family"] == "bridge" && rule["table"] == "nat" && rule["comment"] == *comment
    };
    objects.iter().filter(|object| ours(&object["rule"])).count()
}

/// Whether the gateway answers when the container speaks with another MAC address.
fn reaches_with_mac(container: &Container, mac: &str) -> bool {
    let set = format!("link set eth0 address {mac}");
    container.ip(&[set.as_str(), "neigh flush dev eth0"]);
    container.pings_within("10.1.0.1", "0.4")
}

#[test]
fn spoofed_frames_are_dropped_and_true_ones_pass() {
    require_netns!();
    require_tool!("nft");
    let node = Node::new();
    for check in [false, true] {
        let container = node.container();
        let attachment =
            node.attach(&container, "eth0", &with(bridge_config(&node), json!({"macspoofchk": check})));
        assert!(container.pings("10.1.0.1"));
        assert_eq!(reaches_with_mac(&container, "02:00:00:00:00:66"), !check);
        assert!(reaches_with_mac(&container, &attachment.mac()));
        attachment.del();
    }
}

#[test]
fn the_rules_are_those_of_the_go_plugin_and_gone_after_del() {
    require_netns!();
    require_tool!("nft");
    let node = Node::new();
    let container = node.container_named("spoof");
    let config = with(bridge_config(&node), json!({"macspoofchk": true}));
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(rules(&node, "spoof", "eth0"), 4, "{}", node.nft());
    let chains = node.run("nft list chains");
    for chain in ["cni-br-iface-spoof-eth0 ", "cni-br-iface-spoof-eth0-mac "] {
        assert!(chains.contains(&format!("chain {chain}")), "{chains}");
    }
    let prerouting = node.run("nft list chain bridge nat PREROUTING");
    assert!(
        prerouting.contains("type filter hook prerouting priority dstnat; policy accept;"),
        "{prerouting}"
    );
    assert!(prerouting.contains(&format!("iifname \"{}\"", attachment.host_veth())), "{prerouting}");
    let mac = node.run("nft list chain bridge nat cni-br-iface-spoof-eth0-mac");
    assert!(
        mac.contains(&format!("ether saddr {} return", attachment.mac())) && mac.contains("drop"),
        "{mac}"
    );
    attachment.del();
    assert!(node.snapshot().mentions("spoof").is_empty(), "{}", node.nft());
}

#[test]
fn adding_again_after_the_link_vanished_leaves_no_second_set_of_rules() {
    require_netns!();
    require_tool!("nft");
    let node = Node::new();
    let config = with(bridge_config(&node), json!({"macspoofchk": true}));
    let first = node.container_named("again");
    let attachment = node.attach(&first, "eth0", &config);
    node.run(&format!("ip link del {}", attachment.host_veth()));
    node.workdir().call("host-local").command("DEL").config(&config).env("CNI_CONTAINERID", "again").silent();
    let attachment = node.attach(&first, "eth0", &config);
    assert_eq!(rules(&node, "again", "eth0"), 4, "{}", node.nft());
    attachment.del();
    assert!(node.snapshot().mentions("again").is_empty(), "{}", node.nft());
}

#[test]
fn the_rules_go_even_when_the_namespace_is_gone() {
    require_netns!();
    require_tool!("nft");
    let node = Node::new();
    let container = node.container_named("lost");
    let attachment =
        node.attach(&container, "eth0", &with(bridge_config(&node), json!({"macspoofchk": true})));
    container.unmount();
    attachment.del();
    assert!(node.snapshot().mentions("lost").is_empty(), "{}", node.nft());
}
