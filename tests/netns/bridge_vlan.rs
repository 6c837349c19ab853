//! VLANs on bridge ports. On a kernel without bridge VLAN filtering: that they are refused, and nothing is left.

use serde_json::{Value, json};

use crate::support::{Attachment, Container, Netns, Node, require_netns};
use crate::{bridge_config, with};

/// Whether this kernel has bridge VLAN filtering.
fn kernel_filters_vlans() -> bool {
    let scratch = Node::new();
    scratch.try_run("ip link add probe type bridge vlan_filtering 1").status.success()
}

/// A layer 2 configuration with these keys.
fn layer2(changes: Value) -> Value {
    with(json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0"}), changes)
}

/// ADD with these keys: the attachment, or `None` when this kernel cannot do it and that was said properly.
#[track_caller]
fn attach<'a>(node: &'a Node, container: &'a Container, config: &Value) -> Option<Attachment<'a>> {
    if kernel_filters_vlans() {
        return Some(node.attach(container, "eth0", config));
    }
    let failure = node.request("ADD", container, "eth0", config).fails(2);
    failure.names(&["vlan"]);
    assert!(node.links().is_empty(), "left behind: {:?}", node.links());
    assert!(container.links().is_empty() && node.leases("net").is_empty());
    node.request("DEL", container, "eth0", config).silent();
    None
}

/// The VLANs of a port as `bridge vlan` lists them, ranges as they are: `100 PVID Egress Untagged`.
fn vlans(netns: &Netns, port: &str) -> Vec<String> {
    let shown = netns.json(&format!("bridge -j vlan show dev {port}"));
    let entries = shown[0]["vlans"].as_array().cloned().unwrap_or_default();
    let text = |entry: &Value| {
        let end = entry["vlanEnd"].as_u64().map(|end| format!("-{end}")).unwrap_or_default();
        let flags =
            entry["flags"].as_array().into_iter().flatten().map(|f| format!(" {}", f.as_str().unwrap()));
        format!("{}{end}{}", entry["vlan"], flags.collect::<String>())
    };
    entries.iter().map(text).collect()
}

#[test]
fn without_vlan_keys_a_bridge_does_not_filter() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    node.attach(&container, "eth0", &layer2(json!({})));
    let filtering = &node.link("br0")["linkinfo"]["info_data"]["vlan_filtering"];
    assert!(filtering.is_null() || *filtering == json!(0), "{filtering}");
}

#[test]
fn a_port_is_in_its_vlan_alone() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let Some(attachment) = attach(&node, &container, &layer2(json!({"vlan": 100}))) else { return };
    assert_eq!(vlans(&node, &attachment.host_veth()), ["100 PVID Egress Untagged"]);
    assert_eq!(node.link("br0")["linkinfo"]["info_data"]["vlan_filtering"], 1);
    attachment.check();
    node.run(&format!("bridge vlan del dev {} vid 100", attachment.host_veth()));
    attachment.call("CHECK").fails(100).names(&["100"]);
}

#[test]
fn the_default_vlan_stays_when_asked() {
    require_netns!();
    let node = Node::new();
    let config = layer2(json!({"vlan": 100, "preserveDefaultVlan": true}));
    let container = node.container();
    let Some(attachment) = attach(&node, &container, &config) else { return };
    let expected = ["1 Egress Untagged", "100 PVID Egress Untagged"];
    assert_eq!(vlans(&node, &attachment.host_veth()), expected);
}

#[test]
fn a_trunk_carries_its_ids_and_ranges_with_a_native_vlan() {
    require_netns!();
    for (vlan, native) in [(json!(100), "100 PVID Egress Untagged"), (Value::Null, "1 PVID Egress Untagged")]
    {
        let node = Node::new();
        let trunk = json!([{"id": 101}, {"minID": 200, "maxID": 210}]);
        let container = node.container();
        let Some(attachment) = attach(&node, &container, &layer2(json!({"vlan": vlan, "vlanTrunk": trunk})))
        else {
            return;
        };
        let shown = vlans(&node, &attachment.host_veth());
        assert!(shown.contains(&native.to_owned()) && shown.contains(&"101".to_owned()), "{shown:?}");
        let listed =
            shown.iter().any(|v| v == "200-210") || (200..=210).all(|id| shown.contains(&id.to_string()));
        assert!(listed, "{shown:?}");
        attachment.check();
    }
}

#[test]
fn a_trunk_that_names_the_native_vlan_leaves_it_native() {
    require_netns!();
    let node = Node::new();
    let config = layer2(json!({"vlan": 100, "vlanTrunk": [{"minID": 99, "maxID": 101}]}));
    let container = node.container();
    let Some(attachment) = attach(&node, &container, &config) else { return };
    assert!(vlans(&node, &attachment.host_veth()).contains(&"100 PVID Egress Untagged".to_owned()));
}

#[test]
fn an_empty_trunk_still_asks_for_filtering() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let Some(attachment) = attach(&node, &container, &layer2(json!({"vlanTrunk": []}))) else { return };
    assert_eq!(node.link("br0")["linkinfo"]["info_data"]["vlan_filtering"], 1);
    assert_eq!(vlans(&node, &attachment.host_veth()), ["1 PVID Egress Untagged"]);
}

#[test]
fn a_bridge_that_does_not_filter_starts_to_or_cannot_take_a_vlan() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add br0 type bridge", "link set br0 up"]);
    let container = node.container();
    let config = layer2(json!({"vlan": 100}));
    if kernel_filters_vlans() {
        let attachment = node.attach(&container, "eth0", &config);
        assert_eq!(node.link("br0")["linkinfo"]["info_data"]["vlan_filtering"], 1);
        assert_eq!(vlans(&node, &attachment.host_veth()), ["100 PVID Egress Untagged"]);
        return;
    }
    node.request("ADD", &container, "eth0", &config).fails(2).names(&["vlan"]);
    assert_eq!(node.links(), ["br0"]);
    assert!(container.links().is_empty());
}

#[test]
fn the_gateway_of_a_vlan_is_on_a_link_of_its_own() {
    require_netns!();
    let node = Node::new();
    let config = with(bridge_config(&node), json!({"vlan": 100}));
    let container = node.container();
    let Some(attachment) = attach(&node, &container, &config) else { return };
    assert_eq!(node.addresses("cni0.100"), ["10.1.0.1/24"]);
    assert_eq!(attachment.result["interfaces"][3]["name"], "cni0.100");
    assert_eq!(attachment.result["ips"][0]["interface"], 2);
    assert!(container.pings("10.1.0.1"));
    attachment.check();
    attachment.del();
    assert!(node.links().contains(&"cni0.100".to_owned()));
}

#[test]
fn a_gateway_link_whose_name_would_be_too_long_is_refused() {
    require_netns!();
    let node = Node::new();
    let config = with(bridge_config(&node), json!({"vlan": 4000, "bridge": "twelve-bytes"}));
    let container = node.container();
    let failure = node.request("ADD", &container, "eth0", &config).err();
    assert_eq!(failure.code, 7);
    failure.names(&["twelve-bytes.4000"]);
    assert!(node.links().is_empty() && container.links().is_empty());
}
