//! Standard streams, exit status, and the shape of what is printed.

use std::fs::File;
use std::process::Stdio;

use serde_json::json;

use crate::static_config;
use crate::support::{PLUGINS, VERSIONS, Workdir, versions_of};

#[test]
fn add_prints_one_indented_object_and_no_newline() {
    let dir = Workdir::new();
    for version in VERSIONS {
        let outcome = dir.call("static").command("ADD").config(&static_config(version)).run();
        assert_eq!(outcome.ok()["cniVersion"], version);
        let text = outcome.text();
        assert!(text.starts_with("{\n    \"") && text.ends_with("\n}"), "{outcome}");
    }
}

#[test]
fn the_other_verbs_print_nothing() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    for command in ["DEL", "GC", "STATUS"] {
        dir.call("static").command(command).config(&config).silent();
    }
    config["prevResult"] = json!({"ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]});
    dir.call("static").command("CHECK").config(&config).silent();
}

#[test]
fn an_error_is_one_indented_object_on_standard_output() {
    let dir = Workdir::new();
    let outcome = dir.call("static").command("ADD").stdin("{").run();
    outcome.err();
    assert!(outcome.text().starts_with("{\n    \"") && outcome.text().ends_with("\n}"), "{outcome}");
}

#[test]
fn error_objects_carry_the_protocol_version() {
    let dir = Workdir::new();
    for version in VERSIONS {
        let mut config = static_config(version);
        config["ipam"]["addresses"][0]["address"] = "10.1.0.5".into();
        let failure = dir.call("static").command("ADD").config(&config).err();
        assert_eq!(failure.json["cniVersion"], version, "{:#}", failure.json);
    }
    for (key, value) in [("capabilities", json!({"a": "true"})), ("ipam", json!(5)), ("dns", json!([]))] {
        let mut config = static_config("1.0.0");
        config[key] = value;
        let failure = dir.call("bridge").command("ADD").config(&config).fails(6);
        assert_eq!(failure.names(&[key]).json["cniVersion"], "1.0.0", "{:#}", failure.json);
    }
    let call = || dir.call("static").command("ADD").config(&static_config("1.1.0"));
    for failure in [
        call().unset("CNI_IFNAME").fails(4),
        call().stdin("").fails(6),
        call().config(&json!({"cniVersion": "9.9.9", "name": "net"})).fails(1),
        call().config(&json!({"cniVersion": 1, "name": "net"})).fails(6),
        call().config(&json!({"cniVersion": "0.4.0"})).fails(7),
    ] {
        let version = failure.json["cniVersion"].as_str().unwrap_or_default();
        assert!(VERSIONS.contains(&version), "{:#}", failure.json);
    }
}

#[test]
fn details_are_absent_when_there_are_none() {
    let dir = Workdir::new();
    let failure = dir.call("static").command("ADD").config(&json!({})).fails(7);
    assert!(failure.json.get("details").is_none(), "{:#}", failure.json);
}

#[test]
fn without_a_command_a_plugin_says_what_it_is_and_reads_nothing() {
    let dir = Workdir::new();
    for plugin in PLUGINS {
        let calls = [
            dir.call(plugin).bare().silent_stdin(),
            dir.call(plugin).silent_stdin(),
            dir.call(plugin).env("CNI_COMMAND", "").silent_stdin(),
            dir.call(plugin).arg("--help").silent_stdin(),
        ];
        for call in calls {
            let outcome = call.run();
            assert_eq!((outcome.status, outcome.text()), (Some(0), ""), "{outcome}");
            let version = env!("CARGO_PKG_VERSION");
            let supported = versions_of(plugin).join(", ");
            let expected = format!(
                "CNI {plugin} plugin v1.9.1+cni-all.{version}\nCNI protocol versions supported: {supported}\n"
            );
            assert_eq!(outcome.stderr, expected, "{outcome}");
        }
    }
}

#[test]
fn a_closed_standard_input_is_an_empty_one() {
    let dir = Workdir::new();
    let mut command = dir.call("static").command("ADD").to_command();
    // SAFETY: close is one system call.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            libc::close(0);
            Ok(())
        });
    }
    let output = command.output().unwrap();
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &error["code"]), (Some(1), &json!(6)), "{error:#}");
}

#[test]
fn an_unreadable_standard_input_is_an_input_error() {
    let dir = Workdir::new();
    let mut command = dir.call("static").command("ADD").to_command();
    let output = command.stdin(File::open("/").unwrap()).output().unwrap();
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &error["code"]), (Some(1), &json!(5)), "{error:#}");
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let dir = Workdir::new();
    for command in ["VERSION", "ADD"] {
        let config = dir.file("config", static_config("1.1.0").to_string());
        let mut command = dir.call("static").command(command).to_command();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output =
            command.stdin(File::open(config).unwrap()).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(!stderr.is_empty(), "standard error must say what happened");
    }
}

#[test]
fn a_closed_pipe_on_standard_output_is_a_failure_not_a_signal() {
    let dir = Workdir::new();
    let config = dir.file("config", static_config("1.1.0").to_string());
    let mut command = dir.call("static").command("ADD").to_command();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let output =
        command.stdin(File::open(config).unwrap()).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn a_configuration_of_ten_megabytes_is_read() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    config["padding"] = "x".repeat(10 << 20).into();
    let result = dir.call("static").command("ADD").config(&config).ok();
    assert_eq!(result["ips"][0]["address"], "10.1.0.5/24");
}

#[test]
fn a_success_says_nothing_on_standard_error() {
    let dir = Workdir::new();
    for command in ["ADD", "DEL", "GC", "STATUS", "VERSION"] {
        let outcome = dir.call("static").command(command).config(&static_config("1.1.0")).run();
        outcome.ok();
        assert_eq!(outcome.stderr, "", "{outcome}");
    }
}
