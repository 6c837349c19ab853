//! `CNI_ARGS`: its grammar, and who reads which key.

use serde_json::json;

use crate::support::{Call, Workdir};
use crate::{host_local_config, static_config};

fn add(dir: &Workdir, args: &str) -> Call {
    dir.call("static").command("ADD").config(&static_config("1.1.0")).env("CNI_ARGS", args)
}

/// What Kubernetes runtimes send.
const KUBERNETES: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=0123;K8S_POD_UID=4-5";

#[test]
fn pairs_have_exactly_one_equals_sign() {
    let dir = Workdir::new();
    for args in ["A", "A=b;", ";", "A=b=c", "IgnoreUnknown=1;A", "IgnoreUnknown=1;", "IgnoreUnknown=1;A=b=c"]
    {
        add(&dir, args).fails(4).names(&["CNI_ARGS"]);
    }
    add(&dir, "").ok();
    add(&dir, "IgnoreUnknown=1;A=").ok();
}

#[test]
fn unknown_keys_are_an_error_unless_ignored() {
    let dir = Workdir::new();
    add(&dir, "A=b").fails(4).names(&["A=b"]);
    add(&dir, "IgnoreUnknown=0;A=b").fails(4).names(&["A=b"]);
    for yes in ["1", "true", "TRUE", "True"] {
        add(&dir, &format!("IgnoreUnknown={yes};A=b")).ok();
        add(&dir, &format!("A=b;IgnoreUnknown={yes}")).ok();
    }
    for bad in ["yes", "2", ""] {
        add(&dir, &format!("IgnoreUnknown={bad};A=b")).fails(4);
    }
}

#[test]
fn what_kubernetes_sends_is_accepted() {
    let dir = Workdir::new();
    add(&dir, KUBERNETES).ok();
    let config = host_local_config("1.1.0", &dir);
    dir.call("host-local").command("ADD").config(&config).env("CNI_ARGS", KUBERNETES).ok();
}

#[test]
fn keys_match_exactly() {
    let dir = Workdir::new();
    for args in ["ip=10.9.0.1/24", "Ip=10.9.0.1/24", "ignoreunknown=1"] {
        add(&dir, args).fails(4);
    }
    let result = add(&dir, "ip=10.9.0.1/24;IgnoreUnknown=1").ok();
    assert_eq!(result["ips"].as_array().unwrap().len(), 1);
}

#[test]
fn of_duplicate_keys_the_last_one_counts() {
    let dir = Workdir::new();
    let result = add(&dir, "IP=10.9.0.1/24;IP=10.9.0.2/24").ok();
    assert_eq!(result["ips"][1], json!({"address": "10.9.0.2/24"}));
}

#[test]
fn static_appends_addresses_and_gives_them_the_gateways_of_their_subnets() {
    let dir = Workdir::new();
    let result = add(&dir, "IP=10.9.0.2/24,fd00::2/64;GATEWAY=10.9.0.1,fd00::1,10.1.0.254").ok();
    assert_eq!(
        result["ips"],
        json!([
            {"address": "10.1.0.5/24", "gateway": "10.1.0.1"},
            {"address": "10.9.0.2/24", "gateway": "10.9.0.1"},
            {"address": "fd00::2/64", "gateway": "fd00::1"},
        ])
    );
}

#[test]
fn addresses_in_the_arguments_are_checked() {
    let dir = Workdir::new();
    for args in ["IP=10.9.0.2", "IP=x", "IP=10.9.0.2/24,", "IP=10.9.0.2/24;GATEWAY=x"] {
        add(&dir, args).fails(4);
    }
}

#[test]
fn host_local_takes_one_address_with_or_without_prefix() {
    for args in ["IP=10.1.0.77", "IP=10.1.0.77/24"] {
        let dir = Workdir::new();
        let config = host_local_config("1.1.0", &dir);
        let result = dir.call("host-local").command("ADD").config(&config).env("CNI_ARGS", args).ok();
        assert_eq!(result["ips"][0]["address"], "10.1.0.77/24");
    }
}

#[test]
fn bad_arguments_do_not_stop_del() {
    let dir = Workdir::new();
    let config = host_local_config("1.1.0", &dir);
    dir.call("host-local").command("ADD").config(&config).ok();
    assert_eq!(dir.leases("net"), ["10.1.0.2"]);
    for args in ["A=b", "A", "IgnoreUnknown=maybe", "IP=nonsense", ";;"] {
        dir.call("host-local").command("DEL").config(&config).env("CNI_ARGS", args).silent();
        assert!(dir.leases("net").is_empty());
        dir.call("host-local").command("ADD").config(&config).ok();
    }
}

#[test]
fn plugins_that_read_no_arguments_take_any() {
    let dir = Workdir::new();
    let config = static_config("1.1.0");
    dir.call("static").command("DEL").config(&config).env("CNI_ARGS", "A=b=c;").silent();
    dir.call("static").command("STATUS").config(&config).env("CNI_ARGS", "A=b=c;").silent();
}
