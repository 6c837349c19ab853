//! What the plugin that makes the link sets up, its IPAM plugin included: MTU, flags, masquerading, routes, name servers.

use serde_json::{Value, json};

use super::{Site, host_end, link};
use crate::sublinks::for_each_kind;
use crate::support::{Outside, require_netns};
use crate::{bridge_config, with};

#[test]
fn mtu_flags_and_spoof_check_follow_the_configuration() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let container = site.node.container();
    let result = site.add(&container, &[]);
    let end = host_end(&result);
    site.rewrite(
        json!({"mtu": 1400, "hairpinMode": true, "portIsolation": true, "macspoofchk": true, "ipMasq": true}),
        &[],
    );
    let text = site.settles(&container, &[]);
    for line in [
        "# container-0 eth0",
        "# bridge mtu: not set -> 1400",
        "# bridge hairpinMode: not set -> true",
        &format!("ip link set dev {end} mtu 1400"),
        "eth0 mtu 1400",
        "hairpin on isolated on",
        "nft add chain bridge nat PREROUTING",
        "nft create element ip cni-all masqueraded",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(
        (link(&site.node, &end)["mtu"].clone(), link(&container, "eth0")["mtu"].clone()),
        (1400.into(), 1400.into())
    );
    let port = &link(&site.node, &end)["linkinfo"]["info_slave_data"];
    assert_eq!((&port["hairpin"], &port["isolated"]), (&json!(true), &json!(true)));
    let kept = site.kept(&container);
    let mtus: Vec<&Value> =
        kept["result"]["interfaces"].as_array().unwrap().iter().map(|i| &i["mtu"]).collect();
    assert_eq!(mtus[1..], [&json!(1400), &json!(1400)]);

    site.rewrite(json!({"promiscMode": true, "ipMasq": true, "ipMasqBackend": "iptables"}), &[]);
    site.settles(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1500);
    let port = &link(&site.node, &end)["linkinfo"]["info_slave_data"];
    assert_eq!((&port["hairpin"], &port["isolated"]), (&json!(false), &json!(false)));
    assert!(link(&site.node, "cni0")["flags"].to_string().contains("PROMISC"));
    let rules = site.node.nft();
    assert!(rules.contains("POSTROUTING") && !rules.contains("masqueraded { 10"), "{rules}");
    assert!(!rules.contains("cni-br-iface"), "{rules}");

    site.rewrite(json!({}), &[]);
    site.settles(&container, &[]);
    assert!(!link(&site.node, "cni0")["flags"].to_string().contains("PROMISC"));
    assert!(!site.node.nft().contains("10.1.0.2"));
    site.end(&container);
}

#[test]
fn an_automatic_mtu_follows_the_default_route() {
    require_netns!();
    let site = Site::bridged(json!({"mtu": "auto"}), &[]);
    let _outside = site.node.outside();
    let container = site.node.container();
    site.add(&container, &[]);
    assert!(site.update(&container, &[]).contains("nothing to change"));
    site.node.run("ip link set uplink mtu 1380");
    let text = site.settles(&container, &[]);
    assert_eq!(text.matches("mtu 1380").count(), 2, "{text}");
    assert_eq!(link(&container, "eth0")["mtu"], 1380);
    site.end(&container);
}

for_each_kind!(a_link_on_a_master_gets_another_mtu_and_other_routes);

fn a_link_on_a_master_gets_another_mtu_and_other_routes(kind: &str) {
    let site = Site::new(json!([{"type": "loopback"}]));
    site.node.ip(&["link add up0 type veth peer name up1", "link set up0 up", "link set up1 up"]);
    let config = |keys: Value, routes: Value| {
        let address = json!({"address": "10.1.0.2/24", "gateway": "10.1.0.1"});
        let ipam = json!({"type": "static", "addresses": [address], "routes": routes});
        let main = json!({"type": kind, "master": "up0", "ipam": ipam});
        let main = if kind == "vlan" { with(main, json!({"vlanId": 5})) } else { main };
        site.configure(json!([with(main, keys)]));
    };
    config(json!({}), json!([]));
    let container = site.node.container();
    site.add(&container, &[]);
    config(json!({"dns": {"domain": "x"}}), json!([{"dst": "0.0.0.0/0"}]));
    site.settles(&container, &[]);
    assert!(container.run("ip route").contains("default via 10.1.0.1 dev eth0"));
    assert_eq!(site.kept(&container)["result"]["dns"]["domain"], "x");
    config(json!({"mtu": 1400}), json!([]));
    if kind == "ipvlan" {
        // It shares that of its master.
        site.refused(&container, &[]).err().names(&["ipvlan mtu: not set -> 1400"]);
        return;
    }
    site.settles(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1400);
    assert!(!container.run("ip route").contains("default"));
    config(json!({}), json!([]));
    site.settles(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1500);
    config(json!({"mtu": 1501}), json!([]));
    site.refused(&container, &[]).err().names(&["mtu: 1501 is not from 0 to 1500"]);
}

#[test]
fn masquerading_that_is_turned_on_shows_the_hosts_address() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let outside = site.node.outside();
    let container = site.node.container();
    site.add(&container, &[]);
    assert_eq!(container.datagram_seen_by(&outside, Outside::V4).unwrap().to_string(), "10.1.0.2");
    site.rewrite(json!({"ipMasq": true}), &[]);
    site.settles(&container, &[]);
    assert_eq!(container.datagram_seen_by(&outside, Outside::V4).unwrap().to_string(), Outside::NODE_V4);
    site.rewrite(json!({"ipMasq": true, "ipMasqExempt": ["203.0.113.0/24"]}), &[]);
    let text = site.settles(&container, &[]);
    assert!(text.contains("ip daddr 203.0.113.0/24 return"), "{text}");
    assert_eq!(container.datagram_seen_by(&outside, Outside::V4).unwrap().to_string(), "10.1.0.2");
    site.rewrite(json!({"ipMasq": true, "ipMasqExempt": ["203.0.113"]}), &[]);
    site.refused(&container, &[]).err().names(&["ipMasqExempt[0]", "\"203.0.113\" is not a network"]);
    site.end(&container);
}

#[test]
fn routes_and_name_servers_change_without_the_address() {
    require_netns!();
    for kind in ["bridge", "ptp"] {
        let site = Site::new(json!([{"type": "loopback"}]));
        let configure = |routes: Value, dns: Value| {
            let mut main = bridge_config(&site.node);
            main["type"] = json!(kind);
            main["ipam"]["routes"] = routes;
            main["dns"] = dns;
            site.configure(json!([main]));
        };
        let container = site.node.container();
        configure(
            json!([{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16"}]),
            json!({"nameservers": ["10.1.0.1"]}),
        );
        let before = site.add(&container, &[]);
        configure(
            json!([{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "mtu": 1300}, {"dst": "10.8.1.0/24"}]),
            json!({"nameservers": ["10.1.0.9"], "search": ["example"]}),
        );
        let text = site.settles(&container, &[]);
        assert!(text.contains("ip route prepend 10.9.0.0/16 via 10.1.0.1 dev eth0 mtu 1300"), "{text}");
        assert!(text.contains("ip route del 10.8.0.0/16 via 10.1.0.1 dev eth0"), "{text}");
        assert!(
            text.contains(r#"# "#) && text.contains(r#"dns.nameservers: ["10.1.0.1"] -> ["10.1.0.9"]"#),
            "{text}"
        );
        let routes = container.run("ip route show");
        assert!(
            routes.contains("default via 10.1.0.1")
                && routes.contains("10.9.0.0/16 via 10.1.0.1 dev eth0 mtu 1300"),
            "{routes}"
        );
        assert!(!routes.contains("10.8.0.0/16") && routes.contains("10.8.1.0/24"), "{routes}");
        let kept = site.kept(&container);
        assert_eq!(kept["result"]["dns"], json!({"nameservers": ["10.1.0.9"], "search": ["example"]}));
        assert_eq!(kept["result"]["ips"], before["ips"]);
        assert_eq!(kept["result"]["routes"].as_array().unwrap().len(), 3);

        // A route that is different is replaced: there is no moment without one.
        configure(json!([{"dst": "0.0.0.0/0", "mtu": 1200}]), json!({}));
        let text = site.settles(&container, &[]);
        assert!(text.contains("ip route replace default via 10.1.0.1 dev eth0 mtu 1200"), "{text}");
        assert_eq!(site.kept(&container)["result"]["dns"], Value::Null, "what the IPAM plugin said");
        site.end(&container);
    }
}

#[test]
fn a_default_route_of_another_interface_stays() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let container = site.node.container();
    site.add(&container, &[]);
    container.ip(&[
        "link add other type veth peer name far",
        "addr add 10.7.0.1/24 dev other",
        "link set other up",
        "link set far up",
        "route prepend default via 10.7.0.9 dev other",
    ]);
    let ipam = bridge_config(&site.node)["ipam"].clone();
    site.rewrite(json!({"ipam": with(ipam, json!({"routes": [{"dst": "0.0.0.0/0", "mtu": 1200}]}))}), &[]);
    site.settles(&container, &[]);
    let routes = container.run("ip route show default");
    assert!(routes.contains("via 10.7.0.9 dev other"), "{routes}");
    assert!(routes.contains("via 10.1.0.1 dev eth0 mtu 1200") && routes.lines().count() == 2, "{routes}");
    container.ip(&["link del other"]);
    site.end(&container);
}

#[test]
fn a_default_route_comes_and_goes_with_is_default_gateway() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let ipam = |site: &Site| with(bridge_config(&site.node)["ipam"].clone(), json!({"routes": []}));
    let keys = |site: &Site, on: bool| json!({"isDefaultGateway": on, "ipam": ipam(site)});
    site.rewrite(keys(&site, false), &[]);
    let container = site.node.container();
    site.add(&container, &[]);
    assert!(!container.run("ip route show").contains("default"));
    site.rewrite(keys(&site, true), &[]);
    site.settles(&container, &[]);
    assert!(container.run("ip route show").contains("default via 10.1.0.1"));
    site.rewrite(keys(&site, false), &[]);
    site.settles(&container, &[]);
    assert!(!container.run("ip route show").contains("default"));
    site.end(&container);
}

#[test]
fn what_the_ipam_plugin_tells_changes_too() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let dns = |resolver: &str| site.node.workdir().file(resolver, format!("nameserver {resolver}\n"));
    let ipam = |resolver: &str| {
        with(bridge_config(&site.node)["ipam"].clone(), json!({"resolvConf": dns(resolver)}))
    };
    site.rewrite(json!({"ipam": ipam("192.0.2.1")}), &[]);
    let container = site.node.container();
    site.add(&container, &[]);
    site.rewrite(json!({"ipam": ipam("192.0.2.2")}), &[]);
    site.settles(&container, &[]);
    assert_eq!(site.kept(&container)["result"]["dns"], json!({"nameservers": ["192.0.2.2"]}));
    // sbr has moved the routes: where new ones belong is not known.
    let routes = with(ipam("192.0.2.2"), json!({"routes": []}));
    site.rewrite(json!({"ipam": ipam("192.0.2.2")}), &[]);
    site.end(&container);
    site.rewrite(json!({"ipam": ipam("192.0.2.2")}), &[json!({"type": "sbr"})]);
    site.add(&container, &[]);
    site.rewrite(json!({"ipam": routes, "mtu": 1400}), &[json!({"type": "sbr"})]);
    site.refused(&container, &[]).err().names(&["needs a new attachment: bridge ipam.routes: "]);
    let default = json!({"ipam": ipam("192.0.2.2"), "mtu": 1400, "isDefaultGateway": true});
    site.rewrite(default, &[json!({"type": "sbr"})]);
    let failure = site.refused(&container, &[]).err();
    failure.names(&["needs a new attachment: bridge isDefaultGateway: not set -> true"]);
    site.rewrite(json!({"ipam": ipam("192.0.2.2"), "mtu": 1400}), &[json!({"type": "sbr"})]);
    site.update(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1400);
}
