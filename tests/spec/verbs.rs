//! DEL that repeats, GC and STATUS, as far as they need no network.

use serde_json::{Value, json};

use crate::support::{Call, Workdir};
use crate::{host_local_config, static_config};

fn host_local(dir: &Workdir, command: &str, config: &Value, id: &str) -> Call {
    dir.call("host-local").command(command).config(config).env("CNI_CONTAINERID", id)
}

#[test]
fn del_repeats_and_forgives_what_was_never_added() {
    let dir = Workdir::new();
    let config = host_local_config("1.1.0", &dir);
    host_local(&dir, "DEL", &config, "never").silent();
    host_local(&dir, "ADD", &config, "a").ok();
    for _ in 0..2 {
        host_local(&dir, "DEL", &config, "a").silent();
        assert!(dir.leases("net").is_empty());
    }
    for version in ["0.1.0", "0.4.0", "1.1.0"] {
        dir.call("static").command("DEL").config(&static_config(version)).silent();
    }
}

#[test]
fn gc_releases_what_the_list_does_not_name() {
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let dir = Workdir::new();
        let mut config = host_local_config("1.1.0", &dir);
        for id in ["a", "b", "c"] {
            host_local(&dir, "ADD", &config, id).ok();
        }
        config[key] = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]);
        host_local(&dir, "GC", &config, "").silent();
        assert_eq!(dir.leases("net"), ["10.1.0.2"], "{key}");
    }
}

#[test]
fn gc_reads_the_newer_key_first() {
    let dir = Workdir::new();
    let mut config = host_local_config("1.1.0", &dir);
    host_local(&dir, "ADD", &config, "a").ok();
    config["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    config["cni.dev/attachments"] = json!([]);
    host_local(&dir, "GC", &config, "").silent();
    assert_eq!(dir.leases("net"), ["10.1.0.2"]);
}

#[test]
fn gc_without_a_list_does_nothing_and_with_an_empty_one_everything() {
    let dir = Workdir::new();
    let mut config = host_local_config("1.1.0", &dir);
    host_local(&dir, "ADD", &config, "a").ok();
    host_local(&dir, "GC", &config, "").silent();
    config["cni.dev/valid-attachments"] = Value::Null;
    host_local(&dir, "GC", &config, "").silent();
    assert_eq!(dir.leases("net"), ["10.1.0.2"]);
    config["cni.dev/valid-attachments"] = json!([]);
    host_local(&dir, "GC", &config, "").silent();
    assert!(dir.leases("net").is_empty());
}

#[test]
fn gc_leaves_other_networks_alone() {
    let dir = Workdir::new();
    let mut config = host_local_config("1.1.0", &dir);
    config["name"] = "other".into();
    host_local(&dir, "ADD", &config, "a").ok();
    config["name"] = "net".into();
    config["cni.dev/valid-attachments"] = json!([]);
    host_local(&dir, "GC", &config, "").silent();
    assert_eq!(dir.leases("other"), ["10.1.0.2"]);
}

#[test]
fn a_gc_list_of_the_wrong_type_is_refused() {
    let dir = Workdir::new();
    let mut config = host_local_config("1.1.0", &dir);
    host_local(&dir, "ADD", &config, "a").ok();
    for list in [json!({}), json!("x"), json!(["a"])] {
        config["cni.dev/valid-attachments"] = list;
        host_local(&dir, "GC", &config, "").fails(6).names(&["cni.dev/valid-attachments"]);
    }
    assert_eq!(dir.leases("net"), ["10.1.0.2"]);
}

#[test]
fn status_without_ipam_is_healthy() {
    let dir = Workdir::new();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "loopback"});
    dir.call("loopback").command("STATUS").config(&config).silent();
}

#[test]
fn a_wrong_type_in_a_key_that_all_main_plugins_share_is_refused() {
    let dir = Workdir::new();
    for plugin in ["bridge", "ptp"] {
        for (key, value, path) in [
            ("dns", json!("x"), "dns"),
            ("dns", json!({"nameservers": "x"}), "dns.nameservers"),
            ("dns", json!({"search": ["a", 5]}), "dns.search[1]"),
            ("ipam", json!("x"), "ipam"),
            ("ipam", json!({"type": 5}), "ipam.type"),
            ("capabilities", json!({"a": "true"}), "capabilities.a"),
            ("prevResult", json!([]), "prevResult"),
        ] {
            let mut config = static_config("1.1.0");
            config["type"] = plugin.into();
            config[key] = value;
            dir.call(plugin).command("ADD").config(&config).fails(6).names(&[path]);
        }
    }
}
