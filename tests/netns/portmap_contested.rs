//! portmap: who gets a host port that several containers ask for.

use serde_json::{Value, json};

use crate::portmap::{Transport, mapping, portmap, reach};
use crate::support::{
    Attachment, Call, Container, Netns, Node, Outside, assert_same, require_netns, require_tool,
};
use crate::{dual_stack_config, with, with_static};

/// 8080 → 80 for TCP, with what else the configuration has.
fn config(link: &Attachment, more: Value) -> Value {
    with(portmap(link, json!([mapping("tcp", 8080, 80)])), more)
}

fn add(node: &Node, container: &Container, config: &Value) -> Call {
    node.request("ADD", container, "eth0", config)
}

/// 8080 → 80 as a Go plugin with `backend: nftables` leaves it.
fn go_rules(node: &Node, id: &str, address: &str, port: u16) {
    for line in [
        "add table ip cni_hostport".to_owned(),
        "add chain ip cni_hostport hostports".to_owned(),
        "add chain ip cni_hostport prerouting { type nat hook prerouting priority dstnat; }".to_owned(),
        "add rule ip cni_hostport prerouting fib daddr type local jump hostports".to_owned(),
        format!("add rule ip cni_hostport hostports tcp dport 8080 dnat to {address}:{port} comment {id}"),
    ] {
        node.run(&format!("nft {line}"));
    }
}

#[test]
fn a_port_is_refused_that_another_backend_or_the_go_plugin_gave_away() {
    require_netns!();
    let (maps, iptables) = (json!(null), json!("iptables"));
    for (first, second) in [(&maps, &iptables), (&iptables, &maps)] {
        let node = Node::new();
        let (one, two) = (node.container_named("first"), node.container_named("second"));
        let [first_link, second_link] =
            [&one, &two].map(|c| node.attach(c, "eth0", &dual_stack_config(&node)));
        let ports = node.attach(&one, "eth0", &config(&first_link, json!({"backend": first})));
        let before = node.snapshot();
        let wanted = config(&second_link, json!({"backend": second}));
        let says = "host port tcp . 8080 is mapped already, by container first (network net, interface eth0)";
        add(&node, &two, &wanted).fails(102).says(says);
        assert_same(&before, &node.snapshot());
        // Not this port: nobody is in the way.
        let other =
            json!({"runtimeConfig": {"portMappings": [mapping("udp", 8080, 80), mapping("tcp", 1, 1)]}});
        node.attach(&two, "eth0", &with(wanted.clone(), other)).del();
        // Again, over its own.
        add(&node, &one, &ports.config).ok();
        ports.check();
        ports.del();
        node.attach(&two, "eth0", &wanted).check();
    }
    for backend in [&maps, &iptables] {
        let node = Node::new();
        let two = node.container_named("second");
        let link = node.attach(&two, "eth0", &dual_stack_config(&node));
        let wanted = config(&link, json!({"backend": backend}));
        go_rules(&node, "first", "10.1.0.99", 80);
        let says = "host port tcp . 8080 is mapped already, by container first";
        add(&node, &two, &wanted).fails(102).says(says);
    }
}

#[test]
fn what_goes_first_by_itself_is_not_refused_and_what_would_never_be_reached_is() {
    require_netns!();
    let at = |host: &str| with(mapping("tcp", 8080, 80), json!({"hostIP": host}));
    // Rules of iptables are looked at before our maps.
    for (first, mapped, second, wanted, fits) in [
        ("iptables", at(Outside::NODE_V4), "nftables", at(""), true),
        ("iptables", at(Outside::NODE_V4), "nftables", at("127.0.0.1"), true),
        ("iptables", at(Outside::NODE_V4), "nftables", at(Outside::NODE_V4), false),
        ("iptables", at(""), "nftables", at(Outside::NODE_V4), false),
        ("nftables", at(""), "iptables", at(Outside::NODE_V4), true),
        ("nftables", at("127.0.0.1"), "iptables", at(Outside::NODE_V4), true),
        ("nftables", at(Outside::NODE_V4), "iptables", at(""), false),
    ] {
        let node = Node::new();
        let outside = node.outside();
        let (one, two) = (node.container_named("first"), node.container_named("second"));
        let [first_link, second_link] =
            [&one, &two].map(|c| node.attach(c, "eth0", &dual_stack_config(&node)));
        let what = format!("{first} {mapped}, {second} {wanted}");
        let ports = |link: &Attachment, backend: &str, mapping: &Value| {
            with(portmap(link, json!([mapping])), json!({"backend": backend}))
        };
        let specific = if mapped["hostIP"] == Outside::NODE_V4 { &one } else { &two };
        node.attach(&one, "eth0", &ports(&first_link, first, &mapped));
        let call = add(&node, &two, &ports(&second_link, second, &wanted));
        if fits {
            call.ok();
            let seen = reach(Transport::Tcp, &outside, (Outside::NODE_V4, 8080), specific, 80);
            assert_eq!(seen.unwrap_or_else(|e| panic!("{what}: {e}")), Outside::V4, "{what}");
        } else {
            call.fails(102);
        }
    }
}

#[test]
fn mappings_of_a_container_that_is_gone_are_replaced_in_every_layout() {
    require_netns!();
    require_tool!("iptables-nft");
    for (first, second) in [
        ("iptables", "nftables"),
        ("nftables", "iptables"),
        ("iptables", "iptables"),
        ("go", "nftables"),
        ("go", "iptables"),
    ] {
        let node = Node::new();
        let outside = node.outside();
        let (one, two) = (node.container_named("gone"), node.container_named("here"));
        let link = node.attach(&one, "eth0", &dual_stack_config(&node));
        let stale = json!({"runtimeConfig": {"portMappings": [mapping("tcp", 8080, 81)]}, "backend": first});
        match first {
            "go" => go_rules(&node, "gone", "10.1.0.2", 81),
            _ => drop(node.attach(&one, "eth0", &config(&link, stale))),
        }
        link.del();
        let ipam = json!([{"address": "10.1.0.2/24"}]);
        let link = node.attach(
            &two,
            "eth0",
            &with_static(dual_stack_config(&node), ipam, json!([{"dst": "0.0.0.0/0"}])),
        );
        let ports = node.attach(&two, "eth0", &config(&link, json!({"backend": second})));
        let seen = reach(Transport::Tcp, &outside, (Outside::NODE_V4, 8080), &two, 80);
        assert_eq!(seen.unwrap_or_else(|e| panic!("{first} {second}: {e}")), Outside::V4);
        let rules = node.run("iptables-nft -t nat -S") + &node.run("nft list ruleset");
        let leads_there = |line: &str| {
            line.contains(":81") || line.contains("tcp . 8080 ") && line.contains("10.1.0.2 . 81")
        };
        assert!(!rules.lines().any(leads_there), "{first} {second}\n{rules}");
        ports.check();
    }
}

#[test]
fn a_mapping_with_conditions_of_a_container_that_is_gone_is_replaced() {
    require_netns!();
    for (then, now) in [
        (json!(["-s", "203.0.113.77"]), json!(["-s", "203.0.113.1"])),
        (json!([]), json!(["-s", "203.0.113.77"])),
    ] {
        let node = Node::new();
        let outside = node.outside();
        let [gone, here, third] = ["gone", "here", "third"].map(|id| node.container_named(id));
        let link = node.attach(&gone, "eth0", &dual_stack_config(&node));
        node.attach(&gone, "eth0", &config(&link, json!({"conditionsV4": then})));
        link.del();
        let link = node.attach(
            &here,
            "eth0",
            &with_static(
                dual_stack_config(&node),
                json!([{"address": "10.1.0.2/24"}]),
                json!([{"dst": "0.0.0.0/0"}]),
            ),
        );
        let ports = node.attach(&here, "eth0", &config(&link, json!({"conditionsV4": now})));
        let found = reach(Transport::Tcp, &outside, (Outside::NODE_V4, 8080), &here, 80);
        assert_eq!(found.is_ok(), now[1] == "203.0.113.1", "{then} {now}: {found:?}");
        ports.check();
        // Nobody else gets it.
        let link = node.attach(&third, "eth0", &dual_stack_config(&node));
        add(&node, &third, &config(&link, json!({"conditionsV4": ["-s", "203.0.113.5"]})))
            .fails(102)
            .says("host port tcp . 8080 is mapped already, by container here (network net, interface eth0)");
        node.request("DEL", &gone, "eth0", &config(&link, json!({}))).silent();
        ports.check();
        ports.del();
        assert!(!node.nft().contains("chain cond-"), "{}", node.nft());
    }
}

#[test]
fn of_one_container_the_mapping_at_an_address_goes_first_however_it_is_written() {
    require_netns!();
    let general = mapping("tcp", 8080, 80);
    let at_one = with(mapping("tcp", 8080, 81), json!({"hostIP": Outside::NODE_V4}));
    for more in [json!({}), json!({"conditionsV4": ["-s", "0.0.0.0/0"]}), json!({"backend": "iptables"})] {
        for mappings in [json!([general, at_one]), json!([at_one, general])] {
            let node = Node::new();
            let outside = node.outside();
            let one = node.container();
            let link = node.attach(&one, "eth0", &dual_stack_config(&node));
            let ports = node.attach(&one, "eth0", &with(portmap(&link, mappings), more.clone()));
            let tcp = |client: &Netns, to: &str, port| reach(Transport::Tcp, client, (to, 8080), &one, port);
            tcp(&outside, Outside::NODE_V4, 81).unwrap_or_else(|e| panic!("{more}: {e}"));
            tcp(&node, "127.0.0.1", 80).unwrap_or_else(|e| panic!("{more}: {e}"));
            ports.check();
        }
    }
}

/// Two interfaces of a container in one network.
fn two_links<'a>(node: &'a Node, container: &'a Container) -> [Attachment<'a>; 2] {
    let second = with_static(dual_stack_config(node), json!([{"address": "10.1.0.9/24"}]), json!([]));
    [("eth0", dual_stack_config(node)), ("eth1", second)]
        .map(|(ifname, config)| node.attach(container, ifname, &config))
}

#[test]
fn two_interfaces_of_a_container_do_not_get_the_same_port() {
    require_netns!();
    for backend in ["nftables", "iptables"] {
        let node = Node::new();
        let one = node.container_named("first");
        let [first, second] = two_links(&node, &one);
        let ports = node.attach(&one, "eth0", &config(&first, json!({"backend": backend})));
        let before = node.snapshot();
        let wanted = config(&second, json!({"backend": backend}));
        let says = "host port tcp . 8080 is mapped already, by container first (network net, interface eth0)";
        node.request("ADD", &one, "eth1", &wanted).fails(102).says(says);
        assert_same(&before, &node.snapshot());
        let other = json!({"runtimeConfig": {"portMappings": [mapping("tcp", 8081, 80)]}});
        let other = node.attach(&one, "eth1", &with(wanted, other));
        ports.check();
        ports.del();
        other.check();
    }
}

#[test]
fn the_more_special_mapping_goes_first_whichever_was_there_first() {
    require_netns!();
    let at = |host: &str| with(mapping("tcp", 8080, 80), json!({"hostIP": host}));
    for backend in [json!(null), json!("iptables")] {
        let cases = [
            (at("0.0.0.0"), json!([])),
            (at("0.0.0.0"), json!(["-s", "203.0.113.1"])),
            (at("203.0.113.9"), json!([])),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]] {
            let node = Node::new();
            let outside = node.outside();
            node.ip(&["addr add 203.0.113.9/24 dev uplink"]);
            let containers = ["all", "some", "one"].map(|id| node.container_named(id));
            let links = containers.each_ref().map(|c| node.attach(c, "eth0", &dual_stack_config(&node)));
            let add = |n: usize| {
                let (mapped, conditions) = &cases[n];
                // Every one has a port that nobody else has as well.
                let ports = portmap(&links[n], json!([mapping("tcp", 9000 + n as u32, 90), mapped]));
                let more = json!({"backend": backend, "conditionsV4": conditions});
                node.attach(&containers[n], "eth0", &with(ports, more))
            };
            let ports = order.map(|n| (n, add(n)));
            let what = format!("{backend} {order:?}");
            let leads = |client: &Netns, to: &str, n: usize| {
                let seen = reach(Transport::Tcp, client, (to, 8080), &containers[n], 80);
                seen.unwrap_or_else(|e| {
                    panic!("{what}: {to} to {n}: {e}\n{}", node.run("iptables-nft -t nat -S"))
                });
            };
            let all = || {
                leads(&outside, "203.0.113.9", 2);
                leads(&outside, Outside::NODE_V4, 1);
                leads(&node, Outside::NODE_V4, 0);
                ports.iter().for_each(|(_, ports)| ports.check());
            };
            all();
            // Again, nothing changes.
            let before = node.snapshot();
            ports.iter().for_each(|(n, _)| drop(add(*n)));
            assert_same(&before, &node.snapshot());
            // CHECK sees that one is behind another now.
            if backend == "iptables" && order[0] == 0 {
                let rules = node.run("nft -a list chain ip nat CNI-HOSTPORT-DNAT");
                let special = rules.lines().find(|line| line.contains("203.0.113.9")).unwrap();
                let handle = special.split_whitespace().last().unwrap();
                node.run(&format!("nft delete rule ip nat CNI-HOSTPORT-DNAT handle {handle}"));
                let (_, one) = ports.iter().find(|(n, _)| *n == 2).unwrap();
                one.call("CHECK").fails(100).names(&["-d 203.0.113.9/32"]);
                add(2).check();
                all();
            }
            for (_, ports) in ports {
                ports.del();
            }
            assert!(!node.nft().contains("CNI-DN"), "{what}");
        }
    }
}

#[test]
fn in_the_chain_of_a_container_with_two_interfaces_the_mapping_at_an_address_goes_first() {
    require_netns!();
    let node = Node::new();
    let outside = node.outside();
    let one = node.container();
    let [first, second] = two_links(&node, &one);
    let more = json!({"backend": "iptables"});
    let all = node.attach(&one, "eth0", &config(&first, more.clone()));
    let at_one = json!([with(mapping("tcp", 8080, 81), json!({"hostIP": Outside::NODE_V4}))]);
    let special = node.attach(&one, "eth1", &with(portmap(&second, at_one), more));
    let seen = reach(Transport::Tcp, &outside, (Outside::NODE_V4, 8080), &one, 81);
    seen.unwrap_or_else(|e| panic!("{e}\n{}", node.run("iptables-nft -t nat -S")));
    reach(Transport::Tcp, &node, ("127.0.0.1", 8080), &one, 80).unwrap();
    let before = node.snapshot();
    node.attach(&one, "eth0", &all.config).check();
    node.attach(&one, "eth1", &special.config).check();
    assert_same(&before, &node.snapshot());
    // Conditions are at the way into the chain: there they would not hold for one of both only.
    let conditions = json!({"conditionsV4": ["-s", "203.0.113.1"]});
    node.request("ADD", &one, "eth1", &with(special.config.clone(), conditions)).fails(102);
}
