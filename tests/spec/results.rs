//! Results in the shape of each protocol version.

use serde_json::{Value, json};

use crate::static_config;
use crate::support::{VERSIONS, Workdir};

/// Two families, routes with everything, and DNS.
fn rich_config(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "net", "type": "bridge",
        "ipam": {
            "type": "static",
            "addresses": [
                {"address": "10.1.0.5/24", "gateway": "10.1.0.1"},
                {"address": "fd00:1::5/64", "gateway": "fd00:1::1"},
            ],
            "routes": [
                {"dst": "0.0.0.0/0"},
                {"dst": "fd00:2::/64", "gw": "fd00:1::9"},
                {"dst": "192.0.2.0/24", "gw": "10.1.0.9", "mtu": 1400, "advmss": 1300, "priority": 10, "table": 5000, "scope": 0},
            ],
            "dns": {"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:1"]},
        },
    })
}

fn dns() -> Value {
    json!({"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:1"]})
}

fn add(config: &Value) -> Value {
    Workdir::new().call("static").command("ADD").config(config).ok()
}

#[test]
fn from_1_0_0_on_addresses_have_no_version() {
    let expected = json!({
        "cniVersion": "1.1.0",
        "ips": [
            {"address": "10.1.0.5/24", "gateway": "10.1.0.1"},
            {"address": "fd00:1::5/64", "gateway": "fd00:1::1"},
        ],
        "routes": [
            {"dst": "0.0.0.0/0"},
            {"dst": "fd00:2::/64", "gw": "fd00:1::9"},
            {"dst": "192.0.2.0/24", "gw": "10.1.0.9", "mtu": 1400, "advmss": 1300, "priority": 10, "table": 5000, "scope": 0},
        ],
        "dns": dns(),
    });
    assert_eq!(add(&rich_config("1.1.0")), expected);
    let mut older = add(&rich_config("1.0.0"));
    assert_eq!(older["cniVersion"], "1.0.0");
    assert_eq!(older["ips"], expected["ips"]);
    assert_eq!(older["dns"], expected["dns"]);
    let routes = older["routes"].as_array_mut().unwrap();
    assert_eq!((routes.len(), &routes[2]["gw"]), (3, &json!("10.1.0.9")));
}

#[test]
fn from_0_3_0_to_0_4_0_addresses_say_their_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        let result = add(&rich_config(version));
        assert_eq!(result["cniVersion"], version);
        assert_eq!(
            result["ips"],
            json!([
                {"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
                {"version": "6", "address": "fd00:1::5/64", "gateway": "fd00:1::1"},
            ])
        );
        assert_eq!(result["routes"][1], json!({"dst": "fd00:2::/64", "gw": "fd00:1::9"}));
        assert_eq!(result["dns"], dns());
        assert!(result.get("interfaces").is_none());
    }
}

#[test]
fn before_0_3_0_there_is_one_object_per_family() {
    for version in ["0.1.0", "0.2.0"] {
        let expected = json!({
            "cniVersion": version,
            "ip4": {
                "ip": "10.1.0.5/24", "gateway": "10.1.0.1",
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.1.0.9"}],
            },
            "ip6": {"ip": "fd00:1::5/64", "gateway": "fd00:1::1", "routes": [{"dst": "fd00:2::/64", "gw": "fd00:1::9"}]},
            "dns": dns(),
        });
        assert_eq!(add(&rich_config(version)), expected);
    }
}

#[test]
fn routes_of_a_family_without_address_are_dropped_before_0_3_0() {
    let mut config = rich_config("0.2.0");
    config["ipam"]["addresses"].as_array_mut().unwrap().remove(1);
    let result = add(&config);
    assert!(result.get("ip6").is_none());
    assert_eq!(result["ip4"]["routes"].as_array().unwrap().len(), 2);
}

#[test]
fn dns_is_always_there_up_to_0_4_0_and_only_when_set_later() {
    for version in VERSIONS {
        let result = add(&static_config(version));
        if version <= "0.4.0" {
            assert_eq!(result["dns"], json!({}), "{version}");
        } else {
            assert!(result.get("dns").is_none(), "{version}");
        }
    }
}

#[test]
fn empty_lists_and_unset_fields_are_left_out() {
    let mut config = static_config("1.1.0");
    config["ipam"]["addresses"][0] = json!({"address": "10.1.0.5/24", "gateway": ""});
    config["ipam"]["routes"] = json!([{"dst": "10.0.0.0/8", "gw": "", "mtu": 0, "advmss": 0, "priority": 0}]);
    assert_eq!(
        add(&config),
        json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "10.0.0.0/8"}]})
    );
    config["ipam"] = json!({"type": "static", "addresses": [], "routes": []});
    assert_eq!(add(&config), json!({"cniVersion": "1.1.0"}));
    config["cniVersion"] = "0.4.0".into();
    assert_eq!(add(&config), json!({"cniVersion": "0.4.0", "dns": {}}));
}

#[test]
fn a_table_or_scope_of_zero_is_not_the_same_as_none() {
    let mut config = static_config("1.1.0");
    config["ipam"]["routes"] =
        json!([{"dst": "10.0.0.0/8", "table": 0, "scope": 0}, {"dst": "10.0.0.0/9", "table": null}]);
    assert_eq!(
        add(&config)["routes"],
        json!([{"dst": "10.0.0.0/8", "table": 0, "scope": 0}, {"dst": "10.0.0.0/9"}])
    );
}

#[test]
fn a_result_without_address_cannot_be_said_before_0_3_0() {
    let dir = Workdir::new();
    for version in ["", "0.1.0", "0.2.0"] {
        let mut config = static_config(version);
        config["ipam"]["addresses"] = json!([]);
        let failure = dir.call("static").command("ADD").config(&config).err();
        failure.names(&["cannot convert: no valid IP addresses"]);
    }
}

#[test]
fn addresses_are_printed_in_canonical_form() {
    for (written, printed) in [
        ("10.1.0.5/024", "10.1.0.5/24"),
        ("FD00:0:0::00A5/64", "fd00::a5/64"),
        ("fd00:0:0:1:0:0:0:1/64", "fd00:0:0:1::1/64"),
        ("::ffff:10.0.0.2/120", "10.0.0.2/24"),
    ] {
        let mut config = static_config("0.4.0");
        config["ipam"]["addresses"] = json!([{"address": written}]);
        let version = if printed.contains(':') { "6" } else { "4" };
        assert_eq!(add(&config)["ips"], json!([{"version": version, "address": printed}]), "{written}");
    }
}

#[test]
fn host_bits_of_an_address_are_kept_and_those_of_a_gateway_too() {
    let mut config = static_config("1.1.0");
    config["ipam"]["addresses"] = json!([{"address": "10.1.255.255/16", "gateway": "10.1.0.0"}]);
    assert_eq!(add(&config)["ips"], json!([{"address": "10.1.255.255/16", "gateway": "10.1.0.0"}]));
}
