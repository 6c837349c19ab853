//! ISC dhcpd and Kea as the servers, with leases of seconds.

use serde_json::json;

use crate::site::{SERVER, Site};
use crate::support::{require_netns, require_tool};

/// ISC dhcpd with leases of `seconds`.
fn isc(site: &Site, seconds: u32) {
    let conf = format!(
        "authoritative; default-lease-time {seconds}; max-lease-time {seconds}; min-lease-time {seconds};\n\
         ping-check false;\n\
         option rfc3442 code 121 = array of unsigned integer 8;\n\
         subnet 10.7.0.0 netmask 255.255.255.0 {{ range 10.7.0.100 10.7.0.120; option routers 10.7.0.1;\n\
         option domain-name-servers 10.7.0.2; option domain-name \"isc.example.org\";\n\
         option rfc3442 24, 10, 9, 9, 10, 7, 0, 3, 0, 10, 7, 0, 1; }}\n"
    );
    let (conf, leases) =
        (site.node.workdir().file("dhcpd.conf", conf), site.node.workdir().file("dhcpd.leases", ""));
    let pid = site.path("dhcpd.pid");
    site.serve(&format!(
        "dhcpd -4 -f -d -cf {} -lf {} -pf {} -user root -group root cni0",
        conf.display(),
        leases.display(),
        pid.display()
    ));
    site.eventually("dhcpd listens", |s| s.server_log().contains("Listening on"));
}

#[test]
fn isc_dhcpd_renews_and_its_end_ends_the_lease() {
    require_netns!();
    require_tool!("dhcpd");
    let site = Site::new();
    isc(&site, 8);
    site.start_daemon("-timeout 500ms");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    let address = attachment.ip(0);
    assert!(address.starts_with("10.7.0.1"));
    assert_eq!(
        attachment.result["routes"],
        json!([{"dst": "10.9.9.0/24", "gw": "10.7.0.3"}, {"dst": "0.0.0.0/0", "gw": SERVER}])
    );
    assert_eq!(attachment.result["dns"]["domain"], "isc.example.org");
    site.within(15, "renewed twice", |s| s.server_log().matches("DHCPREQUEST for").count() >= 3);
    assert_eq!(container.addresses("eth0"), [format!("{address}/24")]);
    site.stop_servers();
    site.within(15, "the lease is over", |_| container.addresses("eth0").is_empty());
    let log = site.daemon_log();
    assert!(log.contains("asking any server") && log.contains("has expired"), "{log}");
}

#[test]
fn isc_dhcpd_hears_the_release() {
    require_netns!();
    require_tool!("dhcpd");
    let site = Site::new();
    isc(&site, 600);
    site.start_daemon("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({"clientID": "duid"}));
    attachment.del();
    site.eventually("released", |s| s.server_log().contains(&format!("DHCPRELEASE of {}", attachment.ip(0))));
    assert!(!site.server_log().contains("(not found)"), "{}", site.server_log());
}

/// Kea for IPv4 or IPv6 with a configuration.
fn kea(site: &Site, family: u8, conf: &str) {
    let conf = conf.replace("@dir@", site.node.workdir().root().to_str().unwrap());
    let path = site.node.workdir().file(&format!("kea{family}.json"), conf);
    let lock = site.path("kea-lock");
    std::fs::create_dir_all(&lock).unwrap();
    let dir = lock.display();
    site.serve(&format!(
        "env KEA_PIDFILE_DIR={dir} KEA_LOCKFILE_DIR={dir} KEA_LOGGER_DESTINATION=stdout kea-dhcp{family} -c {}",
        path.display()
    ));
    site.eventually("kea has started", |s| s.server_log().contains(&format!("DHCP{family}_STARTED")));
}

fn kea_conf(family: u8, subnet: serde_json::Value) -> String {
    let mut conf = json!({
        "interfaces-config": {"interfaces": ["cni0"]},
        "lease-database": {"type": "memfile", "persist": false},
        "valid-lifetime": 8, "renew-timer": 2, "rebind-timer": 6,
        "loggers": [{"name": format!("kea-dhcp{family}"), "severity": "DEBUG", "debuglevel": 50,
                     "output_options": [{"output": "stdout", "flush": true}]}],
    });
    conf[format!("subnet{family}")] = json!([subnet]);
    if family == 6 {
        conf["preferred-lifetime"] = json!(7);
        conf["data-directory"] = json!("@dir@");
    }
    json!({format!("Dhcp{family}"): conf}).to_string()
}

#[test]
fn kea_renews_by_unicast_and_hears_the_release() {
    require_netns!();
    require_tool!("kea-dhcp4");
    let site = Site::new();
    let subnet = json!({"subnet": "10.7.0.0/24", "pools": [{"pool": "10.7.0.130 - 10.7.0.140"}],
                        "option-data": [{"name": "routers", "data": SERVER}]});
    kea(&site, 4, &kea_conf(4, subnet));
    site.start_daemon("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    let address = attachment.ip(0);
    site.within(15, "renewed twice", |s| s.server_log().matches("DHCP4_LEASE_ALLOC").count() >= 3);
    assert_eq!(container.addresses("eth0"), [format!("{address}/24")]);
    attachment.del();
    site.eventually("released", |s| s.server_log().contains("DHCP4_RELEASE "));
}

#[test]
fn kea_gives_addresses_and_prefixes_by_dhcpv6() {
    require_netns!();
    require_tool!("kea-dhcp6");
    let site = Site::new();
    let subnet = json!({"subnet": "fd07::/64", "interface": "cni0", "pools": [{"pool": "fd07::200-fd07::2ff"}],
                        "pd-pools": [{"prefix": "fd70::", "prefix-len": 48, "delegated-len": 56}]});
    kea(&site, 6, &kea_conf(6, subnet));
    site.start_daemon("");
    let container = site.node.container();
    let more = json!({"ipv4": false, "ipv6": "dhcpv6", "prefixDelegation": true});
    let attachment = site.attach(&container, more);
    assert!(attachment.ip(0).starts_with("fd07::2"), "{:#}", attachment.result);
    let lease = site.leases().remove(0);
    assert!(lease["ipv6"]["prefixes"][0].as_str().unwrap().starts_with("fd70:"), "{lease:#}");
    site.within(15, "renewed twice", |s| s.server_log().matches("RENEW").count() >= 2);
    assert_eq!(container.addresses("eth0").len(), 1);
    attachment.check();
    attachment.del();
    site.eventually("released", |s| s.server_log().contains("DHCP6_RELEASE_NA "));
}
