//! ipMasq, seen from outside: connections of containers come from the host's address.

use serde_json::{Value, json};

use crate::support::{Node, Outside, require_netns, require_tool};
use crate::{dual_stack_config, with};

/// Plugins and backends; `None` is a configuration that names no backend.
const KINDS: [(&str, Option<&str>); 6] = [
    ("bridge", None),
    ("bridge", Some("nftables")),
    ("bridge", Some("iptables")),
    ("ptp", None),
    ("ptp", Some("nftables")),
    ("ptp", Some("iptables")),
];

fn config(node: &Node, plugin: &str, backend: Option<&str>) -> Value {
    let config = with(dual_stack_config(node), json!({"type": plugin, "ipMasq": true}));
    if let Some(backend) = backend { with(config, json!({"ipMasqBackend": backend})) } else { config }
}

#[test]
fn the_outside_sees_the_hosts_address() {
    require_netns!();
    for (plugin, backend) in KINDS {
        let node = Node::new();
        let outside = node.outside();
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config(&node, plugin, backend));
        for (to, expected) in [(Outside::V4, Outside::NODE_V4), (Outside::V6, Outside::NODE_V6)] {
            let seen =
                container.seen_by(&outside, to).unwrap_or_else(|e| panic!("{plugin} {backend:?} {to}: {e}"));
            assert_eq!(seen.to_string(), expected, "{plugin} {backend:?}");
        }
        attachment.check();
        attachment.del();
    }
}

#[test]
fn without_it_the_outside_sees_the_container() {
    require_netns!();
    for plugin in ["bridge", "ptp"] {
        let node = Node::new();
        let outside = node.outside();
        let container = node.container();
        node.attach(&container, "eth0", &with(dual_stack_config(&node), json!({"type": plugin})));
        for (to, expected) in [(Outside::V4, "10.1.0.2"), (Outside::V6, "fd00:1::2")] {
            assert_eq!(
                container
                    .datagram_seen_by(&outside, to)
                    .unwrap_or_else(|e| panic!("{plugin} to {to}: {e}"))
                    .to_string(),
                expected,
                "{plugin}"
            );
        }
        assert_eq!(node.nft().trim(), "", "no table without need");
    }
}

#[test]
fn containers_of_one_network_see_each_others_own_address() {
    require_netns!();
    for (plugin, backend) in KINDS {
        let node = Node::new();
        let (one, two) = (node.container(), node.container());
        let first = node.attach(&one, "eth0", &config(&node, plugin, backend));
        let second = node.attach(&two, "eth0", &config(&node, plugin, backend));
        for n in 0..2 {
            let seen =
                one.seen_by(&two, &second.ip(n)).unwrap_or_else(|e| panic!("{plugin} {backend:?}: {e}"));
            assert_eq!(seen.to_string(), first.ip(n), "{plugin} {backend:?}");
        }
    }
}

#[test]
fn the_host_sees_the_containers_own_address() {
    require_netns!();
    for (plugin, backend) in KINDS {
        let node = Node::new();
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config(&node, plugin, backend));
        for (n, gateway) in ["10.1.0.1", "fd00:1::1"].into_iter().enumerate() {
            assert_eq!(
                container.seen_by(&node, gateway).unwrap().to_string(),
                attachment.ip(n),
                "{plugin} {backend:?}"
            );
        }
    }
}

#[test]
fn multicast_is_exempt() {
    require_netns!();
    require_tool!("nft");
    for (plugin, backend) in KINDS {
        let node = Node::new();
        let container = node.container();
        node.attach(&container, "eth0", &config(&node, plugin, backend));
        let rules = if backend == Some("iptables") {
            node.run("iptables-nft -t nat -S") + &node.run("ip6tables-nft -t nat -S")
        } else {
            node.nft()
        };
        assert!(rules.contains("224.0.0.0/4") && rules.contains("ff00::/8"), "{plugin} {backend:?}: {rules}");
    }
}

#[test]
fn one_containers_del_leaves_the_others_masqueraded() {
    require_netns!();
    for (plugin, backend) in KINDS {
        let node = Node::new();
        let outside = node.outside();
        let (one, two) = (node.container(), node.container());
        let first = node.attach(&one, "eth0", &config(&node, plugin, backend));
        let second = node.attach(&two, "eth0", &config(&node, plugin, backend));
        first.del();
        assert_eq!(
            two.seen_by(&outside, Outside::V4).unwrap().to_string(),
            Outside::NODE_V4,
            "{plugin} {backend:?}"
        );
        second.check();
        second.del();
        let left = node.snapshot();
        for trace in [one.id(), two.id(), "10.1.0.2", "10.1.0.3", "fd00:1::2", "fd00:1::3"] {
            assert_eq!(left.mentions(trace), [""; 0], "{plugin} {backend:?}");
        }
    }
}

#[test]
fn one_interfaces_del_leaves_the_other_interface_masqueraded() {
    require_netns!();
    for backend in [None, Some("nftables"), Some("iptables")] {
        let node = Node::new();
        let outside = node.outside();
        let container = node.container();
        let mut config = config(&node, "bridge", backend);
        let second = node.attach(&container, "eth1", &config);
        config["ipam"]["routes"] = json!([]);
        let first = node.attach(&container, "eth0", &config);
        first.del();
        assert_eq!(
            container.seen_by(&outside, Outside::V4).unwrap().to_string(),
            Outside::NODE_V4,
            "{backend:?}"
        );
        second.check();
        second.del();
        assert_eq!(node.snapshot().mentions(container.id()), [""; 0]);
    }
}

#[test]
fn the_iptables_backend_writes_what_the_go_plugin_writes() {
    require_netns!();
    require_tool!("iptables-nft");
    let node = Node::new();
    let container = node.container_named("1234");
    let attachment = node.attach(
        &container,
        "eth0",
        &with(config(&node, "bridge", Some("iptables")), json!({"name": "test"})),
    );
    // The chain for network "test" and container "1234": reference main-plugins.md MI-2.
    let comment = r#"-m comment --comment "name: \"test\" id: \"1234\"""#;
    for (tool, address, network, multicast) in [
        ("iptables-nft", "10.1.0.2/32", "10.1.0.0/24", "224.0.0.0/4"),
        ("ip6tables-nft", "fd00:1::2/128", "fd00:1::/64", "ff00::/8"),
    ] {
        let listed = node.run(&format!("{tool} -t nat -S"));
        let own: Vec<&str> = listed.lines().filter(|line| line.contains("CNI-")).collect();
        let chain = "CNI-2bbe0c48b91a7d1b8a6753a8";
        assert_eq!(
            own,
            [
                format!("-N {chain}"),
                format!("-A POSTROUTING -s {address} {comment} -j {chain}"),
                format!("-A {chain} -d {network} {comment} -j ACCEPT"),
                format!("-A {chain} ! -d {multicast} {comment} -j MASQUERADE"),
            ],
            "{tool}"
        );
    }
    attachment.del();
    for tool in ["iptables-nft", "ip6tables-nft"] {
        let listed = node.run(&format!("{tool} -t nat -S"));
        assert!(!listed.contains("CNI-") && !listed.contains("1234"), "{listed}");
    }
}

#[test]
fn the_iptables_backend_leaves_other_rules_as_they_were() {
    require_netns!();
    require_tool!("iptables-nft");
    let node = Node::new();
    node.run("iptables-nft -t nat -N OWN");
    node.run("iptables-nft -t nat -A POSTROUTING -s 192.0.2.0/24 -j OWN");
    let before = node.run("iptables-nft -t nat -S");
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node, "bridge", Some("iptables")));
    let during = node.run("iptables-nft -t nat -S");
    assert!(before.lines().all(|line| during.contains(line)), "{during}");
    attachment.del();
    assert_eq!(node.run("iptables-nft -t nat -S"), before);
}

#[test]
fn one_table_per_family_holds_one_element_per_address() {
    require_netns!();
    require_tool!("nft");
    if crate::support::foreign_plugins().is_some() {
        return;
    }
    let node = Node::new();
    let config = config(&node, "bridge", None);
    let container = node.container_named("first-one");
    let first = node.attach(&container, "eth0", &config);
    let rules = |node: &Node| node.nft().lines().filter(|line| line.contains("masquerade")).count();
    let before = rules(&node);
    let another = node.container_named("second-one");
    let second = node.attach(&another, "eth0", &config);
    assert_eq!(rules(&node), before, "a packet's cost grows with the number of containers");
    let mut tables: Vec<String> = node.run("nft list tables").lines().map(str::to_owned).collect();
    tables.sort();
    assert_eq!(tables, ["table ip cni-all", "table ip6 cni-all"]);
    let listed = node.nft();
    for text in ["first-one", "second-one", "10.1.0.2", "fd00:1::3"] {
        assert!(listed.contains(text), "{listed}");
    }
    first.del();
    second.del();
}

#[test]
fn without_ipam_it_does_nothing() {
    require_netns!();
    let node = Node::new();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipMasq": true});
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(node.nft().trim(), "");
    attachment.del();
}
