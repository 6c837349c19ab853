//! The `sbr` plugin: whose routes traffic takes, and that no route is lost on the way.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Attachment, Call, Container, Node, require_netns, skip};
use crate::{dual_stack_config, with};

/// A second network, on a bridge of its own.
fn second(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "two", "type": "bridge", "bridge": "cni1", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": node.data_dir(),
            "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00:2::/64"}]],
            "routes": [{"dst": "192.0.2.0/24"}, {"dst": "2001:db8:2::/48"}],
        },
    })
}

/// sbr behind an attachment of the second network, with these keys.
fn config(main: &Attachment, keys: Value) -> Value {
    with(json!({"cniVersion": "1.1.0", "name": "two", "type": "sbr", "prevResult": main.result}), keys)
}

/// A container on both networks: the attachment to the second.
fn on_both<'a>(node: &'a Node, container: &'a Container) -> Attachment<'a> {
    node.attach(container, "eth0", &dual_stack_config(node));
    node.attach(container, "net1", &second(node))
}

/// The rules of a container but for the kernel's own, `FAMILY: from ADDRESS lookup TABLE`.
fn rules(container: &Container) -> Vec<String> {
    let mut found = Vec::new();
    for family in [4, 6] {
        for rule in container.json(&format!("ip -j -{family} rule show")).as_array().unwrap() {
            if !["local", "main", "default"].contains(&rule["table"].as_str().unwrap()) {
                found.push(format!(
                    "{}: from {} lookup {}",
                    family,
                    rule["src"].as_str().unwrap(),
                    rule["table"].as_str().unwrap()
                ));
            }
        }
    }
    found
}

/// The unicast routes of a container's table, `DST via GATEWAY dev DEV`.
fn table(container: &Container, table: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for family in [4, 6] {
        let output = container.try_run(&format!("ip -j -{family} route show table {table}"));
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        for route in shown.as_array().into_iter().flatten() {
            let text = |key: &str| route[key].as_str().unwrap_or("-").to_owned();
            lines.insert(format!("{family} {} via {} dev {}", text("dst"), text("gateway"), text("dev")));
        }
    }
    lines
}

#[test]
fn what_leaves_from_an_address_takes_its_interfaces_routes() {
    require_netns!();
    let node = Node::new();
    node.ip(&["addr add 198.51.100.1/32 dev lo", "addr add 2001:db8:9::1/128 dev lo"]);
    let container = node.container();
    let main = on_both(&node, &container);
    // What does not come by the link that leads back is dropped.
    for link in ["all", "cni0", "cni1"] {
        node.set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "1");
    }
    let answered = |address: &str, to: &str| container.pings(&format!("-I {address} {to}"));
    // First: a question for the gateway's MAC address with the other address as its sender would be dropped, and repeated.
    assert!(answered("10.1.0.2", "198.51.100.1") && answered("fd00:1::2", "2001:db8:9::1"));
    assert!(!answered(&main.ip(0), "198.51.100.1"), "without sbr the test proves nothing");
    let sbr = node.attach(&container, "net1", &config(&main, json!({})));
    assert_eq!(sbr.result, main.result);
    sbr.check();
    // Its routes are in another table by now.
    main.check();
    assert!(answered(&main.ip(0), "198.51.100.1") && answered(&main.ip(1), "2001:db8:9::1"));
    assert!(answered("10.1.0.2", "198.51.100.1") && answered("fd00:1::2", "2001:db8:9::1"));
    for (family, address, to) in [(4, main.ip(0), "198.51.100.1"), (6, main.ip(1), "2001:db8:9::1")] {
        let way = container.json(&format!("ip -j -{family} route get {to} from {address}"));
        assert_eq!(way[0]["dev"], "net1");
    }
    assert_eq!(
        rules(&container),
        ["4: from 10.2.0.2 lookup 100".to_owned(), "6: from fd00:2::2 lookup 101".to_owned()]
    );
}

#[test]
fn routes_move_and_come_back_and_none_is_lost() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = on_both(&node, &container);
    container.ip(&[
        "route add 172.16.9.9/32 dev net1",
        "route add 198.18.0.0/15 via 172.16.9.9 dev net1 onlink mtu 1300 advmss 1200 metric 7",
        "route add 203.0.113.0/24 via 10.2.0.1 dev net1 table 55",
        "route add 2001:db8:5::/48 via fe80::1 dev net1 metric 9",
    ]);
    let before = [table(&container, "main"), table(&container, "55")];
    let details = container.run("ip -d route show 198.18.0.0/15");
    let sbr = node.attach(&container, "net1", &config(&main, json!({})));
    let left = table(&container, "main");
    assert!(
        left.iter().all(|route| route.contains("dev eth0") || route.contains("6 fe80::/64")),
        "{left:#?}"
    );
    let mut all: BTreeSet<String> =
        ["main", "100", "101"].iter().flat_map(|t| table(&container, t)).collect();
    assert!(all.remove("4 default via 10.2.0.1 dev net1") && all.remove("6 default via fd00:2::1 dev net1"));
    assert_eq!(all, before[0]);
    let moved = container.run("ip -d route show 198.18.0.0/15 table 100");
    assert_eq!(details.trim(), moved.replace(" table 100", "").trim());
    sbr.check();
    sbr.del();
    assert_eq!([table(&container, "main"), table(&container, "55")], before);
    assert_eq!(container.run("ip -d route show 198.18.0.0/15"), details);
    assert!(table(&container, "100").is_empty() && table(&container, "101").is_empty());
    assert!(rules(&container).is_empty());
    main.check();
}

#[test]
fn default_routes_of_two_networks_part_and_join_again() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let defaults = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let (mut front, mut back) = (dual_stack_config(&node), second(&node));
    (front["ipam"]["routes"], back["ipam"]["routes"]) = (defaults.clone(), defaults);
    let first = node.attach(&container, "eth0", &front);
    let main = node.attach(&container, "net1", &back);
    let shown = || [4, 6].map(|family| container.run(&format!("ip -{family} route show default")));
    let before = shown();
    let both = ["via fd00:1::1 dev eth0", "via fd00:2::1 dev net1"];
    assert!(both.iter().all(|leg| before[1].contains(leg)), "{}", before[1]);
    let sbr = node.attach(&container, "net1", &config(&main, json!({})));
    assert!(shown().iter().all(|text| text.contains("dev eth0") && !text.contains("net1")), "{:?}", shown());
    assert!(table(&container, "100").contains("4 default via 10.2.0.1 dev net1"));
    assert!(table(&container, "101").contains("6 default via fd00:2::1 dev net1"));
    for attachment in [&first, &main, &sbr] {
        attachment.check();
    }
    sbr.del();
    let after = shown();
    assert!(after[0].starts_with("default via 10.2.0.1 dev net1"), "{}", after[0]);
    assert!(both.iter().all(|leg| after[1].contains(leg)), "{}", after[1]);
}

#[test]
fn tables_of_others_are_not_taken() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = on_both(&node, &container);
    container.ip(&[
        "rule add from 10.99.0.1 lookup 100",
        "route add 10.98.0.0/16 dev eth0 table 101",
        "route add fd98::/64 dev eth0 table 103",
    ]);
    container.run("ip -6 rule add from fd99::1 lookup 102");
    let sbr = node.attach(&container, "net1", &config(&main, json!({})));
    let ours = |rule: &String| rule.contains("10.2.0.2") || rule.contains("fd00:2::2");
    let found: Vec<String> = rules(&container).into_iter().filter(ours).collect();
    assert_eq!(found, ["4: from 10.2.0.2 lookup 104", "6: from fd00:2::2 lookup 105"]);
    sbr.del();
    assert_eq!(rules(&container).len(), 2);
    assert_eq!((table(&container, "101").len(), table(&container, "103").len()), (1, 1));
}

#[test]
fn rules_of_others_for_an_address_keep_their_tables() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = on_both(&node, &container);
    container.ip(&[
        "rule add from 10.2.0.2 lookup main pref 1000",
        "rule add from 10.2.0.2 lookup 200 pref 1001",
        "route add 198.18.0.0/15 via 10.2.0.1 dev net1 table 200",
    ]);
    let state =
        || (container.run("ip rule show"), ["main", "100", "101", "200"].map(|name| table(&container, name)));
    let before = state();
    let sbr = node.attach(&container, "net1", &config(&main, json!({})));
    assert!(container.run("ip rule show").contains("from 10.2.0.2 lookup 100"));
    let (_, [left, v4, v6, theirs]) = state();
    assert_eq!((v4.len(), v6.len(), &theirs), (3, 4, &before.1[3]));
    assert!(
        left.iter().all(|route| route.contains("dev eth0") || route.contains("6 fe80::/64")),
        "{left:#?}"
    );
    // One that is asked first.
    container.run("ip rule add from 10.2.0.2 lookup 200 pref 9");
    sbr.check();
    container.run("ip rule del pref 9");
    for _ in 0..2 {
        sbr.del();
        assert_eq!(state(), before);
    }
}

#[test]
fn a_named_table_gets_the_rules_and_the_routes_stay() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = on_both(&node, &container);
    container.ip(&["route add default via 10.2.0.1 dev net1 table 7000"]);
    let before = [table(&container, "main"), table(&container, "7000")];
    let sbr = node.attach(&container, "net1", &config(&main, json!({"table": 7000})));
    assert_eq!(rules(&container), ["4: from 10.2.0.2 lookup 7000", "6: from fd00:2::2 lookup 7000"]);
    assert_eq!([table(&container, "main"), table(&container, "7000")], before);
    sbr.check();
    let other = with(sbr.config.clone(), json!({"table": 7001}));
    sbr.call_with("CHECK", &other).fails(100).names(&["7001", "10.2.0.2"]);
    sbr.del();
    assert!(rules(&container).is_empty());
    assert_eq!([table(&container, "main"), table(&container, "7000")], before);
}

#[test]
fn source_hints_keep_the_networks_in_the_main_table() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = on_both(&node, &container);
    let keys = json!({"addSourceHints": true, "gateways": ["10.2.0.254", "fd00:2::fe"]});
    let sbr = node.attach(&container, "net1", &config(&main, keys));
    for (family, to, source) in [(4, "10.2.0.77", main.ip(0)), (6, "fd00:2::77", main.ip(1))] {
        let way = container.json(&format!("ip -j -{family} route get {to}"));
        assert_eq!((&way[0]["dev"], &way[0]["prefsrc"]), (&json!("net1"), &json!(source)), "{way:#}");
    }
    assert!(table(&container, "100").contains("4 default via 10.2.0.254 dev net1"));
    assert!(table(&container, "101").contains("6 default via fd00:2::fe dev net1"));
    let left = table(&container, "main");
    assert!(
        !left.iter().any(|route| route.contains("192.0.2.0/24") || route.contains("2001:db8:2::/48")),
        "{left:#?}"
    );
    sbr.check();
    sbr.del();
    main.check();
}

#[test]
fn default_routes_come_back_also_from_behind_named_gateways() {
    require_netns!();
    let node = Node::new();
    for hints in [false, true] {
        let container = node.container();
        let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "192.0.2.0/24"}]);
        let mut network = second(&node);
        network["ipam"]["routes"] = routes;
        let main = node.attach(&container, "net1", &network);
        container.ip(&["route add default via 10.2.0.1 dev net1 metric 50"]);
        let all = || {
            let shown = [4, 6].map(|family| container.run(&format!("ip -d -{family} route show table main")));
            shown.join("").lines().map(|line| line.trim().to_owned()).collect::<BTreeSet<_>>()
        };
        let before = all();
        let keys = json!({"addSourceHints": hints, "gateways": ["10.2.0.9", "fd00:2::9"]});
        let sbr = node.attach(&container, "net1", &config(&main, keys.clone()));
        for (family, address, to, gateway) in
            [(4, main.ip(0), "198.51.100.1", "10.2.0.9"), (6, main.ip(1), "2001:db8:9::1", "fd00:2::9")]
        {
            let way = container.json(&format!("ip -j -{family} route get {to} from {address}"));
            assert_eq!(way[0]["gateway"], gateway, "{way:#}");
        }
        sbr.check();
        main.check();
        node.attach(&container, "net1", &config(&main, keys)).check();
        let tables = ["100", "101"].map(|name| table(&container, name));
        container.ip(&["route del default via 10.2.0.9 table 100"]);
        sbr.call("CHECK").fails(100).names(&["10.2.0.9", "10.2.0.1"]);
        container.ip(&["route add default via 10.2.0.9 dev net1 table 100 proto 67"]);
        assert_eq!(["100", "101"].map(|name| table(&container, name)), tables);
        sbr.del();
        assert_eq!(all(), before, "source hints: {hints}");
        assert!(rules(&container).is_empty() && table(&container, "100").is_empty());
        main.check();
        main.del();
    }
}

#[test]
fn a_second_add_changes_nothing() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = on_both(&node, &container);
    let sbr = node.attach(&container, "net1", &config(&main, json!({})));
    let state =
        || (rules(&container), table(&container, "main"), table(&container, "100"), table(&container, "101"));
    let before = state();
    node.attach(&container, "net1", &config(&main, json!({}))).check();
    assert_eq!(state(), before);
    sbr.del();
    assert!(rules(&container).is_empty());
    main.check();
}

#[test]
fn a_failure_puts_everything_back() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = on_both(&node, &container);
    let before = table(&container, "main");
    let keys = json!({"gateways": ["192.168.77.1"]});
    node.request("ADD", &container, "net1", &config(&main, keys)).err().names(&["192.168.77.1", "table 100"]);
    assert_eq!(table(&container, "main"), before);
    assert!(
        rules(&container).is_empty()
            && table(&container, "100").is_empty()
            && table(&container, "101").is_empty()
    );
    main.check();
}

#[test]
fn del_needs_nothing_and_makes_nothing() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = on_both(&node, &container);
    let sbr = node.attach(&container, "net1", &config(&main, json!({})));
    let bare = json!({"cniVersion": "1.1.0", "name": "two", "type": "sbr", "gateways": ["x"]});
    let gone = node.workdir().root().join("netns/gone");
    for netns in [gone.to_str().unwrap(), ""] {
        sbr.call_with("DEL", &bare).env("CNI_NETNS", netns).silent();
    }
    assert!(!gone.exists(), "DEL made a file in the place of the namespace");
    assert_eq!(rules(&container).len(), 2);
    container
        .ip(&["rule add from 10.2.0.2 lookup 300 pref 9", "rule add from 10.2.0.2 to 10.0.0.0/8 lookup 301"]);
    sbr.call_with("DEL", &bare).silent();
    sbr.call_with("DEL", &bare).silent();
    assert_eq!(rules(&container).len(), 2, "those of others stay");
    container.ip(&["rule del pref 9", "rule del lookup 301"]);
    // The interface is gone: the result still says which addresses it had.
    let again = node.attach(&container, "net1", &config(&main, json!({})));
    assert_eq!(rules(&container).len(), 2);
    main.del();
    again.del();
    assert!(rules(&container).is_empty());
    again.del();
}

#[test]
fn del_leaves_the_interface_of_another_container_alone() {
    require_netns!();
    let node = Node::new();
    let (one, two) = (node.container(), node.container());
    let mains = [&one, &two].map(|container| on_both(&node, container));
    let [old, new] = [(&one, 0), (&two, 1)]
        .map(|(container, n)| node.attach(container, "net1", &config(&mains[n], json!({}))));
    let state = || (rules(&two), table(&two, "main"), table(&two, "100"), table(&two, "101"));
    let before = state();
    // The path names the other's namespace by now.
    old.call("DEL").env("CNI_NETNS", two.path()).silent();
    let bare = json!({"cniVersion": "1.1.0", "name": "two", "type": "sbr"});
    old.call_with("DEL", &bare).env("CNI_NETNS", two.path()).silent();
    assert_eq!(state(), before);
    // As a Go plugin's interface, which does not say whose it is.
    for main in &mains {
        node.ip(&[&format!("link set {} alias ''", main.host_veth())]);
    }
    old.call("DEL").env("CNI_NETNS", two.path()).silent();
    assert_eq!(state(), before);
    new.check();
    for attachment in [&new, &old] {
        attachment.del();
    }
    assert!(rules(&one).is_empty() && rules(&two).is_empty());
}

#[test]
fn check_finds_every_damage() {
    require_netns!();
    let node = Node::new();
    let damages: [(&str, &[&str]); 4] = [
        ("ip rule del from 10.2.0.2", &["rule", "10.2.0.2"]),
        ("ip -6 route del default table 101", &["default", "fd00:2::1"]),
        ("ip route del 192.0.2.0/24 table 100", &["192.0.2.0/24"]),
        ("ip link del net1", &["net1"]),
    ];
    let container = node.container();
    node.attach(&container, "eth0", &dual_stack_config(&node));
    for (damage, names) in damages {
        let main = node.attach(&container, "net1", &second(&node));
        let sbr = node.attach(&container, "net1", &config(&main, json!({})));
        sbr.check();
        let own = damage.replace("10.2.0.2", &main.ip(0));
        container.run(&own);
        let failure = sbr.call("CHECK").fails(100);
        failure.names(
            &names
                .iter()
                .map(|n| if *n == "10.2.0.2" { own.rsplit(' ').next().unwrap() } else { n })
                .collect::<Vec<_>>(),
        );
        sbr.del();
        main.del();
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = on_both(&node, &container);
    let before = table(&container, "main");
    let add = |keys: Value| node.request("ADD", &container, "net1", &config(&main, keys));
    add(json!({"prevResult": null})).fails(7).names(&["prevResult"]);
    add(json!({"prevResult": {"cniVersion": "1.1.0"}})).fails(7).names(&["prevResult.ips"]);
    add(json!({"table": 0})).fails(7).names(&["table", "0"]);
    add(json!({"table": -5})).fails(7).names(&["table", "-5"]);
    add(json!({"gateways": ["10.2.0.1", "10.2.0.9"]})).fails(7).names(&[
        "gateways[1]",
        "10.2.0.9",
        "10.2.0.1",
    ]);
    add(json!({"gateways": ["router"]})).fails(7).names(&["gateways[0]", "router"]);
    // None of its addresses is this interface's.
    assert_eq!(node.request("ADD", &container, "net7", &config(&main, json!({}))).ok(), main.result);
    let foreign = with(main.result.clone(), json!({"interfaces": []}));
    node.request("ADD", &container, "net7", &config(&main, json!({"prevResult": foreign})))
        .err()
        .names(&["net7"]);
    assert!(rules(&container).is_empty());
    assert_eq!(table(&container, "main"), before);
}

#[test]
fn gc_and_status_succeed_where_rules_can_be() {
    require_netns!();
    let node = Node::new();
    let config =
        json!({"cniVersion": "1.1.0", "name": "two", "type": "sbr", "cni.dev/valid-attachments": []});
    node.call("sbr").command("GC").config(&config).silent();
    node.call("sbr").command("STATUS").config(&config).silent();
    let wrong = with(config, json!({"table": 0}));
    node.call("sbr").command("STATUS").config(&wrong).fails(7).names(&["table"]);
}

/// A call of Debian's Go plugin for the same attachment.
fn go(node: &Node, attachment: &Attachment, command: &str, config: &Value) -> Call {
    Call::new("/usr/lib/cni/sbr".as_ref(), "/usr/lib/cni".as_ref())
        .inside(node)
        .command(command)
        .config(config)
        .env("CNI_CONTAINERID", &attachment.id)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", &attachment.ifname)
}

#[test]
fn the_go_plugin_can_take_over_and_be_taken_over() {
    require_netns!();
    if !std::path::Path::new("/usr/lib/cni/sbr").exists() {
        return skip("the Go plugins are not in /usr/lib/cni");
    }
    let node = Node::new();
    let container = node.container();
    let old = json!({"cniVersion": "1.0.0"});
    node.attach(&container, "eth0", &with(dual_stack_config(&node), old.clone()));
    let main = node.attach(&container, "net1", &with(second(&node), old.clone()));
    let config = with(config(&main, json!({})), old);
    let result = go(&node, &main, "ADD", &config).ok();
    let theirs = with(config.clone(), json!({"prevResult": result}));
    main.call_with("CHECK", &theirs).silent();
    main.call_with("DEL", &theirs).silent();
    assert!(rules(&container).is_empty());
    assert!(table(&container, "main").contains("4 192.0.2.0/24 via 10.2.0.1 dev net1"));
    node.attach(&container, "net1", &config).check();
    go(&node, &main, "DEL", &config).silent();
    assert!(rules(&container).is_empty());
}
