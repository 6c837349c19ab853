//! DHCPv6 and router advertisements.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::site::{Site, records};
use crate::support::{Container, patience, require_netns, require_tool};

/// A site where `cni0` advertises fd07::/64, with these flags for dnsmasq's range.
fn with_dnsmasq6(range: &str) -> Site {
    Site::with_dnsmasq(&format!(
        "--enable-ra --ra-param=cni0,10,60 --dhcp-range={range} --dhcp-option=option6:dns-server,[fd07::53] \
         --dhcp-option=option6:domain-search,six.example.org"
    ))
}

fn v6(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.filter_map(|ip| ip["address"].as_str()).filter(|a| a.contains(':')).map(str::to_owned).collect()
}

fn global(container: &Container) -> Vec<String> {
    container.addresses("eth0").into_iter().filter(|a| a.contains(':')).collect()
}

/// Neither an address nor a default route.
fn has_no_ipv6(container: &Container) -> bool {
    global(container).is_empty() && container.find_route(6, "default").is_none()
}

#[test]
fn a_dhcpv6_server_and_a_dhcp_server_make_a_dual_stack_result() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = with_dnsmasq6("fd07::100,fd07::1ff,64,2m");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({"ipv6": "dhcpv6"}));
    let addresses = v6(&attachment.result);
    assert_eq!(addresses.len(), 1, "{:#}", attachment.result);
    assert!(addresses[0].starts_with("fd07::1") && addresses[0].ends_with("/128"), "{addresses:?}");
    assert_eq!(global(&container), addresses);
    assert!(attachment.ip(0).starts_with("10.7.0."));
    // A router may take longer than a container waits: then its routes follow.
    site.eventually("routes of the router", |_| {
        container.find_route(6, "default").is_some() && container.find_route(6, "fd07::/64").is_some()
    });
    assert_eq!(attachment.result["dns"]["nameservers"].as_array().unwrap().last().unwrap(), "fd07::53");
    assert!(container.pings("fd07::1"));
    attachment.check();
    assert_eq!(site.leases()[0]["ipv6"]["state"], "BOUND");

    let before = site.server_log().matches("DHCPSOLICIT").count();
    site.stop_daemon();
    site.start_daemon("");
    attachment.check();
    assert_eq!(site.server_log().matches("DHCPSOLICIT").count(), before, "asked again");
    assert_eq!(global(&container), addresses);

    attachment.del();
    site.eventually("both are released", |s| {
        let log = s.server_log();
        let address = addresses[0].split('/').next().unwrap();
        log.contains("DHCPRELEASE(cni0) 10.7")
            && log.contains("DHCPRELEASE(cni0)")
            && log.contains(address)
            && log.matches("DHCPRELEASE").count() >= 2
    });
    assert!(records(&site).is_empty());
}

#[test]
fn addresses_from_router_advertisements_alone() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = with_dnsmasq6("fd07::,ra-only,64,2m");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({"ipv4": false, "ipv6": "slaac"}));
    let addresses = v6(&attachment.result);
    assert_eq!(addresses.len(), 1, "{:#}", attachment.result);
    assert!(addresses[0].starts_with("fd07::") && addresses[0].contains("ff:fe"), "{addresses:?}");
    assert_eq!(global(&container), addresses, "the kernel makes none of its own");
    assert!(container.find_route(6, "default").unwrap()["gateway"].as_str().unwrap().starts_with("fe80::"));
    assert!(container.pings("fd07::1"));
    attachment.check();
    attachment.del();
}

#[test]
fn what_the_kernel_heard_from_routers_before_is_no_obstacle() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = with_dnsmasq6("fd07::,ra-only,64,2m");
    let container = site.node.container();
    site.connect("h0", &container);
    container.ip(&["link set eth0 up"]);
    site.within(20, "the kernel has an address and a route of its own", |_| {
        !global(&container).is_empty() && container.find_route(6, "default").is_some()
    });
    let result = site.dhcp("ADD", &container, json!({"ipv4": false, "ipv6": "slaac"})).ok();
    assert_eq!(v6(&result).len(), 1);
    assert!(has_no_ipv6(&container), "the main plugin sets them");
}

#[test]
fn both_give_two_addresses() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = with_dnsmasq6("fd07::100,fd07::1ff,slaac,64,2m");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({"ipv6": "both"}));
    assert_eq!(v6(&attachment.result).len(), 2, "{:#}", attachment.result);
    assert!(container.pings("fd07::1"));
}

#[test]
fn without_a_router_or_server_the_error_says_what_is_missing() {
    require_netns!();
    let site = Site::new();
    site.start_daemon("-resendtimeout 1500ms");
    let container = site.node.container();
    let failure = site.add(&container, json!({"ipv4": false, "ipv6": "slaac"})).err();
    failure.names(&["no router advertises a prefix"]);
    let failure = site.add(&container, json!({"ipv6": "dhcpv6"})).err();
    failure.names(&["no IPv4 lease", "no DHCPv6 server answers"]);
}

/// A site where radvd tells of a prefix that is valid so many seconds, by a router that is one for so many.
fn with_radvd(valid: u32, lifetime: u32) -> Site {
    let site = Site::new();
    let conf = format!(
        "interface cni0 {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; AdvDefaultLifetime {lifetime};\n\
         AdvLinkMTU 1400;\n prefix fd07::/64 {{ AdvOnLink on; AdvAutonomous on; AdvValidLifetime {valid};\n\
         AdvPreferredLifetime {valid}; }};\n RDNSS fd07::53 {{ }}; DNSSL ra.example.org {{ }};\n\
         route fd99::/48 {{ }}; }};\n"
    );
    let (conf, pid) = (site.node.workdir().file("radvd.conf", conf), site.path("radvd.pid"));
    site.node.set_sysctl("net/ipv6/conf/all/forwarding", "1");
    site.serve(&format!("radvd -n -m stderr -d 1 -C {} -p {} -u root", conf.display(), pid.display()));
    site.start_daemon("");
    site
}

#[test]
fn radvd_advertises_and_a_withdrawn_prefix_leaves_the_interface() {
    require_netns!();
    require_tool!("radvd");
    let site = with_radvd(6, 9);
    let container = site.node.container();
    let attachment = site.attach(&container, json!({"ipv4": false, "ipv6": "slaac"}));
    assert_eq!(v6(&attachment.result).len(), 1);
    assert_eq!(attachment.result["dns"], json!({"nameservers": ["fd07::53"], "search": ["ra.example.org"]}));
    assert!(container.find_route(6, "fd99::/48").is_some());
    assert_eq!(container.link("eth0")["mtu"], 1400);
    site.stop_servers();
    site.within(15, "address and routes are gone", |_| has_no_ipv6(&container));
}

#[test]
fn a_killed_daemons_addresses_from_routers_go_on_in_the_next_one() {
    require_netns!();
    require_tool!("radvd");
    let site = with_radvd(12, 12);
    let container = site.node.container();
    let attachment = site.attach(&container, json!({"ipv4": false, "ipv6": "slaac"}));
    let addresses = v6(&attachment.result);
    let started = Instant::now();
    for _ in 0..3 {
        site.stop_daemon();
        site.start_daemon("");
        attachment.check();
        assert_eq!(site.attach_again(&attachment)["ips"][0]["address"], addresses[0]);
        assert_eq!(global(&container), addresses);
    }
    // Longer than what the first daemon was told at first: the router was heard again.
    std::thread::sleep(Duration::from_secs(14).saturating_sub(started.elapsed()));
    assert_eq!(global(&container), addresses);
    assert!(!site.daemon_log().contains("ip addr"), "no gap: {}", site.daemon_log());
    attachment.check();
    // Without a router: what the dead daemon was told is known to the next one, and so is its end.
    site.stop_daemon();
    site.stop_servers();
    site.start_daemon("");
    attachment.check();
    assert_eq!(global(&container), addresses);
    site.within(20, "the address has ended", |_| has_no_ipv6(&container));
}

#[test]
fn what_ends_while_no_daemon_runs_leaves_the_interface_when_the_next_one_starts() {
    require_netns!();
    require_tool!("radvd");
    let site = with_radvd(6, 6);
    let container = site.node.container();
    let _attachment = site.attach(&container, json!({"ipv4": false, "ipv6": "slaac"}));
    site.stop_daemon();
    site.stop_servers();
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(global(&container).len(), 1);
    site.start_daemon("");
    site.eventually("gone", |_| global(&container).is_empty());
}

#[test]
fn name_servers_of_a_dhcpv6_server_go_with_addresses_from_a_router() {
    require_netns!();
    require_tool!("dnsmasq");
    // Router advertisements with the flag O, and a server that gives no addresses.
    let site = with_dnsmasq6("fd07::,ra-stateless,64,2m");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({"ipv4": false, "ipv6": "slaac"}));
    assert_eq!(v6(&attachment.result).len(), 1, "{:#}", attachment.result);
    assert!(attachment.result["dns"]["nameservers"].as_array().unwrap().contains(&json!("fd07::53")));
    assert_eq!(attachment.result["dns"]["search"], json!(["six.example.org"]));
    let asked = site.server_log().matches("DHCPINFORMATION-REQUEST").count();
    assert_eq!(asked, 1, "{}", site.server_log());
    site.stop_daemon();
    site.start_daemon("");
    let again = site.attach_again(&attachment);
    assert_eq!(again["dns"], attachment.result["dns"]);
    assert_eq!(site.server_log().matches("DHCPINFORMATION-REQUEST").count(), asked, "asked again");
}

#[test]
fn a_lost_dhcpv6_release_is_sent_again_behind_del() {
    require_netns!();
    require_tool!("dnsmasq");
    require_tool!("nft");
    let site = with_dnsmasq6("fd07::100,fd07::1ff,64,2m");
    let container = site.node.container();
    site.connect("h0", &container);
    let call = |command: &str| site.dhcp(command, &container, json!({"ipv4": false, "ipv6": "dhcpv6"}));
    call("ADD").ok();
    // RELEASE (8) is lost.
    site.node.run("nft add table ip6 lossy");
    site.node.run("nft add chain ip6 lossy in { type filter hook input priority 0; }");
    site.node.run("nft add rule ip6 lossy in udp dport 547 @th,64,8 8 drop");
    let del = call("DEL");
    del.ok();
    assert!(del.elapsed < patience(Duration::from_millis(700)), "{:?}", del.elapsed);
    assert!(site.leases().is_empty() && records(&site).is_empty());
    assert!(!site.server_log().contains("DHCPRELEASE"));
    site.node.run("nft delete table ip6 lossy");
    site.eventually("released", |s| s.server_log().contains("DHCPRELEASE"));
    // The attachment may be made again meanwhile, and is not disturbed.
    call("ADD").ok();
    assert_eq!(site.leases()[0]["ipv6"]["state"], "BOUND");
}
