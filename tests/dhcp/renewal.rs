//! The life of a lease after ADD: renewed, rebound, refused, expired; and what the interface has then.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::scripted::{ACK, Heard, NAK, OFFER, Scripted};
use crate::site::Site;
use crate::support::{Container, patience, require_netns};

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 50);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 60);

fn addresses(container: &Container) -> Vec<String> {
    container.addresses("eth0")
}

#[test]
fn a_lease_is_renewed_by_unicast_from_its_address() {
    require_netns!();
    let site = Site::new();
    let server = Scripted::start(&site, |m| match m.name() {
        "RENEW" => vec![m.grant(ACK, FIRST, [1, 3, 4])],
        _ => m.usual(FIRST, [1, 3, 4]),
    });
    site.start_daemon("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    site.eventually("renewed three times", |_| server.count("RENEW") >= 3);
    let heard = server.heard();
    let renewals: Vec<&Heard> = heard.iter().filter(|m| m.name() == "RENEW").collect();
    assert!(renewals.iter().all(|m| m.from == FIRST && m.ciaddr == FIRST && !m.options.contains_key(&50)));
    assert_eq!(addresses(&container), ["10.7.0.50/24"]);
    attachment.del();
    site.eventually("released", |_| server.count("RELEASE") == 1);
    let release = server.heard().pop().unwrap();
    assert_eq!((release.from, release.ciaddr), (FIRST, FIRST));
    assert_eq!(release.options[&61], renewals[0].options[&61]);
    assert_eq!(release.options[&54], [10, 7, 0, 1]);
}

#[test]
fn a_daemon_killed_in_between_goes_on_renewing() {
    require_netns!();
    let site = Site::new();
    let server = Scripted::start(&site, |m| match m.name() {
        "RENEW" => vec![m.grant(ACK, FIRST, [2, 8, 10])],
        _ => m.usual(FIRST, [2, 8, 10]),
    });
    site.start_daemon("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    for round in 1..=2 {
        site.stop_daemon();
        site.start_daemon("");
        site.eventually("renewed", |_| server.count("RENEW") >= round);
    }
    assert_eq!((server.count("DISCOVER"), server.count("REQUEST")), (1, 1), "{:?}", server.kinds());
    assert_eq!(addresses(&container), ["10.7.0.50/24"]);
    attachment.check();
}

#[test]
fn another_address_on_rebinding_replaces_the_first_on_the_interface() {
    require_netns!();
    let site = Site::new();
    let mut renewals = 0;
    let server = Scripted::start(&site, move |m| match m.name() {
        // The first is for the server that gave the lease, the second for any.
        "RENEW" if renewals == 0 => {
            renewals += 1;
            vec![]
        }
        "RENEW" => vec![m.grant(ACK, SECOND, [600, 800, 1000])],
        _ => m.usual(FIRST, [1, 2, 30]),
    });
    site.start_daemon("");
    // Learns from announcements.
    site.node.set_sysctl("net/ipv4/conf/cni0/arp_accept", "1");
    let container = site.node.container();
    let _attachment = site.attach(&container, json!({}));
    assert_eq!(addresses(&container), ["10.7.0.50/24"]);
    site.eventually("the second address", |_| addresses(&container) == ["10.7.0.60/24"]);
    site.eventually("it is announced", |s| s.node.run("ip neigh show dev cni0").contains("10.7.0.60 lladdr"));
    assert_eq!(container.find_route(4, "default").unwrap()["gateway"], "10.7.0.1");
    assert!(container.pings("10.7.0.1"));
    assert!(site.daemon_log().contains("ip addr add 10.7.0.60/24 dev eth0"), "{}", site.daemon_log());
    assert!(server.count("RENEW") >= 2);
}

#[test]
fn a_lease_that_nobody_renews_ends_and_a_server_that_returns_gives_another() {
    require_netns!();
    let site = Site::new();
    let server = Scripted::start(&site, |m| m.usual(FIRST, [1, 2, 3]));
    let flags = "-timeout 500ms -resendtimeout 1s";
    site.start_daemon(flags);
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    drop(server);
    site.eventually("the interface is empty", |_| addresses(&container).is_empty());
    assert!(container.routes(4, "table main").is_empty());
    assert!(site.daemon_log().contains("has expired"), "{}", site.daemon_log());
    attachment.call("CHECK").fails(100).names(&["lease was lost"]);
    // ADD again waits as long as any, also for a daemon that has found it like that.
    let mut config = attachment.config.clone();
    config["type"] = json!("dhcp");
    for _ in 0..2 {
        let again = attachment.call_with("ADD", &config).run();
        again.err().names(&["no IPv4 lease", "no more tries"]);
        assert!(again.elapsed < patience(Duration::from_secs(3)), "{:?}", again.elapsed);
        site.stop_daemon();
        site.start_daemon(flags);
    }
    let _server = Scripted::start(&site, |m| match m.name() {
        "RENEW" => vec![m.grant(ACK, SECOND, [100, 200, 300])],
        _ => m.usual(SECOND, [100, 200, 300]),
    });
    site.eventually("another address", |_| addresses(&container) == ["10.7.0.60/24"]);
    assert!(container.pings("10.7.0.1"));
}

#[test]
fn a_refused_renewal_empties_the_interface_before_anything_else() {
    require_netns!();
    let site = Site::new();
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    let _server = Scripted::start(&site, move |m| match m.name() {
        "RENEW" => vec![m.reply(NAK, Ipv4Addr::UNSPECIFIED, &[(54, &[10, 7, 0, 1]), (56, b"moved")])],
        "DISCOVER" if counted.fetch_add(1, Ordering::Relaxed) > 0 => m.usual(SECOND, [100, 200, 300]),
        "REQUEST" if counted.load(Ordering::Relaxed) > 1 => m.usual(SECOND, [100, 200, 300]),
        _ => m.usual(FIRST, [1, 2, 3]),
    });
    site.start_daemon("");
    let container = site.node.container();
    let _attachment = site.attach(&container, json!({}));
    site.eventually("the new address alone", |_| addresses(&container) == ["10.7.0.60/24"]);
    let log = site.daemon_log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text} is missing in\n{log}"));
    assert!(at("NAK): moved") < at("ip addr del 10.7.0.50/24"));
    assert!(at("ip addr del 10.7.0.50/24") < at("ip addr add 10.7.0.60/24"));
}

#[test]
fn an_address_that_somebody_uses_is_declined() {
    require_netns!();
    let site = Site::new();
    // A neighbour has taken the first address by itself.
    let neighbour = site.node.container_named("neighbour");
    site.node.ip(&[
        &format!("link add port2 type veth peer name eth0 netns {}", neighbour.path()),
        "link set port2 master cni0 up",
    ]);
    neighbour.ip(&["addr add 10.7.0.50/24 dev eth0", "link set eth0 up"]);
    site.node.eventually("the neighbour answers", |node| node.pings("10.7.0.50"));
    let server = Scripted::start(&site, |m| match m.options.get(&50).map(Vec::as_slice) {
        Some([.., 60]) => m.usual(SECOND, [100, 200, 300]),
        Some(_) => m.usual(FIRST, [100, 200, 300]),
        None => vec![m.grant(OFFER, FIRST, [100, 200, 300])],
    });
    site.start_daemon("-resendtimeout 3s");
    let container = site.node.container();
    let failure = site.add(&container, json!({})).err();
    failure.names(&["somebody else uses 10.7.0.50"]);
    assert!(server.count("DECLINE") >= 1);
    let decline = server.heard().into_iter().find(|m| m.name() == "DECLINE").unwrap();
    assert_eq!(decline.options[&50], [10, 7, 0, 50]);

    let attachment = site.attach(&container, json!({"conflictDetection": false}));
    assert_eq!(attachment.ip(0), "10.7.0.50");
}

#[test]
fn the_same_container_anew_asks_for_its_address_first() {
    require_netns!();
    let site = Site::new();
    let server = Scripted::start(&site, |m| match m.name() {
        "REBOOT" => vec![m.grant(ACK, FIRST, [100, 200, 300])],
        _ => m.usual(FIRST, [100, 200, 300]),
    });
    site.start_daemon("");
    let before = site.node.container_named("c");
    let _ = site.attach(&before, json!({}));
    before.ip(&["link set eth0 down", "link del eth0"]);
    before.unmount();
    let after = site.node.container_named("c");
    let attachment = site.attach(&after, json!({}));
    assert_eq!(attachment.ip(0), "10.7.0.50");
    assert!(server.count("DISCOVER") + server.count("REBOOT") == 2, "{:?}", server.kinds());
}

#[test]
fn lost_packets_are_sent_again() {
    require_netns!();
    let site = Site::new();
    let mut dropped = 0;
    let server = Scripted::start(&site, move |m| {
        dropped += 1;
        if dropped % 3 != 0 { vec![] } else { m.usual(FIRST, [100, 200, 300]) }
    });
    site.start_daemon("-timeout 200ms");
    let container = site.node.container();
    site.attach(&container, json!({})).check();
    assert!(server.heard().len() >= 6);
}

#[test]
fn options_are_sent_as_they_are_configured() {
    require_netns!();
    let site = Site::new();
    let server = Scripted::start(&site, |m| m.usual(FIRST, [100, 200, 300]));
    site.start_daemon("-broadcast");
    let container = site.node.container();
    let more = json!({
        "provide": [
            {"option": "host-name", "value": "x", "fromArg": "K8S_POD_NAME"},
            {"option": "user-class", "value": "a,b", "type": "classes"},
            {"option": "vendor-class-identifier", "value": "cni"},
        ],
        "request": [{"option": "200"}],
        "priority": 7,
    });
    let call = site.node.request("ADD", &container, "eth0", &site.config(more));
    let result = call.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=pod").ok();
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.7.0.1", "priority": 7}]));
    let discover = &server.heard()[0];
    assert!(discover.broadcast);
    assert_eq!(discover.options[&12], b"pod");
    assert_eq!(discover.options[&77], [1, b'a', 1, b'b']);
    assert_eq!(discover.options[&60], b"cni");
    assert_eq!(discover.options[&55][..3], [200, 1, 121]);
    assert_eq!(discover.options[&57], 1500u16.to_be_bytes());
    assert_eq!(discover.options[&61], [b"\0", container.id().as_bytes(), b"/net/eth0"].concat());
}
