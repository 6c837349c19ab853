//! The `flannel` plugin, with a `subnet.env` as the flannel daemon writes it.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Call, Node, Outside, VERSIONS, assert_same, require_netns};
use crate::with;

const V4: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const V6: &str = "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\n";

fn daemon_tells(node: &Node, text: &str) {
    node.workdir().file("subnet.env", text);
}

/// A node whose flannel daemon has told of a subnet for each family.
fn node() -> Node {
    let node = Node::new();
    daemon_tells(&node, &format!("{V4}{V6}"));
    node
}

fn dir(node: &Node) -> PathBuf {
    node.workdir().root().join("flannel")
}

fn config(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "flannel",
        "subnetFile": node.workdir().root().join("subnet.env"), "dataDir": dir(node),
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        "ipam": {"dataDir": node.data_dir()},
    })
}

/// The files that are kept, sorted.
fn kept(node: &Node) -> Vec<String> {
    let entries = std::fs::read_dir(dir(node)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn gc(node: &Node, valid: Value) -> Call {
    let config = with(config(node), json!({"cni.dev/valid-attachments": valid}));
    node.call("flannel").command("GC").config(&config)
}

#[test]
fn a_bridge_with_the_nodes_subnets_is_made_in_both_families() {
    require_netns!();
    let node = node();
    let (one, two) = (node.container(), node.container());
    let first = node.attach(&one, "eth0", &config(&node));
    assert_eq!(first.result["cniVersion"], "1.1.0");
    assert_eq!(first.result["interfaces"][0]["name"], "cni0");
    assert_eq!(
        first.result["ips"],
        json!([
            {"address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 2},
            {"address": "fd00:244:0:1::2/64", "gateway": "fd00:244:0:1::1", "interface": 2},
        ])
    );
    let routes: Vec<&str> =
        first.result["routes"].as_array().unwrap().iter().map(|r| r["dst"].as_str().unwrap()).collect();
    assert_eq!(routes, ["10.244.0.0/16", "fd00:244::/48", "0.0.0.0/0", "::/0"]);
    assert_eq!(
        (one.link("eth0")["mtu"].clone(), node.addresses("cni0")),
        (json!(1450), vec!["10.244.1.1/24".to_owned(), "fd00:244:0:1::1/64".to_owned()],)
    );
    assert_eq!(one.find_route(4, "10.244.0.0/16").unwrap()["gateway"], "10.244.1.1");
    let second = node.attach(&two, "eth0", &config(&node));
    for n in 0..2 {
        assert!(one.pings(&second.ip(n)) && node.pings(&first.ip(n)));
    }
    assert!(node.nft().is_empty(), "the daemon masquerades");
    first.check();
    assert_eq!(kept(&node), ["container-0", "container-0:eth0", "container-1", "container-1:eth0"]);
    first.del();
    second.del();
    assert_eq!((node.links(), kept(&node).len(), node.leases("cbr0").len()), (vec!["cni0".to_owned()], 0, 0));
    first.del();
}

#[test]
fn the_delegate_masquerades_when_the_daemon_does_not() {
    require_netns!();
    let node = node();
    daemon_tells(&node, &V4.replace("true", "false"));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node));
    assert!(node.nft().contains("10.244.1.2"));
    attachment.del();
    assert!(!node.nft().contains("10.244.1.2"));
}

#[test]
fn containers_of_other_nodes_see_the_address_that_the_delegate_masquerades() {
    require_netns!();
    for backend in ["nftables", "iptables"] {
        let node = node();
        let outside = node.outside();
        // What another node has of flannel's network.
        outside.ip(&["addr add 10.244.2.5/32 dev out0", "addr add fd00:244:0:2::5/128 dev out0 nodad"]);
        node.ip(&[
            "route add 10.244.2.0/24 via 203.0.113.1",
            "route add fd00:244:0:2::/64 via 2001:db8:1::1",
        ]);
        daemon_tells(&node, &format!("{}{V6}", V4.replace("true", "false")));
        let delegate = json!({"isDefaultGateway": true, "ipMasqBackend": backend});
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &with(config(&node), json!({"delegate": delegate})));
        for (to, seen) in [
            ("10.244.2.5", "10.244.1.2"),
            ("fd00:244:0:2::5", "fd00:244:0:1::2"),
            (Outside::V4, Outside::NODE_V4),
            (Outside::V6, Outside::NODE_V6),
        ] {
            let found =
                container.datagram_seen_by(&outside, to).unwrap_or_else(|e| panic!("{backend}: {to}: {e}"));
            assert_eq!(found.to_string(), seen, "{backend}: {to}");
        }
        attachment.check();
        attachment.del();
        assert!(!node.nft().contains("10.244."), "{}", node.nft());
    }
}

#[test]
fn another_plugin_can_be_the_delegate_with_runtime_arguments() {
    require_netns!();
    let node = node();
    let changes = json!({"delegate": {"type": "ptp", "mtu": 1300}});
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &with(config(&node), changes));
    assert_eq!((node.links_of_kind("bridge").len(), &container.link("eth0")["mtu"]), (0, &json!(1300)));
    attachment.check();
    attachment.del();
    let changes = json!({"runtimeConfig": {"mac": "02:00:00:00:00:05"}, "capabilities": {"mac": true}});
    let attachment = node.attach(&container, "eth0", &with(config(&node), changes));
    assert_eq!(attachment.mac(), "02:00:00:00:00:05");
}

#[test]
fn an_executable_on_cni_path_can_be_the_delegate() {
    require_netns!();
    let node = node();
    let log = node.workdir().root().join("log");
    let body = format!(
        "#!/bin/sh\necho \"$CNI_COMMAND $(cat)\" >>{}\n[ \"$CNI_COMMAND\" != ADD ] || \
         echo '{{\"cniVersion\":\"1.1.0\",\"ips\":[{{\"address\":\"10.9.0.2/24\"}}]}}'\n\
         [ ! -e {}/fail ] || {{ echo '{{\"code\":11,\"msg\":\"busy\"}}'; exit 1; }}\n",
        log.display(),
        node.workdir().root().display(),
    );
    node.workdir().script("bin/foreign", &body);
    let config = with(
        config(&node),
        json!({"delegate": {"type": "foreign", "own": {"Key": 1.50}}, "dns": {"domain": "x"}}),
    );
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(attachment.result["ips"][0]["address"], "10.9.0.2/24");
    attachment.check();
    // A DEL that fails is repeated with the same configuration.
    let fail = node.workdir().file("fail", "");
    attachment.call("DEL").fails(11).names(&["foreign", "busy"]);
    assert_eq!(kept(&node).len(), 2);
    std::fs::remove_file(fail).unwrap();
    attachment.del();
    assert!(kept(&node).is_empty());
    let text = std::fs::read_to_string(log).unwrap();
    let calls: Vec<(&str, Value)> = text
        .lines()
        .map(|l| l.split_once(' ').unwrap())
        .map(|(c, j)| (c, serde_json::from_str(j).unwrap()))
        .collect();
    let commands: Vec<&str> = calls.iter().map(|(command, _)| *command).collect();
    assert_eq!(commands, ["ADD", "CHECK", "DEL", "DEL"]);
    let add = &calls[0].1;
    assert_eq!((&add["name"], &add["own"]["Key"]), (&json!("cbr0"), &json!(1.50)));
    assert!(add["dns"].is_null() && add["prevResult"].is_null() && add["subnetFile"].is_null());
    assert_eq!(calls[1].1["prevResult"], attachment.result);
    assert_eq!(&calls[2].1, add);
}

#[test]
fn del_needs_neither_the_daemon_nor_the_configuration_nor_the_namespace() {
    require_netns!();
    let node = node();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node));
    std::fs::remove_file(node.workdir().root().join("subnet.env")).unwrap();
    container.unmount();
    let changes = json!({"delegate": 5, "ipam": {"type": "no-such-plugin"}});
    attachment.call_with("DEL", &with(config(&node), changes)).silent();
    assert_eq!((node.links(), kept(&node).len(), node.leases("cbr0").len()), (vec!["cni0".to_owned()], 0, 0));
}

#[test]
fn a_file_that_has_no_configuration_does_not_keep_del_from_ending() {
    require_netns!();
    let node = node();
    for content in ["", "{}", "null", "[1]", r#"{"name": "cbr0"}"#, r#"{"name": "cbr0", "type": "bridge""#] {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config(&node));
        node.workdir().file(&format!("flannel/{}:eth0", container.id()), content);
        gc(&node, Value::Null).silent();
        // The daemon's words are as good.
        attachment.del();
        assert!(container.links().is_empty() && kept(&node).is_empty(), "{content}");
        assert!(node.leases("cbr0").is_empty(), "{content}");
        node.workdir().file("flannel/c9:eth0", content);
        let gone = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "flannel", "dataDir": dir(&node)});
        node.call("flannel").command("DEL").env("CNI_CONTAINERID", "c9").config(&gone).silent();
        assert!(kept(&node).is_empty(), "{content}");
    }
}

#[test]
fn interfaces_of_one_container_are_kept_apart() {
    require_netns!();
    let node = node();
    let container = node.container();
    let first = node.attach(&container, "eth0", &config(&node));
    // By now the daemon has got another subnet, too.
    daemon_tells(&node, &V4.replace("10.244", "10.245"));
    let other = with(config(&node), json!({"delegate": {"bridge": "other"}}));
    let second = node.attach(&container, "eth1", &other);
    assert_eq!(kept(&node), ["container-0", "container-0:eth0", "container-0:eth1"]);
    first.del();
    assert_eq!((container.links(), kept(&node).len()), (vec!["eth1".to_owned()], 1));
    second.check();
    second.del();
    assert!(container.links().is_empty() && kept(&node).is_empty() && node.leases("cbr0").is_empty());
}

#[test]
fn what_the_go_plugin_attached_is_detached_and_the_reverse_is_possible() {
    require_netns!();
    let node = node();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config(&node));
    // What the Go plugin reads on DEL.
    let theirs = dir(&node).join(container.id());
    let delegate: Value = serde_json::from_slice(&std::fs::read(&theirs).unwrap()).unwrap();
    assert_eq!((&delegate["type"], &delegate["name"]), (&json!("bridge"), &json!("cbr0")));
    // As if it had attached: its file only.
    std::fs::remove_file(dir(&node).join("container-0:eth0")).unwrap();
    attachment.check();
    attachment.del();
    assert_eq!((node.links(), kept(&node).len(), node.leases("cbr0").len()), (vec!["cni0".to_owned()], 0, 0));
}

#[test]
fn an_add_that_fails_leaves_nothing_and_a_repeated_one_keeps_the_first() {
    require_netns!();
    let node = node();
    let container = node.container();
    let before = node.snapshot();
    for (changes, named) in [
        (json!({"delegate": {"type": "no-such-plugin"}}), "no-such-plugin"),
        (json!({"delegate": {"mtu": 20, "type": "ptp"}}), "mtu"),
        (json!({"delegate": {"name": "x"}}), "delegate.name"),
        (json!({"delegate": {"ipam": {}}}), "delegate.ipam"),
        (json!({"ipam": {"routes": 5}}), "ipam.routes"),
    ] {
        node.request("ADD", &container, "eth0", &with(config(&node), changes)).err().names(&[named]);
        assert!(kept(&node).is_empty() && container.links().is_empty());
        assert_same(&before, &node.snapshot());
    }
    let attachment = node.attach(&container, "eth0", &config(&node));
    node.request("ADD", &container, "eth0", &config(&node)).err().names(&["eth0"]);
    attachment.check();
    assert!(container.pings("10.244.1.1"));
    attachment.del();
    assert!(kept(&node).is_empty() && node.leases("cbr0").is_empty());
}

#[test]
fn add_and_status_say_what_the_daemon_has_not_told() {
    require_netns!();
    let node = node();
    let container = node.container();
    let add = || node.request("ADD", &container, "eth0", &config(&node));
    let status = || node.call("flannel").command("STATUS").config(&config(&node));
    status().silent();
    daemon_tells(&node, "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_MTU=1450\n");
    add().err().names(&["subnet.env", "FLANNEL_SUBNET", "FLANNEL_IPMASQ"]);
    status().fails(50).names(&["FLANNEL_SUBNET"]);
    daemon_tells(&node, &V4.replace("1450", "x"));
    add().err().names(&["subnet.env line 3", "FLANNEL_MTU", "x"]);
    std::fs::remove_file(node.workdir().root().join("subnet.env")).unwrap();
    add().fails(11).names(&["subnet.env"]);
    status().fails(50).names(&["subnet.env"]);
    assert!(kept(&node).is_empty());
    let validate = node.request("CHECK", &container, "eth0", &config(&node));
    validate.fails(100).names(&["flannel"]);
}

#[test]
fn gc_detaches_what_is_not_valid() {
    require_netns!();
    let node = node();
    let (valid, stale) = (node.container(), node.container());
    node.attach(&valid, "eth0", &config(&node));
    node.attach(&stale, "eth0", &config(&node));
    // Another network's, and the Go plugin's of a container that is gone.
    node.workdir().file("flannel/c7:eth0", r#"{"name":"other","type":"bridge"}"#);
    node.workdir().file("flannel/c8", r#"{"name":"cbr0","type":"bridge"}"#);
    let keep = json!([{"containerID": valid.id(), "ifname": "eth0"}]);
    gc(&node, Value::Null).silent();
    assert_eq!(kept(&node).len(), 6);
    gc(&node, keep).silent();
    assert_eq!(kept(&node), ["c7:eth0", "container-0", "container-0:eth0"]);
    assert_eq!((node.links_of_kind("veth").len(), stale.links().len()), (1, 0));
    assert_eq!(node.leases("cbr0").len(), 2);
    std::fs::remove_file(node.workdir().root().join("subnet.env")).unwrap();
    gc(&node, json!([])).silent();
    assert_eq!((kept(&node), node.leases("cbr0").len()), (vec!["c7:eth0".to_owned()], 0));
}

#[test]
fn every_version_attaches_and_detaches() {
    require_netns!();
    let node = node();
    daemon_tells(&node, V4);
    for version in VERSIONS {
        let container = node.container();
        let attachment =
            node.attach(&container, "eth0", &with(config(&node), json!({"cniVersion": version})));
        assert_eq!(attachment.result["cniVersion"], version);
        if version >= "0.4.0" {
            attachment.check();
        }
        attachment.del();
        assert!(container.links().is_empty() && kept(&node).is_empty());
    }
}
