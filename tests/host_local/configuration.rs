//! Ranges, requested addresses, the order of candidates, resolv.conf.

use crate::support::Net;

fn fails(name: &str, ipam: &str) -> (u64, String) {
    Net::new(name, ipam).call("ADD", "c1").error()
}

#[test]
fn what_is_not_valid_is_named_with_key_value_and_remedy() {
    for (ipam, expected) in [
        (r#""x":1"#, "ipam: no IP ranges specified"),
        (r#""ranges":[]"#, "ipam: no IP ranges specified"),
        (r#""ranges":[[]]"#, "ipam.ranges[0]: empty, a set needs at least one range with a subnet"),
        (r#""ranges":[[{}]]"#, "ipam.ranges[0][0].subnet: missing"),
        (
            r#""ranges":[[{"subnet":"10.2.0.0/16"},{"subnet":"10.1.2.3/24"}]]"#,
            r#"ipam.ranges[0][1].subnet: "10.1.2.3/24" has host bits set, the network is 10.1.2.0/24"#,
        ),
        (r#""subnet":"10.1.2.0/31""#, r#"ipam.subnet: "10.1.2.0/31" is too small to allocate from"#),
        (r#""subnet":"10.1.2.0/32""#, r#"ipam.subnet: "10.1.2.0/32" is too small"#),
        (r#""subnet":"fd00::/127""#, r#"ipam.subnet: "fd00::/127" is too small"#),
        (
            r#""subnet":"10.1.2.0/24","rangeStart":"10.1.3.1""#,
            r#"ipam.rangeStart: "10.1.3.1" is not in network 10.1.2.0/24"#,
        ),
        (r#""subnet":"10.1.2.0/24","rangeStart":"fd00::1""#, "is not in network"),
        (
            r#""subnet":"10.1.2.0/24","rangeEnd":"10.1.1.255""#,
            r#"ipam.rangeEnd: "10.1.1.255" is not in network"#,
        ),
        (r#""subnet":"10.1.2.0/24","rangeStart":"10.1.2.9","rangeEnd":"10.1.2.8""#, "is not in network part"),
        (r#""ranges":[[{"subnet":"10.1.2.0/24"},{"subnet":"fd00::/64"}]]"#, "mixed families"),
        (
            r#""ranges":[[{"subnet":"10.1.0.0/16"},{"subnet":"10.1.2.0/24"}]]"#,
            "ipam.ranges[0][1]: range 10.1.2.1-10.1.2.254 overlaps 10.1.0.1-10.1.255.254 of the same set",
        ),
        (
            r#""subnet":"10.1.2.0/24","ranges":[[{"subnet":"10.1.0.0/16"}]]"#,
            "ipam.ranges[0]: 10.1.0.1-10.1.255.254 overlaps 10.1.2.1-10.1.2.254 of ipam.subnet",
        ),
        (r#""subnet":"010.1.2.0/24""#, r#"ipam.subnet: "010.1.2.0/24" is not an address"#),
        (r#""subnet":"10.1.2.0/24","gateway":"x""#, r#"ipam.gateway: "x" is not an IP address"#),
    ] {
        let (code, msg) = fails("invalid", ipam);
        assert!(code == 7 && msg.contains(expected), "{ipam}: {code} {msg}");
    }
    assert_eq!(fails("type", r#""ranges":[{"subnet":"10.1.2.0/24"}]"#).0, 6);
    let net = Net::new("no-ipam", "");
    let answer = net.with("ADD", "c1", "eth0", r#"{"name":"net","cniVersion":"1.0.0"}"#);
    assert_eq!(answer.error(), (7, "missing key ipam".to_owned()));
}

#[test]
fn small_and_explicit_ranges_give_exactly_their_addresses() {
    for (name, ipam, addresses) in [
        ("slash30", r#""subnet":"10.1.2.0/30""#, &["10.1.2.2/30"][..]),
        ("slash126", r#""subnet":"fd00::/126""#, &["fd00::2/126", "fd00::3/126"]),
        (
            "edges",
            r#""subnet":"10.1.2.0/30","rangeStart":"10.1.2.0","rangeEnd":"10.1.2.3""#,
            &["10.1.2.0/30", "10.1.2.2/30", "10.1.2.3/30"],
        ),
        (
            "foreign-gateway",
            r#""subnet":"10.1.2.0/30","gateway":"169.254.1.1""#,
            &["10.1.2.1/30", "10.1.2.2/30"],
        ),
        ("empty-text", r#""subnet":"10.1.2.0/30","rangeStart":"","gateway":"""#, &["10.1.2.2/30"]),
        ("mapped", r#""subnet":"::ffff:10.1.2.0/126""#, &["10.1.2.2/30"]),
    ] {
        let net = Net::new(name, ipam);
        for (n, address) in addresses.iter().enumerate() {
            assert_eq!(net.add(&format!("c{n}")), [*address], "{name}");
        }
        let (code, msg) = net.call("ADD", "last").error();
        assert!(
            code == 101 && msg.contains("no IP addresses available in range set: "),
            "{name}: {code} {msg}"
        );
    }
}

#[test]
fn exhaustion_names_every_range_of_the_set() {
    let net = Net::new("exhausted", r#""ranges":[[{"subnet":"10.1.2.0/30"},{"subnet":"10.1.3.0/30"}]]"#);
    assert_eq!([net.add("a"), net.add("b")], [["10.1.2.2/30"], ["10.1.3.2/30"]]);
    let expected = "no IP addresses available in range set: 10.1.2.1-10.1.2.2,10.1.3.1-10.1.3.2";
    assert_eq!(net.call("ADD", "c").error(), (101, expected.to_owned()));
}

#[test]
fn candidates_follow_the_last_reserved_address() {
    let pair = r#""ranges":[[{"subnet":"10.0.1.0/30"},{"subnet":"10.0.2.0/30"}]]"#;
    let one = r#""subnet":"10.0.0.0/29""#;
    for (n, (ipam, last, taken, expected)) in [
        (one, "", &[][..], "10.0.0.2/29"),
        (one, "10.0.0.5", &[], "10.0.0.6/29"),
        (one, "10.0.0.5", &["10.0.0.6"], "10.0.0.2/29"),
        (one, "10.0.0.3", &["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"], "10.0.0.3/29"),
        (one, "10.0.0.5\n", &[], "10.0.0.2/29"),
        (one, "192.168.1.1", &[], "10.0.0.2/29"),
        (pair, "10.0.1.2", &["10.0.1.2"], "10.0.2.2/30"),
        (pair, "10.0.2.2", &[], "10.0.1.2/30"),
    ]
    .into_iter()
    .enumerate()
    {
        let net = Net::new(&format!("order{n}"), ipam);
        net.put("last_reserved_ip.0", last);
        taken.iter().for_each(|addr| net.put(addr, "someone\r\neth0"));
        assert_eq!(net.add("c"), [expected], "last {last:?}, taken {taken:?}");
    }
}

#[test]
fn released_addresses_are_used_again_only_after_the_whole_range() {
    let net = Net::new("reuse", r#""subnet":"10.0.0.0/29""#);
    for host in [2, 3, 4, 5, 6, 2] {
        assert_eq!(net.add("c"), [format!("10.0.0.{host}/29")]);
        net.del("c");
    }
}

#[test]
fn a_free_address_is_found_behind_a_long_run_of_taken_ones() {
    let net = Net::new("run", r#""subnet":"10.0.0.0/24""#);
    (2..255).filter(|n| *n != 200).for_each(|n| net.put(&format!("10.0.0.{n}"), "x\r\neth0"));
    assert_eq!(net.add("c"), ["10.0.0.200/24"]);
    assert_eq!(net.call("ADD", "d").error().0, 101);
}

#[test]
fn requested_addresses_come_from_three_places_and_add_up() {
    let sets = r#""ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.2.0.0/24"}],[{"subnet":"fd00::/64"}]]"#;
    let mut net = Net::new("requested", sets);
    net.args = "IgnoreUnknown=1;IP=10.2.0.9/8;K8S_POD_NAME=x".to_owned();
    net.rest = r#","args":{"cni":{"ips":["fd00::9"]}},"RuntimeConfig":{"ips":["10.1.0.9/24"]}"#.to_owned();
    assert_eq!(net.add("c"), ["10.1.0.9/24", "10.2.0.9/24", "fd00::9/64"]);
    assert_eq!(net.read("last_reserved_ip.1"), "10.2.0.9");
    let (code, msg) = net.call("ADD", "d").error();
    assert!(code == 101 && msg.contains("requested ip 10.1.0.9 is not available"), "{code} {msg}");
    assert!(net.call("ADD", "c").error().1.contains("duplicate allocation is not allowed"));
    assert_eq!(net.leases().len(), 3, "a repeated ADD that fails takes nothing from the running attachment");

    let request = |ips: &str| {
        let mut net = Net::new("refused", sets);
        net.rest = format!(r#","runtimeConfig":{{"ips":[{ips}]}}"#);
        let error = net.call("ADD", "c").error();
        assert!(net.leases().is_empty());
        error
    };
    assert_eq!(
        request(r#""10.1.0.1""#).1,
        "requested ip 10.1.0.1 is the gateway of its range 10.1.0.1-10.1.0.254"
    );
    let (_, msg) = request(r#""10.9.0.1","10.1.0.5","10.1.0.6""#);
    assert!(msg.contains("failed to allocate all requested IPs: 10.9.0.1, 10.1.0.6"), "{msg}");
    assert_eq!(request(r#""10.1.0""#).0, 7);
}

#[test]
fn malformed_arguments_fail_add_and_not_del() {
    let mut net = Net::new("args", r#""subnet":"10.1.2.0/24""#);
    net.add("c");
    for bad in ["IP=x", "X=1", "IP=10.1.2.9;"] {
        net.args = bad.to_owned();
        assert_eq!(net.call("ADD", "d").error().0, 4, "{bad}");
    }
    net.del("c");
    assert!(net.leases().is_empty());
}

#[test]
fn runtime_ranges_come_first_and_renumber_the_others() {
    let mut net = Net::new("runtime", r#""subnet":"10.1.0.0/24","ranges":[[{"subnet":"10.2.0.0/24"}]]"#);
    net.rest = r#","runtimeConfig":{"ipRanges":[[{"subnet":"10.3.0.0/24"}]]}"#.to_owned();
    assert_eq!(net.add("c"), ["10.3.0.2/24", "10.1.0.2/24", "10.2.0.2/24"]);
    assert_eq!(net.read("last_reserved_ip.0"), "10.3.0.2");
}

#[test]
fn old_versions_get_one_address_per_family_in_their_own_shape() {
    let mut net = Net::new("old", r#""ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]]"#);
    net.version = "0.2.0";
    let json = net.call("ADD", "c").ok().json();
    assert_eq!((&json["ip4"]["ip"], &json["ip6"]["ip"]), (&"10.1.0.2/24".into(), &"fd00::2/64".into()));
    net.ipam = r#""ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.2.0.0/24"}]]"#.to_owned();
    let (code, msg) = net.call("ADD", "d").error();
    assert!(code == 7 && msg.contains("does not support more than one address per family"), "{code} {msg}");
}

#[test]
fn resolv_conf_becomes_dns_and_is_read_before_anything_is_reserved() {
    let mut net = Net::new("dns", r#""subnet":"10.1.2.0/24""#);
    net.put("resolv.conf", "nameserver 192.0.2.3\nsearch a b\n");
    let path = net.dir().join("resolv.conf");
    net.ipam = format!(r#""subnet":"10.1.2.0/24","resolvConf":"{}""#, path.display());
    let dns = net.call("ADD", "c").ok().json()["dns"].clone();
    assert_eq!(dns, serde_json::json!({"nameservers": ["192.0.2.3"], "search": ["a", "b"]}));
    std::fs::remove_file(path).unwrap();
    assert!(net.call("ADD", "d").error().1.contains("ipam.resolvConf: read "));
    assert_eq!(net.leases(), ["10.1.2.2"]);
}
