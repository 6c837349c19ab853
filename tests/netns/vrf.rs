//! The `vrf` plugin. On a kernel without VRFs: that they are refused, and nothing is left.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Attachment, Container, Node, require_netns, skip_for_kernel};
use crate::{dual_stack_config, with};

/// Ends the test with SKIP on a kernel without VRFs.
macro_rules! require_vrf {
    () => {
        require_netns!();
        if !kernel_has_vrfs() {
            return skip_for_kernel("this kernel has no VRFs");
        }
    };
}

fn kernel_has_vrfs() -> bool {
    Node::new().try_run("ip link add probe type vrf table 10").status.success()
}

/// vrf behind an attachment of another plugin, with these keys.
fn config(main: &Attachment, keys: Value) -> Value {
    let base = json!({
        "cniVersion": "1.1.0", "name": main.config["name"], "type": "vrf", "vrfname": "blue",
        "prevResult": main.result,
    });
    with(base, keys)
}

/// A second network, on a bridge of its own.
fn second(node: &Node) -> Value {
    with(
        dual_stack_config(node),
        json!({"name": "two", "bridge": "cni1", "ipam": {
            "type": "host-local", "dataDir": node.data_dir(),
            "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00:2::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }}),
    )
}

/// The unicast routes of a container's table through an interface, `DST via GATEWAY`.
fn table(container: &Container, table: u32, dev: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for family in [4, 6] {
        let output = container.try_run(&format!("ip -j -{family} route show table {table} dev {dev}"));
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        for route in shown.as_array().into_iter().flatten() {
            let text = |key: &str| route[key].as_str().unwrap_or("-").to_owned();
            if ["local", "multicast", "broadcast", "anycast"].iter().all(|kind| route["type"] != *kind) {
                lines.insert(format!("{} via {}", text("dst"), text("gateway")));
            }
        }
    }
    lines
}

fn table_of(container: &Container, vrf: &str) -> u64 {
    container.link(vrf)["linkinfo"]["info_data"]["table"].as_u64().unwrap()
}

#[test]
fn a_kernel_without_vrfs_says_so_and_nothing_is_left() {
    require_netns!();
    if kernel_has_vrfs() {
        return;
    }
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let config = config(&main, json!({}));
    node.request("ADD", &container, "eth0", &config).fails(2).names(&[
        "ip link add blue",
        "vrfname",
        "CONFIG_NET_VRF",
    ]);
    assert_eq!(container.links(), ["eth0"]);
    main.check();
    node.request("DEL", &container, "eth0", &config).silent();
    let status = json!({"cniVersion": "1.1.0", "name": "net", "type": "vrf", "vrfname": "blue"});
    node.call("vrf").command("STATUS").config(&status).fails(50).names(&["CONFIG_NET_VRF"]);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let add = |keys: Value| node.request("ADD", &container, "eth0", &config(&main, keys));
    add(json!({"vrfname": null})).fails(7).names(&["vrfname"]);
    add(json!({"vrfname": "a/b"})).fails(7).names(&["vrfname", "a/b"]);
    add(json!({"vrfname": "eth0"})).fails(7).names(&["vrfname", "eth0"]);
    add(json!({"vrfname": "lo"})).fails(7).names(&["vrfname", "lo"]);
    add(json!({"table": -1})).fails(6).names(&["table"]);
    add(json!({"prevResult": null})).fails(7).names(&["prevResult"]);
    add(json!({"cniVersion": "0.3.0"})).fails(1);
    node.request("ADD", &container, "eth7", &config(&main, json!({}))).err().names(&["eth7"]);
    container.ip(&["link add br0 type bridge", "link set eth0 master br0"]);
    add(json!({})).err().names(&["eth0", "br0"]);
    assert_eq!(container.links(), ["br0", "eth0"]);
}

#[test]
fn del_succeeds_where_there_is_nothing() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "vrf"});
    for netns in [container.path(), "", "/nonexistent/netns"] {
        main.call_with("DEL", &bare).env("CNI_NETNS", netns).silent();
        main.call_with("DEL", &config(&main, json!({}))).env("CNI_NETNS", netns).silent();
    }
    node.call("vrf").command("GC").config(&with(bare, json!({"cni.dev/valid-attachments": []}))).silent();
    main.check();
}

#[test]
fn addresses_and_routes_go_into_the_vrf_and_come_back() {
    require_vrf!();
    for plugin in ["bridge", "ptp"] {
        let node = Node::new();
        node.ip(&["addr add 198.51.100.1/32 dev lo", "addr add 2001:db8:9::1/128 dev lo"]);
        let container = node.container();
        let main = node.attach(&container, "eth0", &with(dual_stack_config(&node), json!({"type": plugin})));
        container.ip(&[
            "route add 172.16.9.9/32 dev eth0",
            "route add 203.0.113.0/24 via 10.1.0.1 dev eth0 table 55",
            "route add 198.18.0.0/15 via 10.1.0.1 dev eth0 mtu 1300 metric 7",
        ]);
        let (addresses, main_table) = (container.addresses("eth0"), table(&container, 254, "eth0"));
        let vrf = node.attach(&container, "eth0", &config(&main, json!({"table": 10})));
        assert_eq!(vrf.result, main.result);
        assert_eq!(table_of(&container, "blue"), 10);
        assert_eq!(container.addresses("eth0"), addresses);
        assert_eq!(table(&container, 10, "eth0"), main_table, "{plugin}");
        assert!(table(&container, 254, "eth0").is_empty() && table(&container, 55, "eth0").len() == 1);
        for to in ["198.51.100.1", "2001:db8:9::1"] {
            assert!(container.pings(&format!("-I blue {to}")), "{plugin}: {to}");
        }
        vrf.check();
        vrf.del();
        assert_eq!(container.links(), ["eth0"]);
        assert_eq!(container.addresses("eth0"), addresses);
        assert_eq!(table(&container, 254, "eth0"), main_table, "{plugin}");
        assert_eq!(table(&container, 55, "eth0").len(), 1);
        for to in ["198.51.100.1", "2001:db8:9::1"] {
            assert!(container.pings(to), "{plugin}: {to} after DEL");
        }
        vrf.del();
        main.check();
        main.del();
    }
}

#[test]
fn interfaces_share_a_vrf_and_the_last_one_takes_it_along() {
    require_vrf!();
    let node = Node::new();
    let container = node.container();
    let one = node.attach(&container, "eth0", &dual_stack_config(&node));
    let two = node.attach(
        &container,
        "net1",
        &with(
            second(&node),
            json!({"ipam": {
                "type": "static", "addresses": [{"address": "10.2.0.9/24"}, {"address": "fd00:2::9/64"}],
            }}),
        ),
    );
    let first = node.attach(&container, "eth0", &config(&one, json!({})));
    let table = table_of(&container, "blue");
    let second = node.attach(&container, "net1", &config(&two, json!({"table": table})));
    first.check();
    second.check();
    first.del();
    assert_eq!(container.links(), ["blue", "eth0", "net1"]);
    second.check();
    // The interface goes first: the VRF still goes with it.
    two.del();
    second.del();
    assert_eq!(container.links(), ["eth0"]);
    second.del();
}

#[test]
fn default_routes_of_another_network_stay_when_one_goes_and_when_it_comes_back() {
    require_vrf!();
    let node = Node::new();
    let container = node.container();
    let one = node.attach(&container, "eth0", &dual_stack_config(&node));
    let two = node.attach(&container, "net1", &second(&node));
    let shown = |table: &str| {
        [4, 6].map(|family| container.run(&format!("ip -{family} route show table {table} default")))
    };
    let vrf = node.attach(&container, "net1", &config(&two, json!({})));
    let number = table_of(&container, "blue").to_string();
    let [main, blue] = [shown("main"), shown(&number)];
    assert!(main.iter().all(|text| text.contains("dev eth0") && !text.contains("net1")), "{main:?}");
    assert!(blue.iter().all(|text| text.contains("dev net1") && !text.contains("eth0")), "{blue:?}");
    [&one, &two, &vrf].into_iter().for_each(Attachment::check);
    vrf.del();
    let main = shown("main");
    assert!(main.iter().all(|text| text.contains("dev eth0") && text.contains("dev net1")), "{main:?}");
    two.del();
    one.check();
}

#[test]
fn a_table_that_something_uses_is_not_taken() {
    require_vrf!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    container.ip(&[
        "link add red type vrf table 1",
        "route add 10.98.0.0/16 dev eth0 table 2",
        "rule add from 10.99.0.1 lookup 3",
    ]);
    node.attach(&container, "eth0", &config(&main, json!({}))).check();
    assert_eq!(table_of(&container, "blue"), 4);
}

#[test]
fn a_vrf_is_joined_only_with_its_own_table() {
    require_vrf!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    container.ip(&["link add blue type vrf table 77", "link set blue up alias theirs"]);
    let refused = config(&main, json!({"table": 78}));
    node.request("ADD", &container, "eth0", &refused).fails(7).names(&["table", "78", "77"]);
    let vrf = node.attach(&container, "eth0", &config(&main, json!({"table": 77})));
    node.attach(&container, "eth0", &config(&main, json!({}))).check();
    let other = config(&main, json!({"vrfname": "green"}));
    node.request("ADD", &container, "eth0", &other).err().names(&["eth0", "blue"]);
    vrf.del();
    assert_eq!(container.links(), ["blue", "eth0"], "one with another alias is somebody else's");
}

#[test]
fn a_failed_add_leaves_a_vrf_that_was_there() {
    require_vrf!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    container.ip(&["link add blue type vrf table 77", "link set blue up"]);
    let state = || (container.links(), container.addresses("eth0"), table(&container, 254, "eth0"));
    let before = state();
    // A route whose gateway cannot be reached any more is not accepted in the VRF's table.
    container.ip(&[
        "route add 172.16.9.9/32 dev eth0",
        "route add 203.0.113.0/24 via 172.16.9.9 dev eth0",
        "route del 172.16.9.9/32 dev eth0",
    ]);
    node.request("ADD", &container, "eth0", &config(&main, json!({})))
        .err()
        .names(&["203.0.113.0/24", "table 77"]);
    assert_eq!(state(), before);
}

#[test]
fn del_takes_the_interface_out_of_the_vrf_that_it_is_in() {
    require_vrf!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let main_table = table(&container, 254, "eth0");
    let vrf = node.attach(&container, "eth0", &config(&main, json!({"table": 10})));
    // The name is another one by now, of a VRF that is there, too, or is not.
    container.ip(&["link add theirs type vrf table 78", "link set theirs up alias theirs"]);
    for name in ["theirs", "green"] {
        vrf.call_with("DEL", &config(&main, json!({"vrfname": name}))).silent();
        assert_eq!(container.links(), ["eth0", "theirs"], "{name}");
        assert_eq!(table(&container, 254, "eth0"), main_table);
        node.attach(&container, "eth0", &config(&main, json!({"table": 10})));
    }
    // The interface is gone: nobody needs the VRF any more.
    main.del();
    vrf.call_with("DEL", &config(&main, json!({"vrfname": "green"}))).silent();
    assert_eq!(container.links(), ["theirs"]);
}

#[test]
fn del_leaves_the_interface_of_another_container_alone() {
    require_vrf!();
    let node = Node::new();
    let (one, two) = (node.container(), node.container());
    let attach = |container| {
        let main = node.attach(container, "eth0", &dual_stack_config(&node));
        node.attach(container, "eth0", &config(&main, json!({})))
    };
    let (old, new) = (attach(&one), attach(&two));
    let bare = json!({"cniVersion": "1.1.0", "name": old.config["name"], "type": "vrf"});
    old.call("DEL").env("CNI_NETNS", two.path()).silent();
    old.call_with("DEL", &bare).env("CNI_NETNS", two.path()).silent();
    new.check();
    new.call_with("DEL", &with(bare, json!({"name": new.config["name"]}))).silent();
    assert_eq!(two.links(), ["eth0"]);
}

#[test]
fn check_finds_every_damage() {
    require_vrf!();
    let node = Node::new();
    let damages: [(&str, &[&str]); 5] = [
        ("ip link set eth0 nomaster", &["eth0", "not in the VRF"]),
        ("ip link set blue down", &["blue", "down"]),
        ("ip -6 addr flush dev eth0 scope global", &["address", "fd00:1::"]),
        ("ip route del default table 10", &["default"]),
        ("ip link del blue", &["blue", "missing"]),
    ];
    for (damage, names) in damages {
        let container = node.container();
        let main = node.attach(&container, "eth0", &dual_stack_config(&node));
        let vrf = node.attach(&container, "eth0", &config(&main, json!({"table": 10})));
        container.run(damage);
        vrf.call("CHECK").fails(100).names(names);
        vrf.call_with("CHECK", &with(vrf.config.clone(), json!({"table": 11}))).fails(100);
        vrf.del();
        main.del();
    }
}

#[test]
fn status_succeeds() {
    require_vrf!();
    let node = Node::new();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "vrf", "vrfname": "blue"});
    node.call("vrf").command("STATUS").config(&config).silent();
    assert!(node.links().is_empty());
}
