//! The `loopback` plugin.

use serde_json::{Value, json};

use crate::support::{Container, Node, VERSIONS, require_netns};

fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "lo-net", "type": "loopback"})
}

fn call(node: &Node, container: &Container, command: &str, config: &Value) -> crate::support::Call {
    node.request(command, container, "lo", config)
}

#[test]
fn lo_is_up_after_add_and_down_after_del() {
    require_netns!();
    let (node, config) = (Node::new(), config("1.1.0"));
    let container = node.container();
    assert!(!container.link_has("lo", "UP"));
    call(&node, &container, "ADD", &config).ok();
    assert!(container.link_has("lo", "UP"));
    assert!(container.pings("127.0.0.1") && container.pings("::1"));
    for _ in 0..2 {
        call(&node, &container, "DEL", &config).silent();
        assert!(!container.link_has("lo", "UP"));
    }
}

#[test]
fn the_interface_name_is_not_looked_at() {
    require_netns!();
    let (node, config) = (Node::new(), config("1.1.0"));
    let container = node.container();
    let result = node.request("ADD", &container, "eth7", &config).ok();
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert!(container.link_has("lo", "UP"));
}

#[test]
fn the_result_has_the_shape_of_its_version() {
    require_netns!();
    let node = Node::new();
    for version in VERSIONS {
        let container = node.container();
        let result = call(&node, &container, "ADD", &config(version)).ok();
        let interfaces = json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": container.path()}]);
        let expected = match version {
            "0.1.0" | "0.2.0" => {
                json!({"cniVersion": version, "ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}, "dns": {}})
            }
            "0.3.0" | "0.3.1" | "0.4.0" => json!({
                "cniVersion": version, "interfaces": interfaces, "dns": {},
                "ips": [
                    {"version": "4", "interface": 0, "address": "127.0.0.1/8"},
                    {"version": "6", "interface": 0, "address": "::1/128"},
                ],
            }),
            _ => json!({
                "cniVersion": version, "interfaces": interfaces,
                "ips": [{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}],
            }),
        };
        assert_eq!(result, expected);
    }
}

#[test]
fn a_configuration_of_nothing_but_a_type_works() {
    require_netns!();
    let (node, config) = (Node::new(), json!({"type": "loopback"}));
    let container = node.container();
    let result = call(&node, &container, "ADD", &config).ok();
    assert_eq!((&result["cniVersion"], &result["ip4"]["ip"]), (&json!("0.1.0"), &json!("127.0.0.1/8")));
    assert!(container.link_has("lo", "UP"));
    call(&node, &container, "DEL", &config).silent();
    assert!(!container.link_has("lo", "UP"));
}

#[test]
fn check_passes_after_add_and_fails_when_lo_is_down() {
    require_netns!();
    let node = Node::new();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let container = node.container();
        call(&node, &container, "ADD", &config(version)).ok();
        call(&node, &container, "CHECK", &config(version)).silent();
        container.ip(&["link set lo down"]);
        call(&node, &container, "CHECK", &config(version)).fails(100).names(&["lo", "down"]);
    }
}

#[test]
fn del_forgives_a_namespace_that_is_not_there() {
    require_netns!();
    let (node, config) = (Node::new(), config("1.1.0"));
    let container = node.container();
    call(&node, &container, "DEL", &config).env("CNI_NETNS", "/nonexistent/netns").silent();
    call(&node, &container, "DEL", &config).unset("CNI_NETNS").silent();
    container.unmount();
    call(&node, &container, "DEL", &config).silent();
}

#[test]
fn an_address_that_is_no_loopback_address_is_refused() {
    require_netns!();
    let (node, config) = (Node::new(), config("1.1.0"));
    let container = node.container();
    container.ip(&["addr add 10.1.1.1/32 dev lo"]);
    call(&node, &container, "ADD", &config).err().names(&["10.1.1.1"]);
}

#[test]
fn without_ipv6_there_is_only_the_ipv4_address() {
    require_netns!();
    let (node, config) = (Node::new(), config("1.1.0"));
    let container = node.container();
    container.set_sysctl("net/ipv6/conf/lo/disable_ipv6", "1");
    let result = call(&node, &container, "ADD", &config).ok();
    assert_eq!(result["ips"], json!([{"interface": 0, "address": "127.0.0.1/8"}]));
}

#[test]
fn a_previous_result_is_passed_on() {
    require_netns!();
    let node = Node::new();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let container = node.container();
        let mut prev = json!({
            "cniVersion": version,
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/run/netns/x"}],
            "ips": [{"interface": 0, "address": "10.9.0.5/24", "gateway": "10.9.0.1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}],
            "dns": {"nameservers": ["10.9.0.1"]},
        });
        if version < "1.0.0" {
            prev["ips"][0]["version"] = "4".into();
        }
        let config = crate::with(config(version), json!({"prevResult": prev}));
        assert_eq!(call(&node, &container, "ADD", &config).ok(), prev);
        assert!(container.link_has("lo", "UP"));
    }
}

#[test]
fn a_previous_result_is_passed_on_in_the_configurations_version() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let prev = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:05"}]});
    let config = crate::with(config("1.1.0"), json!({"prevResult": prev}));
    let result = call(&node, &container, "ADD", &config).ok();
    assert_eq!(result, json!({"cniVersion": "1.1.0", "interfaces": prev["interfaces"]}));
}

#[test]
fn null_entries_in_a_previous_result_are_refused() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    for (version, key) in [("0.4.0", "interfaces"), ("0.4.0", "ips"), ("1.1.0", "routes"), ("1.1.0", "ips")] {
        let config = crate::with(config(version), json!({"prevResult": {key: [null]}}));
        call(&node, &container, "ADD", &config).fails(7).names(&["prevResult"]);
    }
}

#[test]
fn runtime_arguments_are_not_looked_at() {
    require_netns!();
    let (node, config) = (Node::new(), config("1.1.0"));
    let container = node.container();
    call(&node, &container, "ADD", &config).env("CNI_ARGS", "A=b=c;").ok();
}

#[test]
fn a_path_that_is_no_namespace_is_refused_on_add_and_forgiven_on_del() {
    require_netns!();
    let (node, config) = (Node::new(), config("1.1.0"));
    let container = node.container();
    let file = node.workdir().file("plain", "");
    for path in [file.to_str().unwrap(), "/nonexistent/netns"] {
        call(&node, &container, "ADD", &config).env("CNI_NETNS", path).err().names(&[path]);
        call(&node, &container, "DEL", &config).env("CNI_NETNS", path).silent();
    }
    let missing = call(&node, &container, "ADD", &config).env("CNI_NETNS", "/nonexistent/netns").err();
    missing.names(&[r#"failed to Statfs "/nonexistent/netns": no such file or directory"#]);
}
