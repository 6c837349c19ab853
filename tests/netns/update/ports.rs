//! Mapped ports, and the connections through them that stay.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Site, connected, host_end, link, portmap, talk};
use crate::support::{Netns, Outside, require_netns};
use crate::with;

fn refuses(client: &Netns, port: u16) -> bool {
    let to: SocketAddr = (Outside::NODE_V4.parse::<IpAddr>().unwrap(), port).into();
    client.connect(to, Duration::from_millis(500)).is_err()
}

#[test]
fn a_connection_outlives_updates_of_other_ports() {
    require_netns!();
    for backend in ["nftables", "iptables"] {
        let site = Site::bridged(json!({}), &[with(portmap(), json!({"backend": backend}))]);
        let outside = site.node.outside();
        let container = site.node.container();
        site.add(&container, &["-p", "8080:80"]);
        let listener = container.listen(IpAddr::from([0; 4]), 80);
        let mut open = connected(&outside, 8080, &listener);
        talk(&mut open);

        let text = site.settles(&container, &["-p", "8080:80", "-p", "8443:80"]);
        assert!(text.contains("# portmap runtimeConfig.portMappings: "), "{text}");
        assert!(text.contains("8443"), "{text}");
        assert!(backend == "iptables" || !text.contains("tcp . 8080"), "what stays is not touched: {text}");
        talk(&mut open);
        talk(&mut connected(&outside, 8443, &listener));

        // What is kept is the default from now on.
        assert!(site.update(&container, &[]).contains("nothing to change"));
        let kept = site.kept(&container)["capabilityArgs"]["portMappings"].clone();
        assert_eq!(kept.as_array().unwrap().len(), 2, "{kept}");

        // Another target for one, and one less.
        site.settles(&container, &["-p", "8080:80", "-p", "8444:81"]);
        talk(&mut open);
        assert!(refuses(&outside, 8443), "{backend}");
        let other = container.listen(IpAddr::from([0; 4]), 81);
        talk(&mut connected(&outside, 8444, &other));
        talk(&mut open);

        // The other layout: a connection stands, a new one gets through.
        let next = if backend == "nftables" { "iptables" } else { "nftables" };
        site.rewrite(json!({}), &[with(portmap(), json!({"backend": next}))]);
        site.settles(&container, &[]);
        talk(&mut open);
        talk(&mut connected(&outside, 8444, &other));
        let rules = site.node.nft();
        let (maps, chains) = (rules.contains("elements = { tcp . 8080"), rules.contains("chain CNI-DN-"));
        assert_eq!((maps, chains), (next == "nftables", next == "iptables"), "{rules}");

        // Nobody's snat chain is left when nobody needs it.
        site.rewrite(json!({}), &[with(portmap(), json!({"backend": "nftables", "snat": false}))]);
        site.settles(&container, &[]);
        assert!(!site.node.nft().contains("hairpin-net"), "{}", site.node.nft());

        site.settles(&container, &["--capability-args", r#"{"portMappings": null}"#]);
        assert!(refuses(&outside, 8080) && refuses(&outside, 8444));
        assert_eq!(site.kept(&container)["capabilityArgs"], Value::Null);
        talk(&mut open);
        drop(open);
        site.end(&container);
    }
}

#[test]
fn ipv6_addresses_routes_and_ports_stay() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let ipam = crate::dual_stack_config(&site.node)["ipam"].clone();
    let keys = |keys: Value| with(json!({"ipam": ipam}), keys);
    site.rewrite(keys(json!({"ipMasq": true})), &[portmap()]);
    let outside = site.node.outside();
    let container = site.node.container();
    site.add(&container, &["-p", "8080:80"]);
    let listener = container.listen(IpAddr::from([0_u16; 8]), 80);
    let to: SocketAddr = (Outside::NODE_V6.parse::<IpAddr>().unwrap(), 8080).into();
    let near = outside.connect(to, Duration::from_secs(2)).unwrap();
    let mut open = (near, listener.accept().unwrap().0);
    talk(&mut open);
    site.rewrite(keys(json!({"ipMasq": true, "mtu": 1280, "hairpinMode": true})), &[portmap()]);
    site.settles(&container, &["-p", "8080:80", "-p", "[::]:8443:80"]);
    talk(&mut open);
    assert!(container.run("ip -6 route").contains("default via fd00:1::1"));
    assert!(container.run("ip -6 addr show dev eth0").contains("fd00:1::2/64"));
    site.rewrite(keys(json!({"mtu": 1279})), &[portmap()]);
    let failure = site.refused(&container, &[]).err();
    assert_eq!(failure.code, 103);
    failure.names(&["mtu: 1279 is less than the 1280 that IPv6 needs: fd00:1::2/64 would be lost"]);
    talk(&mut open);
    drop(open);
    site.end(&container);
}

#[test]
fn a_port_stays_in_hairpin_mode_for_mapped_ports() {
    require_netns!();
    let key = "net/bridge/bridge-nf-call-iptables";
    let site = Site::bridged(json!({"hairpinMode": true}), &[portmap()]);
    if !site.node.enter(|| Path::new("/proc/sys").join(key).exists()) {
        // Loaded, it would change what other tests are about: in the virtual machine it is not.
        if std::env::var("CNI_ALL_VM").is_ok() {
            return eprintln!("SKIP: br_netfilter is not loaded");
        }
        return crate::support::skip("this kernel has no br_netfilter");
    }
    site.node.set_sysctl(key, "1");
    let container = site.node.container();
    let end = host_end(&site.add(&container, &["-p", "8080:80"]));
    site.rewrite(json!({}), &[portmap()]);
    site.settles(&container, &[]);
    assert_eq!(link(&site.node, &end)["linkinfo"]["info_slave_data"]["hairpin"], true);
    site.end(&container);
}
