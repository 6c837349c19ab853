//! The daemon killed at any moment of an ADD: the next one takes back what nobody knows of, and nothing is left behind.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::scripted::Scripted;
use crate::site::{Site, records};
use crate::support::require_netns;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 50);

#[test]
fn a_daemon_killed_at_any_moment_of_add_leaves_no_reservation_and_no_file() {
    require_netns!();
    let site = Site::new();
    let server = Scripted::start(&site, |m| m.usual(ADDRESS, [100, 200, 300]));
    for round in 0..14u64 {
        let before = server.heard().len();
        site.start_daemon("");
        let container = site.node.container();
        let outcome = std::thread::scope(|scope| {
            let add = scope.spawn(|| site.add(&container, json!({"daemon": "required"})));
            std::thread::sleep(Duration::from_millis(20 + round * 20));
            site.stop_daemon();
            add.join().unwrap()
        });
        let done = outcome.status == Some(0);
        // The failed ADD has run DEL, which releases what it knows of without a daemon. One that worked stays.
        site.start_daemon("");
        let leases = site.leases();
        assert_eq!(leases.len(), usize::from(done), "round {round}: {leases:?}\n{outcome}");
        if done {
            assert_eq!(leases[0]["ipv4"]["state"], "BOUND");
            let (plugin, config) = ("bridge", site.config(json!({})));
            let del = site.node.request("DEL", &container, "eth0", &config);
            assert_eq!(config["type"], plugin);
            del.silent();
        }
        assert!(records(&site).is_empty() && container.links().is_empty(), "round {round}");
        let heard = |kind: &str| server.kinds()[before..].contains(&kind);
        let asked = heard("REQUEST");
        site.eventually("what was asked for is given back", |_| heard("RELEASE") == asked);
    }
}

/// The record is what a daemon has written that was killed after a server gave another address, and before the interface had
/// it.
#[test]
fn a_daemon_killed_between_a_new_lease_and_the_interface_is_continued_there() {
    require_netns!();
    let site = Site::new();
    let _server = Scripted::start(&site, |m| m.usual(ADDRESS, [100, 200, 300]));
    site.start_daemon("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    site.stop_daemon();
    let path = records(&site).remove(0);
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(record["v4"]["address"], "10.7.0.50");
    record["v4"]["address"] = json!("10.7.0.60");
    std::fs::write(&path, record.to_string()).unwrap();
    site.start_daemon("");
    assert_eq!(container.addresses("eth0"), ["10.7.0.60/24"]);
    assert_eq!(container.find_route(4, "default").unwrap()["gateway"], "10.7.0.1");
    assert!(container.pings("10.7.0.1"));
    attachment.del();
    assert!(records(&site).is_empty());
}
