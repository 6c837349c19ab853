//! `hostShim`: host and containers on one master reach each other.

use serde_json::{Value, json};

use super::{config, node_with_neighbour};
use crate::support::{Container, Node, Outside, assert_same, require_kind};
use crate::{with, with_static};

/// Makes each function, which takes a kind and its mode, a test for each kind that can have a shim.
macro_rules! for_each_kind_with_shim {
    ($($test:ident),+ $(,)?) => {
        for_each_kind_with_shim!(@ macvlan "bridge" macvlan: $($test),+);
        for_each_kind_with_shim!(@ ipvlan "l2" ipvlan_l2: $($test),+);
        for_each_kind_with_shim!(@ ipvlan "l3" ipvlan_l3: $($test),+);
    };
    (@ $kind:ident $mode:literal $module:ident: $($test:ident),+) => {
        mod $module {
            $(#[test]
            fn $test() {
                crate::support::require_kind!(stringify!($kind));
                super::$test(stringify!($kind), $mode);
            })+
        }
    };
}

for_each_kind_with_shim![
    host_and_containers_reach_each_other_until_the_last_is_gone,
    addresses_of_the_masters_own_network_work,
    nothing_is_left_by_failures_and_del_without_namespace,
    nobody_else_sees_the_hosts_address_elsewhere,
    adds_and_dels_at_once_leave_no_shim_and_lose_no_route,
    gc_removes_the_routes_of_what_is_not_valid,
    check_names_what_is_missing,
];

fn shimmed(node: &Node, kind: &str, mode: &str) -> Value {
    node.set_sysctl("net/ipv4/conf/all/rp_filter", "0");
    node.set_sysctl("net/ipv4/conf/uplink/rp_filter", "0");
    with(config(node, kind), json!({"mode": mode, "hostShim": true}))
}

/// The host's shim links.
fn shims(node: &Node) -> Vec<String> {
    node.links().into_iter().filter(|name| name.starts_with("shim")).collect()
}

fn reach_each_other(node: &Node, container: &Container, addresses: [&str; 2]) {
    for (host, inside) in [Outside::NODE_V4, Outside::NODE_V6].into_iter().zip(addresses) {
        assert!(node.pings_within(inside, "1"), "the host does not reach {inside}");
        assert!(container.pings_within(host, "1"), "{inside} does not reach the host's {host}");
    }
}

fn host_and_containers_reach_each_other_until_the_last_is_gone(kind: &str, mode: &str) {
    let (node, outside) = node_with_neighbour(kind);
    let before = node.snapshot();
    let config = shimmed(&node, kind, mode);
    let without = node.container();
    let plain = node.attach(&without, "eth0", &with(config.clone(), json!({"hostShim": false})));
    assert!(shims(&node).is_empty());
    plain.del();
    let (one, two) = (node.container(), node.container());
    let first = node.attach(&one, "eth0", &config);
    assert_eq!(first.result["interfaces"].as_array().unwrap().len(), 1);
    reach_each_other(&node, &one, [&first.ip(0), &first.ip(1)]);
    let second = node.attach(&two, "eth0", &config);
    reach_each_other(&node, &two, [&second.ip(0), &second.ip(1)]);
    reach_each_other(&node, &one, [&first.ip(0), &first.ip(1)]);
    if mode != "l3" {
        assert!(one.pings("10.1.0.1") && outside.pings(&second.ip(0)));
    }
    let shim = shims(&node);
    assert_eq!(shim.len(), 1);
    first.check();
    first.del();
    assert_eq!(shims(&node), shim);
    assert_eq!(node.find_route(4, &first.ip(0)), None);
    reach_each_other(&node, &two, [&second.ip(0), &second.ip(1)]);
    second.check();
    second.del();
    second.del();
    assert!(shims(&node).is_empty());
    assert_same(&before, &node.snapshot());
}

fn addresses_of_the_masters_own_network_work(kind: &str, mode: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let addresses = json!([
        {"address": "203.0.113.77/24", "gateway": Outside::V4},
        {"address": "2001:db8:1::77/64", "gateway": Outside::V6},
    ]);
    let config = with_static(shimmed(&node, kind, mode), addresses, json!([{"dst": "0.0.0.0/0"}]));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    reach_each_other(&node, &container, ["203.0.113.77", "2001:db8:1::77"]);
    if mode != "l3" {
        assert!(container.pings(Outside::V4) && container.pings(Outside::V6));
    }
    attachment.check();
    attachment.del();
    assert!(shims(&node).is_empty());
}

fn nothing_is_left_by_failures_and_del_without_namespace(kind: &str, mode: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let config = shimmed(&node, kind, mode);
    let before = node.snapshot();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    // Neither namespace nor prevResult, nor the key itself.
    let bare = with(config.clone(), json!({"hostShim": null, "master": null}));
    attachment.call_with("DEL", &bare).env("CNI_NETNS", "").silent();
    assert!(shims(&node).is_empty() && node.leases("net").is_empty());
    attachment.del();
    assert_same(&before, &node.snapshot());
    // Output that cannot be written: everything was done, and is taken back.
    let stdin = node.workdir().file("config", config.to_string());
    let mut command = node.request("ADD", &container, "eth0", &config).to_command();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdin(std::fs::File::open(stdin).unwrap()).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(container.links().is_empty());
    assert_same(&before, &node.snapshot());
    // What an ADD left that was killed after making the shim.
    let attachment = node.attach(&container, "eth0", &config);
    let shim = shims(&node).remove(0);
    node.run(&format!("ip route flush dev {shim}"));
    node.run(&format!("ip -6 route flush dev {shim}"));
    attachment.del();
    assert_same(&before, &node.snapshot());
}

fn nobody_else_sees_the_hosts_address_elsewhere(kind: &str, mode: &str) {
    let (node, outside) = node_with_neighbour(kind);
    let addresses = json!([{"address": "203.0.113.77/24"}, {"address": "2001:db8:1::77/64"}]);
    let config = with_static(shimmed(&node, kind, mode), addresses, json!([]));
    let container = node.container();
    let _attachment = node.attach(&container, "eth0", &config);
    let uplink = node.link("uplink")["address"].as_str().unwrap().to_owned();
    for address in [Outside::NODE_V4, Outside::NODE_V6] {
        for _ in 0..3 {
            outside.run("ip neigh flush dev out0");
            assert!(outside.pings(address));
            reach_each_other(&node, &container, ["203.0.113.77", "2001:db8:1::77"]);
            let known = outside.json(&format!("ip -j neigh show to {address} dev out0"));
            assert_eq!(known[0]["lladdr"], uplink.as_str(), "{known}");
        }
    }
}

fn adds_and_dels_at_once_leave_no_shim_and_lose_no_route(kind: &str, mode: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let config = shimmed(&node, kind, mode);
    let before = node.snapshot();
    let containers: Vec<Container> = (0..6).map(|_| node.container()).collect();
    std::thread::scope(|scope| {
        for (n, container) in containers.iter().enumerate() {
            let (node, config) = (&node, &config);
            scope.spawn(move || {
                for round in 0..4 {
                    let attachment = node.attach(container, "eth0", config);
                    reach_each_other(node, container, [&attachment.ip(0), &attachment.ip(1)]);
                    if n % 2 == 0 || round < 3 {
                        attachment.del();
                    }
                }
            });
        }
    });
    let shim = shims(&node);
    assert_eq!(shim.len(), 1);
    assert_eq!(node.routes(4, &format!("dev {}", shim[0])).len(), 3);
    for container in containers.iter().skip(1).step_by(2) {
        node.request("DEL", container, "eth0", &config).silent();
    }
    assert_same(&before, &node.snapshot());
}

fn gc_removes_the_routes_of_what_is_not_valid(kind: &str, mode: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let name = format!("shim-{kind}-{mode}-{}", std::process::id());
    let config = with(shimmed(&node, kind, mode), json!({"name": name}));
    let before = node.snapshot();
    let (kept, stale) = (node.container_named("kept"), node.container_named("stale"));
    let attachment = node.attach(&kept, "eth0", &config);
    let other = node.attach(&stale, "eth0", &config);
    let gc = |valid: Value| {
        let config = with(config.clone(), json!({"cni.dev/valid-attachments": valid}));
        node.call(kind).command("GC").config(&config).silent();
    };
    gc(json!([{"containerID": "kept", "ifname": "eth0"}]));
    assert_eq!(node.find_route(4, &other.ip(0)), None);
    assert!(stale.links().is_empty());
    attachment.check();
    reach_each_other(&node, &kept, [&attachment.ip(0), &attachment.ip(1)]);
    gc(json!([]));
    assert!(shims(&node).is_empty() && kept.links().is_empty());
    assert_same(&before, &node.snapshot());
}

fn check_names_what_is_missing(kind: &str, mode: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let config = shimmed(&node, kind, mode);
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    attachment.check();
    let shim = shims(&node).remove(0);
    let address = attachment.ip(0);
    node.run(&format!("ip route del {address} dev {shim}"));
    attachment.call("CHECK").fails(100).names(&[&address, &shim]);
    node.run(&format!("ip link set {shim} down"));
    attachment.call("CHECK").fails(100).names(&[&shim, "down"]);
    node.run(&format!("ip link del {shim}"));
    attachment.call("CHECK").fails(100).names(&[&shim, "missing"]);
    attachment.del();
    assert!(container.links().is_empty() && node.leases("net").is_empty());
}

#[test]
fn what_a_shim_could_not_do_is_refused_before_anything_is_done() {
    require_kind!("macvlan");
    let (node, _outside) = node_with_neighbour("macvlan");
    let config = shimmed(&node, "macvlan", "bridge");
    let container = node.container();
    for (changes, words) in [
        (json!({"mode": "private"}), &["hostShim", "private"][..]),
        (json!({"mode": "passthru"}), &["hostShim", "passthru"]),
        (json!({"ipam": {}}), &["hostShim", "ipam"]),
        (json!({"linkInContainer": true}), &["hostShim", "linkInContainer"]),
    ] {
        node.request("ADD", &container, "eth0", &with(config.clone(), changes)).fails(7).names(words);
    }
    node.call("macvlan").command("STATUS").config(&config).silent();
    node.ip(&["addr flush dev uplink scope global"]);
    node.request("ADD", &container, "eth0", &config).fails(7).names(&["hostShim", "uplink", "address"]);
    node.call("macvlan").command("STATUS").config(&config).fails(50).names(&["hostShim", "uplink"]);
    assert!(container.links().is_empty() && node.leases("net").is_empty() && shims(&node).is_empty());
}

#[test]
fn an_ipvlan_of_mode_l2_whose_packets_the_host_would_drop_is_refused() {
    require_kind!("ipvlan");
    let (node, _outside) = node_with_neighbour("ipvlan");
    let config = shimmed(&node, "ipvlan", "l2");
    node.set_sysctl("net/ipv4/conf/uplink/rp_filter", "1");
    let container = node.container();
    node.request("ADD", &container, "eth0", &config).fails(7).names(&["hostShim", "rp_filter", "uplink"]);
    assert!(container.links().is_empty() && node.leases("net").is_empty());
}

#[test]
fn a_shim_on_another_master_is_replaced_only_when_it_is_not_used() {
    require_kind!("macvlan");
    let (node, _outside) = node_with_neighbour("macvlan");
    node.ip(&[
        "link add second type veth peer name secondpeer",
        "addr add 198.51.100.1/24 dev second",
        "link set second up",
        "link set secondpeer up",
    ]);
    let config = shimmed(&node, "macvlan", "bridge");
    let moved = with(config.clone(), json!({"master": "second"}));
    let (one, two) = (node.container(), node.container());
    let first = node.attach(&one, "eth0", &config);
    node.request("ADD", &two, "eth0", &moved).err().names(&["hostShim", "second"]);
    assert!(two.links().is_empty());
    first.check();
    let shim = shims(&node).remove(0);
    node.run(&format!("ip route flush dev {shim}"));
    node.run(&format!("ip -6 route flush dev {shim}"));
    let second = node.attach(&two, "eth0", &moved);
    assert!(node.pings(&second.ip(0)) && two.pings("198.51.100.1"));
    second.check();
    first.del();
    second.del();
    assert!(shims(&node).is_empty());
}
