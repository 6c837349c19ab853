//! The plugins of kind meta behind the one that makes the link: `bandwidth`, `firewall`, `tuning`; `portmap` is in `ports`.

use serde_json::{Value, json};

use super::{Site, has_ifb, host_end, link, rates};
use crate::support::require_netns;
use crate::with;

#[test]
fn limits_change_in_place_and_come_and_go() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    if !has_ifb() {
        return crate::support::skip("this kernel has no ifb");
    }
    let limits = |to: u64, from: u64| json!({"type": "bandwidth", "ingressRate": to, "ingressBurst": 80_000, "egressRate": from, "egressBurst": 80_000});
    site.rewrite(json!({}), &[limits(8_000_000, 16_000_000)]);
    let container = site.node.container();
    let end = host_end(&site.add(&container, &[]));
    let ifb = site.node.links_of_kind("ifb").pop().unwrap();
    let index = link(&site.node, &ifb)["ifindex"].clone();
    assert_eq!(rates(&site.node), [(ifb.clone(), 2_000_000), (end.clone(), 1_000_000)]);

    site.rewrite(json!({}), &[limits(8_000_000, 32_000_000)]);
    let text = site.settles(&container, &[]);
    assert!(text.contains("# bandwidth egressRate: 16000000 -> 32000000"), "{text}");
    assert!(
        text.contains(&format!("tc qdisc replace dev {ifb} root handle 1: tbf rate 32000000bit")),
        "{text}"
    );
    assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 1, "{text}");
    assert_eq!(rates(&site.node), [(ifb.clone(), 4_000_000), (end.clone(), 1_000_000)]);
    assert_eq!(link(&site.node, &ifb)["ifindex"], index, "the same link");

    // Networks that are not limited, then one less of them, with another MTU besides.
    for nets in [json!(["10.9.0.0/16", "10.8.0.0/16"]), json!(["10.9.0.0/16"])] {
        site.rewrite(
            json!({"mtu": 1400}),
            &[with(limits(8_000_000, 32_000_000), json!({"unshapedSubnets": nets}))],
        );
        site.settles(&container, &[]);
        let filters = site.node.run(&format!("tc filter show dev {end} parent 1:"));
        assert_eq!(filters.matches("match ").count(), nets.as_array().unwrap().len(), "{filters}");
        assert_eq!(link(&site.node, &ifb)["mtu"], 1400);
    }

    site.rewrite(json!({}), &[limits(0, 0)]);
    // A burst without rate is no limit, and refused.
    assert!(site.refused(&container, &[]).err().msg.contains("ingressBurst"));
    site.rewrite(
        json!({}),
        &[json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 80_000})],
    );
    site.settles(&container, &[]);
    assert_eq!(rates(&site.node), [(end.clone(), 1_000_000)]);
    assert_eq!(site.node.links_of_kind("ifb"), Vec::<String>::new());
    assert!(!site.kept(&container)["result"].to_string().contains(&ifb));

    // The Go plugin's link for another interface of the container has the name that this one would have.
    site.node.ip(&[&format!("link add {ifb} up type ifb")]);
    let index = link(&site.node, &ifb)["ifindex"].clone();
    site.rewrite(json!({}), &[limits(8_000_000, 16_000_000)]);
    site.settles(&container, &[]);
    assert_eq!((&link(&site.node, &ifb)["ifindex"], site.node.links_of_kind("ifb").len()), (&index, 2));
    site.rewrite(
        json!({}),
        &[json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 80_000})],
    );
    site.settles(&container, &[]);
    assert_eq!(site.node.links_of_kind("ifb"), [ifb.as_str()]);
    site.node.ip(&[&format!("link del {ifb}")]);

    // Out of the list, and into it.
    site.rewrite(json!({}), &[]);
    let text = site.settles(&container, &[]);
    assert!(text.contains(r#"# bandwidth type: "bandwidth" -> not in the list"#), "{text}");
    assert_eq!(rates(&site.node), []);
    site.rewrite(json!({}), &[limits(24_000_000, 40_000_000)]);
    site.settles(&container, &[]);
    assert_eq!(rates(&site.node), [(ifb.clone(), 5_000_000), (end.clone(), 3_000_000)]);
    assert!(site.kept(&container)["result"].to_string().contains(&ifb));
    site.rewrite(json!({}), &[]);
    site.settles(&container, &[]);
    assert!(!site.kept(&container)["result"].to_string().contains(&ifb));
    site.end(&container);
}

#[test]
fn addresses_name_their_interfaces_when_one_leaves_the_result() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    if !has_ifb() {
        return crate::support::skip("this kernel has no ifb");
    }
    let limits = json!({"type": "bandwidth", "egressRate": 16_000_000, "egressBurst": 80_000});
    let tap = json!({"type": "tc-redirect-tap"});
    site.rewrite(json!({}), &[limits, tap.clone()]);
    let container = site.node.container();
    let named = |result: &Value| {
        let name = |ip: &Value| {
            let index = ip["interface"].as_u64().unwrap() as usize;
            json!([
                ip["address"],
                result["interfaces"][index]["name"],
                result["interfaces"][index]["sandbox"]
            ])
        };
        result["ips"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    let before = site.add(&container, &[]);
    site.rewrite(json!({}), &[json!({"type": "bandwidth"}), tap]);
    site.settles(&container, &[]);
    let after = site.kept(&container)["result"].clone();
    assert_eq!(named(&after), named(&before));
    let count = |result: &Value| result["interfaces"].as_array().unwrap().len();
    assert_eq!(count(&after), count(&before) - 1);
    site.end(&container);
}

#[test]
fn policies_of_the_firewall_follow_the_configuration() {
    require_netns!();
    let firewall = |keys: Value| with(json!({"type": "firewall", "backend": "iptables"}), keys);
    let site = Site::bridged(json!({}), &[]);
    let container = site.node.container();
    site.add(&container, &[]);
    site.rewrite(json!({}), &[firewall(json!({}))]);
    site.settles(&container, &[]);
    let rules = site.node.nft();
    assert!(rules.contains("CNI-FORWARD") && !rules.contains("CNI-ISOLATION"), "{rules}");
    site.rewrite(
        json!({}),
        &[firewall(json!({"ingressPolicy": "same-bridge", "iptablesAdminChainName": "MINE"}))],
    );
    let text = site.settles(&container, &[]);
    assert!(text.contains(r#"# firewall ingressPolicy: not set -> "same-bridge""#), "{text}");
    let rules = site.node.nft();
    assert!(rules.contains("iifname \"cni0\" oifname != \"cni0\"") && rules.contains("jump MINE"), "{rules}");
    site.rewrite(json!({}), &[firewall(json!({"ingressPolicy": "open"}))]);
    site.settles(&container, &[]);
    assert!(!site.node.nft().contains("iifname \"cni0\""), "{}", site.node.nft());
    site.rewrite(json!({}), &[]);
    site.settles(&container, &[]);
    assert!(!site.node.nft().contains("10.1.0.2"));
    site.end(&container);
}

#[test]
fn tuning_changes_values_and_gives_back_what_is_not_named_any_more() {
    require_netns!();
    let tuning = |site: &Site, keys: Value| {
        let data = site.path("tuning");
        with(json!({"type": "tuning", "dataDir": data, "sysctl": {"net.core.somaxconn": "500"}}), keys)
    };
    let site = Site::bridged(json!({}), &[]);
    site.rewrite(json!({}), &[tuning(&site, json!({"mtu": 1300}))]);
    let container = site.node.container();
    site.add(&container, &[]);
    let keys = json!({"sysctl": {"net.core.somaxconn": "600"}, "mtu": 1200, "txQLen": 7, "promisc": true});
    site.rewrite(json!({}), &[tuning(&site, keys.clone())]);
    let text = site.settles(&container, &[]);
    assert!(text.contains(r#"# tuning sysctl.net.core.somaxconn: "500" -> "600""#), "{text}");
    assert!(text.contains("sysctl -w net/core/somaxconn=600"), "{text}");
    let shown = link(&container, "eth0");
    assert_eq!(
        (&shown["mtu"], &shown["txqlen"], &shown["promiscuity"]),
        (&json!(1200), &json!(7), &json!(1))
    );
    assert_eq!(container.sysctl("net/core/somaxconn"), "600");

    // The MTU of the pair changes below; what is tuned stays tuned.
    site.rewrite(json!({"mtu": 1400}), &[tuning(&site, keys)]);
    site.settles(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1200);

    site.rewrite(json!({"mtu": 1400}), &[tuning(&site, json!({"sysctl": {"net.core.somaxconn": "600"}}))]);
    site.settles(&container, &[]);
    let shown = link(&container, "eth0");
    assert_eq!(
        (&shown["mtu"], &shown["txqlen"], &shown["promiscuity"]),
        (&json!(1400), &json!(1000), &json!(0)),
        "that of the pair by now"
    );
    // From one plugin to the other, and the pair's besides.
    for (keys, tuned, wanted) in
        [(json!({}), json!({"mtu": 1350}), 1350), (json!({"mtu": 1350}), json!({}), 1350)]
    {
        site.rewrite(keys, &[tuning(&site, with(json!({"sysctl": {"net.core.somaxconn": "600"}}), tuned))]);
        let text = site.settles(&container, &[]);
        assert_eq!(link(&container, "eth0")["mtu"], wanted, "{text}");
    }
    site.rewrite(json!({"mtu": 1400}), &[tuning(&site, json!({"sysctl": {}}))]);
    let failure = site.refused(&container, &[]).err();
    assert_eq!(failure.code, 103);
    failure.names(&["net.core.somaxconn"]);
    site.end(&container);
}
