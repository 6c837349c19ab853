//! The `host-device` plugin among several attachments: each DEL and GC takes its own device only.

use serde_json::{Value, json};

use crate::host_device::{config, node, records, state};
use crate::support::{Call, Container, Node, require_netns};
use crate::with;

/// A call for a container of this id in a namespace.
fn call(node: &Node, command: &str, id: &str, container: &Container, ifname: &str, config: &Value) -> Call {
    node.request(command, container, ifname, config).env("CNI_CONTAINERID", id)
}

fn gc(node: &Node, valid: Value) {
    let config = with(config(node), json!({"cni.dev/valid-attachments": valid}));
    node.call("host-device").command("GC").config(&config).silent();
}

#[test]
fn a_stale_del_without_a_record_leaves_the_device_of_another_container() {
    require_netns!();
    let node = node();
    let before = state(&node);
    let container = node.container();
    call(&node, "ADD", "c2", &container, "eth0", &config(&node)).ok();
    call(&node, "DEL", "c1", &container, "eth0", &config(&node)).silent();
    let other_network = with(config(&node), json!({"name": "other"}));
    call(&node, "DEL", "c2", &container, "eth0", &other_network).silent();
    assert_eq!((container.links(), records(&node)), (vec!["eth0".to_owned()], 1));
    // Nor what is back already, but waits for its own DEL.
    container.ip(&[&format!("link set eth0 netns {}", node.path())]);
    call(&node, "DEL", "c1", &container, "eth0", &config(&node)).silent();
    assert_eq!(node.links(), ["eth0", "far0"]);
    call(&node, "DEL", "c2", &container, "eth0", &config(&node)).silent();
    assert_eq!((state(&node), records(&node)), (before, 0));
}

#[test]
fn a_stale_record_leaves_the_device_to_who_has_taken_it_since() {
    require_netns!();
    let node = node();
    for stale_by_gc in [false, true] {
        let old = node.container_named("reused");
        call(&node, "ADD", "c1", &old, "eth0", &config(&node)).ok();
        node.ip(&["link del far0"]);
        old.unmount();
        node.ip(&[
            "link add dev0 type veth peer name far0",
            "link set far0 up",
            "link set dev0 up",
            "addr add 192.0.2.5/24 dev dev0",
        ]);
        let before = state(&node);
        let new = node.container_named("reused");
        call(&node, "ADD", "c2", &new, "eth0", &config(&node)).ok();
        match stale_by_gc {
            true => gc(&node, json!([{"containerID": "c2", "ifname": "eth0"}])),
            false => call(&node, "DEL", "c1", &new, "eth0", &config(&node)).silent(),
        }
        assert_eq!((new.links(), records(&node)), (vec!["eth0".to_owned()], 1), "GC: {stale_by_gc}");
        call(&node, "DEL", "c2", &new, "eth0", &config(&node)).silent();
        assert_eq!((state(&node), records(&node)), (before, 0));
    }
}

#[test]
fn names_that_read_alike_are_told_apart() {
    require_netns!();
    let node = node();
    node.ip(&["link add dev1 type veth peer name far1"]);
    let (first, second) = (node.container(), node.container());
    call(&node, "ADD", "a", &first, "b_c", &config(&node)).ok();
    // As an earlier build has named the file.
    let dir = node.workdir().root().join("host-device");
    let _ = std::fs::rename(dir.join("net:a:b_c.json"), dir.join("a_b_c.json"));
    assert!(dir.join("a_b_c.json").exists());
    call(&node, "DEL", "a_b", &second, "c", &config(&node)).env("CNI_NETNS", "").silent();
    call(&node, "DEL", "a_b", &second, "c", &config(&node)).silent();
    assert_eq!((first.links(), records(&node)), (vec!["b_c".to_owned()], 1));
    let other = with(config(&node), json!({"device": "dev1"}));
    call(&node, "ADD", "a_b", &second, "c", &other).ok();
    gc(&node, json!([{"containerID": "a", "ifname": "b_c"}]));
    assert_eq!((first.links(), second.links(), records(&node)), (vec!["b_c".to_owned()], vec![], 1));
    call(&node, "ADD", "a_b", &second, "c", &other).ok();
    call(&node, "DEL", "a", &first, "b_c", &config(&node)).silent();
    assert_eq!((first.links(), second.links()), (vec![], vec!["c".to_owned()]));
    call(&node, "DEL", "a_b", &second, "c", &other).silent();
    assert_eq!(
        (node.links(), records(&node)),
        (["dev0", "dev1", "far0", "far1"].map(str::to_owned).to_vec(), 0)
    );
}

#[test]
fn networks_that_have_the_same_interface_name_in_different_namespaces_are_told_apart() {
    require_netns!();
    let node = node();
    node.ip(&["link add dev1 type veth peer name far1"]);
    let (first, second) = (node.container(), node.container());
    let other = with(config(&node), json!({"device": "dev1", "name": "other"}));
    call(&node, "ADD", "c1", &first, "eth0", &config(&node)).ok();
    call(&node, "ADD", "c1", &second, "eth0", &other).ok();
    call(&node, "DEL", "c1", &first, "eth0", &config(&node)).env("CNI_NETNS", "").silent();
    assert_eq!((first.links(), second.links()), (vec![], vec!["eth0".to_owned()]));
    call(&node, "DEL", "c1", &second, "eth0", &other).env("CNI_NETNS", "").silent();
    assert_eq!((second.links().len(), records(&node)), (0, 0));
}

#[test]
fn del_with_the_path_of_another_namespace_finds_the_device_by_its_record() {
    require_netns!();
    let node = node();
    let (container, other) = (node.container(), node.container());
    call(&node, "ADD", "c1", &container, "eth0", &config(&node)).ok();
    call(&node, "DEL", "c1", &other, "eth0", &config(&node)).silent();
    assert_eq!((node.links(), records(&node)), (vec!["dev0".to_owned(), "far0".to_owned()], 0));
}
