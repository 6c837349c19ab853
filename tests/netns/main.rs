//! The real executable on a real kernel: what it makes, what traffic gets through, what is left afterwards.
//!
//! Every test has a node of its own (see `support`), so they run side by side and need not clean up.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod bandwidth;
mod bridge;
mod bridge_config;
mod bridge_gateway;
mod bridge_ipv6;
mod bridge_ports;
mod bridge_spoof;
mod bridge_vlan;
mod check;
mod concurrency;
mod delegation;
mod failure;
mod firewall;
mod firewall_hosts;
mod firewall_isolation;
mod flannel;
mod gc_status;
mod host_device;
mod host_device_others;
mod host_namespace;
mod inputs;
mod loopback;
mod masquerade;
mod portmap;
mod portmap_contested;
mod portmap_takeover;
mod ptp;
mod reuse;
mod routes;
mod sbr;
mod show;
mod sublinks;
mod tap;
mod tc_redirect_tap;
mod teardown;
mod tuning;
mod update;
mod upgrade;
mod vrf;

use serde_json::{Value, json};

use support::Node;

/// A bridge with a gateway address and one IPv4 range with a default route.
fn bridge_config(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": node.data_dir(), "subnet": "10.1.0.0/24",
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    })
}

/// The same with an IPv6 range beside it.
fn dual_stack_config(node: &Node) -> Value {
    let mut config = bridge_config(node);
    config["ipam"] = json!({
        "type": "host-local", "dataDir": node.data_dir(),
        "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    });
    config
}

/// A configuration with some of its keys set anew.
fn with(config: Value, changes: Value) -> Value {
    let (mut config, Value::Object(changes)) = (config, changes) else { panic!("changes are an object") };
    for (key, value) in changes {
        config[&key] = value;
    }
    config
}

/// A configuration whose `ipam` is `static` with these addresses and routes.
fn with_static(config: Value, addresses: Value, routes: Value) -> Value {
    with(config, json!({"ipam": {"type": "static", "addresses": addresses, "routes": routes}}))
}
