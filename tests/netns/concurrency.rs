//! Many calls at once, on a node where nothing exists yet.

use serde_json::json;

use crate::support::{Node, require_netns};
use crate::{dual_stack_config, with};

#[test]
fn two_first_adds_at_once_both_succeed() {
    require_netns!();
    for plugin in ["bridge", "ptp"] {
        for _ in 0..5 {
            let node = Node::new();
            let containers = [node.container(), node.container()];
            let config = with(dual_stack_config(&node), json!({"type": plugin, "ipMasq": true}));
            let (node, config) = (&node, &config);
            std::thread::scope(|scope| {
                for container in &containers {
                    scope.spawn(move || node.request("ADD", container, "eth0", config).ok());
                }
            });
            for container in &containers {
                assert!(container.pings("10.1.0.1") && container.pings("fd00:1::1"), "{plugin}");
            }
        }
    }
}

#[test]
fn twenty_adds_and_dels_at_once_leave_nothing() {
    require_netns!();
    let node = Node::new();
    let config = with(dual_stack_config(&node), json!({"ipMasq": true, "macspoofchk": true}));
    node.attach(&node.container_named("first"), "eth0", &config).del();
    let before = node.snapshot();
    let containers: Vec<_> = (0..20).map(|_| node.container()).collect();
    let attached: Vec<_> = std::thread::scope(|scope| {
        let (node, config) = (&node, &config);
        let threads: Vec<_> =
            containers.iter().map(|c| scope.spawn(move || node.attach(c, "eth0", config))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(node.leases("net").len(), 40);
    let mut addresses: Vec<String> = attached.iter().map(|a| a.ip(0)).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 20, "an address was given twice");
    for (attachment, container) in attached.iter().zip(&containers) {
        attachment.check();
        assert!(container.pings("10.1.0.1"));
    }
    std::thread::scope(|scope| {
        for attachment in &attached {
            scope.spawn(move || attachment.del());
        }
    });
    crate::support::assert_same(&before, &node.snapshot());
}

#[test]
fn an_add_and_a_del_at_once_do_not_disturb_each_other() {
    require_netns!();
    let node = Node::new();
    let config = with(dual_stack_config(&node), json!({"ipMasq": true}));
    let containers: Vec<_> = (0..8).map(|_| node.container()).collect();
    let mut attached: Vec<_> = containers[..4].iter().map(|c| node.attach(c, "eth0", &config)).collect();
    std::thread::scope(|scope| {
        let (node, config) = (&node, &config);
        let adding: Vec<_> =
            containers[4..].iter().map(|c| scope.spawn(move || node.attach(c, "eth0", config))).collect();
        for attachment in attached.drain(..) {
            scope.spawn(move || attachment.del());
        }
        for thread in adding {
            thread.join().unwrap().check();
        }
    });
    assert_eq!((node.links_of_kind("veth").len(), node.leases("net").len()), (4, 8));
}

#[test]
fn two_dels_of_one_attachment_at_once_both_succeed() {
    require_netns!();
    let node = Node::new();
    let config = with(dual_stack_config(&node), json!({"ipMasq": true}));
    for _ in 0..3 {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config);
        let attachment = &attachment;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || attachment.del());
            }
        });
        assert!(node.links_of_kind("veth").is_empty() && node.leases("net").is_empty());
    }
}
