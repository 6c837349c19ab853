//! Configurations that `bridge` and `ptp` refuse, and that the refusal comes before any change.

use serde_json::{Value, json};

use crate::support::{Failure, Node, require_netns};
use crate::{bridge_config, with};

/// ADD with these changes to a good configuration must fail with this code and leave the node empty.
#[track_caller]
fn refused(node: &Node, changes: Value, code: u64) -> Failure {
    let container = node.container();
    let failure = node.request("ADD", &container, "eth0", &with(bridge_config(node), changes)).fails(code);
    assert!(node.links().is_empty() && container.links().is_empty(), "the refusal came too late");
    assert!(node.leases("net").is_empty(), "the refusal came too late");
    failure
}

#[test]
fn vlan_ids_are_checked() {
    require_netns!();
    let node = Node::new();
    for vlan in [-100, -1, 4095, 5000] {
        refused(&node, json!({"vlan": vlan}), 7).names(&["vlan", &vlan.to_string()]);
    }
}

#[test]
fn vlan_trunk_entries_are_checked() {
    require_netns!();
    let node = Node::new();
    for (entry, words) in [
        (json!({"id": 0}), &["vlanTrunk[0]"][..]),
        (json!({"id": 4095}), &["vlanTrunk[0]", "4095"]),
        (json!({"minID": 10}), &["vlanTrunk[0]", "maxID"]),
        (json!({"maxID": 10}), &["vlanTrunk[0]", "minID"]),
        (json!({"minID": 20, "maxID": 10}), &["vlanTrunk[0]", "20", "10"]),
        (json!({"minID": 0, "maxID": 10}), &["vlanTrunk[0]", "minID"]),
        (json!({"minID": 10, "maxID": 4095}), &["vlanTrunk[0]", "maxID"]),
    ] {
        refused(&node, json!({"vlanTrunk": [entry]}), 7).names(words);
    }
}

#[test]
fn an_empty_bridge_name_and_one_that_no_link_can_have_are_refused() {
    require_netns!();
    let node = Node::new();
    for name in ["", "a-name-of-sixteen", "a/b", "a b", "."] {
        refused(&node, json!({"bridge": name}), 7).names(&["bridge"]);
    }
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    require_netns!();
    let node = Node::new();
    refused(&node, json!({"hairpinMode": true, "promiscMode": true}), 7)
        .names(&["hairpinMode", "promiscMode"]);
    refused(&node, json!({"disableContainerInterface": true}), 7).names(&["disableContainerInterface"]);
}

#[test]
fn an_unknown_masquerade_backend_is_refused() {
    require_netns!();
    let node = Node::new();
    for plugin in ["bridge", "ptp"] {
        let changes = json!({"type": plugin, "ipMasq": true, "ipMasqBackend": "pf"});
        refused(&node, changes, 7).names(&["ipMasqBackend", "pf"]);
    }
}

#[test]
fn a_wrong_type_is_named_with_its_key() {
    require_netns!();
    let node = Node::new();
    for (key, value) in [
        ("isGateway", json!("true")),
        ("portIsolation", json!("true")),
        ("mtu", json!("1400")),
        ("mtu", json!(true)),
        ("vlan", json!([])),
        ("bridge", json!(5)),
        ("vlanTrunk", json!({})),
        ("ipMasqBackend", json!(1)),
    ] {
        refused(&node, json!({key: value}), 6).names(&[key]);
    }
    refused(&node, json!({"runtimeConfig": {"mac": 5}}), 6).names(&["runtimeConfig.mac"]);
    refused(&node, json!({"args": {"cni": {"mac": 5}}}), 6).names(&["args.cni.mac"]);
    refused(&node, json!({"vlanTrunk": [{"id": 5}, {"id": "6"}]}), 6).names(&["vlanTrunk[1].id"]);
}

#[test]
fn a_previous_result_is_not_judged_by_a_plugin_that_has_no_use_for_it() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add up0 type veth peer name up1", "link set up0 up", "link set up1 up"]);
    for plugin in ["bridge", "ptp", "macvlan", "tap", "host-device"] {
        for prev in [json!({"cniVersion": "0.4.0"}), json!({"interfaces": [null]}), json!({"ips": [null]})] {
            let container = node.container();
            let changes = json!({
                "type": plugin, "cniVersion": "1.0.0", "prevResult": prev, "master": "up0", "device": "up1",
                "dataDir": node.workdir().root().join("records"),
                "bridge": if plugin == "tap" { "" } else { "cni0" },
            });
            let attachment = node.attach(&container, "eth0", &with(bridge_config(&node), changes));
            attachment.del();
        }
    }
    refused(&Node::new(), json!({"prevResult": []}), 6).names(&["prevResult"]);
}

#[test]
fn bad_runtime_arguments_are_refused_on_add_and_forgiven_on_del() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    for args in ["A=b", "MAC=02:00:00:00:00:01;A", "MAC=x", "mac=02:00:00:00:00:01"] {
        let call = |command: &str| {
            node.request(command, &container, "eth0", &bridge_config(&node)).env("CNI_ARGS", args)
        };
        call("ADD").fails(4).names(&["CNI_ARGS"]);
        assert!(node.links().is_empty() && container.links().is_empty());
        call("DEL").silent();
    }
}

#[test]
fn ptp_does_not_look_at_runtime_arguments_itself() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let config = with(bridge_config(&node), json!({"type": "ptp"}));
    let result = node.request("ADD", &container, "eth0", &config).env("CNI_ARGS", "IP=10.1.0.77").ok();
    assert_eq!(result["ips"][0]["address"], "10.1.0.77/24");
}

#[test]
fn ptp_needs_ipam() {
    require_netns!();
    let node = Node::new();
    for ipam in [Value::Null, json!({}), json!({"type": ""})] {
        refused(&node, json!({"type": "ptp", "ipam": ipam}), 7).names(&["ipam"]);
    }
}
