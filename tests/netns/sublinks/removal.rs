//! DEL, GC and an ADD that fails: what is removed, and what is left alone.

use serde_json::{Value, json};

use super::{config, for_each_kind, node_with_neighbour};
use crate::support::{Call, Node, assert_same};
use crate::{with, with_static};

for_each_kind![
    del_needs_neither_master_nor_namespace_and_may_be_repeated,
    del_of_what_was_never_added_succeeds,
    del_finds_the_link_of_an_add_that_was_killed,
    del_leaves_what_belongs_to_another_container_or_plugin,
    the_address_is_released_after_the_link_is_gone,
    an_add_that_fails_leaves_nothing,
    an_ipam_plugin_that_refuses_keeps_what_it_has_and_its_error_is_ours,
    gc_removes_links_that_no_valid_attachment_owns,
    gc_leaves_links_of_other_networks_and_other_hosts,
];

fn gc(node: &Node, config: &Value, valid: Value) -> Call {
    let config = with(config.clone(), json!({"cni.dev/valid-attachments": valid}));
    let call = node.call(config["type"].as_str().unwrap()).command("GC").config(&config);
    call.unset("CNI_CONTAINERID").unset("CNI_NETNS").unset("CNI_IFNAME")
}

fn del_needs_neither_master_nor_namespace_and_may_be_repeated(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let config = config(&node, kind);
    let before = node.snapshot();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    for _ in 0..2 {
        attachment.del();
        assert!(container.links().is_empty());
        assert_same(&before, &node.snapshot());
    }
    for case in ["empty", "gone", "file"] {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config);
        let path = match case {
            "empty" => String::new(),
            "gone" => "/nonexistent/netns".to_owned(),
            _ => node.workdir().file("plain", "").to_str().unwrap().to_owned(),
        };
        for _ in 0..2 {
            attachment.call_with("DEL", &config).env("CNI_NETNS", &path).silent();
            assert!(node.leases("net").is_empty());
        }
        attachment.del();
    }
    let attachment = node.attach(&container, "eth0", &config);
    node.run("ip link del uplink");
    assert!(container.links().is_empty());
    attachment.del();
    attachment.call_with("DEL", &with(config, json!({"master": null, "mtu": 99999, "mode": "x"}))).silent();
    assert!(node.leases("net").is_empty());
}

fn del_of_what_was_never_added_succeeds(kind: &str) {
    let node = Node::new();
    let container = node.container();
    node.request("DEL", &container, "eth0", &config(&node, kind)).silent();
    assert!(node.links().is_empty() && container.links().is_empty());
}

/// Kernels before 6.15 make the link under a name that is derived from the attachment, when the host's own link has that
/// of the container's interface; an ADD killed then leaves it.
fn del_finds_the_link_of_an_add_that_was_killed(kind: &str) {
    use sha2::{Digest, Sha512};
    let (node, _outside) = node_with_neighbour(kind);
    let container = node.container();
    let digest = Sha512::digest(format!("net/{}/eth0/0", container.id()));
    let name = format!("veth{}", digest.iter().take(4).map(|b| format!("{b:02x}")).collect::<String>());
    let settings = if kind == "vlan" { "id 5" } else { "" };
    let path = container.path();
    node.run(&format!("ip link add link uplink name {name} netns {path} type {kind} {settings}"));
    assert_eq!(container.links(), [name]);
    node.request("DEL", &container, "eth0", &config(&node, kind)).silent();
    assert!(container.links().is_empty());
}

fn del_leaves_what_belongs_to_another_container_or_plugin(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let config = config(&node, kind);
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    // The path names another container's namespace by now.
    attachment.call_with("DEL", &config).env("CNI_CONTAINERID", "an-earlier-one").silent();
    attachment.check();
    container.ip(&["link add eth1 type veth peer name eth2"]);
    attachment.call_with("DEL", &config).env("CNI_IFNAME", "eth1").silent();
    assert_eq!(container.links(), ["eth0", "eth1", "eth2"]);
    // A link that the Go plugins made has no alias.
    container.run("ip link set eth0 alias operator's-own");
    attachment.del();
    assert_eq!(container.links(), ["eth1", "eth2"]);
}

fn the_address_is_released_after_the_link_is_gone(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let log = node.workdir().root().join("log");
    let add = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.5/24","gateway":"10.1.0.1"}]}"#;
    let body = format!(
        "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = ADD ] && echo '{add}'\n\
         case $(nsenter --net=$CNI_NETNS ip link) in *eth0*) link=there ;; *) link=gone ;; esac\n\
         echo $CNI_COMMAND $link >>{}\n",
        log.display()
    );
    node.workdir().script("bin/my-ipam", &body);
    let config = with(config(&node, kind), json!({"ipam": {"type": "my-ipam"}}));
    let container = node.container();
    node.attach(&container, "eth0", &config).del();
    assert_eq!(std::fs::read_to_string(log).unwrap(), "ADD gone\nDEL gone\n");
}

fn an_add_that_fails_leaves_nothing(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let bad_route = with_static(
        config(&node, kind),
        json!([{"address": "10.1.0.5/24"}, {"address": "fd00:1::5/64"}]),
        json!([{"dst": "198.51.100.0/24", "gw": "255.255.255.255"}]),
    );
    let mut bad_range = config(&node, kind);
    bad_range["ipam"]["routes"] = json!([{"dst": "198.51.100.0/24", "gw": "255.255.255.255"}]);
    for config in [&bad_route, &bad_range] {
        for host_has_the_name in [false, true] {
            if host_has_the_name {
                let _ = node.try_run("ip link add eth0 type veth peer name eth0peer");
            }
            let before = node.snapshot();
            let container = node.container();
            let failure = node.request("ADD", &container, "eth0", config).err();
            failure.names(&["198.51.100.0/24", "255.255.255.255"]);
            assert!(container.links().is_empty());
            assert_same(&before, &node.snapshot());
        }
    }
    // What cannot be written is taken back too.
    let before = node.snapshot();
    let container = node.container();
    let good = config(&node, kind);
    let stdin = node.workdir().file("config", good.to_string());
    let mut command = node.request("ADD", &container, "eth0", &good).to_command();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdin(std::fs::File::open(stdin).unwrap()).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(container.links().is_empty());
    assert_same(&before, &node.snapshot());
}

fn an_ipam_plugin_that_refuses_keeps_what_it_has_and_its_error_is_ours(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let log = node.workdir().root().join("log");
    let error = r#"echo '{"cniVersion":"1.1.0","code":142,"msg":"no such pool"}'; exit 1"#;
    for (name, answer, code, called) in [
        ("refusing", error, 142, "ADD\n"),
        ("empty-handed", r#"echo '{"cniVersion":"1.1.0"}'"#, 999, "ADD\nDEL\n"),
    ] {
        let body = format!(
            "#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND >>{}\n[ $CNI_COMMAND = ADD ] || exit 0\n{answer}\n",
            log.display()
        );
        node.workdir().script(&format!("bin/{name}"), &body);
        let config = with(config(&node, kind), json!({"ipam": {"type": name}}));
        let container = node.container();
        node.request("ADD", &container, "eth0", &config).fails(code);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), called);
        std::fs::remove_file(&log).unwrap();
        assert!(container.links().is_empty());
    }
}

fn gc_removes_links_that_no_valid_attachment_owns(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    // Containers of other tests are found as well: only this name is this test's.
    let name = format!("gc-{kind}-{}", std::process::id());
    let on_vlan = |config: Value, id: u16| match kind {
        "vlan" => with(config, json!({"vlanId": id})),
        _ => config,
    };
    let config = with(config(&node, kind), json!({"name": name}));
    let (kept, stale) = (node.container_named("kept"), node.container_named("stale"));
    let attachment = node.attach(&kept, "eth0", &config);
    let second = node.attach(&kept, "eth1", &on_vlan(without_routes(&config), 6));
    node.attach(&stale, "eth0", &on_vlan(config.clone(), 7));
    gc(&node, &config, Value::Null).silent();
    assert_eq!(stale.links(), ["eth0"]);
    let valid = |ifname: &str| json!({"containerID": "kept", "ifname": ifname});
    gc(&node, &config, json!([valid("eth0"), valid("eth1")])).silent();
    assert!(stale.links().is_empty());
    attachment.check();
    second.check();
    assert_eq!(node.leases(&name).len(), 4);
    gc(&node, &config, json!([valid("eth0")])).silent();
    assert_eq!(kept.links(), ["eth0"]);
    gc(&node, &config, json!([])).silent();
    assert!(kept.links().is_empty() && node.leases(&name).is_empty());
}

fn without_routes(config: &Value) -> Value {
    let mut config = config.clone();
    config["ipam"]["routes"] = json!([]);
    config
}

fn gc_leaves_links_of_other_networks_and_other_hosts(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    let name = format!("gc-other-{kind}-{}", std::process::id());
    let config = with(config(&node, kind), json!({"name": name}));
    let config = with_static(config, json!([{"address": "10.1.0.2/24"}]), json!([]));
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    // Another host, as one nested in this machine is: its containers can be seen from here.
    let nested = Node::new();
    gc(&nested, &config, json!([])).silent();
    gc(&node, &with(config.clone(), json!({"name": "another"})), json!([])).silent();
    attachment.check();
    container.run("ip link set eth0 alias mine");
    gc(&node, &config, json!([{"containerID": "none", "ifname": "eth0"}])).silent();
    assert_eq!(container.links(), ["eth0"]);
}
