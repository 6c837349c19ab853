//! A real server behind a path that loses, delays, doubles and damages packets.

use serde_json::json;

use crate::site::Site;
use crate::support::{Container, require_netns, require_tool, skip_for_kernel};

/// Loses what comes to the server's ports, and what it sends from them, if it matches: as a packet filter.
fn lose(site: &Site, directions: &[&str], which: &str) {
    site.node.run("nft add table inet lossy");
    for direction in directions {
        let port = if *direction == "input" { "dport" } else { "sport" };
        let chain = format!("nft add chain inet lossy {direction}");
        site.node.run(&format!("{chain} {{ type filter hook {direction} priority 0; }}"));
        let rule = format!("nft add rule inet lossy {direction} udp {port}");
        site.node.run(&format!("{rule} {{ 67, 547 }} {which} counter drop"));
    }
}

/// Every rule of [`lose`] has lost something.
fn must_have_lost(site: &Site) {
    let lost = site.node.run("nft list table inet lossy");
    assert!(lost.contains("counter packets") && !lost.contains("counter packets 0 "), "{lost}");
}

#[test]
fn every_second_exchange_lost_delays_leases_and_renewals_and_no_more() {
    require_netns!();
    require_tool!("dnsmasq");
    require_tool!("nft");
    let site = Site::new();
    site.dnsmasq("--dhcp-option=option:T1,2 --dhcp-option=option:T2,12");
    lose(&site, &["input", "output"], "numgen random mod 100 < 30");
    site.start_daemon("-timeout 100ms -resendmax 800ms");
    let containers: Vec<Container> = (0..8).map(|_| site.node.container()).collect();
    let attached = std::thread::scope(|scope| {
        let site = &site;
        let adds: Vec<_> = containers.iter().map(|c| scope.spawn(|| site.attach(c, json!({})))).collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect::<Vec<_>>()
    });
    let mut addresses: Vec<String> = attached.iter().map(|attachment| attachment.ip(0)).collect();
    let renewed = |site: &Site| {
        let log = site.server_log();
        addresses.iter().filter(|a| log.matches(&format!("DHCPACK(cni0) {a}")).count() >= 2).count()
    };
    site.within(30, "half of them are renewed", |site| renewed(site) >= 4);
    for (container, address) in containers.iter().zip(&addresses) {
        assert_eq!(container.addresses("eth0"), [format!("{address}/24")]);
    }
    must_have_lost(&site);
    assert!(!site.daemon_log().contains("expired"), "{}", site.daemon_log());
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 8);
    attached.iter().for_each(|attachment| attachment.check());
}

#[test]
fn lost_dhcpv6_packets_are_sent_again() {
    require_netns!();
    require_tool!("dnsmasq");
    require_tool!("nft");
    let site = Site::new();
    site.dnsmasq("--enable-ra --ra-param=cni0,10,60 --dhcp-range=fd07::100,fd07::1ff,64,2m");
    // Every second one.
    lose(&site, &["input"], "meta l4proto udp udp dport 547 numgen inc mod 2 == 0");
    site.start_daemon("");
    for _ in 0..2 {
        let container = site.node.container();
        site.attach(&container, json!({"ipv4": false, "ipv6": "dhcpv6"})).check();
        container.unmount();
    }
    must_have_lost(&site);
}

/// Both ways are damaged by the kernel's network emulator.
#[test]
fn packets_that_are_lost_delayed_doubled_and_damaged_give_the_right_lease_in_the_end() {
    require_netns!();
    require_tool!("dnsmasq");
    require_tool!("tc");
    let site = Site::new();
    let netem = "root netem loss 15% delay 10ms 10ms duplicate 20% corrupt 5%";
    if !site.node.try_run(&format!("tc qdisc add dev port1 {netem}")).status.success() {
        return skip_for_kernel("this kernel has no netem");
    }
    site.dnsmasq("--enable-ra --ra-param=cni0,10,60 --dhcp-range=fd07::100,fd07::1ff,64,2m");
    site.start_daemon("-timeout 100ms -resendmax 800ms");
    let containers: Vec<Container> = (0..4).map(|_| site.node.container()).collect();
    for (round, container) in containers.iter().enumerate() {
        let host = format!("h{round}");
        site.connect(&host, container);
        container.ip(&["link set eth0 up"]);
        site.node.run(&format!("tc qdisc add dev {host} {netem}"));
        container.run(&format!("tc qdisc add dev eth0 {netem}"));
        let result = site.dhcp("ADD", container, json!({"ipv6": "dhcpv6"})).ok();
        let addresses: Vec<&str> =
            result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
        assert!(addresses.len() == 2 && addresses[0].starts_with("10.7.0."), "{addresses:?}");
        assert!(addresses[0].ends_with("/24") && addresses[1].starts_with("fd07::1"), "{addresses:?}");
        assert_eq!(result["ips"][0]["gateway"], "10.7.0.1");
        site.dhcp("CHECK", container, json!({"ipv6": "dhcpv6"})).ok();
    }
    assert_eq!(site.leases().len(), 4);
}
