//! `cni-all validate`: each mistake is found, at its place, and nothing else is.

use serde_json::Value;

use super::support::Workdir;
use super::{cni_all, run};

/// Exit status and findings as `line:column severity key: message`.
fn validate(config: &str) -> (i32, Vec<String>) {
    let dir = Workdir::new();
    let file = dir.file("10-net.conflist", config);
    let printed = run(cni_all(&["validate", "--json", file.to_str().unwrap()]));
    let output: Value = serde_json::from_str(&printed.stdout).unwrap();
    let text = |f: &Value, key: &str| f[key].as_str().unwrap().to_owned();
    let findings = output["findings"].as_array().unwrap().iter().map(|f| {
        let (severity, key, message) = (text(f, "severity"), text(f, "key"), text(f, "message"));
        format!("{}:{} {severity} {key}: {message}", f["line"], f["column"])
    });
    assert_eq!(output["ok"], printed.status == 0);
    (printed.status, findings.collect())
}

fn list(plugins: &str) -> String {
    format!("{{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"plugins\":[\n{plugins}]}}")
}

const GOOD: &str = r#"{"type":"bridge","isGateway":true,"ipMasq":true,"capabilities":{"mac":true,"ipRanges":true},
 "ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/16","gateway":"10.1.0.1"}]],"routes":[{"dst":"0.0.0.0/0"}]}}"#;

#[test]
fn a_good_list_has_no_findings() {
    assert_eq!(validate(&list(GOOD)), (0, vec![]));
}

#[test]
fn each_mistake_is_found_at_its_place() {
    for (config, status, expected) in [
        (
            r#"{"type":"bridge","isGatway":true}"#,
            0,
            "2:18 warning plugins[0].isGatway: unknown key, nothing reads it; did you mean isGateway?",
        ),
        (
            r#"{"type":"bridge","mtu":"x"}"#,
            1,
            "2:24 error plugins[0].mtu: expected an integer or \"auto\", found the string \"x\"",
        ),
        (
            r#"{"type":"bridge","bridge":"pc%d"}"#,
            1,
            "2:27 error plugins[0].bridge: \"pc%d\" is not an interface's name of 1 to 15 bytes, without %",
        ),
        (
            r#"{"type":"bridge","capabilities":{"portMappings":true}}"#,
            0,
            "2:34 warning plugins[0].capabilities.portMappings: bridge does not understand this capability",
        ),
        (
            r#"{"type":"calico"}"#,
            0,
            "2:9 note plugins[0].type: \"calico\" is not built in, its configuration is not checked",
        ),
        (
            r#"{"type":"bridge","ipam":{"type":"host-local","subnet":"10.1.0.0/16","gateway":"10.2.0.1"}}"#,
            0,
            "2:79 warning plugins[0].ipam.gateway: 10.2.0.1 is outside of subnet 10.1.0.0/16",
        ),
    ] {
        assert_eq!(validate(&list(config)), (status, vec![expected.to_owned()]), "{config}");
    }
}

#[test]
fn overlapping_ranges_and_versions_that_are_too_old_are_found() {
    let ranges = r#"{"type":"ptp","ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/16"}],[{"subnet":"10.1.2.0/24"}]],"routes":[{"dst":"10.0.0.0/8","mtu":1400}]}}"#;
    let (status, found) = validate(&list(ranges));
    assert_eq!((status, found.len()), (1, 2), "{found:?}");
    assert!(found[0].contains("routes[0].mtu: needs cniVersion 1.1.0"), "{found:?}");
    assert!(
        found[1].contains("error plugins[0].ipam.ranges[1]: ") && found[1].contains("overlaps"),
        "{found:?}"
    );
}

#[test]
fn what_is_not_json_is_reported_with_line_and_column() {
    let (status, found) = validate("{\n  \"name\": ,\n}");
    assert_eq!((status, found.len()), (1, 1));
    assert!(found[0].starts_with("2:11 error : not valid JSON"), "{found:?}");
}

#[test]
fn a_mistake_in_a_plugin_folder_is_found_in_its_file() {
    let dir = Workdir::new();
    let list =
        dir.file("10-net.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#);
    std::fs::create_dir(dir.root().join("n")).unwrap();
    dir.file("n/10.conf", "{\"type\":\"tuning\",\n \"mtu\":\"large\"}");
    dir.file("n/20.conf", "{\"type\":\"portmap\",\n}");
    dir.file("n/30.conf", "{\n \"sysctl\":{}}");
    let printed = run(cni_all(&["validate", list.to_str().unwrap()]));
    assert_eq!(printed.status, 1);
    let lines: Vec<&str> = printed.stdout.lines().collect();
    let folder = dir.root().join("n").display().to_string();
    for (line, expected) in
        lines.iter().zip(["10.conf:2:8: error: mtu: ", "20.conf:2:1: error: ", "30.conf:1:1: error: type: "])
    {
        assert!(line.starts_with(&format!("{folder}/{expected}")), "{}", printed.stdout);
    }
    assert_eq!(lines.len(), 4, "{}", printed.stdout);
}

#[test]
fn a_second_interface_is_suspicious_unless_it_stands_on_the_first() {
    let warned =
        |config: &str| validate(config).1.iter().any(|f| f.contains("not the first of its list to do so"));
    assert!(warned(&list(r#"{"type":"bridge"},{"type":"ptp"}"#)));
    assert!(!warned(&list(r#"{"type":"loopback"},{"type":"bridge"}"#)));
    assert!(!warned(&list(r#"{"type":"bridge"},{"type":"ipvlan"}"#)));
}
