//! The `CNI_*` variables: which are needed when, what they may hold, and which error wins.

use serde_json::json;

use crate::support::{Call, Workdir};
use crate::{host_local_config, static_config};

/// A call of `static` with a valid configuration.
fn call(dir: &Workdir, command: &str) -> Call {
    dir.call("static").command(command).config(&static_config("1.1.0"))
}

#[test]
fn all_missing_variables_are_reported_together() {
    let dir = Workdir::new();
    for (command, missing) in [
        ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
        ("STATUS", "CNI_PATH"),
        ("GC", "CNI_PATH"),
    ] {
        let failure = call(&dir, command).bare().command(command).fails(4);
        failure.says(&format!("required env variables [{missing}] missing"));
    }
}

#[test]
fn an_empty_variable_counts_as_missing() {
    let dir = Workdir::new();
    let failure = call(&dir, "ADD").env("CNI_NETNS", "").env("CNI_PATH", "").fails(4);
    failure.says("required env variables [CNI_NETNS,CNI_PATH] missing");
}

#[test]
fn del_needs_no_namespace() {
    let dir = Workdir::new();
    call(&dir, "DEL").unset("CNI_NETNS").silent();
    call(&dir, "DEL").env("CNI_NETNS", "").silent();
}

#[test]
fn a_bad_value_is_reported_before_missing_variables() {
    let dir = Workdir::new();
    let bad_id = call(&dir, "ADD").env("CNI_CONTAINERID", "a b").unset("CNI_NETNS").fails(4);
    bad_id.says("invalid characters in containerID");
    assert_eq!(bad_id.details, "a b");
    let bad_ifname = call(&dir, "ADD").unset("CNI_CONTAINERID").env("CNI_IFNAME", "..").fails(4);
    bad_ifname.says("interface name is . or ..");
}

#[test]
fn variables_that_a_command_does_not_need_are_not_judged() {
    let dir = Workdir::new();
    for command in ["STATUS", "GC"] {
        call(&dir, command).env("CNI_CONTAINERID", "a b").env("CNI_IFNAME", "a/b").silent();
    }
    call(&dir, "VERSION").env("CNI_CONTAINERID", "a b").env("CNI_IFNAME", "a/b").ok();
}

#[test]
fn the_environment_is_judged_before_standard_input() {
    let dir = Workdir::new();
    call(&dir, "ADD").unset("CNI_IFNAME").stdin("not json").fails(4);
    call(&dir, "ADD").env("CNI_CONTAINERID", "-a").stdin("").fails(4);
}

#[test]
fn an_unknown_command_is_refused_after_the_configuration_is_read() {
    let dir = Workdir::new();
    call(&dir, "ADDED").fails(4).says("unknown CNI_COMMAND: ADDED");
    call(&dir, "ADDED").stdin("").fails(6);
    call(&dir, "ADDED").config(&json!({"cniVersion": "1.1.0"})).fails(7);
    call(&dir, "ADDED").bare().command("ADDED").fails(4).says("unknown CNI_COMMAND: ADDED");
}

#[test]
fn commands_are_upper_case_only() {
    let dir = Workdir::new();
    for command in ["add", "Add", "version", "del ", " ADD"] {
        call(&dir, command).fails(4).says(&format!("unknown CNI_COMMAND: {command}"));
    }
}

#[test]
fn container_ids_are_letters_digits_and_a_few_signs() {
    let dir = Workdir::new();
    let long = "a".repeat(300);
    for id in ["a", "0", "A.b_c-d", "1-", long.as_str()] {
        call(&dir, "ADD").env("CNI_CONTAINERID", id).ok();
    }
    for id in ["-a", ".a", "_a", "a b", "a/b", "a:b", "ä", "a\n", "a;b", "a\u{a0}"] {
        for command in ["ADD", "DEL", "CHECK"] {
            let failure = call(&dir, command).env("CNI_CONTAINERID", id).fails(4);
            failure.says("invalid characters in containerID");
            assert_eq!(failure.details, id);
        }
    }
}

#[test]
fn interface_names_are_what_the_kernel_takes() {
    let dir = Workdir::new();
    for name in ["eth0", "...", "a@b", "ääääääa", "fifteen-bytes-x", "a\u{200b}"] {
        call(&dir, "ADD").env("CNI_IFNAME", name).ok();
    }
    for (name, msg) in [
        ("sixteen-bytes-xx", "interface name is too long"),
        ("ääääääää", "interface name is too long"),
        (".", "interface name is . or .."),
        ("..", "interface name is . or .."),
        ("a/b", "interface name contains / or : or whitespace characters"),
        ("a:b", "interface name contains / or : or whitespace characters"),
        ("a b", "interface name contains / or : or whitespace characters"),
        ("a\tb", "interface name contains / or : or whitespace characters"),
        ("a\u{a0}b", "interface name contains / or : or whitespace characters"),
        ("a\u{85}b", "interface name contains / or : or whitespace characters"),
        ("a\u{2003}b", "interface name contains / or : or whitespace characters"),
    ] {
        for command in ["ADD", "DEL", "CHECK"] {
            call(&dir, command).env("CNI_IFNAME", name).fails(4).says(msg);
        }
    }
    for name in ["eth%d", "%", "a%%b"] {
        for command in ["ADD", "CHECK"] {
            let failure = call(&dir, command).env("CNI_IFNAME", name).fails(4);
            failure.says("interface name contains %, for which the kernel puts a number").names(&[name]);
        }
        call(&dir, "DEL").env("CNI_IFNAME", name).silent();
    }
}

#[test]
fn a_variable_that_is_not_text_is_an_error_not_a_crash() {
    use std::os::unix::ffi::OsStringExt;
    let dir = Workdir::new();
    let bytes = || std::ffi::OsString::from_vec(b"a\xff".to_vec());
    call(&dir, "ADD").env("CNI_CONTAINERID", bytes()).fails(4);
    call(&dir, "ADD").env("CNI_COMMAND", bytes()).fails(4);
}

#[test]
fn network_names_are_letters_digits_and_a_few_signs() {
    let dir = Workdir::new();
    let named = |name: &str| {
        let mut config = static_config("1.1.0");
        config["name"] = name.into();
        dir.call("static").command("ADD").config(&config)
    };
    for name in ["a", "0", "A.b_c-d", "a".repeat(300).as_str()] {
        named(name).ok();
    }
    for name in ["-a", ".a", "a b", "a/b", "../a", "a:b", "ä", "a\n"] {
        let failure = named(name).fails(7);
        failure.says("invalid characters found in network name");
        assert_eq!(failure.details, name);
    }
    named("").fails(7).says("missing network name");
}

#[test]
fn a_missing_network_name_is_an_error_for_every_command_and_plugin() {
    let dir = Workdir::new();
    for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for config in [json!({"cniVersion": "1.1.0"}), json!({"cniVersion": "1.1.0", "name": null})] {
            for plugin in ["static", "host-local", "bridge", "ptp"] {
                let failure = dir.call(plugin).command(command).config(&config).fails(7);
                failure.says("missing network name");
            }
        }
    }
}

#[test]
fn the_name_is_judged_before_the_version() {
    let dir = Workdir::new();
    dir.call("static").command("ADD").config(&json!({"cniVersion": "9.9.9"})).fails(7);
    dir.call("static").command("ADD").config(&json!({"cniVersion": 9})).fails(7);
}

#[test]
fn the_hosts_own_namespace_is_refused_before_anything_is_touched() {
    let dir = Workdir::new();
    let config = host_local_config("1.1.0", &dir);
    let call = |command: &str| {
        let call = dir.call("host-local").command(command).config(&config);
        call.env("CNI_NETNS", "/proc/self/ns/net")
    };
    call("ADD").fails(8).says("plugin's netns and netns from CNI_NETNS should not be the same");
    assert!(dir.leases("net").is_empty(), "an address was reserved all the same");
    call("ADD").env("CNI_NETNS", "/nonexistent").ok();
    call("DEL").fails(8);
    assert_eq!(dir.leases("net"), ["10.1.0.2"], "the refused DEL must leave the address alone");
}

#[test]
fn the_hosts_own_namespace_is_accepted_with_an_override() {
    let dir = Workdir::new();
    let call = |value: &str| {
        call(&dir, "ADD").env("CNI_NETNS", "/proc/self/ns/net").env("CNI_NETNS_OVERRIDE", value)
    };
    for value in ["1", "true", "TRUE", "True"] {
        call(value).ok();
    }
    for value in ["0", "yes", "false", "", " 1"] {
        call(value).fails(8);
    }
}

#[test]
fn a_namespace_path_that_cannot_be_opened_is_left_to_the_plugin() {
    let dir = Workdir::new();
    for path in ["dummy", "/nonexistent/ns", "/proc/1/nothing"] {
        call(&dir, "ADD").env("CNI_NETNS", path).ok();
        call(&dir, "DEL").env("CNI_NETNS", path).silent();
    }
}

#[test]
fn extra_arguments_change_nothing() {
    let dir = Workdir::new();
    let plain = call(&dir, "ADD").ok();
    assert_eq!(call(&dir, "ADD").arg("--help").arg("DEL").ok(), plain);
}
