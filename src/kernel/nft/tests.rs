//! Printed changes, and the socket against the kernel.

use super::testing::{in_namespace, ruleset, sh};
use super::*;

const TABLE: Table = Table { family: Family::Ip, name: "cni-test" };
const MAP: Map = Map { table: TABLE, name: "who", key: Type::Address, data: Type::Verdict };

fn element(address: &str, chain: &str) -> Element {
    Element {
        key: Value::Address(address.parse().unwrap()),
        data: Value::Verdict(Verdict::Goto(chain.into())),
        comment: "net a if eth0 id c".into(),
    }
}

fn rule(dialect: Dialect, family: Family, statements: Vec<Statement>, comment: Option<&str>) -> Rule {
    let table = Table { family, ..TABLE };
    Rule { table, chain: "to".into(), statements, comment: comment.map(Into::into), tag: None, dialect }
}

fn within(side: Side, net: &str, inside: bool) -> Statement {
    Statement::Within { side, net: net.parse().unwrap(), inside }
}

#[test]
fn every_change_prints_as_the_line_an_operator_would_type() {
    let jump = Statement::Verdict(Verdict::Jump("CNI-x".into()));
    let bridge = Table { family: Family::Bridge, name: "nat" };
    let base = Base { kind: Kind::Filter, hook: Hook::Prerouting, priority: -300 };
    let chain = "to".to_owned();
    let changes = [
        Change::AddTable(TABLE),
        Change::CreateTable(TABLE),
        Change::AddChain(Chain { table: bridge, name: "PREROUTING".into(), base: Some(base) }),
        Change::CreateChain(Chain { table: TABLE, name: chain.clone(), base: None }),
        Change::AddMap(MAP),
        Change::AddMap(Map {
            table: Table { family: Family::Ip6, ..TABLE },
            key: Type::Name,
            data: Type::Address,
            ..MAP
        }),
        Change::CreateElement(MAP, element("10.1.0.5", "to")),
        Change::DestroyElement(MAP, Value::Address("10.1.0.5".parse().unwrap())),
        Change::AddRule(rule(
            Dialect::Nft,
            Family::Ip,
            vec![within(Side::Destination, "10.1.0.7/16", true), Statement::Verdict(Verdict::Return)],
            Some("why"),
        )),
        Change::AddRule(rule(Dialect::Nft, Family::Ip, vec![Statement::Lookup(Side::Source, MAP)], None)),
        Change::AddRule(rule(
            Dialect::Nft,
            Family::Bridge,
            vec![
                Statement::InputLink("veth0".into()),
                Statement::EtherSource([10, 88, 10, 1, 0, 5]),
                Statement::Verdict(Verdict::Drop),
            ],
            None,
        )),
        Change::AddRule(rule(
            Dialect::Iptables,
            Family::Ip6,
            vec![within(Side::Source, "fd00::5/128", true), jump],
            Some("name: \"n\" id: \"c\""),
        )),
        Change::AddRule(rule(
            Dialect::Iptables,
            Family::Ip,
            vec![within(Side::Destination, "224.0.0.0/4", false), Statement::Masquerade],
            None,
        )),
        Change::InsertRule(rule(
            Dialect::Nft,
            Family::Bridge,
            vec![
                Statement::InputBridge("cni0".into()),
                Statement::Carries(Family::Ip6),
                Statement::Verdict(Verdict::Drop),
            ],
            None,
        )),
        Change::InsertRule(rule(
            Dialect::Iptables,
            Family::Ip,
            vec![
                Statement::InputLink("cni0".into()),
                Statement::OutputLink { name: "cni0".into(), is: false },
                Statement::Verdict(Verdict::Return),
            ],
            Some("why"),
        )),
        Change::AddRule(rule(
            Dialect::Iptables,
            Family::Ip,
            vec![
                within(Side::Destination, "10.1.0.5/32", true),
                Statement::Established,
                Statement::Verdict(Verdict::Accept),
            ],
            None,
        )),
        Change::AddRule(rule(
            Dialect::Nft,
            Family::Ip,
            vec![Statement::OutputLink { name: "cni0".into(), is: true }, Statement::Established],
            None,
        )),
        Change::DeleteRule { table: TABLE, chain: chain.clone(), handle: 7 },
        Change::FlushChain { table: TABLE, chain: chain.clone() },
        Change::DeleteChain { table: TABLE, chain },
    ];
    let printed: Vec<String> = changes.iter().map(Change::to_string).collect();
    let expected = [
        "nft add table ip cni-test",
        "nft create table ip cni-test",
        "nft add chain bridge nat PREROUTING { type filter hook prerouting priority -300; policy accept; }",
        "nft create chain ip cni-test to",
        "nft add map ip cni-test who { type ipv4_addr : verdict; }",
        "nft add map ip6 cni-test who { type ifname : ipv6_addr; }",
        "nft create element ip cni-test who { 10.1.0.5 comment \"net a if eth0 id c\" : goto to }",
        "nft destroy element ip cni-test who { 10.1.0.5 }",
        "nft add rule ip cni-test to ip daddr 10.1.0.0/16 return comment \"why\"",
        "nft add rule ip cni-test to ip saddr vmap @who",
        "nft add rule bridge cni-test to iifname \"veth0\" ether saddr 0a:58:0a:01:00:05 drop",
        "ip6tables -t cni-test -A to -s fd00::5/128 -m comment --comment \"name: \\\"n\\\" id: \\\"c\\\"\" -j CNI-x",
        "iptables -t cni-test -A to ! -d 224.0.0.0/4 -j MASQUERADE",
        "nft insert rule bridge cni-test to meta ibrname \"cni0\" meta protocol ip6 drop",
        "iptables -t cni-test -I to -i cni0 ! -o cni0 -m comment --comment \"why\" -j RETURN",
        "iptables -t cni-test -A to -d 10.1.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "nft add rule ip cni-test to oifname \"cni0\" ct state related,established",
        "nft delete rule ip cni-test to handle 7",
        "nft flush chain ip cni-test to",
        "nft delete chain ip cni-test to",
    ];
    assert_eq!(printed, expected);
}

#[test]
fn a_refused_batch_names_its_change_and_leaves_nothing() {
    in_namespace("a_refused_batch_names_its_change_and_leaves_nothing", || {
        let mut nft = Socket::open().unwrap();
        let chain = Chain { table: TABLE, name: "to".into(), base: None };
        let good = [Change::AddTable(TABLE), Change::CreateChain(chain), Change::AddMap(MAP)];
        let bad = Change::CreateElement(MAP, element("10.1.0.5", "no-such-chain"));
        let after = Change::CreateElement(MAP, element("10.1.0.6", "to"));
        let err = nft.apply(&[&good[..], &[bad, after]].concat()).unwrap_err();
        assert_eq!(
            err.to_string(),
            "nft create element ip cni-test who { 10.1.0.5 comment \"net a if eth0 id c\" : goto no-such-chain }: \
             No such file or directory"
        );
        assert!(err.is_gone());
        assert_eq!(ruleset(), "");
        // The socket still answers for itself.
        nft.apply(&good).unwrap();
        assert!(nft.has_table(TABLE).unwrap());
    });
}

#[test]
fn what_is_written_is_read_back() {
    in_namespace("what_is_written_is_read_back", || {
        let mut nft = Socket::open().unwrap();
        assert!(!nft.has_table(TABLE).unwrap());
        assert_eq!(nft.chain(TABLE, "to").unwrap(), None);
        assert_eq!(nft.elements(&MAP).unwrap(), []);
        assert_eq!(nft.rules(TABLE, None).unwrap(), []);
        let key = Value::Address("10.1.0.5".parse().unwrap());
        assert_eq!(nft.element(&MAP, &key).unwrap(), None);

        let made = element("10.1.0.5", "to");
        let mut back = rule(Dialect::Nft, Family::Ip, vec![Statement::Lookup(Side::Source, MAP)], Some("x"));
        back.tag = Some("hidden".into());
        let index = Map { name: "index", key: Type::Name, data: Type::Address, ..MAP };
        let entry = Element {
            key: Value::Name("fedcba987654321".into()),
            data: Value::Address("10.1.0.5".parse().unwrap()),
            comment: "z".into(),
        };
        let base = Some(Base { kind: Kind::Nat, hook: Hook::Postrouting, priority: 100 });
        nft.apply(&[
            Change::CreateTable(TABLE),
            Change::CreateChain(Chain { table: TABLE, name: "to".into(), base: None }),
            Change::CreateChain(Chain { table: TABLE, name: "post".into(), base }),
            Change::AddMap(MAP),
            Change::AddMap(index),
            Change::CreateElement(MAP, made.clone()),
            Change::CreateElement(index, entry.clone()),
            Change::AddRule(Rule { chain: "post".into(), ..back.clone() }),
        ])
        .unwrap();
        assert_eq!(nft.element(&MAP, &key).unwrap(), Some(made.clone()));
        assert_eq!(nft.elements(&MAP).unwrap(), [made]);
        assert_eq!(nft.element(&index, &entry.key).unwrap(), Some(entry));
        let listed = nft.rules(TABLE, Some("post")).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].steps, program(&back).unwrap());
        assert_eq!((listed[0].comment.as_deref(), listed[0].tag.as_deref()), (Some("x"), Some("hidden")));
        assert_eq!(nft.chain(TABLE, "post").unwrap().unwrap().base, base);
        assert_eq!(nft.chain(TABLE, "to").unwrap().unwrap().uses, 1);
        let text = ruleset();
        for part in [
            "10.1.0.5 comment \"net a if eth0 id c\" : goto to",
            "\"fedcba987654321\" comment \"z\" : 10.1.0.5",
            "ip saddr vmap @who comment \"x\"",
        ] {
            assert!(text.contains(part), "{text}");
        }
        nft.apply(&[Change::DestroyElement(MAP, key.clone())]).unwrap();
        assert_eq!(nft.element(&MAP, &key).unwrap(), None);
    });
}

#[test]
fn networks_of_any_prefix_length_are_read_back() {
    in_namespace("networks_of_any_prefix_length_are_read_back", || {
        let mut nft = Socket::open().unwrap();
        for (family, nets) in [
            (Family::Ip, ["10.1.0.5/32", "10.1.0.0/16", "10.8.0.0/13"]),
            (Family::Ip6, ["fd00::5/128", "fd00::/64", "fd00::/61"]),
        ] {
            let table = Table { family, ..TABLE };
            nft.apply(&[
                Change::AddTable(table),
                Change::AddChain(Chain { table, name: "to".into(), base: None }),
            ])
            .unwrap();
            for net in nets {
                for dialect in [Dialect::Nft, Dialect::Iptables] {
                    let statements =
                        vec![within(Side::Source, net, true), Statement::Verdict(Verdict::Accept)];
                    let made = rule(dialect, family, statements, Some("c"));
                    nft.apply(&[Change::AddRule(made.clone())]).unwrap();
                    let listed = nft.rules(table, Some("to")).unwrap().pop().unwrap();
                    assert_eq!(listed.within(Side::Source, family), Some(net.parse().unwrap()));
                    assert_eq!(listed.within(Side::Destination, family), None);
                    assert_eq!(listed.comment.as_deref(), Some("c"));
                    assert_eq!(listed.steps, program(&made).unwrap());
                }
            }
        }
        assert!(sh("nft list table ip cni-test").contains("ip saddr 10.8.0.0/13"));
    });
}

#[test]
fn conditions_on_links_and_connections_are_listed_as_written() {
    in_namespace("conditions_on_links_and_connections_are_listed_as_written", || {
        let mut nft = Socket::open().unwrap();
        let chain = Chain { table: TABLE, name: "to".into(), base: None };
        let leaves = |is| Statement::OutputLink { name: "cni0".into(), is };
        let first = rule(Dialect::Nft, Family::Ip, vec![leaves(false), Statement::Established], None);
        let second =
            rule(Dialect::Nft, Family::Ip, vec![Statement::InputLink("cni0".into()), leaves(true)], None);
        let changes = [
            Change::AddTable(TABLE),
            Change::CreateChain(chain),
            Change::AddRule(first),
            Change::InsertRule(second),
        ];
        nft.apply(&changes).unwrap();
        let listed = sh("nft list chain ip cni-test to");
        let lines: Vec<&str> = listed.lines().map(str::trim).skip(2).take(2).collect();
        let expected =
            ["iifname \"cni0\" oifname \"cni0\"", "oifname != \"cni0\" ct state established,related"];
        assert_eq!(lines, expected);
    });
}

#[test]
fn an_exclusive_commit_starts_over_when_anything_changed_meanwhile() {
    in_namespace("an_exclusive_commit_starts_over_when_anything_changed_meanwhile", || {
        let (mut nft, mut other) = (Socket::open().unwrap(), Socket::open().unwrap());
        nft.apply(&[Change::AddTable(TABLE)]).unwrap();
        let (seen, other) = (std::cell::RefCell::new(Vec::new()), std::cell::RefCell::new(&mut other));
        let chain = |name: &str| Change::CreateChain(Chain { table: TABLE, name: name.into(), base: None });
        nft.commit_exclusive(|nft| {
            seen.borrow_mut().push(nft.chains(TABLE)?.len());
            if seen.borrow().len() < 3 {
                let name = format!("other-{}", seen.borrow().len());
                other.borrow_mut().apply(&[chain(&name)])?;
            }
            Ok(vec![chain("own")])
        })
        .unwrap();
        assert_eq!(*seen.borrow(), [0, 1, 2]);
        assert_eq!(nft.chains(TABLE).unwrap().len(), 3);
    });
}
