//! portmap takes a node over from the Go plugin, and gives it back: what one ADDs, the other DELs.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Call, Container, Node, Outside, assert_same, require_netns, require_tool, skip};
use crate::{dual_stack_config, with};

const GO_PLUGINS: &str = "/usr/lib/cni";

fn go_call(node: &Node, command: &str, container: &Container, config: &Value) -> Call {
    Call::new(&Path::new(GO_PLUGINS).join("portmap"), Path::new(GO_PLUGINS))
        .inside(node)
        .command(command)
        .config(config)
        .env("CNI_CONTAINERID", container.id())
        .env("CNI_NETNS", container.path())
}

/// portmap behind a bridge, in a version that both speak.
fn config(node: &Node, container: &Container, port: u16) -> Value {
    let link = with(dual_stack_config(node), json!({"cniVersion": "1.0.0"}));
    let link = node.attach(container, "eth0", &link);
    let mappings =
        ["tcp", "udp"].map(|protocol| json!({"hostPort": port, "containerPort": 80, "protocol": protocol}));
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "portmap", "runtimeConfig": {"portMappings": mappings},
        "prevResult": link.result,
    })
}

#[test]
fn del_removes_the_mappings_that_a_go_plugin_made_and_the_other_way_round() {
    require_netns!();
    require_tool!("iptables-nft");
    if !Path::new(GO_PLUGINS).join("portmap").exists() {
        return skip("Debian's containernetworking-plugins are not installed");
    }
    let node = Node::new();
    let (kept, container) = (node.container_named("kept"), node.container_named("moved"));
    go_call(&node, "ADD", &kept, &config(&node, &kept, 8000)).ok();
    let moved = config(&node, &container, 8080);
    let before = node.snapshot();
    let rules = || node.run("iptables-nft -t nat -S") + &node.run("ip6tables-nft -t nat -S");
    go_call(&node, "ADD", &container, &moved).ok();
    let theirs = rules();
    assert!(theirs.contains("moved"), "{theirs}");
    let own = with(moved.clone(), json!({"backend": "iptables"}));
    node.request("DEL", &container, "eth0", &moved).silent();
    assert_same(&before, &node.snapshot());
    node.request("ADD", &container, "eth0", &own).ok();
    assert_eq!(rules(), theirs, "the same rules");
    go_call(&node, "DEL", &container, &own).silent();
    assert!(!rules().contains("moved"), "{}", rules());
    // Over what the Go plugin made: nothing is there twice.
    go_call(&node, "ADD", &container, &moved).ok();
    node.request("ADD", &container, "eth0", &own).ok();
    assert_eq!(rules(), theirs);
    node.request("CHECK", &container, "eth0", &own).silent();
    let gc = with(
        own.clone(),
        json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": [
        {"containerID": "kept", "ifname": "eth0"}]}),
    );
    let gc = with(gc, json!({"prevResult": null}));
    node.call("portmap").command("GC").config(&gc).silent();
    assert!(!rules().contains("moved") && rules().contains("kept"), "{}", rules());
    // A new container takes ours while the Go plugin's still has its port.
    let outside = node.outside();
    node.request("ADD", &container, "eth0", &moved).ok();
    for (server, port) in [(&kept, 8000), (&container, 8080)] {
        let listener = server.listen([0; 4], 80);
        let to = (Outside::NODE_V4.parse::<std::net::IpAddr>().unwrap(), port).into();
        outside.connect(to, std::time::Duration::from_secs(1)).unwrap_or_else(|e| panic!("{port}: {e}"));
        drop(listener);
    }
}
