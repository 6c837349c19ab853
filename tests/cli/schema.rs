//! The committed JSON Schema is up to date, every plugin is in it, and it judges configurations as it should.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::support::skip;
use super::{cni_all, ok, plugins, run};

const SCHEMA: &str = "packaging/schema/cni.schema.json";

/// Prints a line for every file of the arguments that the schema refuses; the schema is the first argument.
const JUDGE: &str = "
import json, sys, warnings
warnings.simplefilter('ignore')
import jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft202012Validator.check_schema(schema)
judge = jsonschema.Draft202012Validator(schema)
for path in sys.argv[2:]:
    for error in judge.iter_errors(json.load(open(path))):
        print(path, list(error.absolute_path), error.message[:300])
";

/// Configurations as the documentation of the reference plugins, of runtimes and of the issues shows them.
fn examples() -> Vec<PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/examples");
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn has_judge() -> bool {
    Command::new("python3").args(["-c", "import jsonschema"]).output().is_ok_and(|out| out.status.success())
}

/// What the schema has against the files.
fn judge(files: &[PathBuf]) -> String {
    let mut command = Command::new("python3");
    command.args(["-c", JUDGE, SCHEMA]).args(files).current_dir(env!("CARGO_MANIFEST_DIR"));
    ok(command)
}

#[test]
fn the_committed_schema_is_what_is_generated() {
    let committed = include_str!("../../packaging/schema/cni.schema.json");
    assert!(
        committed == ok(cni_all(&["generate", "schema"])),
        "out of date; run: cargo run -- generate schema >{SCHEMA}"
    );
    let schema: Value = serde_json::from_str(committed).unwrap();
    for plugin in plugins() {
        assert_eq!(schema["$defs"][&plugin]["properties"]["type"]["const"], *plugin);
    }
}

#[test]
fn there_is_an_example_of_every_plugin() {
    let text: String = examples().iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    for plugin in plugins() {
        assert!(text.contains(&format!("\"type\": \"{plugin}\"")), "{plugin}");
    }
}

#[test]
fn the_schema_accepts_every_reference_example() {
    if !has_judge() {
        return skip("python3-jsonschema is not installed");
    }
    assert_eq!(judge(&examples()), "");
}

#[test]
fn validate_accepts_every_reference_example() {
    for file in examples() {
        let printed = run(cni_all(&["validate", file.to_str().unwrap()]));
        assert_eq!(printed.status, 0, "{}: {}{}", file.display(), printed.stdout, printed.stderr);
    }
}

#[test]
fn the_schema_refuses_what_no_plugin_accepts() {
    if !has_judge() {
        return skip("python3-jsonschema is not installed");
    }
    let bridge = |key: &str, value: Value| {
        let mut config = json!({"name": "net", "type": "bridge"});
        config[key] = value;
        config
    };
    let chained = |plugin: Value| json!({"name": "net", "plugins": [{"type": "bridge"}, plugin]});
    let wrong = [
        bridge("mtu", json!("large")),
        bridge("isGateway", json!("true")),
        bridge("vlanTrunk", json!({"id": 5})),
        bridge("ipMasqBackend", json!("ipset")),
        bridge("ipam", json!({"type": "host-local", "subnet": "10.1.0.0"})),
        bridge("ipam", json!({"type": "host-local", "ranges": [{"subnet": "10.1.0.0/24"}]})),
        bridge("ipam", json!({"type": "static", "addresses": [{"gateway": "10.1.0.1"}]})),
        bridge("dns", json!({"nameservers": "10.1.0.1"})),
        json!({"name": "net"}),
        json!({"name": "net", "type": "vlan", "master": "eth0", "vlanId": 5000}),
        json!({"name": "net", "type": "macvlan", "mode": "hub"}),
        json!({"plugins": [{"type": "bridge"}]}),
        json!({"name": "net", "plugins": [{"bridge": "cni0"}]}),
        chained(json!({"type": "portmap", "snat": "yes"})),
        chained(json!({"type": "bandwidth", "ingressRate": -1})),
        chained(json!({"type": "tuning", "sysctl": ["net.core.somaxconn=500"]})),
        chained(json!({"type": "vrf"})),
    ];
    let dir = super::support::Workdir::new();
    let files: Vec<PathBuf> = wrong
        .iter()
        .enumerate()
        .map(|(n, config)| {
            let file = dir.root().join(format!("{n:02}.conf"));
            fs::write(&file, config.to_string()).unwrap();
            file
        })
        .collect();
    let refused = judge(&files);
    for (file, config) in files.iter().zip(&wrong) {
        assert!(refused.contains(file.to_str().unwrap()), "{config} is accepted");
    }
}
