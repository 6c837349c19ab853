//! ipMasq on a real kernel, looked at with `nft` and `iptables-nft`.

use std::sync::Barrier;
use std::time::Instant;

use nix::sched::{CloneFlags, setns};

use super::*;
use crate::kernel::nft::testing::{in_namespace, ruleset, sh};

const AT: Attachment = Attachment { network: "mynet", container_id: "c1", ifname: "eth0" };
const EMPTY: &str = "\
table ip cni-all {
	map masqueraded {
		type ipv4_addr : verdict
	}

	map attachments {
		type ifname : ipv4_addr
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr vmap @masqueraded
	}
}
";

fn with(backend: Backend) -> Masquerade {
    Masquerade { backend, exempt: Vec::new() }
}

fn add(nft: &mut Socket, at: &Attachment, addresses: &[IpNet], backend: Backend) -> Result<()> {
    super::add(nft, at, addresses, &with(backend))
}

fn check(nft: &mut Socket, at: &Attachment, addresses: &[IpNet], backend: Backend) -> Result<()> {
    super::check(nft, at, addresses, &with(backend))
}

fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|net| net.parse().unwrap()).collect()
}

fn addresses(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|address| address.parse().unwrap()).collect()
}

fn valid(all: &[Attachment]) -> Vec<(String, String)> {
    all.iter().map(|at| (at.container_id.into(), at.ifname.into())).collect()
}

/// The element lines of a listing.
fn elements() -> Vec<String> {
    let lines = ruleset();
    let lines = lines.lines().filter(|line| line.contains("goto") || line.contains("\" comment"));
    lines
        .map(|line| line.trim().trim_start_matches("elements = { ").trim_matches([' ', '}', ',']).into())
        .collect()
}

/// What the Go plugins' iptables layout is, written by iptables-nft itself.
fn upstream_iptables(tool: &str, at: &Attachment, net: &str, multicast: &str) {
    let address = net.split('/').next().unwrap();
    let chain = names::iptables_chain(at.network, at.container_id);
    let comment = format!("-m comment --comment '{}'", names::iptables_comment(at.network, at.container_id));
    sh(&format!(
        "{tool} -t nat -N {chain} 2>/dev/null || true
         {tool} -t nat -C {chain} -d {net} {comment} -j ACCEPT 2>/dev/null || {tool} -t nat -A {chain} -d {net} {comment} -j ACCEPT
         {tool} -t nat -C {chain} ! -d {multicast} {comment} -j MASQUERADE 2>/dev/null || {tool} -t nat -A {chain} ! -d {multicast} {comment} -j MASQUERADE
         {tool} -t nat -A POSTROUTING -s {address} {comment} -j {chain}"
    ));
}

fn upstream_nft(at: &Attachment, net: &str) {
    let address = net.split('/').next().unwrap();
    let family = if net.contains(':') { "ip6" } else { "ip" };
    let comment = format!(
        "{}, net: {}, if: {}, id: {}",
        names::upstream_key(at),
        at.network,
        at.ifname,
        at.container_id
    );
    sh(&format!(
        "nft -f - <<'E'
add table inet cni_plugins_masquerade {{ comment \"Masquerading for plugins from github.com/containernetworking/plugins\" ; }}
add chain inet cni_plugins_masquerade masq_checks {{ comment \"Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet\" ; }}
add chain inet cni_plugins_masquerade postrouting {{ type nat hook postrouting priority srcnat ; }}
flush chain inet cni_plugins_masquerade postrouting
add rule inet cni_plugins_masquerade postrouting ip daddr 224.0.0.0/4 return
add rule inet cni_plugins_masquerade postrouting ip6 daddr ff00::/8 return
add rule inet cni_plugins_masquerade postrouting goto masq_checks
add rule inet cni_plugins_masquerade masq_checks {family} saddr {address} {family} daddr != {net} masquerade comment \"{comment}\"
E"
    ));
}

#[test]
fn an_address_is_one_entry_in_a_map_and_goes_with_its_chain() {
    in_namespace("an_address_is_one_entry_in_a_map_and_goes_with_its_chain", || {
        let mut nft = Socket::open().unwrap();
        let own = nets("10.1.0.5/16");
        add(&mut nft, &AT, &own, Backend::Nftables).unwrap();
        let expected = "\
table ip cni-all {
	map masqueraded {
		type ipv4_addr : verdict
		elements = { 10.1.0.5 comment \"net mynet if eth0 id c1\" : goto masq-mynet-cfeff8914999 }
	}

	map attachments {
		type ifname : ipv4_addr
		elements = { \"79fb6d453a91aa9\" comment \"net mynet if eth0 id c1\" : 10.1.0.5 }
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr vmap @masqueraded
	}

	chain masq-mynet-cfeff8914999 {
		ip daddr 10.1.0.0/16 return
		ip daddr 224.0.0.0/4 return
		masquerade
	}
}
";
        assert_eq!(ruleset(), expected);
        check(&mut nft, &AT, &own, Backend::Nftables).unwrap();
        add(&mut nft, &AT, &own, Backend::Nftables).unwrap();
        assert_eq!(ruleset(), expected);
        // The listing is a script that makes the same again.
        sh(
            "nft list ruleset > /tmp/cni-all-nft-test-$$; nft flush ruleset; nft -f /tmp/cni-all-nft-test-$$; rm /tmp/cni-all-nft-test-$$",
        );
        assert_eq!(ruleset(), expected);
        check(&mut nft, &AT, &own, Backend::Nftables).unwrap();

        let other = Attachment { container_id: "c2", ..AT };
        add(&mut nft, &other, &nets("10.1.0.6/16"), Backend::Nftables).unwrap();
        del(&mut nft, &AT, &[]).unwrap();
        check(&mut nft, &other, &nets("10.1.0.6/16"), Backend::Nftables).unwrap();
        del(&mut nft, &other, &addresses("10.1.0.6")).unwrap();
        assert_eq!(ruleset(), EMPTY);
        del(&mut nft, &other, &[]).unwrap();
        assert_eq!(ruleset(), EMPTY);
    });
}

#[test]
fn both_families_and_several_networks_are_one_attachment() {
    in_namespace("both_families_and_several_networks_are_one_attachment", || {
        let mut nft = Socket::open().unwrap();
        let own = nets("10.2.0.5/24 10.1.0.5/24 10.1.0.6/24 fd00:1::5/64 10.1.0.5/24");
        for backend in [Backend::Nftables, Backend::Iptables] {
            add(&mut nft, &AT, &own, backend).unwrap();
            check(&mut nft, &AT, &own, backend).unwrap();
        }
        let text = ruleset();
        assert!(text.contains("ip daddr 10.1.0.0/24 return\n\t\tip daddr 10.2.0.0/24 return\n"), "{text}");
        assert!(text.contains("ip6 daddr fd00:1::/64 return\n\t\tip6 daddr ff00::/8 return\n"), "{text}");
        del(&mut nft, &AT, &[]).unwrap();
        assert_eq!(elements(), Vec::<String>::new());
        let left = ruleset();
        assert!(!left.contains("CNI-") && !left.contains("masq-"), "{left}");
    });
}

#[test]
fn add_again_replaces_what_it_made_before() {
    in_namespace("add_again_replaces_what_it_made_before", || {
        let mut nft = Socket::open().unwrap();
        for backend in [Backend::Nftables, Backend::Iptables] {
            add(&mut nft, &AT, &nets("10.1.0.5/16 10.1.0.7/16"), backend).unwrap();
            add(&mut nft, &AT, &nets("10.1.0.6/16"), backend).unwrap();
            check(&mut nft, &AT, &nets("10.1.0.6/16"), backend).unwrap();
        }
        assert_eq!(
            elements(),
            [
                "10.1.0.6 comment \"net mynet if eth0 id c1\" : goto masq-mynet-cfeff8914999",
                "\"79fb6d453a91aa9\" comment \"net mynet if eth0 id c1\" : 10.1.0.6"
            ]
        );
        let listed = sh("iptables-nft -t nat -S POSTROUTING");
        assert!(listed.contains("10.1.0.6/32") && listed.lines().count() == 2, "{listed}");
    });
}

#[test]
fn an_address_given_to_a_new_container_is_no_longer_the_stale_ones() {
    in_namespace("an_address_given_to_a_new_container_is_no_longer_the_stale_ones", || {
        let mut nft = Socket::open().unwrap();
        let own = nets("10.1.0.5/16");
        let heir = Attachment { container_id: "c2", ..AT };
        add(&mut nft, &AT, &own, Backend::Nftables).unwrap();
        add(&mut nft, &heir, &own, Backend::Nftables).unwrap();
        check(&mut nft, &heir, &own, Backend::Nftables).unwrap();
        let err = check(&mut nft, &AT, &own, Backend::Nftables).unwrap_err();
        assert_eq!(err.code(), Code::CHECK_FAILED);
        del(&mut nft, &AT, &addresses("10.1.0.5")).unwrap();
        check(&mut nft, &heir, &own, Backend::Nftables).unwrap();
        assert_eq!(elements().len(), 2);
    });
}

#[test]
fn del_and_gc_on_a_fresh_host_make_nothing() {
    in_namespace("del_and_gc_on_a_fresh_host_make_nothing", || {
        let mut nft = Socket::open().unwrap();
        status(&mut nft).unwrap();
        del(&mut nft, &AT, &addresses("10.1.0.5 fd00::5")).unwrap();
        gc(&mut nft, "mynet", &[]).unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn sixty_four_first_adds_at_once_all_succeed() {
    in_namespace("sixty_four_first_adds_at_once_all_succeed", || {
        for networks in [1, 8] {
            sh("nft flush ruleset");
            let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            let barrier = Barrier::new(64);
            let one = |number: usize| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                let mut nft = Socket::open().unwrap();
                let (network, id) = (format!("net{}", number % networks), format!("c{number}"));
                let at = Attachment { network: &network, container_id: &id, ifname: "eth0" };
                barrier.wait();
                let start = Instant::now();
                let own = nets(&format!(
                    "10.1.{}.{number}/24 fd00:{}::{number}/64",
                    number % networks,
                    number % networks
                ));
                add(&mut nft, &at, &own, Backend::Nftables).unwrap();
                add(&mut nft, &at, &own, Backend::Iptables).unwrap();
                start.elapsed()
            };
            let one = &one;
            let slowest = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..64).map(|number| scope.spawn(move || one(number))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
            });
            println!("64 first ADDs at once, {networks} networks, both backends: {slowest:?}");
            let text = ruleset();
            assert_eq!(text.matches("vmap @masqueraded").count(), 2, "{text}");
            assert_eq!(text.matches("chain masq-").count(), 2 * networks, "{text}");
            assert_eq!(text.matches("goto masq-").count(), 128, "{text}");
            assert_eq!(sh("iptables-nft -t nat -S POSTROUTING").matches("-A POSTROUTING").count(), 64);

            let namespace = &namespace;
            std::thread::scope(|scope| {
                for number in 0..64 {
                    scope.spawn(move || {
                        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                        let (network, id) = (format!("net{}", number % networks), format!("c{number}"));
                        let at = Attachment { network: &network, container_id: &id, ifname: "eth0" };
                        del(&mut Socket::open().unwrap(), &at, &[]).unwrap();
                    });
                }
            });
            let text = ruleset();
            assert!(!text.contains("masq-") && !text.contains("CNI-") && !text.contains("comment"), "{text}");
        }
    });
}

#[test]
fn an_add_that_fails_leaves_nothing_half_done() {
    in_namespace("an_add_that_fails_leaves_nothing_half_done", || {
        let mut nft = Socket::open().unwrap();
        // The IPv6 table is there without our maps: the last of the changes are refused.
        sh("nft add table ip6 cni-all; nft 'add chain ip6 nat POSTROUTING' 2>/dev/null || true");
        let before = ruleset();
        let own = nets("10.1.0.5/16 fd00::5/64");
        let err = add(&mut nft, &AT, &own, Backend::Nftables).unwrap_err();
        assert_eq!(
            err.to_string(),
            "ipMasq: nft create element ip6 cni-all masqueraded { fd00::5 comment \"net mynet if eth0 id c1\" : goto \
             masq-mynet-feed }: No such file or directory"
                .replace("masq-mynet-feed", &names::network_chain("mynet", &["fd00::/64".into()]))
        );
        assert_eq!(ruleset(), before);
        // POSTROUTING of IPv6 is not a NAT chain: MASQUERADE is refused there.
        sh(
            "nft flush ruleset; nft 'add table ip6 nat; add chain ip6 nat POSTROUTING { type filter hook input priority 0; }'",
        );
        let before = ruleset();
        let err = add(&mut nft, &AT, &own, Backend::Iptables).unwrap_err();
        assert!(err.msg().contains("ip6tables -t nat -A "), "{err}");
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn check_names_the_first_difference() {
    in_namespace("check_names_the_first_difference", || {
        let mut nft = Socket::open().unwrap();
        let own = nets("10.1.0.5/16");
        let fails = |nft: &mut Socket, backend| {
            let err = check(nft, &AT, &own, backend).unwrap_err();
            assert_eq!(err.code(), Code::CHECK_FAILED);
            err.to_string()
        };
        assert_eq!(
            fails(&mut nft, Backend::Nftables),
            "ipMasq: nft chain ip cni-all prerouting { type nat hook prerouting priority -100; policy accept; } is missing"
        );
        for (damage, expected) in [
            (
                "nft flush chain ip cni-all postrouting",
                "nft rule ip cni-all postrouting ip saddr vmap @masqueraded is missing",
            ),
            (
                "nft delete element ip cni-all masqueraded '{ 10.1.0.5 }'",
                "nft map ip cni-all masqueraded does not have { 10.1.0.5 ",
            ),
            (
                "nft delete element ip cni-all attachments '{ \"79fb6d453a91aa9\" }'",
                "nft map ip cni-all attachments does not",
            ),
            (
                "nft insert rule ip cni-all masq-mynet-cfeff8914999 accept",
                "rule 1 of its chain is not: ip cni-all masq-mynet",
            ),
            ("nft add rule ip cni-all masq-mynet-cfeff8914999 accept", "has a rule more, handle "),
            (
                "nft flush chain ip cni-all masq-mynet-cfeff8914999",
                "missing: ip cni-all masq-mynet-cfeff8914999 ip daddr 10.1",
            ),
        ] {
            sh("nft flush ruleset");
            add(&mut nft, &AT, &own, Backend::Nftables).unwrap();
            check(&mut nft, &AT, &own, Backend::Nftables).unwrap();
            sh(damage);
            let said = fails(&mut nft, Backend::Nftables);
            assert!(said.contains(expected), "{damage}: {said}");
        }
        let chain = names::iptables_chain("mynet", "c1");
        for (damage, expected) in [
            (
                "iptables-nft -t nat -F POSTROUTING".into(),
                "missing: iptables -t nat -A POSTROUTING -s 10.1.0.5/32 ",
            ),
            (
                format!("iptables-nft -t nat -D {chain} 1"),
                "rule 1 is missing or not in its place: iptables -t nat",
            ),
            (format!("iptables-nft -t nat -D {chain} 2"), "is missing or not in its place: iptables -t nat"),
        ] {
            sh("nft flush ruleset");
            add(&mut nft, &AT, &own, Backend::Iptables).unwrap();
            check(&mut nft, &AT, &own, Backend::Iptables).unwrap();
            sh(&damage);
            let said = fails(&mut nft, Backend::Iptables);
            assert!(said.contains(expected), "{damage}: {said}");
        }
    });
}

#[test]
fn iptables_lists_and_deletes_our_rules_as_its_own() {
    in_namespace("iptables_lists_and_deletes_our_rules_as_its_own", || {
        let mut nft = Socket::open().unwrap();
        let (v4, v6) = ("10.1.0.5/16", "fd00:1::5/64");
        let list = || {
            let rules = sh(
                "iptables-nft -t nat -S; ip6tables-nft -t nat -S; iptables-nft-save -t nat | grep -v '^#'",
            );
            (rules, sh("nft list table ip nat"))
        };
        upstream_iptables("iptables-nft", &AT, v4, "224.0.0.0/4");
        upstream_iptables("ip6tables-nft", &AT, v6, "ff00::/8");
        let theirs = list();
        // iptables-nft makes the chain before POSTROUTING, we after: what is in each is the same.
        let steps = |nft: &mut Socket| {
            let table = crate::kernel::nft::Table { family: Family::Ip6, name: "nat" };
            let mut rules = nft.rules(table, None).unwrap();
            rules.sort_by_key(|rule| rule.chain.clone());
            rules.into_iter().map(|rule| rule.steps).collect::<Vec<_>>()
        };
        let their_steps = steps(&mut nft);
        sh("nft flush ruleset");
        add(&mut nft, &AT, &nets("10.1.0.5/16 fd00:1::5/64"), Backend::Iptables).unwrap();
        let ours = list();
        assert_eq!(ours.0, theirs.0, "{theirs:?}");
        assert!(steps(&mut nft) == their_steps, "the same words, other expressions");
        assert!(ours.0.contains("-A POSTROUTING -s 10.1.0.5/32 -m comment --comment \"name: \\\"mynet\\\" id: \\\"c1\\\"\" -j CNI-"));

        let (chain, comment) = (names::iptables_chain("mynet", "c1"), names::iptables_comment("mynet", "c1"));
        for (tool, address, net, groups) in [
            ("iptables-nft", "10.1.0.5", "10.1.0.0/16", "224.0.0.0/4"),
            ("ip6tables-nft", "fd00:1::5", "fd00:1::/64", "ff00::/8"),
        ] {
            let comment = format!("-m comment --comment '{comment}'");
            sh(&format!(
                "{tool} -t nat -D POSTROUTING -s {address} {comment} -j {chain}
                 {tool} -t nat -D {chain} -d {net} {comment} -j ACCEPT
                 {tool} -t nat -D {chain} ! -d {groups} {comment} -j MASQUERADE
                 {tool} -t nat -X {chain}"
            ));
        }
        assert!(!ruleset().contains("CNI-"));
    });
}

#[test]
fn del_removes_what_the_go_plugins_left() {
    in_namespace("del_removes_what_the_go_plugins_left", || {
        let mut nft = Socket::open().unwrap();
        let other = Attachment { container_id: "c2", ..AT };
        for at in [&AT, &other] {
            let last = if at == &AT { 5 } else { 6 };
            upstream_iptables("iptables-nft", at, &format!("10.1.0.{last}/16"), "224.0.0.0/4");
            upstream_iptables("ip6tables-nft", at, &format!("fd00:1::{last}/64"), "ff00::/8");
            upstream_nft(at, &format!("10.1.0.{last}/16"));
            upstream_nft(at, &format!("fd00:1::{last}/64"));
        }
        // The source with a prefix length, as old releases wrote it.
        let chain = names::iptables_chain("mynet", "c1");
        sh(&format!("iptables-nft -t nat -A POSTROUTING -s 10.1.0.5/16 -j {chain}"));
        del(&mut nft, &AT, &addresses("10.1.0.5 fd00:1::5")).unwrap();
        let text = ruleset();
        assert!(
            !text.contains("10.1.0.5") && !text.contains("fd00:1::5") && !text.contains(&chain),
            "{text}"
        );
        assert_eq!(text.matches("saddr 10.1.0.6").count(), 2, "{text}");
        assert_eq!(text.matches("saddr fd00:1::6").count(), 2, "{text}");
        // Without any address.
        del(&mut nft, &other, &[]).unwrap();
        let text = ruleset();
        assert!(!text.contains("CNI-") && !text.contains("saddr"), "{text}");
        assert!(text.contains("goto masq_checks"), "{text}");
    });
}

#[test]
fn a_second_attachment_of_the_container_to_the_network_stays_masqueraded() {
    in_namespace("a_second_attachment_of_the_container_to_the_network_stays_masqueraded", || {
        let mut nft = Socket::open().unwrap();
        let second = Attachment { ifname: "eth1", ..AT };
        let own = nets("10.2.0.6/24");
        let listed = || sh("iptables-nft -t nat -S | grep -e '-A'");
        // Both by the Go plugins; then the second one ours; then both.
        for go in [[true, true], [true, false], [false, false]] {
            sh("nft flush ruleset");
            for (at, net, go) in [(&AT, "10.1.0.5/24", go[0]), (&second, "10.2.0.6/24", go[1])] {
                if go {
                    upstream_iptables("iptables-nft", at, net, "224.0.0.0/4");
                } else {
                    add(&mut nft, at, &nets(net), Backend::Iptables).unwrap();
                }
            }
            // Once by its address, and again: without an address only where the rules say whose they are.
            let known = if go[0] { addresses("10.1.0.5") } else { Vec::new() };
            del(&mut nft, &AT, &known).unwrap();
            del(&mut nft, &AT, &known).unwrap();
            let text = listed();
            assert!(text.contains("-s 10.2.0.6/32") && !text.contains("-s 10.1.0.5/32"), "{go:?}\n{text}");
            if !go[1] {
                check(&mut nft, &second, &own, Backend::Iptables).unwrap();
                assert!(
                    text.ends_with("-j MASQUERADE\n") && text.matches("-j MASQUERADE").count() == 1,
                    "{text}"
                );
            }
            del(&mut nft, &second, &addresses("10.2.0.6")).unwrap();
            assert!(!ruleset().contains("CNI-"), "{}", ruleset());
        }
    });
}

#[test]
fn gc_keeps_valid_attachments_and_other_networks_in_every_layout() {
    in_namespace("gc_keeps_valid_attachments_and_other_networks_in_every_layout", || {
        let mut nft = Socket::open().unwrap();
        let stale = Attachment { container_id: "gone", ..AT };
        let foreign = Attachment { network: "mynet2", ..stale };
        let own = [(AT, "10.1.0.5/16"), (stale, "10.1.0.6/16"), (foreign, "10.3.0.7/16")];
        for (at, net) in own {
            for backend in [Backend::Nftables, Backend::Iptables] {
                add(&mut nft, &at, &nets(net), backend).unwrap();
            }
            upstream_nft(&at, net);
            let (id, net) = (format!("go-{}", at.container_id), net.replace(".0.", ".9."));
            upstream_iptables("iptables-nft", &Attachment { container_id: &id, ..at }, &net, "224.0.0.0/4");
        }
        let go = Attachment { container_id: "go-c1", ..AT };
        gc(&mut nft, "mynet", &valid(&[AT, go])).unwrap();
        let text = ruleset();
        assert!(!text.contains("10.1.0.6") && !text.contains("10.1.9.6"), "{text}");
        for address in ["10.1.0.5", "10.3.0.7"] {
            // In the map, in the index, in an iptables rule and in a rule of the Go plugins.
            assert_eq!(text.matches(address).count(), 4, "{address}\n{text}");
        }
        assert!(text.contains("10.1.9.5") && text.contains("10.3.9.7"), "{text}");
        check(&mut nft, &AT, &nets("10.1.0.5/16"), Backend::Nftables).unwrap();
        check(&mut nft, &AT, &nets("10.1.0.5/16"), Backend::Iptables).unwrap();

        gc(&mut nft, "mynet", &[]).unwrap();
        gc(&mut nft, "mynet2", &[]).unwrap();
        let text = ruleset();
        assert!(!text.contains("CNI-") && !text.contains("saddr 10.") && !text.contains("masq-"), "{text}");
    });
}

#[test]
fn foreign_rules_in_the_same_tables_stay_as_they_are() {
    in_namespace("foreign_rules_in_the_same_tables_stay_as_they_are", || {
        let mut nft = Socket::open().unwrap();
        sh("iptables-nft -t nat -N DOCKER
            iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
            iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
            iptables-nft -t nat -N CNI-HOSTPORT-MASQ
            iptables-nft -t nat -A POSTROUTING -m comment --comment 'CNI portfwd requiring masquerade' -j CNI-HOSTPORT-MASQ
            ip6tables-nft -t nat -A POSTROUTING -s fd00::/8 -j ACCEPT
            nft add table inet cni_plugins_masquerade
            nft add chain inet cni_plugins_masquerade masq_checks
            nft add rule inet cni_plugins_masquerade masq_checks ip saddr 10.1.0.5 masquerade comment mine
            nft add chain ip nat operator
            nft add rule ip nat operator counter accept");
        let handles = || {
            sh(
                "nft -a list table ip nat; nft -a list table ip6 nat; nft -a list table inet cni_plugins_masquerade",
            )
        };
        let before = handles();
        let own = nets("10.1.0.5/16 fd00:1::5/64");
        upstream_nft(&Attachment { container_id: "c9", ..AT }, "10.1.0.9/16");
        let chain_free = |text: String| -> Vec<String> {
            text.lines()
                .filter(|line| !line.contains("masq_checks") && !line.contains("10.1.0.9"))
                .map(Into::into)
                .collect()
        };
        for backend in [Backend::Nftables, Backend::Iptables] {
            add(&mut nft, &AT, &own, backend).unwrap();
            add(&mut nft, &AT, &own, backend).unwrap();
        }
        del(&mut nft, &AT, &addresses("10.1.0.5 fd00:1::5")).unwrap();
        gc(&mut nft, "mynet", &[]).unwrap();
        sh("nft delete chain inet cni_plugins_masquerade postrouting");
        assert_eq!(chain_free(handles()), chain_free(before));
    });
}

#[test]
fn over_long_names_are_attached_and_detached() {
    in_namespace("over_long_names_are_attached_and_detached", || {
        let mut nft = Socket::open().unwrap();
        let (network, id) = ("n".repeat(200), "f".repeat(200));
        let at = Attachment { network: &network, container_id: &id, ifname: "fifteen-bytes-x" };
        let own = nets("10.1.0.5/16 fd00::5/64");
        for backend in [Backend::Nftables, Backend::Iptables] {
            add(&mut nft, &at, &own, backend).unwrap();
            check(&mut nft, &at, &own, backend).unwrap();
        }
        sh("iptables-nft -t nat -S");
        del(&mut nft, &at, &[]).unwrap();
        assert!(!ruleset().contains("10.1.0.5"));
    });
}
