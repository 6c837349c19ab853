//! ADD that fails: it says why, and takes back what it did.

use serde_json::{Value, json};

use crate::support::{Container, Node, assert_same, require_netns};
use crate::{bridge_config, dual_stack_config, with, with_static};

/// An IPAM plugin in shell: appends each command to a log, and answers ADD as told.
fn ipam_script(node: &Node, name: &str, add: &str) -> std::path::PathBuf {
    let log = node.workdir().root().join(format!("{name}.log"));
    let body = format!(
        "#!/bin/sh\ncat >/dev/null\necho \"$CNI_COMMAND\" >>'{}'\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n{add}\n",
        log.display()
    );
    node.workdir().script(&format!("bin/{name}"), &body);
    log
}

/// ADD must fail and change neither the node nor the container.
#[track_caller]
fn fails_without_trace(node: &Node, container: &Container, config: &Value) -> crate::support::Failure {
    let before = node.snapshot();
    let links = container.links();
    let failure = node.request("ADD", container, "eth0", config).err();
    assert_same(&before, &node.snapshot());
    assert_eq!(container.links(), links);
    failure
}

/// A node on which bridge, gateway address and tables are there already, so that every remaining change is the ADD's.
fn warm_node(config: impl Fn(&Node) -> Value) -> (Node, Value) {
    let node = Node::new();
    let config = config(&node);
    node.attach(&node.container_named("warm-up"), "eth0", &config).del();
    (node, config)
}

fn everything(node: &Node) -> Value {
    with(dual_stack_config(node), json!({"ipMasq": true, "macspoofchk": true}))
}

#[test]
fn a_route_that_the_kernel_refuses_leaves_nothing() {
    require_netns!();
    for plugin in ["bridge", "ptp"] {
        let (node, mut config) = warm_node(|node| with(everything(node), json!({"type": plugin})));
        config["ipam"]["routes"] = json!([{"dst": "198.51.100.0/24", "gw": "255.255.255.255"}]);
        let failure = fails_without_trace(&node, &node.container(), &config);
        failure.names(&["198.51.100.0/24", "255.255.255.255"]);
    }
}

#[test]
fn an_exhausted_range_leaves_nothing_and_keeps_its_code() {
    require_netns!();
    let (node, mut config) = warm_node(everything);
    config["ipam"] = json!({
        "type": "host-local", "dataDir": node.data_dir(),
        "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.9"}]],
    });
    let container = node.container();
    let first = node.attach(&container, "eth0", &config);
    let failure = fails_without_trace(&node, &node.container(), &config);
    assert_eq!(failure.code, 101);
    failure.names(&["10.1.0.9"]);
    first.check();
}

#[test]
fn a_mac_mtu_or_namespace_that_cannot_be_leaves_nothing() {
    require_netns!();
    for plugin in ["bridge", "ptp"] {
        let (node, config) = warm_node(|node| with(everything(node), json!({"type": plugin})));
        let container = node.container();
        fails_without_trace(&node, &container, &with(config.clone(), json!({"mtu": 10})));
        let before = node.snapshot();
        let file = node.workdir().file("plain", "");
        let call = || node.request("ADD", &container, "eth0", &config);
        call().env("CNI_NETNS", &file).err().names(&[file.to_str().unwrap()]);
        call().env("CNI_NETNS", "/proc/self/status").err().names(&["/proc/self/status"]);
        let missing = call().env("CNI_NETNS", "/nonexistent/netns").err();
        missing.names(&[r#"failed to Statfs "/nonexistent/netns": no such file or directory"#]);
        assert_same(&before, &node.snapshot());
    }
}

#[test]
fn a_gateway_conflict_leaves_nothing() {
    require_netns!();
    let (node, config) = warm_node(everything);
    let conflict = with_static(config, json!([{"address": "10.9.0.5/24"}]), json!([]));
    fails_without_trace(&node, &node.container(), &conflict).names(&["10.1.0.1"]);
}

#[test]
fn on_a_fresh_node_a_failure_leaves_no_port_address_lease_or_rule() {
    require_netns!();
    let node = Node::new();
    let mut config = everything(&node);
    config["ipam"]["routes"] = json!([{"dst": "198.51.100.0/24", "gw": "255.255.255.255"}]);
    let container = node.container_named("unlucky");
    node.request("ADD", &container, "eth0", &config).err();
    assert!(node.links_of_kind("veth").is_empty() && container.links().is_empty());
    assert!(node.leases("net").is_empty());
    let snapshot = node.snapshot();
    for trace in ["unlucky", "10.1.0.", "fd00:1::"] {
        // The bridge and its gateway addresses are the network's: another ADD may rely on them already.
        let left = snapshot.mentions(trace);
        assert!(left.iter().all(|line| line.contains("cni0")), "{left:?}");
    }
}

#[test]
fn an_ipam_plugin_that_refuses_keeps_what_it_has_and_its_error_is_ours() {
    require_netns!();
    for plugin in ["bridge", "ptp"] {
        let node = Node::new();
        let error =
            r#"echo '{"cniVersion":"1.1.0","code":142,"msg":"no such pool","details":"pool 7"}'; exit 1"#;
        let log = ipam_script(&node, "my-ipam", error);
        let config = with(bridge_config(&node), json!({"type": plugin, "ipam": {"type": "my-ipam"}}));
        let container = node.container();
        let failure = node.request("ADD", &container, "eth0", &config).fails(142);
        failure.names(&["no such pool", "pool 7"]);
        assert_eq!(std::fs::read_to_string(log).unwrap(), "ADD\n");
        assert!(node.links_of_kind("veth").is_empty() && container.links().is_empty());
    }
}

#[test]
fn a_delegate_that_dies_without_an_error_object_is_an_internal_error() {
    require_netns!();
    let node = Node::new();
    for (name, add, words) in [
        ("silent", "exit 3", &["silent"][..]),
        ("grumbling", "echo 'out of luck' >&2; exit 1", &["out of luck"]),
        ("babbling", "echo 'not json'; exit 1", &["not json"]),
        ("killed", "kill -9 $$", &["killed"]),
    ] {
        let log = ipam_script(&node, name, add);
        let config = with(bridge_config(&node), json!({"ipam": {"type": name}}));
        let container = node.container();
        let failure = node.request("ADD", &container, "eth0", &config).fails(999);
        failure.names(words);
        assert_eq!(std::fs::read_to_string(log).unwrap(), "ADD\nDEL\n", "{name}");
        assert!(node.links_of_kind("veth").is_empty() && container.links().is_empty(), "{name}");
    }
}

#[test]
fn an_answer_that_cannot_be_used_is_an_error_and_released() {
    require_netns!();
    let node = Node::new();
    for (name, answer) in [
        ("empty", ""),
        ("text", "hello"),
        ("null", "null"),
        ("no-addresses", r#"{"cniVersion":"1.1.0"}"#),
        ("future", r#"{"cniVersion":"7.0.0","ips":[{"address":"10.1.0.5/24"}]}"#),
        ("no-prefix", r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.5"}]}"#),
    ] {
        let log = ipam_script(&node, name, &format!("printf '%s' '{answer}'"));
        for plugin in ["bridge", "ptp"] {
            let config = with(bridge_config(&node), json!({"type": plugin, "ipam": {"type": name}}));
            let container = node.container();
            node.request("ADD", &container, "eth0", &config).err();
            assert_eq!(std::fs::read_to_string(&log).unwrap(), "ADD\nDEL\n", "{name}");
            std::fs::remove_file(&log).unwrap();
            assert!(node.links_of_kind("veth").is_empty() && container.links().is_empty(), "{name}");
        }
    }
}

#[test]
fn a_result_that_cannot_be_written_is_taken_back() {
    require_netns!();
    let (node, config) = warm_node(everything);
    let container = node.container();
    let before = node.snapshot();
    let stdin = node.workdir().file("config", config.to_string());
    let mut command = node.request("ADD", &container, "eth0", &config).to_command();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdin(std::fs::File::open(stdin).unwrap()).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_same(&before, &node.snapshot());
    assert!(container.links().is_empty());
}

#[test]
fn a_refused_add_leaves_the_address_of_the_attachment_there_is() {
    require_netns!();
    for plugin in ["bridge", "ptp", "macvlan", "tap"] {
        let node = Node::new();
        node.ip(&["link add up0 type veth peer name up1", "link set up0 up"]);
        let config = with(
            bridge_config(&node),
            json!({"type": plugin, "isGateway": null, "bridge": null, "master": "up0"}),
        );
        let (here, elsewhere) = (node.container(), node.container());
        let first = node.attach(&here, "eth0", &config);
        let leases = node.leases("net");
        let again = first.call("ADD").env("CNI_NETNS", elsewhere.path()).fails(999);
        again.names(&["duplicate allocation is not allowed"]);
        first.call("ADD").fails(999).names(&["eth0"]);
        assert_eq!(node.leases("net"), leases, "{plugin}");
        first.del();
        assert_eq!(node.leases("net"), Vec::<String>::new(), "{plugin}");
    }
}

#[test]
fn an_ipam_plugin_that_assigns_no_addresses_is_refused() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    for plugin in ["bridge", "ptp", "tap", "host-device"] {
        for ipam in [plugin, "bridge", "portmap"] {
            let config = with(
                bridge_config(&node),
                json!({"type": plugin, "bridge": null, "ipam": {"type": ipam}, "device": "lo"}),
            );
            for command in ["ADD", "STATUS"] {
                let failure = node.request(command, &container, "eth0", &config).err();
                failure.names(&["ipam.type", ipam, "assigns no addresses"]);
            }
        }
    }
    assert!(node.links_of_kind("veth").is_empty() && container.links().is_empty());
}
