//! `mtu`, as a number and as `"auto"`.

use serde_json::{Value, json};

use super::{config, for_each_kind, node_with_neighbour};
use crate::support::{Node, require_netns};
use crate::{bridge_config, with};

for_each_kind![the_mtu_is_the_masters_unless_it_is_given];

fn the_mtu_is_the_masters_unless_it_is_given(kind: &str) {
    let (node, _outside) = node_with_neighbour(kind);
    node.ip(&[
        "link set uplink mtu 1450",
        "link add tunnel type veth peer name tunnelpeer",
        "addr add 198.51.100.1/24 dev tunnel",
        "link set tunnel mtu 1380 up",
        "link set tunnelpeer up",
    ]);
    let mtu_of = |mtu: Value| {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &with(config(&node, kind), json!({"mtu": mtu})));
        let found = container.link("eth0")["mtu"].as_u64().unwrap();
        assert_eq!(attachment.result["interfaces"][0]["mtu"], found);
        attachment.check();
        attachment.del();
        found
    };
    assert_eq!(mtu_of(Value::Null), 1450);
    assert_eq!(mtu_of(json!(0)), 1450);
    assert_eq!(mtu_of(json!(1400)), 1400);
    assert_eq!(mtu_of(json!("auto")), 1450);
    node.ip(&["route replace default via 198.51.100.9"]);
    assert_eq!(mtu_of(json!("auto")), 1380);
    node.ip(&["route replace default via 198.51.100.9 mtu 1300"]);
    assert_eq!(mtu_of(json!("auto")), 1300);
    node.ip(&["link set tunnel mtu 9000", "route replace default via 198.51.100.9"]);
    assert_eq!(mtu_of(json!("auto")), 1450);
}

#[test]
fn of_bridge_and_ptp_it_can_be_that_of_the_default_route() {
    require_netns!();
    for plugin in ["bridge", "ptp"] {
        let node = Node::new();
        let config = with(bridge_config(&node), json!({"type": plugin, "mtu": "auto"}));
        let mtu = |node: &Node| {
            let container = node.container();
            let attachment = node.attach(&container, "eth0", &config);
            let (inside, veth) = (container.link("eth0")["mtu"].clone(), attachment.host_veth());
            assert_eq!(node.link(&veth)["mtu"], inside);
            let interfaces = attachment.result["interfaces"].as_array().unwrap();
            assert_eq!(interfaces.last().unwrap()["mtu"], inside);
            inside
        };
        assert_eq!(mtu(&node), 1500);
        let _outside = node.outside();
        node.ip(&["link set uplink mtu 1420"]);
        assert_eq!(mtu(&node), 1420);
        let wrong = with(config.clone(), json!({"mtu": "jumbo"}));
        node.request("ADD", &node.container(), "eth0", &wrong).fails(6).names(&["mtu", "jumbo", "auto"]);
    }
}
