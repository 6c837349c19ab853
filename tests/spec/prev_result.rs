//! `prevResult`, as `static` reads it for CHECK: versions, shapes, and what is refused.

use serde_json::{Value, json};

use crate::static_config;
use crate::support::{Call, Workdir};

fn check(dir: &Workdir, version: &str, prev: &Value) -> Call {
    let mut config = static_config(version);
    config["prevResult"] = prev.clone();
    dir.call("static").command("CHECK").config(&config)
}

#[test]
fn check_needs_one() {
    let dir = Workdir::new();
    check(&dir, "1.1.0", &Value::Null).err().names(&["prevResult"]);
    dir.call("static").command("CHECK").config(&static_config("1.1.0")).err().names(&["prevResult"]);
}

#[test]
fn what_add_printed_passes_in_every_version() {
    let dir = Workdir::new();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let result = dir.call("static").command("ADD").config(&static_config(version)).ok();
        check(&dir, version, &result).silent();
    }
}

#[test]
fn its_version_may_differ_within_a_family() {
    let dir = Workdir::new();
    let new = json!([{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]);
    let old = json!([{"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1"}]);
    for (config, own, ips) in [
        ("1.1.0", json!("1.0.0"), &new),
        ("1.0.0", json!("1.1.0"), &new),
        ("1.1.0", Value::Null, &new),
        ("0.4.0", json!("0.3.1"), &old),
        ("0.4.0", json!("0.3.0"), &old),
        ("0.4.0", Value::Null, &old),
    ] {
        check(&dir, config, &json!({"cniVersion": own, "ips": ips})).silent();
    }
}

#[test]
fn a_version_of_another_family_is_refused() {
    let dir = Workdir::new();
    for (config, own) in
        [("1.1.0", "0.4.0"), ("1.1.0", "0.2.0"), ("0.4.0", "1.0.0"), ("0.4.0", "0.1.0"), ("1.1.0", "7.0.0")]
    {
        check(&dir, config, &json!({"cniVersion": own})).err().names(&["prevResult", own]);
    }
}

#[test]
fn null_entries_are_refused_with_their_place() {
    let dir = Workdir::new();
    for version in ["0.4.0", "1.1.0"] {
        for key in ["interfaces", "ips", "routes"] {
            let mut prev = json!({});
            prev[key] = json!([null]);
            check(&dir, version, &prev).fails(7).names(&["prevResult", &format!("{key}[0]")]);
        }
    }
}

#[test]
fn wrong_types_inside_are_refused_with_their_place() {
    let dir = Workdir::new();
    for (prev, path) in [
        (json!({"ips": 5}), "ips"),
        (json!({"ips": [{"address": 5}]}), "ips[0].address"),
        (json!({"interfaces": [{"name": []}]}), "interfaces[0].name"),
    ] {
        check(&dir, "1.1.0", &prev).fails(6).names(&["prevResult", path]);
    }
    check(&dir, "1.1.0", &json!({"ips": [{"address": "10.1.0.5"}]}))
        .fails(7)
        .names(&["prevResult", "ips[0].address"]);
}

#[test]
fn whole_numbers_may_be_written_as_fractions() {
    let dir = Workdir::new();
    let prev = r#"{"interfaces":[{"name":"eth0","mtu":1500.0}],"ips":[{"address":"10.1.0.5/24","gateway":"10.1.0.1","interface":0.0}],"routes":[{"dst":"0.0.0.0/0","mtu":1.5e3}]}"#;
    let config = static_config("1.1.0").to_string().replacen('{', &format!("{{\"prevResult\":{prev},"), 1);
    dir.call("static").command("CHECK").stdin(config).silent();
}

#[test]
fn a_negative_interface_index_is_tolerated() {
    let dir = Workdir::new();
    let prev = json!({"ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": -1}]});
    check(&dir, "1.1.0", &prev).silent();
}

#[test]
fn it_is_not_needed_and_not_judged_for_an_address_on_add() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    let plain = dir.call("static").command("ADD").config(&config).ok();
    config["prevResult"] = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.1/24"}]});
    assert_eq!(dir.call("static").command("ADD").config(&config).ok(), plain);
}
