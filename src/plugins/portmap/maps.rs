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
//!   map hairpins {                              # connections by a mapping that may not find their way back
//!     type inet_proto . ipv4_addr . inet_service . inet_service : verdict
//!     elements = { tcp . 10.1.0.5 . 80 . 8080 comment … : goto hairpin-mynet-1a2b3c4d5e6f }
//!   }
//!   map portmappings {                          # where the above have elements of an attachment, whole mappings
//!     type ifname : inet_proto . ipv4_addr . inet_service . ipv4_addr . inet_service
//!     elements = { "fedcba987654321" comment … : tcp . 0.0.0.0 . 8080 . 10.1.0.5 . 80 }
//!   }
//!   chain portmap {
//!     dnat ip to meta l4proto . ip daddr . th dport map @hostips
//!     dnat ip to meta l4proto . th dport map @hostports
//!   }
//!   chain portmap-in { type nat hook prerouting priority dstnat + 1; fib daddr type local goto portmap }
//!   chain portmap-local { type nat hook output priority dstnat + 1; fib daddr type local goto portmap }
//!   chain portmap-masq {
//!     type nat hook postrouting priority srcnat - 1
//!     ct status dnat meta l4proto . ip daddr . tcp dport . ct original proto-dst vmap @hairpins   # and udp, sctp
//!   }
//!   chain hairpin-mynet-1a2b3c4d5e6f { ip saddr 10.1.0.0/16 masquerade; ip saddr 127.0.0.0/8 masquerade }
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
//! - A packet costs the same with any number of mappings, and so do ADD and DEL. The most specific mapping wins; two
//!   attachments cannot have the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::libc;

use super::conf::Conf;
use super::record::Record;
use crate::attach::Attachment;
use crate::attach::masquerade::maps::{
    FAMILIES, check_element, compare_rules, differs, drop_unused, skeleton, table,
};
use crate::attach::masquerade::names;
use crate::cni::{Code, Error, Result};
use crate::kernel::nft::{
    Base, Chain, Change, Condition, Dialect, Element, Family, Field, Hook, Kind, Map, Route, Rule, Side,
    Socket, Statement, Type, Value, Verdict,
};

const PORTMAP: &str = "portmap";

fn hostips(family: Family) -> Map {
    const KEY: Type = Type::Joined(&[Type::Protocol, Type::Address, Type::Port]);
    Map { table: table(family), name: "hostips", key: KEY, data: TARGET }
}

fn hostports(family: Family) -> Map {
    const KEY: Type = Type::Joined(&[Type::Protocol, Type::Port]);
    Map { table: table(family), name: "hostports", key: KEY, data: TARGET }
}

fn hairpins(family: Family) -> Map {
    const KEY: Type = Type::Joined(&[Type::Protocol, Type::Address, Type::Port, Type::Port]);
    Map { table: table(family), name: "hairpins", key: KEY, data: Type::Verdict }
}

fn index(family: Family) -> Map {
    const DATA: Type = Type::Joined(&[Type::Protocol, Type::Address, Type::Port, Type::Address, Type::Port]);
    Map { table: table(family), name: "portmappings", key: Type::Name, data: DATA }
}

/// What a mapping leads to.
const TARGET: Type = Type::Joined(&[Type::Address, Type::Port]);

fn chain(family: Family, name: &str, base: Option<(Kind, Hook, i32)>) -> Chain {
    let base = base.map(|(kind, hook, priority)| Base { kind, hook, priority });
    Chain { table: table(family), name: name.into(), base }
}

fn rule(family: Family, chain: &str, statements: Vec<Statement>) -> Rule {
    let (table, chain) = (table(family), chain.to_owned());
    Rule { table, chain, statements, comment: None, tag: None, dialect: Dialect::Nft }
}

fn loopback(family: Family) -> IpNet {
    match family {
        Family::Ip6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        _ => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    }
}

/// The chains that every packet may see, with their rules: the same for any number of mappings.
fn layout(family: Family) -> Vec<(Chain, Vec<Rule>)> {
    use Field::{Address, OriginalPort, Port, Protocol};
    const TO: Side = Side::Destination;
    let local = || {
        let goto = Statement::Verdict(Verdict::Goto(PORTMAP.into()));
        vec![Statement::Only(Condition::Type(TO, Route::Local)), goto]
    };
    let mut from_here = vec![local()];
    if family == Family::Ip6 {
        let localhost = Statement::Within { side: TO, net: loopback(family), inside: true };
        from_here.insert(0, vec![localhost, Statement::Verdict(Verdict::Return)]);
    }
    let masquerade = [libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_SCTP].map(|protocol| {
        let protocol = protocol as u8;
        vec![
            Statement::Only(Condition::Protocol(protocol)),
            Statement::Only(Condition::Translated),
            Statement::LookupAll(
                vec![Protocol, Address(TO), Port(TO, Some(protocol)), OriginalPort],
                hairpins(family),
            ),
        ]
    });
    let martian = |side| {
        vec![
            Statement::Within { side, net: loopback(family), inside: true },
            Statement::Unless(Condition::FromThisHost),
            Statement::Unless(Condition::LocalToLink(side)),
            Statement::Verdict(Verdict::Drop),
        ]
    };
    let mut all = vec![
        (
            chain(family, PORTMAP, None),
            vec![
                vec![Statement::DnatBy(vec![Protocol, Address(TO), Port(TO, None)], hostips(family))],
                vec![Statement::DnatBy(vec![Protocol, Port(TO, None)], hostports(family))],
            ],
        ),
        (chain(family, "portmap-in", Some((Kind::Nat, Hook::Prerouting, -99))), vec![local()]),
        (chain(family, "portmap-local", Some((Kind::Nat, Hook::Output, -99))), from_here),
        (chain(family, "portmap-masq", Some((Kind::Nat, Hook::Postrouting, 99))), masquerade.to_vec()),
    ];
    if family == Family::Ip {
        let martians = chain(family, "martians", Some((Kind::Filter, Hook::Prerouting, -300)));
        all.push((martians, vec![martian(TO), martian(Side::Source)]));
    }
    let rules = |chain: &Chain, bodies: Vec<Vec<Statement>>| {
        bodies.into_iter().map(|body| rule(family, &chain.name, body)).collect()
    };
    all.into_iter().map(|(chain, bodies)| (chain.clone(), rules(&chain, bodies))).collect()
}

/// Makes all that mappings of one family have in common. EEXIST when another process was faster.
fn prepare(nft: &mut Socket, family: Family) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    if nft.chain(table(family), PORTMAP)?.is_some() {
        return Ok(changes);
    }
    if !nft.has_table(table(family))? {
        changes.extend(skeleton(family));
    }
    changes.extend([hostips, hostports, hairpins, index].map(|map| Change::AddMap(map(family))));
    let layout = layout(family);
    changes.extend(layout.iter().map(|(chain, _)| Change::CreateChain(chain.clone())));
    changes.extend(layout.into_iter().flat_map(|(_, rules)| rules).map(Change::AddRule));
    Ok(changes)
}

impl Record {
    fn value(&self) -> Value {
        Value::Joined(vec![
            Value::Protocol(self.protocol),
            Value::Address(self.host_ip),
            Value::Port(self.host_port),
            Value::Address(self.container_ip),
            Value::Port(self.container_port),
        ])
    }

    fn read(value: &Value) -> Option<Record> {
        let Value::Joined(parts) = value else { return None };
        let [
            Value::Protocol(protocol),
            Value::Address(host_ip),
            Value::Port(host_port),
            Value::Address(container_ip),
            Value::Port(container_port),
        ] = parts.as_slice()
        else {
            return None;
        };
        Some(Record {
            protocol: *protocol,
            host_ip: *host_ip,
            host_port: *host_port,
            container_ip: *container_ip,
            container_port: *container_port,
        })
    }

    /// The map that has it, and its key there.
    fn place(&self) -> (Map, Value) {
        let (protocol, port) = (Value::Protocol(self.protocol), Value::Port(self.host_port));
        if self.host_ip.is_unspecified() {
            (hostports(self.family()), Value::Joined(vec![protocol, port]))
        } else {
            let key = vec![protocol, Value::Address(self.host_ip), port];
            (hostips(self.family()), Value::Joined(key))
        }
    }

    fn target(&self) -> Value {
        Value::Joined(vec![Value::Address(self.container_ip), Value::Port(self.container_port)])
    }

    fn hairpin(&self) -> (Map, Value) {
        let key = vec![
            Value::Protocol(self.protocol),
            Value::Address(self.container_ip),
            Value::Port(self.container_port),
            Value::Port(self.host_port),
        ];
        (hairpins(self.family()), Value::Joined(key))
    }
}

/// What one family of an attachment should be.
struct Wanted {
    family: Family,
    comment: String,
    records: Vec<Record>,
    /// Whom the mappings masquerade, unless nobody.
    hairpin: Option<Hairpin>,
}

/// The chain of a network that masquerades.
struct Hairpin {
    name: String,
    rules: Vec<Rule>,
}

impl Wanted {
    /// `None` when nothing is mapped in this family.
    fn new(at: &Attachment, conf: &Conf, container: IpNet) -> Option<Wanted> {
        let family = Family::of(container.addr());
        let records = Record::all(&conf.mappings, container.addr());
        let hairpin = conf.snat.then(|| {
            let mut sources = Vec::new();
            if !conf.masq_all {
                sources.push(container.trunc());
                sources.extend((family == Family::Ip).then(|| loopback(family)));
            }
            let shown: Vec<String> = sources.iter().map(IpNet::to_string).collect();
            let name = names::hairpin_chain(at.network, &shown);
            let from = |net: IpNet| Statement::Within { side: Side::Source, net, inside: true };
            let body = |net: IpNet| vec![from(net), Statement::Masquerade];
            let mut bodies: Vec<Vec<Statement>> = sources.into_iter().map(body).collect();
            if conf.masq_all {
                bodies.push(vec![Statement::Masquerade]);
            }
            let rules = bodies.into_iter().map(|body| rule(family, &name, body)).collect();
            Hairpin { name, rules }
        });
        let comment = names::element_comment(at);
        (!records.is_empty()).then_some(Wanted { family, comment, records, hairpin })
    }

    /// All elements that the maps should have, but for the index.
    fn elements(&self) -> Vec<(Map, Element)> {
        let element =
            |(map, key): (Map, Value), data| (map, Element { key, data, comment: self.comment.clone() });
        let mut all: Vec<(Map, Element)> = Vec::new();
        for record in &self.records {
            all.push(element(record.place(), record.target()));
            if let Some(hairpin) = &self.hairpin {
                let goto = Value::Verdict(Verdict::Goto(hairpin.name.clone()));
                let made = element(record.hairpin(), goto);
                // Two addresses of the host can lead to the same port.
                if !all.contains(&made) {
                    all.push(made);
                }
            }
        }
        all
    }

    fn entry(&self, position: usize, record: &Record) -> Element {
        let key = Value::Name(names::index_key(&self.comment, position));
        Element { key, data: record.value(), comment: self.comment.clone() }
    }
}

/// The families in which the attachment has something to map.
fn wanted(at: &Attachment, conf: &Conf, container: &[IpNet]) -> Vec<Wanted> {
    container.iter().filter_map(|net| Wanted::new(at, conf, *net)).collect()
}

/// What makes the attachment's mappings, and its former ones go.
///
/// # Errors
/// [`Code::PORT_IN_USE`] when another attachment has one of them.
pub fn plan_add(nft: &mut Socket, at: &Attachment, conf: &Conf, container: &[IpNet]) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let all = wanted(at, conf, container);
    for wanted in &all {
        changes.extend(prepare(nft, wanted.family)?);
        if let Some(hairpin) = &wanted.hairpin
            && nft.chain(table(wanted.family), &hairpin.name)?.is_none()
        {
            changes.push(Change::CreateChain(chain(wanted.family, &hairpin.name, None)));
            changes.extend(hairpin.rules.iter().cloned().map(Change::AddRule));
        }
        plan_elements(nft, wanted, &mut changes)?;
    }
    Ok(changes)
}

fn plan_elements(nft: &mut Socket, wanted: &Wanted, changes: &mut Vec<Change>) -> Result<()> {
    let elements = wanted.elements();
    let former = indexed(nft, wanted.family, &wanted.comment)?;
    for (map, key) in former.iter().flat_map(|record| [record.place(), record.hairpin()]) {
        let stays = elements.iter().any(|(at, element)| *at == map && element.key == key);
        if !stays && owned(nft, &map, &key, &wanted.comment)?.is_some() {
            changes.push(Change::DestroyElement(map, key));
        }
    }
    for (map, element) in elements {
        match nft.element(&map, &element.key)? {
            Some(found) if found == element => continue,
            Some(found) => {
                refuse_contested(&map, &found, &element)?;
                changes.push(Change::DestroyElement(map, element.key.clone()));
            }
            None => {}
        }
        changes.push(Change::CreateElement(map, element));
    }
    for position in 0..former.len().max(wanted.records.len()) {
        let (old, new) = (former.get(position), wanted.records.get(position));
        if old == new {
            continue;
        }
        if old.is_some() {
            let key = Value::Name(names::index_key(&wanted.comment, position));
            changes.push(Change::DestroyElement(index(wanted.family), key));
        }
        if let Some(record) = new {
            changes.push(Change::CreateElement(index(wanted.family), wanted.entry(position, record)));
        }
    }
    Ok(())
}

/// A mapping of another attachment is only replaced when it leads to the same address: that was given to this one
/// since, so the other is gone.
fn refuse_contested(map: &Map, found: &Element, wanted: &Element) -> Result<()> {
    let address = |element: &Element| match &element.data {
        Value::Joined(parts) => parts.first().cloned(),
        _ => None,
    };
    if found.comment == wanted.comment || map.data != TARGET || address(found) == address(wanted) {
        return Ok(());
    }
    let what = format!("host port {} is mapped already, by {}", wanted.key, owner(&found.comment));
    Err(Error::new(Code::PORT_IN_USE, what))
}

/// The owner that an element's comment names, as a sentence has it.
fn owner(comment: &str) -> String {
    match comment.split(' ').collect::<Vec<_>>().as_slice() {
        ["net", network, "if", ifname, "id", id] => {
            format!("container {id} (network {network}, interface {ifname})")
        }
        _ => format!("an entry with the comment {comment:?}"),
    }
}

/// The mappings that the index has for an attachment, in order.
fn indexed(nft: &mut Socket, family: Family, comment: &str) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    loop {
        let key = Value::Name(names::index_key(comment, records.len()));
        match nft.element(&index(family), &key)?.and_then(|found| Record::read(&found.data)) {
            Some(record) => records.push(record),
            None => return Ok(records),
        }
    }
}

/// The element of a key, when it is the attachment's.
fn owned(nft: &mut Socket, map: &Map, key: &Value, comment: &str) -> Result<Option<Element>> {
    Ok(nft.element(map, key)?.filter(|element| element.comment == comment))
}

/// The mappings that an attachment has now.
pub fn records(nft: &mut Socket, at: &Attachment) -> Result<Vec<Record>> {
    let comment = names::element_comment(at);
    let mut all = Vec::new();
    for family in FAMILIES {
        all.extend(indexed(nft, family, &comment)?);
    }
    Ok(all)
}

/// What removes all elements of an attachment, and the network's chain when they are the last that need it.
///
/// The chains that the elements go to are put into `chains`, as for [`crate::attach::masquerade::maps::plan_del`].
pub fn plan_del(
    nft: &mut Socket,
    at: &Attachment,
    chains: &mut BTreeSet<(Family, String)>,
) -> Result<Vec<Change>> {
    let comment = names::element_comment(at);
    let mut changes = Vec::new();
    for family in FAMILIES {
        let former = indexed(nft, family, &comment)?;
        let mut going: Vec<(Map, Value)> = Vec::new();
        for place in former.iter().flat_map(|record| [record.place(), record.hairpin()]) {
            if !going.contains(&place) {
                going.push(place);
            }
        }
        let mut references: BTreeMap<String, u32> = BTreeMap::new();
        for (map, key) in going {
            let Some(element) = owned(nft, &map, &key, &comment)? else { continue };
            changes.push(Change::DestroyElement(map, key));
            if let Value::Verdict(Verdict::Goto(chain)) = element.data {
                *references.entry(chain).or_default() += 1;
            }
        }
        for position in 0..former.len() {
            let key = Value::Name(names::index_key(&comment, position));
            changes.push(Change::DestroyElement(index(family), key));
        }
        chains.extend(references.keys().map(|chain| (family, chain.clone())));
        drop_unused(nft, family, &references, &mut changes)?;
    }
    Ok(changes)
}

/// What removes the elements of this network that belong to none of the valid attachments, and unused chains.
pub fn plan_gc(nft: &mut Socket, network: &str, valid: &[(String, String)]) -> Result<Vec<Change>> {
    let prefix = names::network_prefix(network);
    let alive = |(container_id, ifname): &(String, String)| {
        names::element_comment(&Attachment { network, container_id, ifname })
    };
    let valid: BTreeSet<String> = valid.iter().map(alive).collect();
    let stale = |element: &Element| element.comment.starts_with(&prefix) && !valid.contains(&element.comment);
    let mut changes = Vec::new();
    for family in FAMILIES {
        if nft.chain(table(family), PORTMAP)?.is_none() {
            continue;
        }
        let mut references: BTreeMap<String, u32> = BTreeMap::new();
        for map in [hostips, hostports, hairpins, index].map(|map| map(family)) {
            for element in nft.elements(&map)?.into_iter().filter(stale) {
                changes.push(Change::DestroyElement(map, element.key));
                if let Value::Verdict(Verdict::Goto(chain)) = element.data {
                    *references.entry(chain).or_default() += 1;
                }
            }
        }
        drop_unused(nft, family, &references, &mut changes)?;
    }
    Ok(changes)
}

/// Compares what is with what ADD makes, and names the first difference.
pub fn check(nft: &mut Socket, at: &Attachment, conf: &Conf, container: &[IpNet]) -> Result<()> {
    for wanted in wanted(at, conf, container) {
        for (chain, rules) in layout(wanted.family) {
            match nft.chain(chain.table, &chain.name)? {
                Some(found) if found.base == chain.base => {}
                Some(_) => return Err(differs(format!("nft chain {chain} has another hook or priority"))),
                None => return Err(differs(format!("nft chain {chain} is missing"))),
            }
            compare_rules(&rules, &nft.rules(chain.table, Some(&chain.name))?)?;
        }
        for (map, element) in wanted.elements() {
            check_element(nft, &map, &element)?;
        }
        for (position, record) in wanted.records.iter().enumerate() {
            check_element(nft, &index(wanted.family), &wanted.entry(position, record))?;
        }
        if let Some(hairpin) = &wanted.hairpin {
            compare_rules(&hairpin.rules, &nft.rules(table(wanted.family), Some(&hairpin.name))?)?;
        }
    }
    Ok(())
}
