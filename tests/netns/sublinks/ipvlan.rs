//! What only ipvlan has: modes, and addresses from an earlier plugin of the list.

use serde_json::json;

use super::{config, node_with_neighbour, settings};
use crate::support::require_kind;
use crate::with;

#[test]
fn every_mode_is_set_and_checked() {
    require_kind!("ipvlan");
    let (node, _outside) = node_with_neighbour("ipvlan");
    for mode in ["l2", "l3", "l3s"] {
        let config = with(config(&node, "ipvlan"), json!({"mode": mode}));
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config);
        assert_eq!(settings(&container, "eth0")["mode"], mode);
        assert_eq!(attachment.mac(), node.link("uplink")["address"]);
        attachment.check();
        let other = if mode == "l3" { "l2" } else { "l3" };
        let other = with(config, json!({"mode": other, "prevResult": attachment.result}));
        attachment.call_with("CHECK", &other).fails(100).names(&["mode"]);
        attachment.del();
    }
}

#[test]
fn behind_another_plugin_it_takes_that_ones_interface_and_addresses() {
    require_kind!("ipvlan");
    let (node, _outside) = node_with_neighbour("ipvlan");
    let previous = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": "uplink"}],
        "ips": [{"address": "10.1.0.9/24", "gateway": "10.1.0.1", "interface": 0}, {"address": "fd00:1::9/64"}],
        "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["192.0.2.53"]},
    });
    let config =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "ipvlan", "prevResult": previous.clone()});
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(container.addresses("eth0"), ["10.1.0.9/24", "fd00:1::9/64"]);
    assert_eq!(attachment.result["interfaces"][0]["name"], "eth0");
    assert_eq!(attachment.result["interfaces"].as_array().unwrap().len(), 1);
    assert_eq!(attachment.result["dns"], previous["dns"]);
    assert!(container.pings("10.1.0.1"));
    attachment.check();
    attachment.del();
    assert!(container.links().is_empty());
    for interfaces in [json!([]), json!([{"name": "uplink"}, {"name": "other"}]), json!([{"name": ""}])] {
        let mut config = config.clone();
        config["prevResult"]["interfaces"] = interfaces;
        config["prevResult"]["ips"] = json!([{"address": "10.1.0.9/24"}]);
        node.request("ADD", &container, "eth0", &config).fails(7).names(&["master", "prevResult"]);
        assert!(container.links().is_empty());
    }
}
