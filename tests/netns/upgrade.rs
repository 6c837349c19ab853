//! Taking over a node from the Go plugins, and giving it back: what one ADDs, the other DELs.

use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha512};

use crate::support::{Call, Container, Node, foreign_plugins, require_netns, require_tool, skip};
use crate::{bridge_config, with};

const GO_PLUGINS: &str = "/usr/lib/cni";

fn go_call(node: &Node, command: &str, container: &Container, config: &serde_json::Value) -> Call {
    let plugin = Path::new(GO_PLUGINS).join(config["type"].as_str().unwrap());
    Call::new(&plugin, Path::new(GO_PLUGINS))
        .inside(node)
        .command(command)
        .config(config)
        .env("CNI_CONTAINERID", container.id())
        .env("CNI_NETNS", container.path())
}

fn config(node: &Node, plugin: &str) -> serde_json::Value {
    with(bridge_config(node), json!({"cniVersion": "1.0.0", "type": plugin, "ipMasq": true}))
}

#[test]
fn del_removes_what_a_go_plugin_added() {
    require_netns!();
    require_tool!("iptables-nft");
    if !Path::new(GO_PLUGINS).join("bridge").exists() {
        return skip("Debian's containernetworking-plugins are not installed");
    }
    for plugin in ["bridge", "ptp"] {
        for gone in [false, true] {
            let node = Node::new();
            let (kept, container) = (node.container_named("kept"), node.container_named("taken-over"));
            let config = config(&node, plugin);
            go_call(&node, "ADD", &kept, &config).ok();
            let before = node.snapshot();
            let result = go_call(&node, "ADD", &container, &config).ok();
            assert!(node.run("iptables-nft -t nat -S").contains("taken-over"));
            let config = with(config, json!({"prevResult": result}));
            if gone {
                container.ip(&["link del eth0"]);
                container.unmount();
            }
            node.request("DEL", &container, "eth0", &config).silent();
            crate::support::assert_same(&before, &node.snapshot());
        }
    }
}

#[test]
fn check_passes_on_what_a_go_plugin_added() {
    require_netns!();
    require_tool!("iptables-nft");
    if !Path::new(GO_PLUGINS).join("bridge").exists() {
        return skip("Debian's containernetworking-plugins are not installed");
    }
    for plugin in ["bridge", "ptp"] {
        let node = Node::new();
        let container = node.container();
        let config = config(&node, plugin);
        let result = go_call(&node, "ADD", &container, &config).ok();
        let check = || {
            node.request("CHECK", &container, "eth0", &with(config.clone(), json!({"prevResult": result})))
        };
        check().silent();
        node.run("iptables-nft -t nat -F POSTROUTING");
        check().fails(100).names(&["ipMasq", "cni-all"]);
    }
}

#[test]
fn a_go_plugin_deletes_what_we_added() {
    require_netns!();
    if !Path::new(GO_PLUGINS).join("bridge").exists() {
        return skip("Debian's containernetworking-plugins are not installed");
    }
    for plugin in ["bridge", "ptp"] {
        let node = Node::new();
        let container = node.container();
        let config = with(config(&node, plugin), json!({"ipMasqBackend": "iptables"}));
        node.attach(&container, "eth0", &config);
        go_call(&node, "DEL", &container, &config).silent();
        assert!(node.links_of_kind("veth").is_empty() && node.leases("net").is_empty());
        assert!(!node.run("iptables-nft -t nat -S").contains("CNI-"));
    }
}

/// The first 16 hex digits of SHA-512: reference main-plugins.md MN-4.
fn short_hash(text: &str) -> String {
    Sha512::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Rules as the Go plugins make them in their nftables layout, for `taken-over` (10.1.0.2) and `kept` (10.1.0.3).
fn nftables_layout(node: &Node) {
    let rule = |id: &str, address: &str| {
        let key = format!("{}-{}", short_hash("net"), short_hash(&format!("eth0:{id}")));
        let comment = format!("{key}, net: net, if: eth0, id: {id}");
        format!("ip saddr {address} ip daddr != 10.1.0.0/24 masquerade comment \"{comment}\"")
    };
    let ruleset = format!(
        "table inet cni_plugins_masquerade {{\n chain masq_checks {{\n  {}\n  {}\n }}\n chain postrouting {{\n  \
         type nat hook postrouting priority srcnat;\n  ip daddr 224.0.0.0/4 return\n  goto masq_checks\n }}\n}}\n",
        rule("taken-over", "10.1.0.2"),
        rule("kept", "10.1.0.3")
    );
    let file = node.workdir().file("ruleset", ruleset);
    node.run(&format!("nft -f {}", file.display()));
}

#[test]
fn check_passes_on_the_nftables_rules_of_the_go_plugin() {
    require_netns!();
    require_tool!("nft");
    let node = Node::new();
    let container = node.container_named("taken-over");
    let plain = with(bridge_config(&node), json!({"ipMasq": false}));
    let attachment = node.attach(&container, "eth0", &plain);
    let masqueraded = with(plain, json!({"ipMasq": true, "prevResult": attachment.result}));
    let check = |backend: &str, exempt: &[&str]| {
        let changes = json!({"ipMasqBackend": backend, "ipMasqExempt": exempt});
        attachment.call_with("CHECK", &with(masqueraded.clone(), changes))
    };
    check("nftables", &[]).fails(100);
    nftables_layout(&node);
    check("nftables", &[]).silent();
    check("iptables", &[]).silent();
    check("nftables", &["192.0.2.0/24"]).fails(100);
    node.run("nft flush chain inet cni_plugins_masquerade masq_checks");
    check("nftables", &[]).fails(100).names(&["ipMasq", "cni-all"]);
}

#[test]
fn del_removes_the_nftables_rules_of_the_go_plugin_and_no_others() {
    require_netns!();
    require_tool!("nft");
    assert_eq!(short_hash("unit-test"), "6fd94d501e58f0aa");
    let node = Node::new();
    let container = node.container_named("taken-over");
    nftables_layout(&node);
    let config = with(bridge_config(&node), json!({"ipMasq": true}));
    node.request("DEL", &container, "eth0", &config).unset("CNI_NETNS").silent();
    let after = node.snapshot();
    assert_eq!(after.mentions("taken-over"), [""; 0]);
    assert_eq!(after.mentions("id: kept").len(), 1, "{}", node.nft());
}

#[test]
fn a_lease_written_by_an_old_go_plugin_is_found() {
    require_netns!();
    if foreign_plugins().is_some() {
        return;
    }
    let node = Node::new();
    let container = node.container_named("legacy");
    node.workdir().file("data/net/10.1.0.9", "legacy");
    node.request("DEL", &container, "eth0", &bridge_config(&node)).silent();
    assert!(node.leases("net").is_empty());
}
