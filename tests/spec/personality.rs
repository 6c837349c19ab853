//! Which plugin the executable is: by the name it is called under, or by its first argument.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Output;

use serde_json::{Value, json};

use crate::static_config;
use crate::support::{Call, PLUGINS, Workdir, executable, foreign_plugins};

fn about(plugin: &str) -> String {
    format!("CNI {plugin} plugin ")
}

#[test]
fn the_first_argument_does_the_same_as_a_link() {
    if foreign_plugins().is_some() {
        return;
    }
    let dir = Workdir::new();
    for plugin in PLUGINS {
        let linked = dir.call(plugin).bare().run();
        let named = Call::new(&executable(), &dir.bin()).bare().arg(plugin).run();
        assert_eq!((named.status, &named.stderr), (Some(0), &linked.stderr));
    }
    let config = static_config("1.1.0");
    let linked = dir.call("static").command("ADD").config(&config).run();
    let named = Call::new(&executable(), &dir.bin()).arg("static").command("ADD").config(&config).run();
    assert_eq!(named.text(), linked.text());
}

#[test]
fn any_kind_of_link_and_any_directory_will_do() {
    if foreign_plugins().is_some() {
        return;
    }
    let dir = Workdir::new();
    let place = dir.root().join("deep/er dir");
    fs::create_dir_all(&place).unwrap();
    let copy = dir.root().join("copied");
    // A copy made by another process: see Workdir::script.
    assert!(std::process::Command::new("cp").args([executable(), copy.clone()]).status().unwrap().success());
    std::os::unix::fs::symlink("../../copied", place.join("static")).unwrap();
    fs::hard_link(&copy, place.join("ptp")).unwrap();
    fs::rename(&copy, dir.root().join("bridge")).unwrap();
    std::os::unix::fs::symlink("../../bridge", place.join("loopback")).unwrap();
    for (path, plugin) in [
        (place.join("ptp"), "ptp"),
        (place.join("loopback"), "loopback"),
        (dir.root().join("bridge"), "bridge"),
    ] {
        let outcome = Call::new(&path, &dir.bin()).bare().run();
        assert!(outcome.stderr.starts_with(&about(plugin)), "{outcome}");
    }
}

fn called_as(name: &str, command: Option<&str>) -> Output {
    let dir = Workdir::new();
    let mut process = Call::new(&executable(), &dir.bin()).to_command();
    process.arg0(name).envs(command.map(|c| ("CNI_COMMAND", c)));
    process.stdin(std::process::Stdio::null()).output().unwrap()
}

#[test]
fn only_the_last_part_of_the_name_counts_and_it_must_match_exactly() {
    if foreign_plugins().is_some() {
        return;
    }
    for name in ["static", "./static", "/opt/cni/bin/static", "bridge/static"] {
        let output = called_as(name, None);
        assert!(String::from_utf8_lossy(&output.stderr).starts_with(&about("static")), "{name}: {output:?}");
    }
    for name in ["Static", "static.exe", "xstatic", "static1", "-static", "no-such-plugin"] {
        let output = called_as(name, None);
        assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        assert!(output.stdout.is_empty(), "{name}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(name), "{name}: {output:?}");
    }
}

#[test]
fn an_unknown_name_with_a_command_is_a_cni_error() {
    if foreign_plugins().is_some() {
        return;
    }
    for command in ["ADD", "VERSION"] {
        let output = called_as("no-such-plugin", Some(command));
        assert_eq!(output.status.code(), Some(1));
        let error: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        assert!(error["code"].is_u64() && error["cniVersion"].is_string(), "{error:#}");
        assert!(error["msg"].as_str().unwrap().contains("no-such-plugin"), "{error:#}");
    }
}

#[test]
fn an_unknown_first_argument_is_a_usage_error() {
    if foreign_plugins().is_some() {
        return;
    }
    let dir = Workdir::new();
    let outcome = Call::new(&executable(), &dir.bin()).bare().arg("no-such-plugin").run();
    assert!(outcome.status.is_some_and(|s| s != 0), "{outcome}");
    assert!(outcome.stdout.is_empty() && outcome.stderr.contains("no-such-plugin"), "{outcome}");
}

#[test]
fn the_plugins_tested_here_are_the_plugins_there_are() {
    if foreign_plugins().is_some() {
        return;
    }
    let dir = Workdir::new();
    let listed = Call::new(&executable(), &dir.bin()).bare().arg("list").run();
    assert_eq!(listed.status, Some(0), "{listed}");
    let names: Vec<&str> = listed.text().lines().filter_map(|line| line.split_whitespace().next()).collect();
    for plugin in PLUGINS {
        assert!(names.contains(plugin), "{plugin} is not listed\n{listed}");
    }
}

#[test]
fn a_configurations_type_does_not_change_who_answers() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    config["type"] = json!("loopback");
    assert_eq!(dir.call("static").command("ADD").config(&config).ok()["ips"][0]["address"], "10.1.0.5/24");
}
