//! Interfaces of other kinds than a bridge's veth, and many of them.

use serde_json::{Value, json};

use crate::site::Site;
use crate::support::{has_kind, require_kind, require_netns, require_tool, skip_for_kernel};

/// A main plugin's interface on `port1`, the end of a veth pair whose other end is in the bridge.
fn on_port1(site: &Site, kind: &str, more: Value) -> Value {
    let mut config = site.config(more);
    config["type"] = json!(kind);
    config["master"] = json!("port1");
    config
}

#[test]
fn macvlan_and_ipvlan_interfaces_get_addresses_of_their_own() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("");
    for kind in ["macvlan mode bridge", "ipvlan mode l2"] {
        if !has_kind(kind) {
            skip_for_kernel(&format!("this kernel has no {kind}"));
            continue;
        }
        let containers = [site.node.container(), site.node.container()];
        let addresses = containers.each_ref().map(|container| {
            site.node.ip(&[
                &format!("link add sub link port1 type {kind}"),
                &format!("link set sub netns {} name eth0", container.path()),
            ]);
            let result = site.dhcp("ADD", container, json!({})).ok();
            assert!(container.link_has("eth0", "UP"));
            result["ips"][0]["address"].as_str().unwrap().to_owned()
        });
        assert_ne!(addresses[0], addresses[1], "{kind}");
        assert_eq!(site.leases().len(), 2);
        // A link has ports of one kind only.
        containers.iter().for_each(|container| container.ip(&["link del eth0"]));
        site.eventually("forgotten", |s| s.leases().is_empty());
    }
}

/// The plugin of each kind with DHCP: the link comes before the address, and goes after it.
#[test]
fn macvlan_ipvlan_and_host_device_get_addresses_and_give_them_back() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("");
    let mut skipped = Vec::new();
    for kind in ["macvlan", "ipvlan", "host-device"] {
        if kind != "host-device" && !has_kind(kind) {
            skipped.push(kind);
            continue;
        }
        let mut config = on_port1(&site, kind, json!({}));
        if kind == "host-device" {
            config["device"] = json!("port1");
            config["dataDir"] = json!(site.node.data_dir());
        }
        let container = site.node.container();
        let attachment = site.node.attach(&container, "eth0", &config);
        let address = attachment.ip(0);
        assert_eq!(container.addresses("eth0"), [format!("{address}/24")], "{kind}");
        assert!(container.pings("10.7.0.1"), "{kind}");
        attachment.check();
        attachment.del();
        let released = format!("DHCPRELEASE(cni0) {address}");
        site.eventually("released", |s| s.server_log().contains(&released));
        assert!(site.leases().is_empty(), "{kind}");

        let container = site.node.container();
        let address = site.node.attach(&container, "eth0", &config).ip(0);
        config["cni.dev/valid-attachments"] = json!([]);
        site.node.request("GC", &container, "eth0", &config).silent();
        let released = format!("DHCPRELEASE(cni0) {address}");
        site.eventually("collected", |s| s.server_log().contains(&released));
        assert!(site.leases().is_empty() && container.links().is_empty(), "{kind}");
    }
    if !skipped.is_empty() {
        skip_for_kernel(&format!("this kernel has no {}", skipped.join(", ")));
    }
}

/// A site with VLAN 5: 10.7.5.1/24 on `cni0.5`, with a server; nobody serves beside the VLAN.
fn with_vlan() -> Site {
    let site = Site::new();
    site.node.ip(&["link add cni0.5 link cni0 up type vlan id 5"]);
    site.node.ip(&["addr add 10.7.5.1/24 dev cni0.5"]);
    site.dnsmasq(
        "--interface=cni0.5 --except-interface=cni0 --dhcp-range=10.7.5.50,10.7.5.99,255.255.255.0,2m",
    );
    site
}

#[test]
fn the_vlan_plugin_gets_addresses_on_its_vlan_and_renews_them() {
    require_kind!("vlan");
    require_tool!("dnsmasq");
    let site = with_vlan();
    site.start_daemon("");
    let container = site.node.container();
    let mut config = on_port1(&site, "vlan", json!({}));
    config["vlanId"] = json!(5);
    let attachment = site.node.attach(&container, "eth0", &config);
    let address = attachment.ip(0);
    assert!(address.starts_with("10.7.5."), "{address}");
    assert!(container.pings("10.7.5.1"));
    attachment.check();
    let asked = site.server_log().matches("DHCPDISCOVER").count();
    site.stop_daemon();
    site.start_daemon("");
    attachment.check();
    assert_eq!(site.server_log().matches("DHCPDISCOVER").count(), asked, "asked again");
    attachment.del();
    let released = format!("DHCPRELEASE(cni0.5) {address}");
    site.eventually("released", |s| s.server_log().contains(&released));
}

#[test]
fn on_another_vlan_nobody_answers() {
    require_kind!("vlan");
    require_tool!("dnsmasq");
    let site = with_vlan();
    site.start_daemon("-resendtimeout 700ms -timeout 100ms");
    let container = site.node.container();
    let mut config = on_port1(&site, "vlan", json!({}));
    config["vlanId"] = json!(6);
    site.node.request("ADD", &container, "eth0", &config).run().err().names(&["no DHCP server answers"]);
    assert!(container.links().is_empty());
}

/// Two ipvlan containers on one link: their MAC is the same, what tells them apart is the client identifier, and for
/// renewals by unicast the address.
#[test]
fn ipvlan_containers_share_a_mac_and_keep_leases_of_their_own() {
    require_kind!("ipvlan");
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("--dhcp-option=option:T1,4 --dhcp-option=option:T2,90");
    for client_id in ["name", "duid"] {
        let config = on_port1(&site, "ipvlan", json!({"clientID": client_id}));
        let containers = [site.node.container(), site.node.container()];
        let attached = containers.each_ref().map(|c| site.node.attach(c, "eth0", &config));
        let addresses = attached.each_ref().map(|a| a.ip(0));
        assert_ne!(addresses[0], addresses[1]);
        assert_eq!(containers[0].link("eth0")["address"], containers[1].link("eth0")["address"]);
        for address in &addresses {
            let renewed = format!("DHCPACK(cni0) {address}");
            site.within(20, "renewed", |s| s.server_log().matches(&renewed).count() >= 2);
        }
        for (container, address) in containers.iter().zip(&addresses) {
            assert_eq!(container.addresses("eth0"), [format!("{address}/24")], "{client_id}");
        }
        attached.iter().for_each(|attachment| attachment.check());
        for (attachment, address) in attached.iter().zip(&addresses) {
            attachment.del();
            let released = format!("DHCPRELEASE(cni0) {address}");
            site.eventually("released", |s| s.server_log().contains(&released));
        }
        assert!(!site.server_log().contains("DHCPNAK"), "{}", site.server_log());
    }
}

#[test]
fn ipvlan_containers_make_addresses_of_their_own_from_one_prefix() {
    require_kind!("ipvlan");
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("--enable-ra --ra-param=cni0,10,60 --dhcp-range=fd07::,ra-only,64,2m");
    let config = on_port1(&site, "ipvlan", json!({"ipv4": false, "ipv6": "slaac"}));
    let containers = [site.node.container(), site.node.container()];
    let attached = containers.each_ref().map(|c| site.node.attach(c, "eth0", &config));
    assert_ne!(attached[0].ip(0), attached[1].ip(0));
    assert!(containers.iter().all(|container| container.pings("fd07::1")));
}

#[test]
fn ipvlan_cannot_be_known_by_its_mac() {
    require_kind!("ipvlan");
    let site = Site::new();
    site.start_daemon("");
    let config = on_port1(&site, "ipvlan", json!({"clientID": "mac"}));
    let container = site.node.container();
    let failure = site.node.request("ADD", &container, "eth0", &config).run().err();
    failure.names(&["ipam.clientID: \"mac\"", "ipvlan"]);
    assert!(container.links().is_empty());
}

#[test]
fn plugins_whose_interface_leads_to_no_server_refuse_dhcp_by_its_key() {
    require_netns!();
    let site = Site::new();
    let container = site.node.container();
    for (kind, why) in [
        ("ptp", "host alone"),
        ("tap", "before a process"),
        ("dummy", "leads nowhere"),
        ("ipvlan", "broadcasts"),
    ] {
        let mut config = on_port1(&site, kind, json!({}));
        config["mode"] = json!("l3");
        let call = |command: &str| site.node.request(command, &container, "eth0", &config).run();
        let failure = call("ADD").err();
        failure.names(&["ipam.type: \"dhcp\"", why]);
        assert_eq!(failure.code, 7, "{kind}");
        assert!(container.links().is_empty() && !site.socket().exists(), "{kind}");
        assert_eq!(call("DEL").ok(), Value::Null);
    }
}

#[test]
fn an_interface_that_is_missing_is_named() {
    require_netns!();
    let site = Site::new();
    site.start_daemon("");
    let container = site.node.container();
    site.dhcp("ADD", &container, json!({})).err().names(&["there is no interface \"eth0\"", "main plugin"]);
    assert_eq!(site.dhcp("DEL", &container, json!({})).ok(), Value::Null);
}

#[test]
fn a_link_that_returns_confirms_its_lease() {
    require_netns!();
    let site = Site::new();
    let first = std::net::Ipv4Addr::new(10, 7, 0, 50);
    use crate::scripted::{ACK, OFFER, Scripted};
    let server = Scripted::start(&site, move |m| match m.name() {
        "DISCOVER" => vec![m.grant(OFFER, first, [100, 200, 300])],
        _ => vec![m.grant(ACK, first, [100, 200, 300])],
    });
    site.start_daemon("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    let port = attachment.host_veth();
    site.node.ip(&[&format!("link set {port} down")]);
    site.eventually("it is noticed", |s| s.daemon_log().contains("the link is lost"));
    site.node.ip(&[&format!("link set {port} up")]);
    site.eventually("it is asked", |_| server.count("REBOOT") == 1);
    site.eventually("it is confirmed", |s| s.leases()[0]["ipv4"]["state"] == "BOUND");
    assert_eq!(container.addresses("eth0"), ["10.7.0.50/24"]);
}

/// How many at once: as many as a test has time for; `CNI_ALL_DHCP_LEASES=1000` for the figure of the README.
#[test]
fn one_daemon_holds_many_leases_in_bounded_memory() {
    require_netns!();
    require_tool!("dnsmasq");
    let wanted: usize = std::env::var("CNI_ALL_DHCP_LEASES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let site = Site::new();
    site.node.ip(&["addr add 10.7.16.1/20 dev cni0"]);
    site.dnsmasq("--dhcp-range=10.7.16.10,10.7.31.250,255.255.240.0,1h --dhcp-lease-max=5000");
    site.start_daemon("");
    let container = site.node.container();
    let ifnames: Vec<String> = (0..wanted).map(|n| format!("e{n}")).collect();
    let mut made = Vec::new();
    for batch in ifnames.chunks(200) {
        let lines: Vec<String> = batch
            .iter()
            .map(|name| {
                format!(
                    "link add h{name} up master cni0 type veth peer name {name} netns {}",
                    container.path()
                )
            })
            .collect();
        site.node.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let up: Vec<String> = batch.iter().map(|name| format!("link set {name} up")).collect();
        container.ip(&up.iter().map(String::as_str).collect::<Vec<_>>());
        made.extend(batch.iter().cloned());
    }
    let last = ifnames.last().unwrap();
    site.node
        .eventually("the last port forwards", |node| node.link(&format!("h{last}"))["operstate"] == "UP");
    let started = std::time::Instant::now();
    let mut config = site.config(json!({"conflictDetection": false}));
    config["type"] = json!("dhcp");
    let (site, container, config) = (&site, &container, &config);
    std::thread::scope(|scope| {
        for names in made.chunks(wanted.div_ceil(8)) {
            scope.spawn(move || {
                for name in names {
                    site.node.request("ADD", container, name, config).ok();
                }
            });
        }
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", site.daemon_pid())).unwrap();
    let line = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    let files = std::fs::read_dir(format!("/proc/{}/fd", site.daemon_pid())).unwrap().count();
    let (peak, seconds) = (line("VmHWM:"), started.elapsed().as_secs_f64());
    println!("{wanted} leases: {seconds:.1} s, peak memory {peak} kB, {files} descriptors");
    assert_eq!(site.leases().len(), wanted);
    assert!(peak < 16_000 + 30 * wanted, "{peak} kB for {wanted} leases");
    assert_eq!(line("Threads:"), 2);
}
