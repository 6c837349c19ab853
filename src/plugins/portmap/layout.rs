//! Our layout, in the tables `ip cni-all` and `ip6 cni-all` (see [`crate::attach::masquerade::maps`]):
//!
//! ```text
//! table ip cni-all {
//!   map hostips {                               # mappings at one address of the host
//!     type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
//!   }
//!   map hostports {                             # mappings at all its addresses
//!     type inet_proto . inet_service : ipv4_addr . inet_service
//!     elements = { tcp . 8080 comment "net mynet if eth0 id 0123abcd" : 10.1.0.5 . 80 }
//!   }
//!   set mapped {                                # connections by a mapping that may not find their way back
//!     type inet_proto . ipv4_addr . inet_service . inet_service
//!     elements = { tcp . 10.1.0.5 . 80 . 8080 comment … }
//!   }
//!   map hairpins {                              # … and from where they may not
//!     type ipv4_addr : verdict
//!     elements = { 10.1.0.5 comment … : goto hairpin-mynet-1a2b3c4d5e6f }
//!   }
//!   map portmappings {                          # where the above have elements of an attachment, whole mappings
//!     type ifname : inet_proto . ipv4_addr . inet_service . ipv4_addr . inet_service
//!     elements = { "fedcba987654321" comment … : tcp . 0.0.0.0 . 8080 . 10.1.0.5 . 80 }
//!   }
//!   map cond-hostips { … : verdict }            # as the first two, of attachments with `conditionsV4`
//!   map cond-hostports { … : verdict }
//!   chain portmap {
//!     meta l4proto . ip daddr . th dport vmap @cond-hostips
//!     dnat ip to meta l4proto . ip daddr . th dport map @hostips
//!     meta l4proto . th dport vmap @cond-hostports
//!     dnat ip to meta l4proto . th dport map @hostports
//!   }
//!   chain cond-0123456789ab { meta l4proto tcp tcp dport 8080 ip saddr 192.0.2.0/24 dnat to 10.1.0.5:80 }
//!   chain portmap-in { type nat hook prerouting priority dstnat + 1; fib daddr type local goto portmap }
//!   chain portmap-local { type nat hook output priority dstnat + 1; fib daddr type local goto portmap }
//!   chain portmap-masq {
//!     type nat hook postrouting priority srcnat - 1
//!     ct status ! dnat return
//!     meta l4proto != tcp meta l4proto != udp meta l4proto != sctp return
//!     meta l4proto . ip daddr . tcp dport . ct original proto-dst != @mapped return               # and udp, sctp
//!     ip saddr 127.0.0.0/8 masquerade
//!     ip daddr vmap @hairpins
//!   }
//!   chain hairpin-mynet-1a2b3c4d5e6f { ip saddr 10.1.0.0/16 masquerade }
//!   chain martians {
//!     type filter hook prerouting priority raw
//!     ip daddr 127.0.0.0/8 iif != "lo" fib daddr . iif type != local drop                          # and saddr
//!   }
//! }
//! ```
//!
//! - Only what is addressed to this host is translated (`fib`): transit traffic to the same port of another machine
//!   passes (CVE-2025-67499). Rules of others for the same packets come first (`+ 1`; CVE-2019-9946). What is
//!   masqueraded must be before the network's own rules exempt it (`- 1`).
//! - A connection from the container itself or from its own network would be answered past the host: it is
//!   masqueraded, and so is one from a loopback address. Only connections made to a mapped port are: `ct original`.
//! - Loopback addresses get into the container's link by `route_localnet`, which also lets the link's neighbours
//!   reach services of this host that listen on 127.0.0.1 only: `martians` drops that (CVE-2020-8558).
//! - IPv6 has no `route_localnet`: a connection to `::1` is left alone, so that it is refused at once and the caller
//!   goes on with 127.0.0.1, instead of waiting for an answer.
//! - A packet costs the same with any number of mappings. A mapping at one address goes before one at all, one with
//!   conditions before one without; two attachments cannot have the same.
//! - The kernel walks all verdicts of all maps when one is added, once for each rule that looks them up. So there is one
//!   for a container, looked up by one rule, into a chain of one rule; everything else is data. Mappings with conditions
//!   have one each besides, which the two base chains lead to: with 1,000 containers of three, ADD of one more takes
//!   0.7 ms longer than the first.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::libc;

use crate::attach::masquerade::maps::{skeleton, table};
use crate::cni::Result;
use crate::kernel::nft::{
    Base, Chain, Change, Condition, Dialect, Family, Field, Hook, Kind, Map, Route, Rule, Side, Socket,
    Statement, Type, Verdict,
};

/// The chain that translates.
pub const PORTMAP: &str = "portmap";

/// Mappings at one address, with or without conditions.
pub fn hostips(family: Family, conditional: bool) -> Map {
    const KEY: Type = Type::Joined(&[Type::Protocol, Type::Address, Type::Port]);
    let (name, data) = if conditional { ("cond-hostips", Type::Verdict) } else { ("hostips", TARGET) };
    Map { table: table(family), name, key: KEY, data }
}

/// Mappings at all addresses, with or without conditions.
pub fn hostports(family: Family, conditional: bool) -> Map {
    const KEY: Type = Type::Joined(&[Type::Protocol, Type::Port]);
    let (name, data) = if conditional { ("cond-hostports", Type::Verdict) } else { ("hostports", TARGET) };
    Map { table: table(family), name, key: KEY, data }
}

/// The maps of a family that mappings are looked up in.
pub fn places(family: Family) -> [Map; 4] {
    [hostips(family, true), hostips(family, false), hostports(family, true), hostports(family, false)]
}

/// Connections by mappings that may have to be masqueraded: protocol, container's address and port, host port.
pub fn mapped(family: Family) -> Map {
    const KEY: Type = Type::Joined(&[Type::Protocol, Type::Address, Type::Port, Type::Port]);
    Map { table: table(family), name: "mapped", key: KEY, data: Type::Nothing }
}

/// Which of them, by the container's address: a chain of the network.
pub fn hairpins(family: Family) -> Map {
    Map { table: table(family), name: "hairpins", key: Type::Address, data: Type::Verdict }
}

/// Where the others have elements of an attachment.
pub fn index(family: Family) -> Map {
    const DATA: Type = Type::Joined(&[Type::Protocol, Type::Address, Type::Port, Type::Address, Type::Port]);
    Map { table: table(family), name: "portmappings", key: Type::Name, data: DATA }
}

/// What a mapping leads to.
const TARGET: Type = Type::Joined(&[Type::Address, Type::Port]);

/// A chain of ours.
pub fn chain(family: Family, name: &str, base: Option<(Kind, Hook, i32)>) -> Chain {
    let base = base.map(|(kind, hook, priority)| Base { kind, hook, priority });
    Chain { table: table(family), name: name.into(), base }
}

/// A rule of ours.
pub fn rule(family: Family, chain: &str, statements: Vec<Statement>) -> Rule {
    let (table, chain) = (table(family), chain.to_owned());
    Rule { table, chain, statements, comment: None, tag: None, dialect: Dialect::Nft }
}

/// The loopback addresses of a family.
pub fn loopback(family: Family) -> IpNet {
    match family {
        Family::Ip6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        _ => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    }
}

/// The chains that every packet may see, with their rules: the same for any number of mappings.
pub fn layout(family: Family) -> Vec<(Chain, Vec<Rule>)> {
    use Field::{Address, OriginalPort, Port, Protocol};
    const TO: Side = Side::Destination;
    let at_one = || vec![Protocol, Address(TO), Port(TO, None)];
    let at_all = || vec![Protocol, Port(TO, None)];
    let local = || {
        let goto = Statement::Verdict(Verdict::Goto(PORTMAP.into()));
        vec![Statement::Only(Condition::Type(TO, Route::Local)), goto]
    };
    let mut from_here = vec![local()];
    if family == Family::Ip6 {
        let localhost = Statement::Within { side: TO, net: loopback(family), inside: true };
        from_here.insert(0, vec![localhost, Statement::Verdict(Verdict::Return)]);
    }
    let protocols = [libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_SCTP].map(|number| number as u8);
    let back = || Statement::Verdict(Verdict::Return);
    let other = |protocol: &u8| Statement::Unless(Condition::Protocol(*protocol));
    let mut masquerade = vec![
        vec![Statement::Unless(Condition::Translated), back()],
        protocols.iter().map(other).chain([back()]).collect(),
    ];
    masquerade.extend(protocols.iter().map(|protocol| {
        let key = vec![Protocol, Address(TO), Port(TO, Some(*protocol)), OriginalPort];
        let unless = Statement::Unless(Condition::In(key, mapped(family)));
        vec![Statement::Only(Condition::Protocol(*protocol)), unless, back()]
    }));
    if family == Family::Ip {
        let localhost = Statement::Within { side: Side::Source, net: loopback(family), inside: true };
        masquerade.push(vec![localhost, Statement::Masquerade]);
    }
    masquerade.push(vec![Statement::Lookup(TO, hairpins(family))]);
    let all = [
        (
            chain(family, PORTMAP, None),
            vec![
                vec![Statement::LookupAll(at_one(), hostips(family, true))],
                vec![Statement::DnatBy(at_one(), hostips(family, false))],
                vec![Statement::LookupAll(at_all(), hostports(family, true))],
                vec![Statement::DnatBy(at_all(), hostports(family, false))],
            ],
        ),
        (chain(family, "portmap-in", Some((Kind::Nat, Hook::Prerouting, -99))), vec![local()]),
        (chain(family, "portmap-local", Some((Kind::Nat, Hook::Output, -99))), from_here),
        (chain(family, "portmap-masq", Some((Kind::Nat, Hook::Postrouting, 99))), masquerade),
    ];
    all.map(|(chain, bodies)| {
        let rules = bodies.into_iter().map(|body| rule(family, &chain.name, body)).collect();
        (chain, rules)
    })
    .to_vec()
}

/// The chain that keeps neighbours out of this host's loopback addresses, with its rules.
pub fn martians() -> (Chain, Vec<Rule>) {
    let martians = chain(Family::Ip, "martians", Some((Kind::Filter, Hook::Prerouting, -300)));
    let martian = |side| {
        let statements = vec![
            Statement::Within { side, net: loopback(Family::Ip), inside: true },
            Statement::Unless(Condition::FromThisHost),
            Statement::Unless(Condition::LocalToLink(side)),
            Statement::Verdict(Verdict::Drop),
        ];
        rule(Family::Ip, &martians.name, statements)
    };
    let rules = [Side::Destination, Side::Source].map(martian).to_vec();
    (martians, rules)
}

/// What makes the chain that must be there wherever `route_localnet` is on. EEXIST when another process was faster.
pub fn plan_martians(nft: &mut Socket) -> Result<Vec<Change>> {
    let (chain, rules) = martians();
    if nft.chain(chain.table, &chain.name)?.is_some() {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    if !nft.has_table(chain.table)? {
        changes.extend(skeleton(Family::Ip));
    }
    changes.push(Change::CreateChain(chain));
    changes.extend(rules.into_iter().map(Change::AddRule));
    Ok(changes)
}

/// Makes all that mappings of one family have in common. EEXIST when another process was faster.
pub fn prepare(nft: &mut Socket, family: Family) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    if nft.chain(table(family), PORTMAP)?.is_some() {
        return Ok(changes);
    }
    if !nft.has_table(table(family))? {
        changes.extend(skeleton(family));
    }
    changes.extend(places(family).map(Change::AddMap));
    changes.extend([mapped, hairpins, index].map(|map| Change::AddMap(map(family))));
    let layout = layout(family);
    changes.extend(layout.iter().map(|(chain, _)| Change::CreateChain(chain.clone())));
    changes.extend(layout.into_iter().flat_map(|(_, rules)| rules).map(Change::AddRule));
    Ok(changes)
}
