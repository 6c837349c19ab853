//! The `bandwidth` plugin: limits as they are measured, and what is there when they are set, checked and removed.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{
    Attachment, Call, Container, Netns, Node, assert_same, require_netns, require_tool, skip, slowness,
};
use crate::{dual_stack_config, with};

/// Ends the test with SKIP on a kernel without what limits need.
macro_rules! require_shaping {
    () => {
        require_netns!();
        if let Some(reason) = missing() {
            return skip(&reason);
        }
    };
}

/// What this kernel lacks.
fn missing() -> Option<String> {
    let scratch = Node::new();
    for line in [
        "ip link add probe type ifb",
        "tc qdisc add dev probe root handle 1: tbf rate 1mbit burst 10000 limit 10000",
        "tc qdisc add dev probe ingress",
        "tc filter add dev probe parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev probe",
        "tc qdisc add dev lo root handle 1: htb default 1",
    ] {
        let output = scratch.try_run(line);
        if !output.status.success() {
            return Some(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    None
}

/// bandwidth behind an attachment of another plugin, with these keys.
fn config(main: &Attachment, keys: Value) -> Value {
    let base = json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "prevResult": main.result});
    with(base, keys)
}

/// [`TO`] to the container, [`FROM`] from it.
fn both() -> Value {
    json!({
        "ingressRate": TO as u64, "ingressBurst": 1_600_000,
        "egressRate": FROM as u64, "egressBurst": 800_000,
    })
}

/// The same with rates that a slow machine can reach as well; it also takes a longer look.
fn measurable() -> Value {
    with(both(), json!({"ingressRate": scaled(TO) as u64, "egressRate": scaled(FROM) as u64}))
}

/// Bits per second.
const TO: f64 = 80e6;
/// As [`TO`].
const FROM: f64 = 40e6;

/// A rate of [`measurable`].
fn scaled(rate: f64) -> f64 {
    rate / f64::from(slowness())
}

/// A container on a bridge, and bandwidth with these keys behind that.
fn shaped<'a>(
    node: &'a Node,
    container: &'a Container,
    ifname: &str,
    keys: Value,
) -> (Attachment<'a>, Attachment<'a>) {
    let main = node.attach(container, ifname, &dual_stack_config(node));
    let limits = node.attach(container, ifname, &config(&main, keys));
    (main, limits)
}

/// The queues of a link as `tc` shows them, but for the one that no link is without.
fn queues(netns: &Netns, link: &str) -> Vec<String> {
    let text = netns.run(&format!("tc qdisc show dev {link}"));
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.contains("noqueue")).collect()
}

/// Bits per second of TCP payload that get from one namespace to an address of another, after a second in which the
/// connection finds its rate.
#[track_caller]
fn throughput(from: &Netns, to: &Netns, address: &str) -> f64 {
    let mut server = to.command("iperf3 -s -1 --forceflush").stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("Server listening")), "iperf3 -s does not listen");
    let line = format!("iperf3 -c {address} -O 1 -t {} -J", slowness());
    let output = from.try_run(&line);
    let _ = server.kill();
    server.wait().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rate = shown["end"]["sum_received"]["bits_per_second"].as_f64();
    rate.unwrap_or_else(|| panic!("{line}: {shown:#}"))
}

/// Asserts that the rate from one namespace to an address of another is within a tenth of what was set, [`scaled`]. A
/// machine that is busy with other tests may be too slow for a while, but never too fast: of three times one must do.
#[track_caller]
fn assert_rate(from: &Netns, to: &Netns, address: &str, set: f64) {
    let set = scaled(set);
    let mut measured = Vec::new();
    for _ in 0..3 {
        let rate = throughput(from, to, address);
        assert!(rate <= set * 1.1, "to {address}: {rate:.0} bit/s, {set:.0} were set");
        if rate >= set * 0.9 {
            return;
        }
        measured.push(rate);
    }
    panic!("to {address}: {measured:.0?} bit/s, {set:.0} were set");
}

#[test]
fn the_measured_rate_is_the_one_that_was_set_in_both_directions_and_families() {
    require_shaping!();
    require_tool!("iperf3");
    for plugin in ["bridge", "ptp"] {
        let node = Node::new();
        let container = node.container();
        let main = node.attach(&container, "eth0", &with(dual_stack_config(&node), json!({"type": plugin})));
        let limits = node.attach(&container, "eth0", &config(&main, measurable()));
        for (n, gateway) in [(0, "10.1.0.1"), (1, "fd00:1::1")] {
            let ip = main.ip(n);
            assert_rate(&node, &container, &ip, TO);
            assert_rate(&container, &node, gateway, FROM);
        }
        limits.del();
        let free = throughput(&container, &node, "10.1.0.1");
        assert!(free > scaled(2.0 * TO), "{plugin}: still limited after DEL: {free}");
    }
}

#[test]
fn only_traffic_with_listed_networks_is_limited_or_all_other() {
    require_shaping!();
    require_tool!("iperf3");
    for (key, limited, free) in
        [("unshapedSubnets", "fd00:1::1", "10.1.0.1"), ("shapedSubnets", "10.1.0.1", "fd00:1::1")]
    {
        let node = Node::new();
        let container = node.container();
        let (main, limits) =
            shaped(&node, &container, "eth0", with(measurable(), json!({key: ["10.1.0.0/24"]})));
        limits.check();
        let own = |address: &str| main.ip(usize::from(address.contains(':')));
        assert_rate(&node, &container, &own(limited), TO);
        assert_rate(&container, &node, limited, FROM);
        for rate in [throughput(&node, &container, &own(free)), throughput(&container, &node, free)] {
            assert!(rate > scaled(2.0 * TO), "{key}: {free} is limited: {rate}");
        }
        limits.del();
        assert!(queues(&node, &main.host_veth()).is_empty() && node.links_of_kind("ifb").is_empty());
    }
}

#[test]
fn names_and_numbers_are_those_of_the_go_plugin() {
    require_shaping!();
    let node = Node::new();
    let container = node.container_named("c1");
    let network = json!({"name": "n"});
    let main = node.attach(&container, "eth0", &with(dual_stack_config(&node), network.clone()));
    let keys = json!({"ingressRate": 8000, "ingressBurst": 80, "egressRate": 16, "egressBurst": 8});
    let limits = node.attach(&container, "eth0", &with(config(&main, keys), network));
    let ifb = node.link("bwp9b00b9b7c279");
    assert_eq!(
        (&ifb["linkinfo"]["info_kind"], &ifb["mtu"], &ifb["txqlen"]),
        (&json!("ifb"), &json!(1500), &Value::Null)
    );
    let mut expected = main.result["interfaces"].as_array().unwrap().clone();
    expected.push(json!({"name": "bwp9b00b9b7c279", "mac": ifb["address"]}));
    assert_eq!(limits.result["interfaces"], json!(expected));
    assert_eq!(
        (&limits.result["ips"], &limits.result["routes"]),
        (&main.result["ips"], &main.result["routes"])
    );
    let shown = |link: &str| node.json(&format!("tc -j qdisc show dev {link} root"))[0].clone();
    let to = shown(&main.host_veth());
    assert_eq!(
        (&to["kind"], &to["handle"], &to["options"]["rate"]),
        (&json!("tbf"), &json!("1:"), &json!(1000))
    );
    let from = shown("bwp9b00b9b7c279");
    assert_eq!(
        (&from["kind"], &from["handle"], &from["options"]["rate"]),
        (&json!("tbf"), &json!("1:"), &json!(2))
    );
    let filters = node.run(&format!("tc filter show dev {} parent ffff:", main.host_veth()));
    assert!(
        filters.contains("pref 1 u32") && filters.contains("Egress Redirect to device bwp9b00b9b7c279"),
        "{filters}"
    );
    limits.check();
}

#[test]
fn rates_need_more_than_32_bit() {
    require_shaping!();
    let node = Node::new();
    let container = node.container();
    let keys = json!({"egressRate": 400_000_000_000_u64, "egressBurst": 34_359_738_000_u64});
    let (_main, limits) = shaped(&node, &container, "eth0", keys.clone());
    let ifb = node.links_of_kind("ifb").remove(0);
    let shown = node.json(&format!("tc -j qdisc show dev {ifb} root"))[0].clone();
    assert_eq!(shown["options"]["rate"], json!(50_000_000_000_u64));
    limits.check();
    let wrong =
        with(limits.config.clone(), json!({"egressRate": 400_000_000_008_u64, "prevResult": limits.result}));
    limits.call_with("CHECK", &wrong).fails(100).names(&["egress", "rate", "50000000001"]);
}

#[test]
fn without_limits_nothing_is_made() {
    require_shaping!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let before = node.snapshot();
    let runtime = json!({"bandwidth": {"ingressRate": 8000, "ingressBurst": 8000}});
    for keys in [
        json!({}),
        json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0}),
        json!({"egressRate": 0, "runtimeConfig": runtime}),
    ] {
        let limits = node.attach(&container, "eth0", &config(&main, keys));
        assert_eq!(limits.result, main.result);
        limits.check();
        limits.del();
    }
    assert_same(&before, &node.snapshot());
    assert!(queues(&node, &main.host_veth()).is_empty());
    main.check();
}

#[test]
fn the_runtime_sets_limits_by_the_capability() {
    require_shaping!();
    let node = Node::new();
    let container = node.container();
    let runtime = json!({"RuntimeConfig": {"bandWidth": {"ingressRate": 8_000_000, "ingressBurst": 80_000}}});
    let (main, limits) = shaped(&node, &container, "eth0", runtime);
    assert!(queues(&node, &main.host_veth())[0].starts_with("qdisc tbf 1: root"));
    assert!(node.links_of_kind("ifb").is_empty());
    assert_eq!(limits.result, main.result);
    limits.check();
}

#[test]
fn without_limits_an_interface_of_any_kind_passes() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    container.ip(&["link add br9 type bridge"]);
    for ifname in ["br9", "eth0"] {
        let free =
            node.attach(&container, ifname, &config(&main, json!({"capabilities": {"bandwidth": true}})));
        free.check();
        free.del();
    }
}

#[test]
fn what_cannot_be_limited_is_refused() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let alone = with(json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth"}), both());
    for config in [alone.clone(), json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth"})] {
        node.request("ADD", &container, "eth0", &config).fails(7).names(&["prevResult"]);
    }
    node.request("CHECK", &container, "eth0", &alone).fails(7).names(&["prevResult"]);
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let half = config(&main, json!({"ingressRate": 8000}));
    node.request("ADD", &container, "eth0", &half).fails(7).names(&["ingressRate", "ingressBurst"]);
    let mut foreign = config(&main, both());
    foreign["prevResult"]["interfaces"] = json!([{"name": "eth0", "sandbox": container.path()}]);
    node.request("ADD", &container, "eth0", &foreign).fails(7).names(&["eth0", &main.host_veth()]);
    container.ip(&["link add br9 type bridge"]);
    node.request("ADD", &container, "br9", &config(&main, both())).fails(7).names(&["br9", "not a veth"]);
    node.request("ADD", &container, "none", &config(&main, both())).err().names(&["none"]);
    let old = with(config(&main, both()), json!({"cniVersion": "0.2.0"}));
    node.request("ADD", &container, "eth0", &old).fails(1);
    assert!(queues(&node, &main.host_veth()).is_empty() && node.links_of_kind("ifb").is_empty());
}

#[test]
fn check_finds_every_damage() {
    require_shaping!();
    let node = Node::new();
    let damages: [(&str, &[&str]); 6] = [
        ("tc qdisc del dev VETH root", &["ingress", "not limited"]),
        (
            "tc qdisc change dev VETH root handle 1: tbf rate 90mbit burst 100000 limit 350000",
            &["ingress", "rate"],
        ),
        ("tc filter del dev VETH parent ffff: pref 1", &["egress", "not redirected"]),
        ("ip link del IFB", &["egress", "missing"]),
        ("ip link set IFB down", &["egress", "down"]),
        (
            "tc qdisc change dev IFB root handle 1: tbf rate 40mbit burst 90000 limit 225000",
            &["egress", "burst"],
        ),
    ];
    for (damage, names) in damages {
        let container = node.container();
        let (main, limits) = shaped(&node, &container, "eth0", both());
        limits.check();
        let ifb = limits.result["interfaces"][3]["name"].as_str().unwrap().to_owned();
        node.run(&damage.replace("VETH", &main.host_veth()).replace("IFB", &ifb));
        limits.call("CHECK").fails(100).names(names);
        limits.del();
        main.del();
    }
}

#[test]
fn check_compares_classes_and_filters_of_networks() {
    require_shaping!();
    let node = Node::new();
    let container = node.container();
    let keys = with(both(), json!({"unshapedSubnets": ["10.1.0.0/24", "fd00:1::/64"]}));
    let (main, limits) = shaped(&node, &container, "eth0", keys.clone());
    limits.check();
    let changed = |change: Value| {
        let config = with(with(limits.config.clone(), json!({"prevResult": limits.result})), change);
        limits.call_with("CHECK", &config).fails(100)
    };
    changed(json!({"ingressRate": 70_000_000})).names(&["rate"]);
    changed(json!({"unshapedSubnets": ["10.9.0.0/16"]})).names(&["10.9.0.0/16"]);
    changed(json!({"unshapedSubnets": null, "shapedSubnets": ["10.1.0.0/24"]})).names(&["htb default"]);
    changed(json!({"unshapedSubnets": null})).names(&["expected tbf"]);
    node.run(&format!("tc filter del dev {} parent 1: pref 15", main.host_veth()));
    limits.call("CHECK").fails(100).names(&["ingress", "fd00:1::/64"]);
}

#[test]
fn del_needs_no_namespace_no_result_and_no_valid_configuration() {
    require_shaping!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let before = node.snapshot();
    let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "ingressRate": 5, "egressBurst": 1});
    for netns in [container.path(), "", "/nonexistent/netns"] {
        let limits = node.attach(&container, "eth0", &config(&main, both()));
        for _ in 0..2 {
            limits.call_with("DEL", &bare).env("CNI_NETNS", netns).silent();
            assert!(queues(&node, &main.host_veth()).is_empty(), "CNI_NETNS={netns:?}");
            assert_same(&before, &node.snapshot());
        }
    }
    let limits = node.attach(&container, "eth0", &config(&main, both()));
    main.del();
    limits.del();
    limits.del();
    assert_eq!(node.links(), ["cni0"]);
}

#[test]
fn a_second_add_sets_the_limits_anew() {
    require_shaping!();
    let node = Node::new();
    let container = node.container();
    let (main, first) = shaped(&node, &container, "eth0", both());
    let again = node.attach(&container, "eth0", &config(&main, both()));
    assert_eq!(again.result["interfaces"].as_array().unwrap().len(), 4);
    again.check();
    let after = with(config(&main, both()), json!({"prevResult": first.result, "shapedSubnets": ["::/0"]}));
    let third = node.attach(&container, "eth0", &after);
    assert_eq!(third.result["interfaces"].as_array().unwrap().len(), 4);
    third.check();
    let one_way = json!({"ingressRate": 8_000_000, "ingressBurst": 80_000});
    let last = node.attach(&container, "eth0", &config(&main, one_way));
    last.check();
    assert!(node.links_of_kind("ifb").is_empty());
    assert_eq!(queues(&node, &main.host_veth()).len(), 1);
}

#[test]
fn two_interfaces_of_a_container_on_one_network_are_limited_each() {
    require_shaping!();
    let node = Node::new();
    let container = node.container();
    let (_, first) = shaped(&node, &container, "eth0", both());
    let main = node.attach(&container, "eth1", &with(dual_stack_config(&node), json!({"ipam": {}})));
    let second = node.attach(&container, "eth1", &config(&main, both()));
    assert_eq!(node.links_of_kind("ifb").len(), 2);
    first.check();
    second.check();
    first.del();
    second.check();
    assert_eq!(node.links_of_kind("ifb").len(), 1);
    second.del();
    assert!(node.links_of_kind("ifb").is_empty());
}

#[test]
fn a_failure_half_way_leaves_nothing_of_ours_and_all_of_others() {
    require_shaping!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let veth = main.host_veth();
    node.run(&format!("tc qdisc add dev {veth} root handle 7: bfifo limit 100000"));
    node.run(&format!("tc qdisc add dev {veth} clsact"));
    node.run(&format!(
        "tc filter add dev {veth} ingress protocol ip pref 5 u32 match u32 0 0 action mirred egress mirror dev lo"
    ));
    let (before, queues_before) = (node.snapshot(), queues(&node, &veth));
    let filters = || node.run(&format!("tc filter show dev {veth} ingress"));
    let filters_before = filters();
    node.request("ADD", &container, "eth0", &config(&main, both())).err().names(&[
        "tc qdisc add",
        &veth,
        "File exists",
    ]);
    assert_same(&before, &node.snapshot());
    assert_eq!((queues(&node, &veth), filters()), (queues_before, filters_before.clone()));
    // Beside the filters of others there is room for ours.
    node.run(&format!("tc qdisc del dev {veth} root"));
    let limits = node.attach(&container, "eth0", &config(&main, both()));
    limits.check();
    limits.del();
    assert_eq!(filters(), filters_before);
    assert_same(&before, &node.snapshot());
}

#[test]
fn gc_removes_the_links_of_attachments_that_are_not_named() {
    require_shaping!();
    let node = Node::new();
    let (kept, stale) = (node.container_named("kept"), node.container_named("stale"));
    let (_, limits) = shaped(&node, &kept, "eth0", both());
    shaped(&node, &stale, "eth0", both());
    let gc = |network: &str, valid: Value| -> Call {
        let keys = json!({"cniVersion": "1.1.0", "name": network, "cni.dev/valid-attachments": valid});
        let call = node.call("bandwidth").command("GC").config(&with(both(), keys));
        call.unset("CNI_CONTAINERID").unset("CNI_NETNS").unset("CNI_IFNAME")
    };
    gc("other", json!([])).silent();
    gc("net", Value::Null).silent();
    assert_eq!(node.links_of_kind("ifb").len(), 2);
    gc("net", json!([{"containerID": "kept", "ifname": "eth0"}])).silent();
    assert_eq!(node.links_of_kind("ifb").len(), 1);
    limits.check();
    gc("net", json!([])).silent();
    assert!(node.links_of_kind("ifb").is_empty());
}

#[test]
fn status_tries_what_add_does() {
    require_shaping!();
    let node = Node::new();
    let before = node.snapshot();
    let config = with(json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth"}), both());
    node.call("bandwidth").command("STATUS").config(&config).silent();
    let subnets = with(config.clone(), json!({"shapedSubnets": ["10.0.0.0/8", "::/0"]}));
    node.call("bandwidth").command("STATUS").config(&subnets).silent();
    assert_same(&before, &node.snapshot());
    let half = with(config, json!({"egressBurst": 0}));
    node.call("bandwidth").command("STATUS").config(&half).fails(7).names(&["egressRate"]);
}

#[test]
fn every_version_from_0_3_0_on_is_spoken() {
    require_shaping!();
    let node = Node::new();
    for version in crate::support::VERSIONS.into_iter().filter(|v| *v >= "0.3.0") {
        let container = node.container();
        let version_key = json!({"cniVersion": version});
        let main = node.attach(&container, "eth0", &with(dual_stack_config(&node), version_key.clone()));
        let limits = node.attach(&container, "eth0", &with(config(&main, both()), version_key));
        assert_eq!(limits.result["cniVersion"], version);
        if version >= "0.4.0" {
            limits.check();
        }
        limits.del();
        main.del();
    }
    assert_eq!(node.links(), ["cni0"]);
}

/// A call of Debian's Go plugin for the same attachment.
fn go(node: &Node, attachment: &Attachment, command: &str, config: &Value) -> Call {
    Call::new("/usr/lib/cni/bandwidth".as_ref(), "/usr/lib/cni".as_ref())
        .inside(node)
        .command(command)
        .config(config)
        .env("CNI_CONTAINERID", &attachment.id)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", &attachment.ifname)
}

#[test]
fn the_go_plugin_can_take_over_and_be_taken_over() {
    require_shaping!();
    if !std::path::Path::new("/usr/lib/cni/bandwidth").exists() {
        return skip("the Go plugins are not in /usr/lib/cni");
    }
    let node = Node::new();
    let container = node.container();
    let old = json!({"cniVersion": "1.0.0"});
    let main = node.attach(&container, "eth0", &with(dual_stack_config(&node), old.clone()));
    let before = node.snapshot();
    let config = with(config(&main, both()), old);
    let ours = node.attach(&container, "eth0", &config);
    go(&node, &ours, "CHECK", &with(config.clone(), json!({"prevResult": ours.result}))).silent();
    go(&node, &ours, "DEL", &config).silent();
    ours.del();
    assert!(queues(&node, &main.host_veth()).is_empty());
    assert_same(&before, &node.snapshot());
    let result = go(&node, &main, "ADD", &config).ok();
    let config = with(config, json!({"prevResult": result}));
    main.call_with("CHECK", &config).silent();
    main.call_with("DEL", &config).env("CNI_NETNS", "").silent();
    assert!(queues(&node, &main.host_veth()).is_empty());
    assert_same(&before, &node.snapshot());
}
