//! Links on a link of the host: `vlan`, `macvlan`, `ipvlan`; and the `dummy`. What is the same for all is tested for each
//! kind that the kernel has.

mod conf;
mod dummy;
mod ipvlan;
mod macvlan;
mod mtu;
mod removal;
mod shim;
mod vlan;

use serde_json::{Value, json};

use crate::support::{Netns, Node, Outside};

/// The VLAN of the tests.
const VLAN: &str = "5";

/// Makes each function, which takes a kind, a test for each kind of link on a master.
macro_rules! for_each_kind {
    ($($test:ident),+ $(,)?) => {
        for_each_kind!(@ vlan: $($test),+);
        for_each_kind!(@ macvlan: $($test),+);
        for_each_kind!(@ ipvlan: $($test),+);
    };
    (@ $kind:ident: $($test:ident),+) => {
        mod $kind {
            $(#[test]
            fn $test() {
                crate::support::require_kind!(stringify!($kind));
                super::$test(stringify!($kind));
            })+
        }
    };
}
pub(crate) use for_each_kind;

/// The link that the kind's neighbours are on.
fn neighbours_link(kind: &str) -> &'static str {
    if kind == "vlan" { "out0.5" } else { "out0" }
}

/// A node whose outside world is a neighbour in the containers' networks, with the addresses of their gateways.
fn node_with_neighbour(kind: &str) -> (Node, Outside) {
    let node = Node::new();
    let outside = node.outside();
    let link = neighbours_link(kind);
    if kind == "vlan" {
        outside.run(&format!("ip link add link out0 name out0.5 type vlan id {VLAN}"));
        outside.run("ip link set out0.5 up");
    }
    outside.ip(&[
        format!("addr add 10.1.0.1/24 dev {link}").as_str(),
        format!("addr add fd00:1::1/64 dev {link} nodad").as_str(),
    ]);
    outside.eventually("its addresses can be used", |ns| {
        ns.address_objects(link).iter().all(|address| address["tentative"] != true)
    });
    (node, outside)
}

/// A dual-stack configuration on the node's `uplink`, with default routes to the neighbour.
fn config(node: &Node, kind: &str) -> Value {
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": kind, "master": "uplink",
        "ipam": {
            "type": "host-local", "dataDir": node.data_dir(),
            "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    });
    if kind == "vlan" {
        config["vlanId"] = json!(5);
    }
    config
}

/// What `ip -d` says about the settings of a link's kind.
fn settings(netns: &Netns, link: &str) -> Value {
    netns.link(link)["linkinfo"]["info_data"].clone()
}
