//! CHECK: passes on what ADD made, and names what is no longer so.

use serde_json::json;

use crate::support::{Attachment, Container, Node, require_netns, require_tool};
use crate::{bridge_config, dual_stack_config, with, with_static};

/// Something that happens to an attachment after ADD.
type Damage = fn(&Node, &Container, &Attachment<'_>);

/// For each damage: a fresh attachment, which passes; the damage; CHECK fails with code 100 and names one of the words.
#[track_caller]
fn each_damage_is_found(config: impl Fn(&Node) -> serde_json::Value, damages: &[(&str, &[&str], Damage)]) {
    let mut unnoticed = Vec::new();
    for (what, words, damage) in damages {
        let node = Node::new();
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config(&node));
        attachment.check();
        damage(&node, &container, &attachment);
        let outcome = attachment.call("CHECK").run();
        if outcome.status == Some(0) {
            unnoticed.push(*what);
            continue;
        }
        let failure = outcome.err();
        assert_eq!(failure.code, 100, "{what}\n{outcome}");
        let text = format!("{} {}", failure.msg, failure.details);
        assert!(words.iter().any(|word| text.contains(word)), "{what}: {words:?} is not in {text:?}");
    }
    assert!(unnoticed.is_empty(), "CHECK does not notice: {unnoticed:?}");
}

#[test]
fn what_changed_in_the_container_is_named() {
    require_netns!();
    each_damage_is_found(
        dual_stack_config,
        &[
            ("address removed", &["10.1.0.2"], |_, c, _| c.ip(&["addr del 10.1.0.2/24 dev eth0"])),
            ("IPv6 address removed", &["fd00:1::2"], |_, c, _| c.ip(&["addr del fd00:1::2/64 dev eth0"])),
            ("prefix changed", &["10.1.0.2"], |_, c, _| {
                c.ip(&[
                    "addr del 10.1.0.2/24 dev eth0",
                    "addr add 10.1.0.2/25 dev eth0",
                    "route add default via 10.1.0.1",
                ]);
            }),
            ("default route removed", &["0.0.0.0/0", "default"], |_, c, _| c.ip(&["route del default"])),
            ("IPv6 default route removed", &["::/0", "default"], |_, c, _| {
                drop(c.run("ip -6 route del default"))
            }),
            ("default route to another gateway", &["0.0.0.0/0", "default"], |_, c, _| {
                c.ip(&["route replace default via 10.1.0.9"]);
            }),
            ("link down", &["eth0"], |_, c, _| c.ip(&["link set eth0 down"])),
            ("link gone", &["eth0"], |_, c, _| c.ip(&["link del eth0"])),
            ("link replaced by another kind", &["eth0"], |_, c, _| {
                c.ip(&["link del eth0", "link add eth0 type bridge", "link set eth0 up"]);
            }),
            ("MAC changed", &["eth0"], |_, c, _| c.ip(&["link set eth0 address 02:00:00:00:00:66"])),
        ],
    );
}

#[test]
fn what_changed_on_the_host_is_named() {
    require_netns!();
    each_damage_is_found(
        |node| with(dual_stack_config(node), json!({"hairpinMode": true, "portIsolation": true})),
        &[
            ("port taken from the bridge", &["cni0", "master"], |n, _, a| {
                n.ip(&[&format!("link set {} nomaster", a.host_veth())]);
            }),
            ("port moved to another bridge", &["cni0", "master"], |n, _, a| {
                n.ip(&["link add other type bridge", &format!("link set {} master other", a.host_veth())]);
            }),
            ("hairpin off", &["hairpin"], |n, _, a| {
                n.ip(&[&format!("link set {} type bridge_slave hairpin off", a.host_veth())]);
            }),
            ("isolation off", &["isolat"], |n, _, a| {
                n.ip(&[&format!("link set {} type bridge_slave isolated off", a.host_veth())]);
            }),
            ("host end down", &["veth", "down"], |n, _, a| {
                n.ip(&[&format!("link set {} down", a.host_veth())])
            }),
            ("gateway address removed", &["10.1.0.1"], |n, _, _| n.ip(&["addr del 10.1.0.1/24 dev cni0"])),
            ("IPv6 gateway address removed", &["fd00:1::1"], |n, _, _| {
                n.ip(&["addr del fd00:1::1/64 dev cni0"])
            }),
            ("bridge gone", &["cni0"], |n, _, _| n.ip(&["link del cni0"])),
            ("bridge down", &["cni0"], |n, _, _| n.ip(&["link set cni0 down"])),
        ],
    );
}

#[test]
fn a_bridge_that_is_no_longer_promiscuous_is_named() {
    require_netns!();
    each_damage_is_found(
        |node| with(bridge_config(node), json!({"promiscMode": true})),
        &[("promiscuous mode off", &["promisc"], |n, _, _| n.ip(&["link set cni0 promisc off"]))],
    );
}

#[test]
fn a_released_address_is_named() {
    require_netns!();
    each_damage_is_found(
        bridge_config,
        &[("lease removed", &["10.1.0.2", "container-0"], |n, _, _| {
            std::fs::remove_file(n.workdir().root().join("data/net/10.1.0.2")).unwrap();
        })],
    );
}

#[test]
fn missing_masquerade_and_spoof_rules_are_named() {
    require_netns!();
    require_tool!("nft");
    for backend in ["nftables", "iptables"] {
        for (family, address) in [("ip", "10.1.0.2"), ("ip6", "fd00:1::2")] {
            let node = Node::new();
            let container = node.container();
            let config = with(dual_stack_config(&node), json!({"ipMasq": true, "ipMasqBackend": backend}));
            let attachment = node.attach(&container, "eth0", &config);
            attachment.check();
            let table = if backend == "iptables" { "nat" } else { "cni-all" };
            node.run(&format!("nft delete table {family} {table}"));
            let failure = attachment.call("CHECK").fails(100);
            let text = format!("{} {}", failure.msg, failure.details);
            assert!(text.contains("masq") || text.contains(address) || text.contains("nat"), "{text}");
        }
    }
    each_damage_is_found(
        |node| with(bridge_config(node), json!({"macspoofchk": true})),
        &[("spoof rules removed", &["spoof", "bridge nat"], |n, _, _| {
            n.run("nft delete table bridge nat");
        })],
    );
}

#[test]
fn what_changed_around_a_ptp_attachment_is_named() {
    require_netns!();
    each_damage_is_found(
        |node| with(dual_stack_config(node), json!({"type": "ptp"})),
        &[
            ("address removed", &["10.1.0.2"], |_, c, _| c.ip(&["addr del 10.1.0.2/24 dev eth0"])),
            ("default route removed", &["0.0.0.0/0", "default"], |_, c, _| c.ip(&["route del default"])),
            ("link down", &["eth0"], |_, c, _| c.ip(&["link set eth0 down"])),
            ("host route removed", &["10.1.0.2"], |n, _, _| n.ip(&["route del 10.1.0.2"])),
            ("host address removed", &["10.1.0.1"], |n, _, a| {
                n.ip(&[&format!("addr del 10.1.0.1/32 dev {}", a.host_veth())]);
            }),
            ("host end gone", &["eth0", "veth"], |n, _, a| n.ip(&[&format!("link del {}", a.host_veth())])),
        ],
    );
}

#[test]
fn check_passes_for_a_single_address_and_for_routes_in_other_tables() {
    require_netns!();
    let node = Node::new();
    let addresses = json!([{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "10.1.0.77/32", "gateway": "10.1.0.1"}]);
    let routes = json!([{"dst": "192.0.2.0/24", "table": 5000}, {"dst": "198.51.100.0/24", "priority": 50}]);
    let config = with(bridge_config(&node), json!({"isGateway": false}));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &with_static(config, addresses, routes));
    attachment.check();
}

#[test]
fn check_passes_when_others_added_something() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &dual_stack_config(&node));
    container.ip(&[
        "addr add 192.0.2.9/24 dev eth0",
        "route add 198.51.100.0/24 via 10.1.0.1",
        "link set eth0 mtu 1400",
    ]);
    node.ip(&["addr add 192.0.2.1/24 dev cni0"]);
    attachment.check();
}

#[test]
fn check_passes_while_somebody_captures_packets() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &bridge_config(&node));
    node.ip(&["link set cni0 promisc on"]);
    attachment.check();
}

#[test]
fn the_namespace_may_be_given_under_another_path() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &bridge_config(&node));
    let other = node.workdir().root().join("other-path");
    std::os::unix::fs::symlink(container.path(), &other).unwrap();
    attachment.call("CHECK").env("CNI_NETNS", &other).silent();
}

#[test]
fn another_namespace_than_that_of_the_result_is_an_error() {
    require_netns!();
    let node = Node::new();
    let (container, other) = (node.container(), node.container());
    let attachment = node.attach(&container, "eth0", &bridge_config(&node));
    attachment.call("CHECK").env("CNI_NETNS", other.path()).err();
    attachment.call("CHECK").env("CNI_IFNAME", "eth1").err();
}

#[test]
fn check_needs_the_result_of_add() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &bridge_config(&node));
    attachment.call_with("CHECK", &attachment.config).err().names(&["prevResult"]);
}

#[test]
fn check_changes_nothing() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment =
        node.attach(&container, "eth0", &with(dual_stack_config(&node), json!({"ipMasq": true})));
    let before = node.snapshot();
    attachment.check();
    crate::support::assert_same(&before, &node.snapshot());
}
