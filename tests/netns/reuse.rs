//! An address that a new container takes over works at once for a peer that remembers the old one's MAC.

use std::time::Duration;

use serde_json::json;

use crate::support::{Node, patience, require_netns};
use crate::{dual_stack_config, with};

const LIMIT: Duration = Duration::from_millis(100);

#[test]
fn a_peer_with_a_stale_neighbour_entry_connects_within_100_ms() {
    require_netns!();
    for plugin in ["bridge", "ptp"] {
        let node = Node::new();
        let config = with(dual_stack_config(&node), json!({"type": plugin}));
        let fixed =
            with(config.clone(), json!({"runtimeConfig": {"ips": ["10.1.0.77/24", "fd00:1::77/64"]}}));
        let peer = node.container();
        node.attach(&peer, "eth0", &config);
        let old = node.container();
        let attachment = node.attach(&old, "eth0", &fixed);
        let old_mac = attachment.mac();
        for address in ["10.1.0.77", "fd00:1::77"] {
            for from in [&*peer, &*node] {
                from.time_to_connect(&old, address).unwrap_or_else(|e| panic!("{plugin} {address}: {e}"));
            }
        }
        attachment.del();
        drop(old);
        let new = node.container();
        let attachment = node.attach(&new, "eth0", &fixed);
        assert_ne!(attachment.mac(), old_mac);
        for address in ["10.1.0.77", "fd00:1::77"] {
            for (who, from) in [("another container", &*peer), ("the host", &*node)] {
                let took = from.time_to_connect(&new, address);
                let took = took.unwrap_or_else(|e| panic!("{plugin}: {who} to {address}: {e}"));
                assert!(took < patience(LIMIT), "{plugin}: {who} to {address} took {took:?}");
            }
        }
    }
}
