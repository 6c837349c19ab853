//! The layouts on a real kernel, compared with what iptables-nft and the Go plugin write.

use std::collections::BTreeMap;

use super::*;
use crate::attach::masquerade::names;
use crate::cni::{Accepts, Environment, Version};
use crate::kernel::nft::testing::{in_namespace, ruleset, sh};
use crate::kernel::nft::{Family, Socket, Step, Table};

const AT: Attachment = Attachment { network: "mynet", container_id: "c1", ifname: "eth0" };

fn conf(more: &str) -> Conf {
    let env = [("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/")];
    let get = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let json = format!(r#"{{"cniVersion":"1.1.0","name":"mynet"{more}}}"#);
    let accepts = Accepts { versions: Version::ALL, nameless: false };
    Conf::new(&Request::new(Environment::read(get).unwrap(), json.into_bytes(), accepts).unwrap()).unwrap()
}

const MAPPINGS: &str = r#","backend":"iptables","runtimeConfig":{"portMappings":[
    {"hostPort":8080,"containerPort":80,"protocol":"tcp"},
    {"hostPort":8081,"containerPort":81,"protocol":"tcp","hostIP":"192.0.2.1"},
    {"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"::"},
    {"hostPort":9000,"containerPort":90,"protocol":"sctp"}]}"#;

fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|net| net.parse().unwrap()).collect()
}

/// What the Go plugin runs for [`MAPPINGS`] with `snat`, by iptables-nft itself.
fn upstream(tool: &str, at: &Attachment, net: &str) -> String {
    let (dn, comment) = (
        names::portmap_chain(at.network, at.container_id),
        names::portmap_comment(at.network, at.container_id),
    );
    let address = net.split('/').next().unwrap();
    let v4 = tool == "iptables-nft";
    let to = if v4 { address.to_owned() } else { format!("[{address}]") };
    let mut lines = vec![
        "-N CNI-HOSTPORT-SETMARK".to_owned(),
        "-A CNI-HOSTPORT-SETMARK -m comment --comment 'CNI portfwd masquerade mark' -j MARK --set-xmark 0x2000/0x2000".into(),
        "-N CNI-HOSTPORT-MASQ".into(),
        "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE".into(),
        "-I POSTROUTING 1 -m comment --comment 'CNI portfwd requiring masquerade' -j CNI-HOSTPORT-MASQ".into(),
        "-N CNI-HOSTPORT-DNAT".into(),
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT".into(),
        "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT".into(),
        format!("-N {dn}"),
    ];
    let own = [
        ("tcp", 8080, 80, "", true),
        ("tcp", 8081, 81, "-d 192.0.2.1", v4),
        ("udp", 53, 53, "", !v4),
        ("sctp", 9000, 90, "", true),
    ];
    for (protocol, port, inner, host, here) in own {
        if !here {
            continue;
        }
        let base = format!("-A {dn} -p {protocol} --dport {port} {host}");
        lines.push(format!("{base} -s {net} -j CNI-HOSTPORT-SETMARK"));
        if v4 {
            lines.push(format!("{base} -s 127.0.0.1 -j CNI-HOSTPORT-SETMARK"));
        }
        lines.push(format!("{base} -j DNAT --to-destination {to}:{inner}"));
    }
    for (protocol, ports) in [("sctp", "9000"), ("tcp", "8080,8081"), ("udp", "53")] {
        lines.push(format!(
            "-A CNI-HOSTPORT-DNAT -m comment --comment '{comment}' -m multiport -p {protocol} --destination-ports {ports} -j {dn}"
        ));
    }
    lines.iter().map(|line| format!("{tool} -t nat {line}\n")).collect()
}

/// Every rule of a family's table, by chain.
fn steps(nft: &mut Socket, family: Family) -> Vec<(String, Vec<Step>)> {
    let mut rules = nft.rules(Table { family, name: "nat" }, None).unwrap();
    rules.sort_by_key(|rule| rule.chain.clone());
    rules.into_iter().map(|rule| (rule.chain, rule.steps)).collect()
}

#[test]
fn iptables_lists_and_deletes_port_mappings_as_its_own() {
    in_namespace("iptables_lists_and_deletes_port_mappings_as_its_own", || {
        let mut nft = Socket::open().unwrap();
        let list = || sh("iptables-nft -t nat -S; ip6tables-nft -t nat -S");
        sh(&upstream("iptables-nft", &AT, "10.1.0.5/16"));
        sh(&upstream("ip6tables-nft", &AT, "fd00:1::5/64"));
        let theirs = (list(), steps(&mut nft, Family::Ip), steps(&mut nft, Family::Ip6));
        sh("nft flush ruleset");
        let own = nets("10.1.0.5/16 fd00:1::5/64");
        let conf = conf(MAPPINGS);
        let add = |nft: &mut Socket| nft.commit(|nft| iptables::plan_add(nft, &AT, &conf, &own)).unwrap();
        add(&mut nft);
        let ours = (list(), steps(&mut nft, Family::Ip), steps(&mut nft, Family::Ip6));
        assert_eq!(ours.0, theirs.0);
        assert_eq!(ours.1, theirs.1, "the same words, other expressions");
        assert_eq!(ours.2, theirs.2, "the same words, other expressions");
        iptables::check(&mut nft, &AT, &conf, &own).unwrap();
        add(&mut nft);
        assert_eq!(list(), theirs.0, "a second time");
        // Its own tool takes them away as well.
        let dn = names::portmap_chain("mynet", "c1");
        let entries = sh("iptables-nft -t nat -S CNI-HOSTPORT-DNAT | grep -e -A");
        for line in entries.lines() {
            sh(&format!("iptables-nft -t nat {}", line.replacen("-A", "-D", 1)));
        }
        sh(&format!("iptables-nft -t nat -F {dn}; iptables-nft -t nat -X {dn}"));
    });
}

#[test]
fn del_removes_what_a_go_plugin_left_in_either_layout() {
    in_namespace("del_removes_what_a_go_plugin_left_in_either_layout", || {
        let other = Attachment { container_id: "c2", ..AT };
        sh(&upstream("iptables-nft", &AT, "10.1.0.5/16"));
        sh(&upstream("ip6tables-nft", &AT, "fd00:1::5/64"));
        let dn = names::portmap_chain("mynet", "c2");
        let old = names::old_portmap_chain("mynet", "c1");
        sh(&format!(
            "iptables-nft -t nat -N {dn}
             iptables-nft -t nat -A {dn} -p tcp --dport 99 -j DNAT --to-destination 10.1.0.6:99
             iptables-nft -t nat -A CNI-HOSTPORT-DNAT -m comment --comment 'dnat name: \"mynet\" id: \"c2\"' -m multiport -p tcp --dports 99 -j {dn}
             iptables-nft -t nat -N CNI-HOSTPORT-SNAT
             iptables-nft -t nat -N {old}
             iptables-nft -t nat -A {old} -s 127.0.0.1 -d 10.1.0.5 -p tcp --dport 80 -j MASQUERADE
             iptables-nft -t nat -A CNI-HOSTPORT-SNAT -j {old}"
        ));
        sh("nft -f - <<'E'
table ip cni_hostport {
    comment \"CNI portmap plugin\"
    chain hostports {
        tcp dport 8080 dnat to 10.1.0.5:80 comment \"c1\"
        ip daddr 192.0.2.1 tcp dport 8081 dnat to 10.1.0.5:81 comment \"c1\"
        tcp dport 8082 dnat to 10.2.0.5:80 comment \"c1\"
        tcp dport 8080 dnat to 10.1.0.6:80 comment \"c2\"
    }
    chain hostip_hostports { }
    chain hostports_all { jump hostip_hostports; jump hostports; }
    chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local jump hostports_all; }
    chain masquerading {
        type nat hook postrouting priority srcnat;
        ip saddr 10.1.0.5 ip daddr 10.1.0.5 masquerade comment \"c1\"
        ip saddr 127.0.0.1 ip daddr 10.1.0.5 masquerade comment \"c1\"
        ip saddr 127.0.0.1 ip daddr 10.2.0.5 masquerade comment \"c1\"
    }
}
E");
        let mut kernel = Kernel::new(false);
        remove(&AT, &["10.1.0.5".parse().unwrap()], &mut kernel).unwrap();
        let text = ruleset();
        for gone in ["10.1.0.5", "fd00:1::5", &names::portmap_chain("mynet", "c1"), &old] {
            assert!(!text.contains(gone), "{gone}\n{text}");
        }
        // Of another container, and of this one on another network.
        assert!(text.contains("10.1.0.6:99") && text.contains("10.1.0.6:80"), "{text}");
        assert!(
            text.contains("dnat to 10.2.0.5:80") && text.contains("ip daddr 10.2.0.5 masquerade"),
            "{text}"
        );
        // Without any address.
        remove(&AT, &[], &mut kernel).unwrap();
        remove(&other, &[], &mut kernel).unwrap();
        let text = ruleset();
        assert!(
            !text.contains("10.2.0.5") && !text.contains("10.1.0.6") && !text.contains("CNI-DN"),
            "{text}"
        );
        assert!(text.contains("jump hostports") && text.contains("CNI-HOSTPORT-DNAT"), "{text}");
    });
}

#[test]
fn the_attachments_of_one_container_share_its_chain() {
    in_namespace("the_attachments_of_one_container_share_its_chain", || {
        let mut nft = Socket::open().unwrap();
        let second = Attachment { ifname: "eth1", ..AT };
        let port = |n| port("iptables", n);
        for (at, n, net) in [(&AT, 1, "10.1.0.5/16"), (&second, 2, "10.2.0.5/16")] {
            nft.commit(|nft| iptables::plan_add(nft, at, &port(n), &nets(net))).unwrap();
        }
        assert_eq!(
            iptables::records(&mut nft, &AT).unwrap(),
            Record::all(&port(1).mappings, "10.1.0.5".parse().unwrap())
        );
        nft.commit(|nft| iptables::plan_del(nft, &AT)).unwrap();
        assert!(!ruleset().contains("10.1.0.5"), "{}", ruleset());
        iptables::check(&mut nft, &second, &port(2), &nets("10.2.0.5/16")).unwrap();
        // Other ports: the former ones go.
        nft.commit(|nft| iptables::plan_add(nft, &second, &port(3), &nets("10.2.0.5/16"))).unwrap();
        assert!(!sh("iptables-nft -t nat -S").contains("port 2 "), "{}", ruleset());
        let valid = [("c1".to_owned(), "eth0".to_owned())];
        nft.commit(|nft| iptables::plan_gc(nft, "mynet", &valid)).unwrap();
        assert!(!ruleset().contains("CNI-DN"), "{}", ruleset());
    });
}

/// Does two things at the same moment, and says how they went.
fn at_once(
    one: impl FnOnce() -> Result<()> + Send,
    two: impl FnOnce() -> Result<()> + Send,
) -> [Result<()>; 2] {
    let barrier = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            barrier.wait();
            one()
        });
        barrier.wait();
        let second = two();
        [first.join().unwrap(), second]
    })
}

fn port(backend: &str, n: u16) -> Conf {
    conf(&format!(
        r#","backend":"{backend}","runtimeConfig":{{"portMappings":[{{"hostPort":{n},"containerPort":80,"protocol":"tcp"}}]}}"#
    ))
}

#[test]
fn of_two_that_ask_for_a_port_at_once_one_gets_it() {
    in_namespace("of_two_that_ask_for_a_port_at_once_one_gets_it", || {
        let other = Attachment { container_id: "c2", ..AT };
        let add_it = |at: &Attachment, backend: &str, net: &str| {
            let (conf, known) = (port(backend, 8080), nets(net));
            or_take_back(&mut Kernel::new(false), |kernel, undo| {
                undo.push(|kernel| remove(at, &[known[0].addr()], kernel));
                add(at, &conf, &known, kernel)
            })
        };
        for (first, second) in [("iptables", "iptables"), ("iptables", "nftables"), ("nftables", "nftables")]
        {
            for round in 0..15 {
                let outcomes =
                    at_once(|| add_it(&AT, first, "10.1.0.5/16"), || add_it(&other, second, "10.1.0.6/16"));
                let refused: Vec<u32> =
                    outcomes.iter().filter_map(|o| o.as_ref().err()).map(|e| e.code().0).collect();
                assert_eq!(refused, [102], "{first} {second}, round {round}\n{}", ruleset());
                for (at, outcome) in [&AT, &other].into_iter().zip(&outcomes) {
                    assert_eq!(has_mappings(at, &mut Kernel::new(false)), outcome.is_ok(), "round {round}");
                    remove(at, &[], &mut Kernel::new(false)).unwrap();
                }
            }
        }
    });
}

#[test]
fn what_containers_share_is_made_once_and_what_they_do_not_goes_with_them() {
    in_namespace("what_containers_share_is_made_once_and_what_they_do_not_goes_with_them", || {
        let second = Attachment { ifname: "eth1", ..AT };
        for round in 0..20 {
            let add = |at, n, net| add(at, &port("iptables", n), &nets(net), &mut Kernel::new(false));
            for outcome in at_once(|| add(&AT, 1, "10.1.0.5/16"), || add(&second, 2, "10.1.0.6/16")) {
                outcome.unwrap();
            }
            let listed = sh("iptables-nft -t nat -S | grep -e -A | grep -v CNI-DN");
            let mut lines: Vec<&str> = listed.lines().collect();
            assert_eq!(lines.len(), 5, "round {round}\n{listed}");
            lines.sort_unstable();
            lines.dedup();
            assert_eq!(lines.len(), 5, "round {round}\n{listed}");
            let del = |at| remove(at, &[], &mut Kernel::new(false));
            for outcome in at_once(|| del(&AT), || del(&second)) {
                outcome.unwrap();
            }
            let left = ruleset();
            assert!(!left.contains("CNI-DN"), "round {round}\n{left}");
            sh("nft flush ruleset");
        }
    });
}

#[test]
fn more_ports_than_multiport_takes_are_several_rules_in_order() {
    in_namespace("more_ports_than_multiport_takes_are_several_rules_in_order", || {
        let mut nft = Socket::open().unwrap();
        let all: Vec<String> =
            (1..=17).map(|n| format!(r#"{{"hostPort":{n},"containerPort":{n},"protocol":"tcp"}}"#)).collect();
        let conf = conf(&format!(
            r#","backend":"iptables","markMasqBit":5,"masqAll":true,"conditionsV4":["!","-s","192.0.2.0/24"],"runtimeConfig":{{"portMappings":[{}]}}"#,
            all.join(",")
        ));
        nft.commit(|nft| iptables::plan_add(nft, &AT, &conf, &nets("10.1.0.5/16"))).unwrap();
        let text = sh("iptables-nft -t nat -S");
        for part in [
            "! -s 192.0.2.0/24 -p tcp -m comment --comment \"dnat name: \\\"mynet\\\" id: \\\"c1\\\"\" -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 -j CNI-DN-",
            "-m multiport --dports 16,17 -j CNI-DN-",
            "-p tcp -m tcp --dport 1 -j CNI-HOSTPORT-SETMARK",
            "-m mark --mark 0x20/0x20 -j MASQUERADE",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("127.0.0.1"), "{text}");
    });
}

#[test]
fn the_external_chain_is_used_instead_of_ours_and_must_be_there() {
    in_namespace("the_external_chain_is_used_instead_of_ours_and_must_be_there", || {
        let mut nft = Socket::open().unwrap();
        let conf = conf(
            r#","externalSetMarkChain":"KUBE-MARK-MASQ","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"tcp"}]}"#,
        );
        let own = nets("10.1.0.5/16");
        let err = nft.commit(|nft| iptables::plan_add(nft, &AT, &conf, &own)).unwrap_err();
        assert_eq!(err.msg(), "externalSetMarkChain: iptables -t nat has no chain \"KUBE-MARK-MASQ\"");
        sh("iptables-nft -t nat -N KUBE-MARK-MASQ");
        nft.commit(|nft| iptables::plan_add(nft, &AT, &conf, &own)).unwrap();
        let text = sh("iptables-nft -t nat -S");
        assert!(text.contains("-s 10.1.0.0/16 -p tcp -m tcp --dport 1 -j KUBE-MARK-MASQ"), "{text}");
        assert!(!text.contains("SETMARK") && !text.contains("-MASQ -m"), "{text}");
    });
}

/// A configuration with this many mappings from a first host port on.
fn many(first: u32, count: u32) -> Conf {
    let all: Vec<String> = (first..first + count)
        .map(|n| format!(r#"{{"hostPort":{n},"containerPort":80,"protocol":"tcp"}}"#))
        .collect();
    conf(&format!(r#","runtimeConfig":{{"portMappings":[{}]}}"#, all.join(",")))
}

/// The rules that a packet can meet: all but those of the attachments' chains, of which it gets into one.
fn rules() -> usize {
    let mut nft = Socket::open().unwrap();
    let (mut shared, mut own) = (0, BTreeMap::<String, usize>::new());
    for rule in nft.rules(Table { family: Family::Ip, name: "cni-all" }, None).unwrap() {
        match names::is_conditional_chain(&rule.chain) {
            true => *own.entry(rule.chain).or_default() += 1,
            false => shared += 1,
        }
    }
    shared + own.into_values().max().unwrap_or(0)
}

#[test]
fn a_packet_meets_as_many_rules_with_a_thousand_containers_as_with_one() {
    in_namespace("a_packet_meets_as_many_rules_with_a_thousand_containers_as_with_one", || {
        let mut nft = Socket::open().unwrap();
        let mapping =
            |n: u32, more: &str| format!(r#"{{"hostPort":{},"containerPort":80,{more}}}"#, 1000 + n);
        for conditions in ["", r#","conditionsV4":["-s","192.0.2.0/24"]"#] {
            let mut add_it = |n: u32| {
                let id = format!("container{n}");
                let at = Attachment { container_id: &id, ..AT };
                let own = nets(&format!("10.1.{}.{}/16", n / 250, n % 250 + 2));
                let ports = [
                    r#""protocol":"tcp""#,
                    r#""protocol":"udp""#,
                    r#""protocol":"sctp","hostIP":"192.0.2.1""#,
                ];
                let ports = ports.map(|more| mapping(n, more)).join(",");
                let conf = conf(&format!(r#"{conditions},"runtimeConfig":{{"portMappings":[{ports}]}}"#));
                nft.commit(|nft| plan_add(nft, &at, &conf, &own)).unwrap();
            };
            add_it(0);
            let one = rules();
            (1..1000).for_each(add_it);
            assert_eq!(rules(), one, "{conditions}");
            let maps = if conditions.is_empty() {
                ["hostports", "hostips"]
            } else {
                ["cond-hostports", "cond-hostips"]
            };
            let counts =
                maps.map(|map| sh(&format!("nft list map ip cni-all {map}")).matches("comment").count());
            assert_eq!(counts, [2000, 1000], "{conditions}");
            nft.commit(|nft| maps::plan_gc(nft, "mynet", &[])).unwrap();
            let left = ruleset();
            assert!(!left.contains("elements") && !left.contains("chain cond-"), "{conditions}\n{left}");
        }
    });
}

#[test]
fn a_container_can_have_thousands_of_mappings() {
    in_namespace("a_container_can_have_thousands_of_mappings", || {
        let mut nft = Socket::open().unwrap();
        let (conf, own) = (many(10_000, 2_000), nets("10.1.0.5/16"));
        nft.commit(|nft| maps::plan_add(nft, &AT, &conf, &own)).unwrap();
        maps::check(&mut nft, &AT, &conf, &own).unwrap();
        nft.commit(|nft| maps::plan_add(nft, &AT, &conf, &own)).unwrap();
        assert_eq!(maps::records(&mut nft, &AT).unwrap().len(), 2_000);
        remove(&AT, &[], &mut Kernel::new(false)).unwrap();
        assert!(!ruleset().contains("elements") && !ruleset().contains("hairpin-"));
    });
}
