//! GC removes what no attachment owns; STATUS says whether ADD could be served.

use serde_json::{Value, json};

use crate::support::{Node, assert_same, require_netns};
use crate::{bridge_config, dual_stack_config, with};

fn gc(node: &Node, config: &Value, valid: Value) -> crate::support::Call {
    let config = with(config.clone(), json!({"cni.dev/valid-attachments": valid}));
    let call = node.call(config["type"].as_str().unwrap()).command("GC").config(&config);
    call.unset("CNI_CONTAINERID").unset("CNI_NETNS").unset("CNI_IFNAME")
}

#[test]
fn gc_removes_links_rules_and_addresses_of_attachments_that_are_not_named() {
    require_netns!();
    for (plugin, backend) in [("bridge", "nftables"), ("bridge", "iptables"), ("ptp", "nftables")] {
        let node = Node::new();
        let config = with(
            dual_stack_config(&node),
            json!({"type": plugin, "ipMasq": true, "ipMasqBackend": backend, "macspoofchk": plugin == "bridge"}),
        );
        let (kept, stale) = (node.container_named("kept-one"), node.container_named("stale-one"));
        let attachment = node.attach(&kept, "eth0", &config);
        let before = node.snapshot();
        node.attach(&stale, "eth0", &config);
        gc(&node, &config, json!([{"containerID": "kept-one", "ifname": "eth0"}])).silent();
        assert_same(&before, &node.snapshot());
        attachment.check();
        assert!(kept.pings("10.1.0.1"));
    }
}

#[test]
fn gc_understands_any_text_as_a_valid_attachment() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    node.attach(&container, "eth0", &bridge_config(&node));
    gc(&node, &bridge_config(&node), json!([{"containerID": "é".repeat(60), "ifname": "eth0"}])).silent();
    assert!(container.links().is_empty() && node.leases("net").is_empty());
}

#[test]
fn gc_tells_the_interfaces_of_a_container_apart() {
    require_netns!();
    let node = Node::new();
    let mut config = bridge_config(&node);
    config["ipam"]["routes"] = json!([]);
    let container = node.container();
    node.attach(&container, "eth0", &config);
    let second = node.attach(&container, "eth1", &config);
    gc(&node, &config, json!([{"containerID": container.id(), "ifname": "eth1"}])).silent();
    assert_eq!(
        (container.links(), node.leases("net")),
        (vec!["eth1".to_owned()], vec!["10.1.0.3".to_owned()])
    );
    second.check();
}

#[test]
fn gc_without_a_list_does_nothing() {
    require_netns!();
    let node = Node::new();
    let config = with(bridge_config(&node), json!({"ipMasq": true}));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    let before = node.snapshot();
    gc(&node, &config, Value::Null).silent();
    node.call("bridge").command("GC").config(&config).silent();
    assert_same(&before, &node.snapshot());
    attachment.check();
}

#[test]
fn gc_with_an_empty_list_removes_all_of_this_network_and_nothing_of_another() {
    require_netns!();
    let node = Node::new();
    let config = with(bridge_config(&node), json!({"ipMasq": true}));
    let other = with(
        bridge_config(&node),
        json!({"name": "other", "bridge": "cni1", "ipMasq": true,
            "ipam": {"type": "host-local", "dataDir": node.data_dir(), "subnet": "10.2.0.0/24"}}),
    );
    let container = node.container();
    let kept = node.attach(&container, "eth1", &other);
    let another = node.container();
    node.attach(&another, "eth0", &config);
    node.attach(&container, "eth0", &config);
    gc(&node, &config, json!([])).silent();
    assert!(node.leases("net").is_empty());
    assert_eq!((node.links_of_kind("veth").len(), container.links()), (1, vec!["eth1".to_owned()]));
    kept.check();
}

#[test]
fn gc_leaves_links_and_rules_that_are_not_ours() {
    require_netns!();
    let node = Node::new();
    let config = with(bridge_config(&node), json!({"ipMasq": true}));
    node.attach(&node.container(), "eth0", &config).del();
    node.ip(&["link add veth12345678 type veth peer name other", "link set veth12345678 master cni0"]);
    node.run("nft add table ip nat");
    node.run("nft add chain ip nat MINE");
    node.run("nft add rule ip nat MINE ip saddr 10.1.0.9 accept");
    let before = node.snapshot();
    gc(&node, &config, json!([])).silent();
    assert_same(&before, &node.snapshot());
}

#[test]
fn gc_reaches_the_ipam_plugin() {
    require_netns!();
    let node = Node::new();
    let log = node.workdir().root().join("log");
    let body = format!("#!/bin/sh\necho \"$CNI_COMMAND\" >>'{0}'\ncat >>'{0}'\n", log.display());
    node.workdir().script("bin/my-ipam", &body);
    for plugin in ["bridge", "ptp"] {
        let config = with(bridge_config(&node), json!({"type": plugin, "ipam": {"type": "my-ipam"}}));
        gc(&node, &config, json!([])).silent();
        let seen = std::fs::read_to_string(&log).unwrap();
        assert!(seen.starts_with("GC\n") && seen.contains("valid-attachments"), "{seen}");
        std::fs::remove_file(&log).unwrap();
    }
}

#[test]
fn status_is_healthy_with_and_without_ipam() {
    require_netns!();
    let node = Node::new();
    for (plugin, ipam) in [("bridge", true), ("bridge", false), ("ptp", true)] {
        let mut config = with(bridge_config(&node), json!({"type": plugin}));
        if !ipam {
            config.as_object_mut().unwrap().remove("ipam");
        }
        let call = node.call(plugin).command("STATUS").config(&config);
        call.unset("CNI_CONTAINERID").unset("CNI_NETNS").unset("CNI_IFNAME").silent();
    }
    assert!(node.links().is_empty(), "STATUS changes nothing");
}

#[test]
fn status_passes_on_what_the_ipam_plugin_says() {
    require_netns!();
    let node = Node::new();
    let answer = r#"echo '{"cniVersion":"1.1.0","code":51,"msg":"pool is nearly empty"}'; exit 1"#;
    node.workdir().script("bin/my-ipam", &format!("#!/bin/sh\ncat >/dev/null\n{answer}\n"));
    for plugin in ["bridge", "ptp"] {
        let config = with(bridge_config(&node), json!({"type": plugin, "ipam": {"type": "my-ipam"}}));
        node.call(plugin).command("STATUS").config(&config).fails(51).names(&["pool is nearly empty"]);
    }
}

#[test]
fn status_fails_when_the_ipam_plugin_is_missing() {
    require_netns!();
    let node = Node::new();
    let config = with(bridge_config(&node), json!({"ipam": {"type": "no-such-ipam"}}));
    node.call("bridge").command("STATUS").config(&config).err().names(&["no-such-ipam"]);
}
