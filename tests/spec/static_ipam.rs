//! The `static` plugin: where its addresses come from, and what it checks.

use serde_json::{Value, json};

use crate::static_config;
use crate::support::{Call, Workdir};

fn call(dir: &Workdir, command: &str, config: &Value) -> Call {
    dir.call("static").command(command).config(config)
}

#[test]
fn addresses_asked_for_by_the_runtime_replace_all_others() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    config["args"] = json!({"cni": {"ips": ["10.2.0.5/24", "fd00::5/64"]}});
    let with_args = call(&dir, "ADD", &config).env("CNI_ARGS", "IP=10.9.0.2/24").ok();
    assert_eq!(with_args["ips"], json!([{"address": "10.2.0.5/24"}, {"address": "fd00::5/64"}]));
    config["runtimeConfig"] = json!({"ips": ["10.3.0.5/24"]});
    assert_eq!(call(&dir, "ADD", &config).ok()["ips"], json!([{"address": "10.3.0.5/24"}]));
}

#[test]
fn requested_addresses_need_their_prefix() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    config["runtimeConfig"] = json!({"ips": ["10.3.0.5"]});
    call(&dir, "ADD", &config).fails(7).names(&["runtimeConfig.ips[0]", "10.3.0.5"]);
    config["runtimeConfig"] = json!({});
    config["args"] = json!({"cni": {"ips": ["10.3.0.5/24", "x"]}});
    call(&dir, "ADD", &config).fails(7).names(&["args.cni.ips[1]", "x"]);
}

#[test]
fn the_ipam_object_is_needed_even_when_the_runtime_brings_addresses() {
    let dir = Workdir::new();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "runtimeConfig": {"ips": ["10.3.0.5/24"]}});
    call(&dir, "ADD", &config).fails(7).names(&["ipam"]);
}

#[test]
fn an_entry_without_address_is_refused() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    config["ipam"]["addresses"] = json!([{"gateway": "10.1.0.1"}]);
    call(&dir, "ADD", &config).fails(7).names(&["ipam.addresses[0].address"]);
}

#[test]
fn routes_are_copied_with_their_duplicates() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "0.0.0.0/0", "gw": "10.1.0.2"}, {"dst": "0.0.0.0/0", "gw": "10.1.0.2"}]);
    config["ipam"]["routes"] = routes.clone();
    assert_eq!(call(&dir, "ADD", &config).ok()["routes"], routes);
}

#[test]
fn before_0_3_0_there_is_at_most_one_address_of_a_family() {
    let dir = Workdir::new();
    for version in ["", "0.1.0", "0.2.0"] {
        let mut config = static_config(version);
        config["ipam"]["addresses"] = json!([{"address": "10.1.0.5/24"}, {"address": "10.1.0.6/24"}]);
        call(&dir, "ADD", &config).err();
        config["ipam"]["addresses"] = json!([{"address": "10.1.0.5/24"}, {"address": "fd00::5/64"}]);
        call(&dir, "ADD", &config).ok();
    }
}

#[test]
fn check_compares_the_gateway_of_an_address() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    config["prevResult"] = json!({"ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.9"}]});
    call(&dir, "CHECK", &config).fails(100).names(&["10.1.0.5"]);
    config["prevResult"] = json!({"ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]});
    call(&dir, "CHECK", &config).silent();
}

#[test]
fn del_does_not_look_at_the_addresses() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    config["ipam"]["addresses"] = json!([{"address": "nonsense"}]);
    call(&dir, "DEL", &config).silent();
    config.as_object_mut().unwrap().remove("ipam");
    call(&dir, "DEL", &config).silent();
}
