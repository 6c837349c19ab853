//! How a configuration is read: key case, duplicates, nulls, numbers, wrong types.

use serde_json::{Value, json};

use crate::support::{Call, Failure, Workdir};
use crate::{host_local_config, static_config};

fn add(dir: &Workdir, stdin: impl Into<Vec<u8>>) -> Call {
    dir.call("static").command("ADD").stdin(stdin)
}

/// Asserts that an error names the key's path and, in one word or another, the type found there.
#[track_caller]
fn names_type(failure: &Failure, path: &str, found: &[&str]) {
    failure.names(&[path]);
    assert!(found.iter().any(|word| failure.msg.contains(word)), "{:?} names none of {found:?}", failure.msg);
}

#[test]
fn keys_match_without_regard_to_case() {
    let dir = Workdir::new();
    let result = add(
        &dir,
        r#"{"CNIVERSION":"1.0.0","NAME":"net","Ipam":{"TYPE":"static","ADDRESSES":[{"Address":"10.1.0.5/24","GATEWAY":"10.1.0.1"}],
            "routes":[{"DST":"0.0.0.0/0","Gw":"10.1.0.9"}]},"RuntimeConfig":{"IPS":["10.2.0.5/24"]}}"#,
    );
    let result = result.ok();
    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!(result["ips"], json!([{"address": "10.2.0.5/24"}]));
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.9"}]));
}

#[test]
fn of_duplicate_keys_the_last_one_counts() {
    let dir = Workdir::new();
    let result = add(
        &dir,
        r#"{"cniVersion":"0.4.0","name":"a/b","cniVersion":"1.1.0","NAME":"net","name":"other",
            "ipam":{"type":"static","addresses":[{"address":"10.1.0.1/24"}],"addresses":[{"address":"10.1.0.2/24"}]}}"#,
    );
    let result = result.ok();
    assert_eq!(
        (&result["cniVersion"], &result["ips"]),
        (&json!("1.1.0"), &json!([{"address": "10.1.0.2/24"}]))
    );
    let last_is_bad = r#"{"cniVersion":"1.1.0","name":"net","Name":"a/b","ipam":{"type":"static"}}"#;
    add(&dir, last_is_bad).fails(7).says("invalid characters found in network name");
}

#[test]
fn duplicate_objects_merge() {
    let dir = Workdir::new();
    let result = add(
        &dir,
        r#"{"cniVersion":"1.1.0","name":"net","ipam":{"type":"static","addresses":[{"address":"10.1.0.1/24"}]},
            "IPAM":{"routes":[{"dst":"0.0.0.0/0"}]}}"#,
    );
    let result = result.ok();
    assert_eq!(result["ips"], json!([{"address": "10.1.0.1/24"}]));
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
}

#[test]
fn a_later_null_leaves_text_as_it_was() {
    let dir = Workdir::new();
    let config = static_config("0.4.0").to_string();
    let config = format!("{},\"name\":null,\"cniVersion\":null}}", config.strip_suffix('}').unwrap());
    assert_eq!(add(&dir, config).ok()["cniVersion"], "0.4.0");
}

#[test]
fn what_is_not_one_json_object_is_a_decoding_error() {
    let dir = Workdir::new();
    let good = static_config("1.1.0").to_string();
    for bad in [
        String::new(),
        " \n".to_owned(),
        "[]".to_owned(),
        "\"net\"".to_owned(),
        "5".to_owned(),
        format!("\u{feff}{good}"),
        format!("// comment\n{good}"),
        format!("{good}{good}"),
        format!("{good}\0"),
        format!("{good} x"),
        good.replace("\"net\",", "\"net\",,"),
        r#"{"cniVersion":"1.1.0","name":"net",}"#.to_owned(),
        r#"{'name':'net'}"#.to_owned(),
        r#"{"name":"net""#.to_owned(),
    ] {
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            dir.call("static").command(command).stdin(bad.clone()).fails(6);
        }
    }
    add(&dir, format!("\n\t {good} \r\n\n")).ok();
}

#[test]
fn a_null_configuration_has_no_name() {
    let dir = Workdir::new();
    add(&dir, "null").fails(7).says("missing network name");
}

#[test]
fn a_name_that_is_not_text_is_a_decoding_error() {
    let dir = Workdir::new();
    for name in ["5", "[]", "{}", "true"] {
        add(&dir, format!(r#"{{"cniVersion":"1.1.0","name":{name}}}"#)).fails(6).names(&["name"]);
    }
}

#[test]
fn null_means_not_given() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    for key in ["dns", "args", "runtimeConfig", "capabilities", "prevResult", "type"] {
        config[key] = Value::Null;
    }
    for key in ["routes", "dns", "type"] {
        config["ipam"][key] = Value::Null;
    }
    config["ipam"]["addresses"][0]["gateway"] = Value::Null;
    let result = add(&dir, config.to_string()).ok();
    assert_eq!(result, json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/24"}]}));
    config["capabilities"] = json!({"mac": null, "ips": true});
    config["args"] = json!({"cni": null});
    config["runtimeConfig"] = json!({"ips": null});
    assert_eq!(add(&dir, config.to_string()).ok(), result);
}

#[test]
fn null_in_a_list_of_text_is_an_empty_text() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    config["ipam"]["dns"] = json!({"nameservers": [null, "192.0.2.53"]});
    let result = add(&dir, config.to_string()).ok();
    assert_eq!(result["dns"], json!({"nameservers": ["", "192.0.2.53"]}));
    config["ipam"]["routes"] = json!([null]);
    add(&dir, config.to_string()).fails(7).names(&["ipam.routes[0]", "null"]);
}

#[test]
fn an_address_is_never_null() {
    let dir = Workdir::new();
    let mut config = static_config("1.1.0");
    config["ipam"]["addresses"][0]["address"] = Value::Null;
    add(&dir, config.to_string()).fails(7).names(&["address"]);
    config = static_config("1.1.0");
    config["ipam"]["routes"] = json!([{"dst": null}]);
    add(&dir, config.to_string()).fails(7).names(&["dst"]);
}

#[test]
fn unknown_keys_are_ignored_whatever_they_hold() {
    let dir = Workdir::new();
    let extra = r#""vendor":{"deep":[1e400,-123456789012345678901234567890,1.50,null,{"":""}]},"mtu":"big","#;
    let config = static_config("1.1.0").to_string().replacen('{', &format!("{{{extra}"), 1);
    add(&dir, config).ok();
    let mut config = static_config("1.1.0");
    config["ipam"]["flavour"] = json!({"a": [1]});
    config["args"] = json!({"labels": 5, "cni": {"labels": [{"key": "a", "value": "b"}]}});
    add(&dir, config.to_string()).ok();
}

#[test]
fn text_that_is_not_utf_8_is_read_with_replacement_characters() {
    let dir = Workdir::new();
    let config = static_config("1.1.0").to_string();
    let with = |text: &[u8]| {
        let mut bytes = b"{\"vendor\":\"".to_vec();
        bytes.extend_from_slice(text);
        bytes.extend_from_slice(b"\",");
        bytes.extend_from_slice(&config.as_bytes()[1..]);
        bytes
    };
    add(&dir, with(b"a\xffb")).ok();
    add(&dir, b"{\"cniVersion\":\"1.1.0\",\"name\":\"a\xff\"}".to_vec()).fails(7);
}

#[test]
fn half_of_a_surrogate_pair_is_no_text() {
    let dir = Workdir::new();
    add(&dir, br#"{"cniVersion":"1.1.0","name":"a\ud800"}"#.to_vec()).fails(6);
}

#[test]
fn a_wrong_type_is_named_with_its_path() {
    let dir = Workdir::new();
    for (pointer, value, path, found) in [
        ("ipam", json!("x"), "ipam", &["string"][..]),
        ("ipam", json!([1]), "ipam", &["array", "list", "sequence"]),
        ("args", json!("x"), "args", &["string"]),
        ("runtimeConfig", json!([]), "runtimeConfig", &["array", "list", "sequence"]),
    ] {
        let mut config = static_config("1.1.0");
        config[pointer] = value;
        names_type(&add(&dir, config.to_string()).fails(6), path, found);
    }
    for (key, value, path, found) in [
        ("addresses", json!(5), "ipam.addresses", &["number", "integer"][..]),
        ("addresses", json!(["10.1.0.5/24"]), "ipam.addresses[0]", &["string"]),
        ("addresses", json!([{"address": 5}]), "ipam.addresses[0].address", &["number", "integer"]),
        ("routes", json!([{"dst": "10.0.0.0/8"}, {"dst": true}]), "ipam.routes[1].dst", &["bool"]),
        ("routes", json!([{"dst": "10.0.0.0/8", "mtu": "1400"}]), "ipam.routes[0].mtu", &["string"]),
        ("dns", json!({"search": [1]}), "ipam.dns.search[0]", &["number", "integer"]),
    ] {
        let mut config = static_config("1.1.0");
        config["ipam"][key] = value;
        names_type(&add(&dir, config.to_string()).fails(6), path, found);
    }
}

#[test]
fn a_wrong_type_deep_in_ranges_is_named_with_its_path() {
    let dir = Workdir::new();
    let mut config = host_local_config("1.1.0", &dir);
    config["ipam"] = json!({"type": "host-local", "dataDir": dir.data_dir(), "ranges": [[{"subnet": 5}]]});
    let failure = dir.call("host-local").command("ADD").config(&config).fails(6);
    names_type(&failure, "ipam.ranges[0][0].subnet", &["number", "integer"]);
}

#[test]
fn integers_are_written_as_integers() {
    let dir = Workdir::new();
    for number in ["1.5", "1e3", "5.0", "99999999999999999999", "\"5\""] {
        let config = static_config("1.1.0").to_string();
        let routes = format!(r#""type":"static","routes":[{{"dst":"10.0.0.0/8","mtu":{number}}}]"#);
        let config = config.replace(r#""type":"static""#, &routes);
        assert!(config.contains(number));
        let failure = add(&dir, config).err();
        assert!(matches!(failure.code, 6 | 7), "code {}", failure.code);
        failure.names(&["ipam.routes[0].mtu"]);
    }
}

#[test]
fn values_that_cannot_be_are_named_with_key_and_value() {
    let dir = Workdir::new();
    for (key, value, words) in [
        ("addresses", json!([{"address": "10.1.0.5"}]), ["address", "10.1.0.5"]),
        ("addresses", json!([{"address": "10.1.0.5/33"}]), ["address", "10.1.0.5/33"]),
        ("addresses", json!([{"address": "10.1.0.05/24"}]), ["address", "10.1.0.05/24"]),
        ("addresses", json!([{"address": "fe80::1%eth0/64"}]), ["address", "fe80::1%eth0/64"]),
        ("addresses", json!([{"address": "10.1.0.5/24", "gateway": "10.1.0"}]), ["gateway", "10.1.0"]),
        ("routes", json!([{"dst": "default"}]), ["dst", "default"]),
        ("routes", json!([{"dst": "10.0.0.0/8", "gw": "x"}]), ["gw", "x"]),
    ] {
        let mut config = static_config("1.1.0");
        config["ipam"][key] = value;
        add(&dir, config.to_string()).fails(7).names(&words);
    }
}
