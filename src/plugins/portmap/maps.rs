//! Our layout (`layout.rs`): what ADD, DEL, GC and CHECK do with an attachment's elements.
//!
//! Every operation looks first, then sends one batch; nothing is listed to find an attachment's elements, because the
//! map `portmappings` says where they are.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::conditions::Conditions;
use super::conf::Conf;
use super::layout::{
    PORTMAP, chain, hairpins, hostips, hostports, index, layout, mapped, martians, places, prepare, rule,
};
use super::record::Record;
use super::taken::{Reach, refused};
use crate::attach::Attachment;
use crate::attach::masquerade::maps::{FAMILIES, check_element, compare_rules, differs, drop_unused, table};
use crate::attach::masquerade::names;
use crate::cni::Result;
use crate::kernel::nft::{
    Chain, Change, Condition, Element, Family, Map, Rule, Side, Socket, Statement, Value, Verdict, program,
};

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
    fn place(&self, conditional: bool) -> (Map, Value) {
        let (protocol, port) = (Value::Protocol(self.protocol), Value::Port(self.host_port));
        if self.host_ip.is_unspecified() {
            (hostports(self.family(), conditional), Value::Joined(vec![protocol, port]))
        } else {
            let key = vec![protocol, Value::Address(self.host_ip), port];
            (hostips(self.family(), conditional), Value::Joined(key))
        }
    }

    fn target(&self) -> Value {
        Value::Joined(vec![Value::Address(self.container_ip), Value::Port(self.container_port)])
    }

    /// The set that has it when it is masqueraded, and its key there.
    fn mapped(&self) -> (Map, Value) {
        let key = vec![
            Value::Protocol(self.protocol),
            Value::Address(self.container_ip),
            Value::Port(self.container_port),
            Value::Port(self.host_port),
        ];
        (mapped(self.family()), Value::Joined(key))
    }

    /// The map that says from where it is masqueraded, and its key there.
    fn hairpin(&self) -> (Map, Value) {
        (hairpins(self.family()), Value::Address(self.container_ip))
    }
}

/// What one family of an attachment should be.
struct Wanted {
    family: Family,
    comment: String,
    records: Vec<Record>,
    /// Whom the mappings masquerade, unless nobody: a chain of the network.
    hairpin: Option<OwnChain>,
    /// The mappings themselves, when they have conditions: a chain of the attachment.
    conditional: Option<OwnChain>,
}

/// A chain that elements lead to.
struct OwnChain {
    name: String,
    rules: Vec<Rule>,
}

impl Wanted {
    /// `None` when nothing is mapped in this family.
    fn new(at: &Attachment, conf: &Conf, container: IpNet) -> Result<Option<Wanted>> {
        let family = Family::of(container.addr());
        let records = Record::all(&conf.mappings, container.addr());
        let hairpin = conf.snat.then(|| {
            let sources = (!conf.masq_all).then(|| container.trunc());
            let shown: Vec<String> = sources.iter().map(IpNet::to_string).collect();
            let name = names::hairpin_chain(at.network, &shown);
            let mut body: Vec<Statement> = Vec::new();
            body.extend(sources.map(|net| Statement::Within { side: Side::Source, net, inside: true }));
            body.push(Statement::Masquerade);
            OwnChain { rules: vec![rule(family, &name, body)], name }
        });
        let comment = names::element_comment(at);
        if records.is_empty() {
            return Ok(None);
        }
        let conditions = conf.conditions(family);
        let conditional = match conditions.language() {
            None => None,
            Some(_) => Some(conditional(&comment, &records, conditions)?),
        };
        Ok(Some(Wanted { family, comment, records, hairpin, conditional }))
    }

    /// All elements that the maps should have, but for the index.
    fn elements(&self) -> Vec<(Map, Element)> {
        let element =
            |(map, key): (Map, Value), data| (map, Element { key, data, comment: self.comment.clone() });
        let mut all: Vec<(Map, Element)> = Vec::new();
        let mut seen = HashSet::new();
        for record in &self.records {
            all.push(match &self.conditional {
                Some(chain) => element(record.place(true), Value::Verdict(Verdict::Jump(chain.name.clone()))),
                None => element(record.place(false), record.target()),
            });
            // Two addresses of the host can lead to the same port.
            if self.hairpin.is_some()
                && seen.insert((record.protocol, record.container_port, record.host_port))
            {
                all.push(element(record.mapped(), Value::Nothing));
            }
        }
        if let (Some(hairpin), Some(record)) = (&self.hairpin, self.records.first()) {
            let goto = Value::Verdict(Verdict::Goto(hairpin.name.clone()));
            all.push(element(record.hairpin(), goto));
        }
        all
    }

    fn entry(&self, position: usize, record: &Record) -> Element {
        let key = Value::Name(names::index_key(&self.comment, position));
        Element { key, data: record.value(), comment: self.comment.clone() }
    }
}

/// The chain of an attachment with conditions: its mappings as rules.
fn conditional(comment: &str, records: &[Record], conditions: &Conditions) -> Result<OwnChain> {
    const TO: Side = Side::Destination;
    let name = names::conditional_chain(comment);
    let mut rules = Vec::new();
    for record in records {
        let Record { protocol, host_port: port, .. } = *record;
        let mut start = vec![
            Statement::Only(Condition::Protocol(protocol)),
            Statement::Only(Condition::Port { side: TO, protocol, from: port, to: port }),
        ];
        if !record.host_ip.is_unspecified() {
            start.push(Statement::Within { side: TO, net: record.host_ip.into(), inside: true });
        }
        for more in conditions.alternatives(record.family(), protocol)? {
            let dnat = Statement::Dnat((record.container_ip, record.container_port).into());
            rules.push(rule(record.family(), &name, [&start[..], &more, &[dnat]].concat()));
        }
    }
    Ok(OwnChain { name, rules })
}

/// The families in which the attachment has something to map.
fn wanted(at: &Attachment, conf: &Conf, container: &[IpNet]) -> Result<Vec<Wanted>> {
    container.iter().filter_map(|net| Wanted::new(at, conf, *net).transpose()).collect()
}

/// What makes the attachment's mappings, and its former ones go.
///
/// # Errors
/// [`Code::PORT_IN_USE`] when another attachment has one of them.
pub fn plan_add(nft: &mut Socket, at: &Attachment, conf: &Conf, container: &[IpNet]) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let all = wanted(at, conf, container)?;
    for family in FAMILIES.into_iter().filter(|family| all.iter().all(|wanted| wanted.family != *family)) {
        plan_del_family(nft, family, &names::element_comment(at), &mut changes)?;
    }
    for wanted in &all {
        changes.extend(prepare(nft, wanted.family)?);
        if let Some(hairpin) = &wanted.hairpin
            && nft.chain(table(wanted.family), &hairpin.name)?.is_none()
        {
            changes.push(Change::CreateChain(chain(wanted.family, &hairpin.name, None)));
            changes.extend(hairpin.rules.iter().cloned().map(Change::AddRule));
        }
        if let Some(own) = &wanted.conditional {
            plan_own_chain(nft, wanted.family, own, &mut changes)?;
        }
        plan_elements(nft, wanted, &mut changes)?;
        if wanted.conditional.is_none() {
            drop_own_chain(nft, wanted.family, &names::conditional_chain(&wanted.comment), &mut changes)?;
        }
    }
    Ok(changes)
}

/// Makes an attachment's chain what it should be.
fn plan_own_chain(nft: &mut Socket, family: Family, own: &OwnChain, changes: &mut Vec<Change>) -> Result<()> {
    let (table, name) = (table(family), &own.name);
    if nft.chain(table, name)?.is_none() {
        changes.push(Change::CreateChain(chain(family, name, None)));
    } else {
        let listed = nft.rules(table, Some(name))?;
        let steps = own.rules.iter().map(program).collect::<Result<Vec<_>>>()?;
        if listed.iter().map(|rule| &rule.steps).eq(&steps) {
            return Ok(());
        }
        changes.push(Change::FlushChain { table, chain: name.clone() });
    }
    changes.extend(own.rules.iter().cloned().map(Change::AddRule));
    Ok(())
}

/// Removes an attachment's chain, after its elements.
fn drop_own_chain(nft: &mut Socket, family: Family, name: &str, changes: &mut Vec<Change>) -> Result<()> {
    let (table, chain) = (table(family), name.to_owned());
    if nft.chain(table, name)?.is_none() {
        return Ok(());
    }
    changes.push(Change::FlushChain { table, chain: chain.clone() });
    changes.push(Change::DeleteChain { table, chain });
    Ok(())
}

fn plan_elements(nft: &mut Socket, wanted: &Wanted, changes: &mut Vec<Change>) -> Result<()> {
    let elements = wanted.elements();
    let former = indexed(nft, wanted.family, &wanted.comment)?;
    let kept: HashSet<(&str, &Value)> =
        elements.iter().map(|(map, element)| (map.name, &element.key)).collect();
    for (map, key) in all_places(&former) {
        if !kept.contains(&(map.name, &key)) && owned(nft, &map, &key, &wanted.comment)?.is_some() {
            changes.push(Change::DestroyElement(map, key));
        }
    }
    for (map, element) in elements {
        match nft.element(&map, &element.key)? {
            Some(found) if found == element => continue,
            Some(found) => {
                refuse_contested(nft, wanted, &map, &found)?;
                changes.push(Change::DestroyElement(map, element.key.clone()));
            }
            None => {}
        }
        changes.push(Change::CreateElement(map, element));
    }
    if wanted.conditional.is_some() {
        // What was mapped without conditions at this address would lead to it whoever comes.
        for (map, key) in wanted.records.iter().map(|record| record.place(false)) {
            let Some(found) = nft.element(&map, &key)?.filter(|found| found.comment != wanted.comment) else {
                continue;
            };
            if refuse_contested(nft, wanted, &map, &found).is_ok() {
                changes.push(Change::DestroyElement(map, key));
            }
        }
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

/// Where mappings may have elements, each place once.
fn all_places(records: &[Record]) -> Vec<(Map, Value)> {
    let mut seen = HashSet::new();
    let places = records
        .iter()
        .flat_map(|record| [record.place(true), record.place(false), record.mapped(), record.hairpin()]);
    places.filter(|(map, key)| seen.insert((map.name, key.clone()))).collect()
}

/// A mapping of another attachment is only replaced when it leads to the same address: that was given to this one
/// since, so the other is gone.
fn refuse_contested(nft: &mut Socket, wanted: &Wanted, map: &Map, found: &Element) -> Result<()> {
    let own = wanted.records.first().map(|record| record.container_ip);
    let contested = found.comment != wanted.comment && places(wanted.family).contains(map);
    if contested && leads_to(nft, wanted.family, found)? != own {
        return Err(refused(&found.key, &owner(&found.comment)));
    }
    Ok(())
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

/// Refuses mappings for rules, which come before our maps, that leave those of others nothing there; what removes those
/// of containers that are gone.
///
/// # Errors
/// [`crate::cni::Code::PORT_IN_USE`], with the owner.
pub fn plan_after_rules(
    nft: &mut Socket,
    at: &Attachment,
    records: &[Record],
    conditional: bool,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let Some(first) = records.first() else { return Ok(()) };
    let own = names::element_comment(at);
    for under in [false, true] {
        let general = |record: &Record| record.host_ip.is_unspecified();
        let all = records.iter().any(general);
        let asked = records.iter().filter(|record| !all || general(record));
        let mut found: Vec<(Map, Value)> = asked.map(|record| record.place(under)).collect();
        if all {
            let map = hostips(first.family(), under);
            found.extend(nft.elements(&map)?.into_iter().map(|element| (map, element.key)));
        }
        for (map, key) in found {
            let Value::Joined(parts) = &key else { continue };
            let (protocol, host_ip, port) = match parts.as_slice() {
                [Value::Protocol(protocol), Value::Port(port)] => (*protocol, [0; 4].into(), *port),
                [Value::Protocol(protocol), Value::Address(host_ip), Value::Port(port)] => {
                    (*protocol, *host_ip, *port)
                }
                _ => continue,
            };
            let reach = Reach { host_ip, conditional: under };
            let covered = |record: &&Record| {
                (record.protocol, record.host_port) == (protocol, port)
                    && Reach { host_ip: record.host_ip, conditional }.covers(reach)
            };
            let Some(record) = records.iter().find(covered) else { continue };
            let Some(element) = nft.element(&map, &key)?.filter(|element| element.comment != own) else {
                continue;
            };
            if leads_to(nft, record.family(), &element)? != Some(record.container_ip) {
                return Err(refused(&key, &owner(&element.comment)));
            }
            changes.push(Change::DestroyElement(map, key));
        }
    }
    Ok(())
}

/// The container's address that an element leads to: a chain with conditions is said to by its attachment's entries in
/// the index.
fn leads_to(nft: &mut Socket, family: Family, element: &Element) -> Result<Option<IpAddr>> {
    match &element.data {
        Value::Joined(parts) => Ok(parts.iter().find_map(|part| match part {
            Value::Address(address) => Some(*address),
            _ => None,
        })),
        _ => Ok(indexed(nft, family, &element.comment)?.first().map(|record| record.container_ip)),
    }
}

/// Every mapping that the kernel has, with the comment of its attachment ([`names::element_comment`]).
pub fn all(nft: &mut Socket) -> Result<Vec<(String, Record)>> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let elements = nft.elements(&index(family))?;
        all.extend(elements.into_iter().filter_map(|e| Some((e.comment, Record::read(&e.data)?))));
    }
    Ok(all)
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
        let references = plan_del_family(nft, family, &comment, &mut changes)?;
        chains.extend(references.into_keys().map(|chain| (family, chain)));
    }
    Ok(changes)
}

/// The same for one family; the network's chains that the elements go to, and how many of these.
fn plan_del_family(
    nft: &mut Socket,
    family: Family,
    comment: &str,
    changes: &mut Vec<Change>,
) -> Result<BTreeMap<String, u32>> {
    let former = indexed(nft, family, comment)?;
    let mut references: BTreeMap<String, u32> = BTreeMap::new();
    for (map, key) in all_places(&former) {
        let Some(element) = owned(nft, &map, &key, comment)? else { continue };
        changes.push(Change::DestroyElement(map, key));
        if let Value::Verdict(Verdict::Goto(chain)) = element.data {
            *references.entry(chain).or_default() += 1;
        }
    }
    for position in 0..former.len() {
        let key = Value::Name(names::index_key(comment, position));
        changes.push(Change::DestroyElement(index(family), key));
    }
    drop_unused(nft, family, &references, changes)?;
    drop_own_chain(nft, family, &names::conditional_chain(comment), changes)?;
    Ok(references)
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
        let chains = nft.chains(table(family))?;
        let mut references: BTreeMap<String, u32> = chains.into_iter().map(|chain| (chain.name, 0)).collect();
        let mut own_chains: BTreeSet<String> = BTreeSet::new();
        for map in [&places(family)[..], &[mapped(family), hairpins(family), index(family)]].concat() {
            for element in nft.elements(&map)?.into_iter().filter(stale) {
                changes.push(Change::DestroyElement(map, element.key));
                match element.data {
                    Value::Verdict(Verdict::Goto(chain)) => *references.entry(chain).or_default() += 1,
                    Value::Verdict(Verdict::Jump(chain)) => {
                        own_chains.insert(chain);
                    }
                    _ => {}
                }
            }
        }
        drop_unused(nft, family, &references, &mut changes)?;
        for name in own_chains.iter().filter(|name| names::is_conditional_chain(name)) {
            drop_own_chain(nft, family, name, &mut changes)?;
        }
    }
    Ok(changes)
}

/// Compares what is with what ADD makes, and names the first difference.
pub fn check(nft: &mut Socket, at: &Attachment, conf: &Conf, container: &[IpNet]) -> Result<()> {
    for wanted in wanted(at, conf, container)? {
        for (chain, rules) in layout(wanted.family) {
            check_chain(nft, &chain, &rules)?;
        }
        for (map, element) in wanted.elements() {
            check_element(nft, &map, &element)?;
        }
        for (position, record) in wanted.records.iter().enumerate() {
            check_element(nft, &index(wanted.family), &wanted.entry(position, record))?;
        }
        for own in [&wanted.hairpin, &wanted.conditional].into_iter().flatten() {
            compare_rules(&own.rules, &nft.rules(table(wanted.family), Some(&own.name))?)?;
        }
    }
    Ok(())
}

/// As [`check`], for what must be there wherever `route_localnet` is on.
pub fn check_martians(nft: &mut Socket) -> Result<()> {
    let (chain, rules) = martians();
    check_chain(nft, &chain, &rules)
}

fn check_chain(nft: &mut Socket, chain: &Chain, rules: &[Rule]) -> Result<()> {
    match nft.chain(chain.table, &chain.name)? {
        Some(found) if found.base == chain.base => {}
        Some(_) => return Err(differs(format!("nft chain {chain} has another hook or priority"))),
        None => return Err(differs(format!("nft chain {chain} is missing"))),
    }
    compare_rules(rules, &nft.rules(chain.table, Some(&chain.name))?)
}
