//! Protocol versions: VERSION, what a configuration may say, and which version allows which command.

use serde_json::{Value, json};

use crate::static_config;
use crate::support::{PLUGINS, VERSIONS, Workdir, versions_of};

#[test]
fn version_prints_one_line_and_reads_nothing() {
    let dir = Workdir::new();
    for plugin in PLUGINS {
        let supported = json!(versions_of(plugin));
        let outcome = dir.call(plugin).bare().command("VERSION").silent_stdin().run();
        outcome.ok();
        let expected = format!("{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":{supported}}}\n");
        assert_eq!(outcome.text(), expected, "{outcome}");
    }
}

#[test]
fn version_works_as_libcni_asks_for_it() {
    let dir = Workdir::new();
    for stdin in [r#"{"cniVersion":"1.1.0"}"#, "", "not json"] {
        let call = dir.call("bridge").command("VERSION").env("CNI_CONTAINERID", "").stdin(stdin);
        let call = call.env("CNI_NETNS", "dummy").env("CNI_IFNAME", "dummy").env("CNI_PATH", "dummy");
        assert_eq!(call.ok()["supportedVersions"], json!(VERSIONS));
    }
}

#[test]
fn no_version_means_the_oldest() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    for version in [json!(null), json!("")] {
        config["cniVersion"] = version;
        let result = dir.call("static").command("ADD").config(&config).ok();
        assert_eq!((&result["cniVersion"], &result["ip4"]["ip"]), (&json!("0.1.0"), &json!("10.1.0.5/24")));
    }
    config.as_object_mut().unwrap().remove("cniVersion");
    assert_eq!(dir.call("static").command("ADD").config(&config).ok()["cniVersion"], "0.1.0");
}

#[test]
fn add_and_del_take_exactly_the_listed_versions() {
    let dir = Workdir::new();
    for plugin in PLUGINS {
        for version in ["1.1", "01.1.0", "1.1.0-rc1", " 1.1.0", "9.9.9", "0.0.1", "v1.1.0", "1.2.0"] {
            for command in ["ADD", "DEL"] {
                let config = json!({"cniVersion": version, "name": "net", "type": plugin});
                let failure = dir.call(plugin).command(command).config(&config).fails(1);
                failure.says("incompatible CNI versions");
                let supported: Vec<String> = versions_of(plugin).iter().map(|v| format!("{v:?}")).collect();
                let supported = supported.join(" ");
                assert_eq!(failure.details, format!("config is {version:?}, plugin supports [{supported}]"));
            }
        }
    }
}

#[test]
fn the_version_is_text() {
    let dir = Workdir::new();
    for version in [json!(1), json!(1.1), json!(["1.1.0"]), json!({}), json!(true)] {
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let config = json!({"cniVersion": version, "name": "net"});
            dir.call("static").command(command).config(&config).fails(6).names(&["cniVersion"]);
        }
    }
}

#[test]
fn check_needs_0_4_0_and_gc_and_status_need_1_1_0() {
    let dir = Workdir::new();
    for (command, minimum) in [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")] {
        for version in VERSIONS {
            let mut config = static_config(version);
            config["prevResult"] = json!({"ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]});
            let call = dir.call("static").command(command).config(&config);
            if version >= minimum {
                call.silent();
            } else {
                call.fails(1).says(&format!("config version does not allow {command}"));
            }
        }
        let old = json!({"name": "net"});
        dir.call("static").command(command).config(&old).fails(1);
    }
}

#[test]
fn the_gates_come_before_anything_in_the_body() {
    let dir = Workdir::new();
    let broken = |version: &str| json!({"cniVersion": version, "name": "net", "ipam": {"type": "static", "addresses": 5}});
    dir.call("static").command("CHECK").config(&broken("0.3.1")).fails(1);
    dir.call("static").command("STATUS").config(&broken("1.0.0")).fails(1);
    dir.call("static").command("ADD").config(&broken("3.0.0")).fails(1);
}

#[test]
fn check_gc_and_status_read_the_version_as_numbers() {
    let dir = Workdir::new();
    for (command, newest) in [("CHECK", "1.1"), ("GC", "1.1"), ("STATUS", "1.1")] {
        let call = |version: &str| {
            let config = json!({"cniVersion": version, "name": "net", "prevResult": {}});
            dir.call("static").command(command).config(&config)
        };
        for version in ["1.1.0-rc1", "abc", "1.2.3.4", "1..0", "1.1."] {
            call(version).fails(6);
        }
        for version in [newest, "01.1.0"] {
            call(version).fails(1).says("incompatible CNI versions");
        }
        call("9.9.9").fails(1).says(&format!("plugin version does not allow {command}"));
        call("0.10.0").fails(1);
    }
}

#[test]
fn gates_hold_for_every_plugin() {
    let dir = Workdir::new();
    for plugin in PLUGINS {
        for (command, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "0.4.0")] {
            let config: Value = json!({"cniVersion": version, "name": "net", "type": plugin});
            let failure = dir.call(plugin).command(command).config(&config).fails(1);
            failure.says(&format!("config version does not allow {command}"));
        }
    }
}
