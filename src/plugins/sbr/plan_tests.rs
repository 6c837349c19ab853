use super::*;

const LOCAL: u32 = 255;

fn dev() -> Dev {
    Dev { index: 3, name: "net1".into() }
}

fn ip(address: &str, gateway: Option<&str>) -> IpConfig {
    IpConfig {
        address: address.parse().unwrap(),
        gateway: gateway.map(|gw| gw.parse().unwrap()),
        interface: Some(0),
    }
}

fn route(dst: &str, gw: Option<&str>, src: Option<&str>) -> Route {
    let dst: IpNet = dst.parse().unwrap();
    let on_link_v4 = gw.is_none() && dst.addr().is_ipv4();
    Route {
        dst,
        gw: gw.map(|gw| gw.parse().unwrap()),
        oif: Some(3),
        src: src.map(|src| src.parse().unwrap()),
        priority: if dst.addr().is_ipv6() { 256 } else { 0 },
        table: TABLE_MAIN,
        scope: if on_link_v4 { 253 } else { 0 },
        protocol: if gw.is_none() { 2 } else { 3 },
        kind: RTN_UNICAST,
        flags: 0,
        mtu: 0,
        advmss: 0,
        nexthops: Vec::new(),
    }
}

fn rule(src: &str, table: u32, protocol: u8) -> Rule {
    let src: IpNet = src.parse().unwrap();
    let v6 = src.addr().is_ipv6();
    Rule { v6, src: Some(src), table, priority: 32765, protocol, is_plain: true }
}

fn printed(changes: &[Change]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

fn plan(conf: &Conf, ips: &[IpConfig], observed: &Observed) -> (Vec<String>, Vec<String>) {
    let plan = Plan::new(conf, ips, &dev(), observed);
    (printed(&plan.add), printed(&plan.move_out))
}

#[test]
fn every_route_of_the_interface_moves_and_none_is_lost() {
    let observed = Observed {
        routes: vec![
            route("0.0.0.0/0", Some("10.1.0.1"), None),
            route("10.1.0.0/24", None, Some("10.1.0.5")),
            // A gateway outside the address's network, which the Go plugin loses.
            route("192.0.2.0/24", Some("172.16.0.9"), None),
            route("172.16.0.9/32", None, None),
            route("fe80::/64", None, None),
            Route { table: LOCAL, kind: 2, ..route("10.1.0.5/32", None, None) },
            Route { oif: Some(2), ..route("10.9.0.0/16", None, None) },
        ],
        tables: vec![100, 102, 254],
        ..Observed::default()
    };
    let (add, move_out) = plan(&Conf::default(), &[ip("10.1.0.5/24", Some("10.1.0.1"))], &observed);
    assert_eq!(
        add,
        [
            "ip rule add from 10.1.0.5/32 lookup 101 protocol 67",
            "ip route replace 10.1.0.0/24 dev net1 src 10.1.0.5 table 101 proto 2 scope link",
            "ip route replace 172.16.0.9/32 dev net1 table 101 proto 2 scope link",
            "ip route replace default via 10.1.0.1 dev net1 table 101 proto 3 scope global",
            "ip route replace 192.0.2.0/24 via 172.16.0.9 dev net1 table 101 proto 3 scope global",
        ]
    );
    assert_eq!(
        move_out,
        [
            "ip route del default via 10.1.0.1 dev net1 proto 3 scope global",
            "ip route del 192.0.2.0/24 via 172.16.0.9 dev net1 proto 3 scope global",
            "ip route del 10.1.0.0/24 dev net1 src 10.1.0.5 proto 2 scope link",
            "ip route del 172.16.0.9/32 dev net1 proto 2 scope link",
        ]
    );
}

#[test]
fn each_address_has_a_table_with_what_leads_through_its_network() {
    let ips = [
        ip("10.1.0.5/24", Some("10.1.0.1")),
        ip("10.2.0.5/24", Some("10.2.0.1")),
        ip("fd00::5/64", Some("fd00::1")),
    ];
    let observed = Observed {
        routes: vec![
            route("10.1.0.0/24", None, Some("10.1.0.5")),
            route("10.2.0.0/24", None, Some("10.2.0.5")),
            route("198.51.100.0/24", Some("10.2.0.9"), None),
            route("fd00::/64", None, None),
            route("fe80::/64", None, None),
        ],
        ..Observed::default()
    };
    let (add, move_out) = plan(&Conf::default(), &ips, &observed);
    assert_eq!(
        add,
        [
            "ip rule add from 10.1.0.5/32 lookup 100 protocol 67",
            "ip route replace 10.1.0.0/24 dev net1 src 10.1.0.5 table 100 proto 2 scope link",
            "ip route replace default via 10.1.0.1 dev net1 table 100 proto 67",
            "ip rule add from 10.2.0.5/32 lookup 101 protocol 67",
            "ip route replace 10.2.0.0/24 dev net1 src 10.2.0.5 table 101 proto 2 scope link",
            "ip route replace 198.51.100.0/24 via 10.2.0.9 dev net1 table 101 proto 3 scope global",
            "ip route replace default via 10.2.0.1 dev net1 table 101 proto 67",
            "ip -6 rule add from fd00::5/128 lookup 102 protocol 67",
            "ip -6 route replace fd00::/64 dev net1 metric 256 table 102 proto 2",
            "ip -6 route replace fe80::/64 dev net1 metric 256 table 102 proto 2",
            "ip -6 route replace default via fd00::1 dev net1 table 102 proto 67",
        ]
    );
    assert_eq!(move_out.len(), 4);
    assert!(!move_out.iter().any(|line| line.contains("fe80")), "{move_out:?}");
}

#[test]
fn a_named_table_gets_rules_only() {
    let conf = Conf { table: Some(7), ..Conf::default() };
    let observed =
        Observed { routes: vec![route("10.1.0.0/24", None, Some("10.1.0.5"))], ..Observed::default() };
    let ips = [ip("10.1.0.5/24", None), ip("10.1.0.6/24", None)];
    let (add, move_out) = plan(&conf, &ips, &observed);
    assert_eq!(
        add,
        [
            "ip rule add from 10.1.0.5/32 lookup 7 protocol 67",
            "ip rule add from 10.1.0.6/32 lookup 7 protocol 67"
        ]
    );
    assert!(move_out.is_empty());
    let there = Observed { rules: vec![rule("10.1.0.5/32", 7, 0)], ..Observed::default() };
    assert_eq!(plan(&conf, &ips, &there).0.len(), 1);
}

#[test]
fn a_rule_that_is_there_keeps_its_table() {
    let observed = Observed {
        rules: vec![rule("10.1.0.5/32", 100, OWN)],
        routes: vec![Route { table: 100, ..route("10.1.0.0/24", None, Some("10.1.0.5")) }],
        tables: vec![100],
    };
    let (add, move_out) = plan(&Conf::default(), &[ip("10.1.0.5/24", Some("10.1.0.1"))], &observed);
    assert_eq!(add, ["ip route replace default via 10.1.0.1 dev net1 table 100 proto 67"]);
    assert!(move_out.is_empty());
}

#[test]
fn named_gateways_go_before_those_of_the_result() {
    let conf = Conf { gateways: vec!["10.1.0.254".parse().unwrap()], ..Conf::default() };
    let observed = Observed {
        routes: vec![
            route("0.0.0.0/0", Some("10.1.0.1"), None),
            Route { priority: 50, ..route("0.0.0.0/0", Some("10.1.0.2"), None) },
        ],
        ..Observed::default()
    };
    let (add, _) = plan(&conf, &[ip("10.1.0.5/24", Some("10.1.0.1"))], &observed);
    assert_eq!(
        add[1..],
        [
            "ip route replace default via 10.1.0.1 dev net1 metric 2147483648 table 100 proto 3 scope global",
            "ip route replace default via 10.1.0.2 dev net1 metric 50 table 100 proto 3 scope global",
            "ip route replace default via 10.1.0.254 dev net1 table 100 proto 67",
        ]
    );
    let conf = Conf { gateways: vec!["fd00::fe".parse().unwrap()], ..Conf::default() };
    let observed = Observed { routes: vec![route("::/0", Some("fd00::1"), None)], ..Observed::default() };
    let (add, _) = plan(&conf, &[ip("fd00::5/64", None)], &observed);
    assert_eq!(
        add[1..],
        [
            "ip -6 route replace default via fd00::1 dev net1 metric 256 table 100 proto 3",
            "ip -6 route replace default via fd00::fe dev net1 metric 1 table 100 proto 67",
        ]
    );
}

#[test]
fn routes_that_named_gateways_and_source_hints_changed_go_back_as_they_were() {
    let routes = [
        Route { table: 100, protocol: OWN, ..route("0.0.0.0/0", Some("10.1.0.254"), None) },
        Route { table: 100, priority: DISPLACED, ..route("0.0.0.0/0", Some("10.1.0.1"), None) },
        // Nobody else's metric is taken for that.
        Route { table: 100, priority: DISPLACED, ..route("192.0.2.0/24", Some("10.1.0.1"), None) },
        Route { table: 101, ..route("fd00::/64", None, None) },
        route("fd00::/64", None, Some("fd00::5")),
        Route { protocol: OWN, ..route("10.7.0.0/16", None, Some("10.7.0.5")) },
        route("10.8.0.0/16", None, Some("10.8.0.5")),
    ];
    let changes = printed(&back(&routes, &dev(), &[100, 101]));
    assert_eq!(
        changes[..5],
        [
            "ip -6 route del fd00::/64 dev net1 src fd00::5 metric 256 proto 2",
            "ip route del 10.7.0.0/16 dev net1 src 10.7.0.5 proto 67 scope link",
            "ip -6 route prepend fd00::/64 dev net1 metric 256 proto 2",
            "ip route prepend default via 10.1.0.1 dev net1 proto 3 scope global",
            "ip route prepend 192.0.2.0/24 via 10.1.0.1 dev net1 metric 2147483648 proto 3 scope global",
        ]
    );
    assert!(back(&routes, &dev(), &[]).is_empty());
}

#[test]
fn source_hints_keep_the_networks_and_what_gateways_are_reached_by() {
    let conf = Conf { keep_networks: true, ..Conf::default() };
    let observed = Observed {
        routes: vec![
            route("0.0.0.0/0", Some("10.1.0.1"), None),
            route("10.1.0.0/24", None, Some("10.1.0.5")),
            route("172.16.0.9/32", None, None),
            route("fd00::/64", None, None),
            route("fe80::/64", None, None),
        ],
        ..Observed::default()
    };
    let ips = [ip("10.1.0.5/24", Some("10.1.0.1")), ip("fd00::5/64", None), ip("10.7.0.5/16", None)];
    assert_eq!(
        plan(&conf, &ips, &observed).1,
        [
            "ip route del default via 10.1.0.1 dev net1 proto 3 scope global",
            "ip -6 route replace fd00::/64 dev net1 src fd00::5 metric 256 proto 2",
            "ip route replace 10.7.0.0/16 dev net1 src 10.7.0.5 proto 67 scope link",
        ]
    );
}

#[test]
fn what_was_in_the_main_table_goes_back_and_what_was_made_goes() {
    let routes = [
        Route { table: 100, protocol: OWN, ..route("0.0.0.0/0", Some("10.1.0.1"), None) },
        Route { table: 100, ..route("192.0.2.0/24", Some("10.1.0.1"), None) },
        Route { table: 100, ..route("10.1.0.0/24", None, Some("10.1.0.5")) },
        Route { table: 200, ..route("10.3.0.0/24", None, None) },
    ];
    assert_eq!(
        printed(&back(&routes, &dev(), &[100])),
        [
            "ip route prepend 10.1.0.0/24 dev net1 src 10.1.0.5 proto 2 scope link",
            "ip route prepend 192.0.2.0/24 via 10.1.0.1 dev net1 proto 3 scope global",
            "ip route del 192.0.2.0/24 via 10.1.0.1 dev net1 table 100 proto 3 scope global",
            "ip route del default via 10.1.0.1 dev net1 table 100 proto 67 scope global",
            "ip route del 10.1.0.0/24 dev net1 src 10.1.0.5 table 100 proto 2 scope link",
        ]
    );
}

#[test]
fn only_plain_rules_for_a_whole_address_are_the_attachments() {
    let ips = [ip("10.1.0.5/24", None)];
    assert!(is_of(&rule("10.1.0.5/32", 100, 0), &ips, &None));
    assert!(is_of(&rule("10.1.0.5/32", 100, 0), &ips, &Some(100)));
    assert!(!is_of(&rule("10.1.0.5/32", 100, 0), &ips, &Some(101)));
    assert!(!is_of(&rule("10.1.0.0/24", 100, 0), &ips, &None));
    assert!(!is_of(&Rule { is_plain: false, ..rule("10.1.0.5/32", 100, 0) }, &ips, &None));
}
