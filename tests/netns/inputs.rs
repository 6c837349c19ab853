//! Inputs that people have, as they stand.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Node, leases_in, require_netns};

const MYNET: &str = include_str!("../fixtures/mynet.json");
const LOOPBACK: &str = include_str!("../fixtures/loopback.json");
const BY_HAND: &str = include_str!("../fixtures/by-hand.sh");

#[test]
fn the_classic_bridge_file_works_with_and_without_a_version() {
    require_netns!();
    for version in [None, Some("0.2.0"), Some("0.3.1"), Some("0.4.0"), Some("1.0.0"), Some("1.1.0")] {
        let node = Node::new();
        let outside = node.outside();
        let state = node.workdir().root().join("state");
        std::fs::create_dir_all(&state).unwrap();
        let text = match version {
            None => MYNET.to_owned(),
            Some(version) => MYNET.replacen('{', &format!("{{\"cniVersion\":\"{version}\","), 1),
        };
        let container = node.container();
        let call = |command: &str| {
            let call = node.call("bridge").command(command).stdin(text.clone()).private_state(&state);
            call.env("CNI_CONTAINERID", container.id()).env("CNI_NETNS", container.path())
        };
        let result = call("ADD").ok();
        assert_eq!(result["cniVersion"], version.unwrap_or("0.1.0"));
        if version.is_none_or(|v| v < "0.3.0") {
            let ip4 = json!({"ip": "10.22.0.2/16", "gateway": "10.22.0.1", "routes": [{"dst": "0.0.0.0/0"}]});
            assert_eq!((&result["ip4"], &result["dns"]), (&ip4, &json!({})));
        } else {
            assert_eq!(result["ips"][0]["address"], "10.22.0.2/16");
        }
        assert_eq!(leases_in(&state.join("networks/mynet")), ["10.22.0.2"]);
        assert!(container.pings("10.22.0.1"));
        let seen = container.seen_by(&outside, crate::support::Outside::V4).unwrap().to_string();
        assert_eq!(seen, crate::support::Outside::NODE_V4);
        call("DEL").silent();
        call("DEL").silent();
        assert!(container.links().is_empty() && leases_in(&state.join("networks/mynet")).is_empty());
    }
}

#[test]
fn the_classic_loopback_file_works() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let call = |command: &str| {
        let call = node.call("loopback").command(command).stdin(LOOPBACK).env("CNI_IFNAME", "lo");
        call.env("CNI_CONTAINERID", container.id()).env("CNI_NETNS", container.path())
    };
    call("ADD").ok();
    assert!(container.pings("127.0.0.1"));
    call("DEL").silent();
}

#[test]
fn a_script_attaches_a_running_container_by_hand() {
    require_netns!();
    let node = Node::new();
    let outside = node.outside();
    let container = node.container();
    let mut process = container.command("sleep 60").stdin(Stdio::null()).spawn().unwrap();
    let script = node.workdir().file("by-hand.sh", BY_HAND);
    let run = |command: &str| {
        let (pid, bin, data) = (process.id(), node.workdir().bin(), node.data_dir());
        node.run(&format!("sh {} {command} {pid} {} {data}", script.display(), bin.display()))
    };
    let result: Value = serde_json::from_str(&run("ADD")).unwrap();
    assert_eq!(
        result["ips"],
        json!([{"version": "4", "interface": 2, "address": "10.30.0.2/24", "gateway": "10.30.0.1"}])
    );
    assert_eq!(result["dns"], json!({"nameservers": ["10.30.0.1", "192.0.2.53"], "search": ["example.org"]}));
    assert_eq!(node.leases("runc-net"), ["10.30.0.2"]);
    assert!(container.pings("10.30.0.1"));
    assert!(container.seen_by(&outside, crate::support::Outside::V4).is_ok());
    assert_eq!(run("DEL"), "");
    assert!(node.leases("runc-net").is_empty() && container.links().is_empty());
    assert_eq!(run("DEL"), "");
    let _ = process.kill();
    let _ = process.wait();
}

#[test]
fn ranges_may_be_written_in_every_way() {
    require_netns!();
    for (ipam, addresses) in [
        (
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20"}),
            &["10.1.0.10/24"][..],
        ),
        (
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "gateway": "10.1.0.254"}),
            &["10.1.0.10/24"],
        ),
        (json!({"subnet": "10.1.0.0/24"}), &["10.1.0.2/24"]),
        (json!({"ranges": [[{"subnet": "10.1.0.0/24"}]]}), &["10.1.0.2/24"]),
        (
            json!({"ranges": [
                [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10"}],
                [{"subnet": "fd00:1::/64", "rangeStart": "fd00:1::10", "rangeEnd": "fd00:1::20", "gateway": "fd00:1::1"}],
            ]}),
            &["10.1.0.10/24", "fd00:1::10/64"],
        ),
    ] {
        let node = Node::new();
        let container = node.container();
        let mut config = crate::with(crate::bridge_config(&node), json!({"ipam": ipam}));
        config["ipam"]["type"] = "host-local".into();
        config["ipam"]["dataDir"] = node.data_dir().into();
        let attachment = node.attach(&container, "eth0", &config);
        assert_eq!(container.addresses("eth0"), addresses);
        for ip in attachment.result["ips"].as_array().unwrap() {
            assert!(container.pings(ip["gateway"].as_str().unwrap()), "{ip}");
        }
        attachment.del();
    }
}

#[test]
fn a_container_may_have_two_networks_with_two_interfaces() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let config = |name: &str, bridge: &str, subnet: &str| {
        let ipam = json!({"type": "host-local", "dataDir": node.data_dir(), "subnet": subnet});
        json!({"name": name, "type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "ipam": ipam})
    };
    let first = node.attach(&container, "eth0", &config("front", "front0", "10.40.0.0/24"));
    let second = node.attach(&container, "eth1", &config("back", "back0", "10.41.0.0/24"));
    assert_eq!(
        (first.result["ip4"]["ip"].as_str(), second.result["ip4"]["ip"].as_str()),
        (Some("10.40.0.2/24"), Some("10.41.0.2/24"))
    );
    assert!(container.pings("10.40.0.1") && container.pings("10.41.0.1"));
    second.del();
    assert_eq!(container.links(), ["eth0"]);
    assert!(container.pings("10.40.0.1"));
    first.del();
    assert!(node.leases("front").is_empty() && node.leases("back").is_empty());
}

#[test]
fn a_chain_of_plugins_reads_what_libcni_puts_in() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    // Keys as libcni 1.3 writes them: sorted, `capabilities` left in, `prevResult` of a later call.
    let config = crate::with(
        crate::bridge_config(&node),
        json!({"capabilities": {"ips": true, "mac": true, "portMappings": false},
            "runtimeConfig": {"ips": ["10.1.0.42/24"], "mac": "02:00:00:00:00:42"}}),
    );
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(
        (container.addresses("eth0"), attachment.mac()),
        (vec!["10.1.0.42/24".to_owned()], "02:00:00:00:00:42".to_owned())
    );
    attachment.check();
    attachment.del();
}
