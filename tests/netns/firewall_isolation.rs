//! firewall's `ingressPolicy`: who reaches whom, and what becomes of rules when the configuration changes.

use serde_json::{Value, json};

use crate::firewall::{Chained, config, listed};
use crate::firewall_hosts::{assert_reaches, bridge};
use crate::support::{Container, Node, require_netns, require_tool, skip_for_kernel};
use crate::with;

/// The bridge of a second network.
fn second(node: &Node) -> Value {
    with(
        bridge(node),
        json!({"name": "two", "bridge": "cni1", "ipam": {
            "type": "host-local", "dataDir": node.data_dir(),
            "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00:2::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }}),
    )
}

fn policy(name: &str, policy: &str) -> Value {
    config(json!({"name": name, "ingressPolicy": policy}))
}

/// Asserts who reaches whom: per address of `chained`, IPv4 first.
#[track_caller]
fn assert_talks(from: &Container, to: &Container, chained: &Chained, expected: bool, what: &str) {
    for n in 0..2 {
        let address = chained.firewall.ip(n);
        match expected {
            true => drop(from.seen_by(to, &address).unwrap_or_else(|e| panic!("{what}: {address}: {e}"))),
            false => assert!(!from.pings_within(&address, "0.3"), "{what}: {address} answers"),
        }
    }
}

#[test]
fn open_networks_reach_each_other_and_isolated_ones_do_not() {
    require_netns!();
    for (name, neighbours, own) in
        [("open", true, true), ("same-bridge", false, true), ("isolated", false, false)]
    {
        let node = Node::new();
        let outside = node.outside();
        let (a, b, c) = (node.container(), node.container(), node.container());
        let in_a = Chained::new(&node, &a, &bridge(&node), &policy("net", name));
        let in_b = Chained::new(&node, &b, &bridge(&node), &policy("net", name));
        let in_c = Chained::new(&node, &c, &second(&node), &policy("two", name));
        assert_talks(&a, &c, &in_c, neighbours, &format!("{name}: between networks"));
        assert_talks(&c, &a, &in_a, neighbours, &format!("{name}: between networks"));
        assert_talks(&a, &b, &in_b, own, &format!("{name}: within a network"));
        assert_reaches(&a, &outside, true, &format!("{name}: to the outside"));
        assert!(a.pings("10.1.0.1"), "{name}: to the gateway");
        for chained in [&in_a, &in_b, &in_c] {
            chained.firewall.check();
            chained.del();
        }
    }
}

#[test]
fn a_change_of_the_policy_takes_effect_with_the_next_add() {
    require_netns!();
    let node = Node::new();
    let (a, b, other) = (node.container(), node.container(), node.container());
    let in_a = Chained::new(&node, &a, &bridge(&node), &policy("net", "isolated"));
    let in_b = Chained::new(&node, &b, &bridge(&node), &policy("net", "isolated"));
    let in_other = Chained::new(&node, &other, &second(&node), &policy("two", "isolated"));
    let foreign =
        |node: &Node| listed(node).into_iter().filter(|line| line.contains("cni1")).collect::<Vec<_>>();
    let before = foreign(&node);
    let again = |word: &str| {
        let config = with(in_a.firewall.config.clone(), json!({"ingressPolicy": word}));
        node.request("ADD", &a, "eth0", &config).ok();
        node.request("CHECK", &a, "eth0", &config).silent();
    };
    for (word, own, neighbours) in [
        ("same-bridge", true, false),
        ("open", true, true),
        ("isolated", false, false),
        ("open", true, true),
        ("same-bridge", true, false),
    ] {
        again(word);
        assert_talks(&a, &b, &in_b, own, word);
        assert_talks(&a, &other, &in_other, neighbours, word);
        assert_eq!(foreign(&node), before, "{word}: the other network's rules");
    }
    // CHECK with the configuration of before tells the difference.
    in_b.firewall.call("CHECK").fails(100).names(&["cni0"]);
}

#[test]
fn isolation_goes_with_the_last_attachment_of_the_network() {
    require_netns!();
    let node = Node::new();
    let (a, b, other) = (node.container(), node.container(), node.container());
    let in_other = Chained::new(&node, &other, &second(&node), &policy("two", "isolated"));
    let in_a = Chained::new(&node, &a, &bridge(&node), &policy("net", "isolated"));
    let in_b = Chained::new(&node, &b, &bridge(&node), &policy("net", "isolated"));
    in_a.del();
    in_b.firewall.check();
    in_b.del();
    assert!(!node.nft().contains("\"cni0\""), "{}", node.nft());
    in_other.firewall.check();
}

#[test]
fn rules_of_a_go_plugin_become_the_networks_own() {
    require_netns!();
    require_tool!("iptables-nft");
    let node = Node::new();
    let container = node.container();
    let attached = Chained::new(&node, &container, &bridge(&node), &policy("net", "open"));
    // As release 1.6 leaves them when a network was isolated once.
    let own = "CNI firewall plugin rules (ingressPolicy: isolated)";
    let shared = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";
    let rules = [
        format!("-I FORWARD -j CNI-ISOLATION-STAGE-1 -m comment --comment \"{shared}\""),
        format!(
            "-I CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 -j CNI-ISOLATION-STAGE-2 -m comment --comment \"{own}\""
        ),
        format!("-I CNI-ISOLATION-STAGE-1 -i cni0 -o cni0 -j DROP -m comment --comment \"{own}\""),
        format!("-A CNI-ISOLATION-STAGE-1 -j RETURN -m comment --comment \"{shared}\""),
        format!("-I CNI-ISOLATION-STAGE-2 -o cni0 -j DROP -m comment --comment \"{shared}\""),
        format!("-A CNI-ISOLATION-STAGE-2 -j RETURN -m comment --comment \"{shared}\""),
    ];
    let text = format!(
        "*filter\n:CNI-ISOLATION-STAGE-1 - [0:0]\n:CNI-ISOLATION-STAGE-2 - [0:0]\n{}\nCOMMIT\n",
        rules.join("\n")
    );
    crate::firewall_hosts::feed(&node, "iptables-nft-restore --noflush", &text);
    let before = listed(&node);
    let check = |word: &str| {
        let config = with(attached.firewall.config.clone(), json!({"ingressPolicy": word}));
        let prev = json!({"prevResult": attached.bridge.result});
        node.request("CHECK", &container, "eth0", &with(config, prev))
    };
    check("same-bridge").fails(100);
    let config = with(attached.firewall.config.clone(), json!({"ingressPolicy": "isolated"}));
    node.request("ADD", &container, "eth0", &config).ok();
    let v4 = |lines: &[String]| {
        lines.iter().filter(|line| line.contains("cni0")).take(3).cloned().collect::<Vec<_>>()
    };
    assert_eq!(v4(&listed(&node)), v4(&before), "listed as before");
    let config = with(attached.firewall.config.clone(), json!({"ingressPolicy": "same-bridge"}));
    node.request("ADD", &container, "eth0", &config).ok();
    assert!(!listed(&node).iter().any(|line| line.contains("-i cni0 -o cni0")));
    check("same-bridge").silent();
    attached.del();
    assert!(!listed(&node).iter().any(|line| line.contains("cni0")));
}

/// Whose network a Go plugin's attachments are on is not known: they may need it.
#[test]
fn isolation_stays_as_long_as_a_go_plugin_has_rules() {
    require_netns!();
    require_tool!("iptables-nft");
    let node = Node::new();
    let container = node.container();
    let attached = Chained::new(&node, &container, &bridge(&node), &policy("net", "isolated"));
    node.run("iptables-nft -A CNI-FORWARD -s 10.1.0.77/32 -j ACCEPT");
    attached.firewall.del();
    assert!(listed(&node).iter().any(|line| line.contains("-i cni0 -o cni0")), "{:#?}", listed(&node));
    node.run("iptables-nft -D CNI-FORWARD -s 10.1.0.77/32 -j ACCEPT");
    attached.del();
    assert!(!listed(&node).iter().any(|line| line.contains("cni0")), "{:#?}", listed(&node));
}

#[test]
fn two_networks_on_one_bridge_keep_their_own_rules() {
    require_netns!();
    let node = Node::new();
    let (a, b) = (node.container(), node.container());
    let in_a = Chained::new(&node, &a, &bridge(&node), &policy("net", "isolated"));
    let in_b = Chained::new(&node, &b, &with(bridge(&node), json!({"name": "two"})), &policy("two", "open"));
    in_a.firewall.check();
    in_b.del();
    in_a.firewall.check();
}

/// A link of ptp belongs to one container: rules about it go when it is gone.
#[test]
fn rules_of_links_that_are_gone_go_with_the_next_add() {
    require_netns!();
    let node = Node::new();
    let (a, b) = (node.container(), node.container());
    let ptp = with(bridge(&node), json!({"type": "ptp"}));
    let in_a = Chained::new(&node, &a, &ptp, &policy("net", "same-bridge"));
    let first = in_a.bridge.host_veth();
    assert!(node.nft().contains(&first));
    let in_b = Chained::new(&node, &b, &ptp, &policy("net", "same-bridge"));
    in_a.firewall.check();
    in_a.del();
    in_b.firewall.check();
    node.request("ADD", &b, "eth0", &in_b.firewall.config).ok();
    assert!(!node.nft().contains(&first), "{}", node.nft());
}

/// Where frames between ports of a bridge do not pass FORWARD, a rule of the bridge's own does it, or ADD says that it
/// cannot be done.
#[test]
fn isolated_holds_without_bridge_netfilter_or_is_refused() {
    require_netns!();
    let node = Node::new();
    let (a, b) = (node.container(), node.container());
    for key in ["iptables", "ip6tables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{key}");
        if node.enter(|| std::path::Path::new(&path).exists()) {
            node.set_sysctl(&format!("net/bridge/bridge-nf-call-{key}"), "0");
        }
    }
    let attached = node.attach(&a, "eth0", &bridge(&node));
    let config = with(policy("net", "isolated"), json!({"prevResult": attached.result}));
    let outcome = node.request("ADD", &a, "eth0", &config).run();
    if outcome.status == Some(0) {
        let in_b = Chained::new(&node, &b, &bridge(&node), &policy("net", "isolated"));
        assert_talks(&a, &b, &in_b, false, "rule of the bridge");
        in_b.firewall.check();
        let config = with(in_b.firewall.config.clone(), json!({"ingressPolicy": "same-bridge"}));
        node.request("ADD", &b, "eth0", &config).ok();
        assert_talks(&a, &b, &in_b, true, "rule of the bridge");
    } else {
        let failure = outcome.err();
        assert_eq!(failure.code, 2);
        failure.names(&["isolated", "bridge-nf-call-iptables"]);
        assert!(!node.nft().contains("CNI-"), "{}", node.nft());
    }
}

#[test]
fn a_failed_add_with_another_policy_leaves_that_of_the_others() {
    require_netns!();
    let node = Node::new();
    let (a, b) = (node.container(), node.container());
    let attached = node.attach(&a, "eth0", &bridge(&node));
    let config = with(policy("net", "isolated"), json!({"prevResult": attached.result}));
    if node.request("ADD", &a, "eth0", &config).run().status != Some(0) || !node.nft().contains("ibrname") {
        return skip_for_kernel("this kernel does not filter frames by bridge");
    }
    node.run("nft add chain ip filter BASE { type filter hook input priority 50; }");
    let before = node.nft();
    let attached = node.attach(&b, "eth0", &bridge(&node));
    for other in ["same-bridge", "open"] {
        // The kernel refuses a jump to a base chain.
        let keys = json!({"prevResult": attached.result, "iptablesAdminChainName": "BASE"});
        let config = with(policy("net", other), keys);
        node.request("ADD", &b, "eth0", &config).fails(999);
        let others: Vec<_> = before.lines().filter(|line| line.contains("drop")).collect();
        let after = node.nft();
        assert!(others.iter().all(|line| after.contains(line)), "{other}: {before}\n{after}");
    }
}
