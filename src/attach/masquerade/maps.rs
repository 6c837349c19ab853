//! Our layout, in the tables `ip cni-all` and `ip6 cni-all` (not `inet`, in which NAT needs Linux 5.2):
//!
//! ```text
//! table ip cni-all {
//!   map masqueraded {                           # whose packets, and by which network's rules
//!     type ipv4_addr : verdict
//!     elements = { 10.1.0.5 comment "net mynet if eth0 id 0123abcd" : goto masq-mynet-1a2b3c4d5e6f }
//!   }
//!   map attachments {                           # where the above has elements of an attachment: see `names::index_key`
//!     type ifname : ipv4_addr
//!     elements = { "fedcba987654321" comment "net mynet if eth0 id 0123abcd" : 10.1.0.5 }
//!   }
//!   chain prerouting { type nat hook prerouting priority dstnat; }      # before Linux 4.18 NAT needs both hooks
//!   chain postrouting { type nat hook postrouting priority srcnat; ip saddr vmap @masqueraded }
//!   chain masq-mynet-1a2b3c4d5e6f { ip daddr 10.1.0.0/16 return; ip daddr 224.0.0.0/4 return; masquerade }
//! }
//! ```
//!
//! A packet costs one look-up, and ADD and DEL cost the same with any number of containers: nothing is listed to find
//! an attachment's elements, because `attachments` says where they are. It is only believed where the element itself
//! names the attachment. A network's chain goes with its last element; the tables stay.
//! (A map called `masquerade` could not be named in a command: the word is a keyword of nft.)

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::names;
use crate::attach::Attachment;
use crate::cni::{Code, Error, Result};
use crate::kernel::nft::{
    Base, Chain, Change, Dialect, Element, Family, Hook, Kind, ListedRule, Map, Rule, Side, Socket,
    Statement, Table, Type, Value, Verdict, program,
};

/// The families of the layout, each with a table of its own.
pub const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// The table of one family.
pub fn table(family: Family) -> Table {
    Table { family, name: "cni-all" }
}

fn masquerade_map(family: Family) -> Map {
    Map { table: table(family), name: "masqueraded", key: Type::Address, data: Type::Verdict }
}

fn index_map(family: Family) -> Map {
    Map { table: table(family), name: "attachments", key: Type::Name, data: Type::Address }
}

fn base_chain(family: Family, hook: Hook) -> Chain {
    let (name, priority) = match hook {
        Hook::Prerouting => ("prerouting", -100),
        _ => ("postrouting", 100),
    };
    Chain { table: table(family), name: name.into(), base: Some(Base { kind: Kind::Nat, hook, priority }) }
}

fn rule(family: Family, chain: &str, statements: Vec<Statement>) -> Rule {
    let (table, chain) = (table(family), chain.to_owned());
    Rule { table, chain, statements, comment: None, tag: None, dialect: Dialect::Nft }
}

fn postrouting_rule(family: Family) -> Rule {
    rule(family, "postrouting", vec![Statement::Lookup(Side::Source, masquerade_map(family))])
}

/// What every table of ours starts with. Whoever needs the table first makes all of it, in the batch of its own
/// changes: EEXIST, for the first change, when another process was faster.
pub fn skeleton(family: Family) -> Vec<Change> {
    vec![
        Change::CreateTable(table(family)),
        Change::AddChain(base_chain(family, Hook::Prerouting)),
        Change::AddChain(base_chain(family, Hook::Postrouting)),
        Change::AddMap(masquerade_map(family)),
        Change::AddMap(index_map(family)),
        Change::AddRule(postrouting_rule(family)),
    ]
}

/// Masquerades in a namespace made for that: can the kernel?
///
/// # Errors
/// What it has not, or that nobody may ask.
pub fn probe(nft: &mut Socket) -> Result<()> {
    let mut changes = skeleton(Family::Ip);
    let chain = Chain { table: table(Family::Ip), name: "probe".to_owned(), base: None };
    changes.push(Change::CreateChain(chain));
    changes.push(Change::AddRule(rule(Family::Ip, "probe", vec![Statement::Masquerade])));
    nft.apply(&changes)
}

/// What one family of an attachment should be.
struct Wanted {
    family: Family,
    comment: String,
    /// The bare addresses, in order, each once.
    addresses: Vec<IpAddr>,
    /// Where nothing is masqueraded to: the networks they are in, and exempt ones; sorted, each once.
    prefixes: Vec<IpNet>,
    chain: String,
}

impl Wanted {
    fn new(at: &Attachment, family: Family, all: &[IpNet], exempt: &[IpNet]) -> Wanted {
        let own = all.iter().filter(|net| Family::of(net.addr()) == family);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in own.clone().map(IpNet::addr) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let exempt = exempt.iter().filter(|net| Family::of(net.addr()) == family);
        let mut prefixes: Vec<IpNet> = own.chain(exempt).map(IpNet::trunc).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        let shown: Vec<String> = prefixes.iter().map(IpNet::to_string).collect();
        let chain = names::network_chain(at.network, &shown);
        Wanted { family, comment: names::element_comment(at), addresses, prefixes, chain }
    }

    fn element(&self, address: IpAddr) -> Element {
        let data = Value::Verdict(Verdict::Goto(self.chain.clone()));
        Element { key: Value::Address(address), data, comment: self.comment.clone() }
    }

    fn index(&self, position: usize, address: IpAddr) -> Element {
        let key = Value::Name(names::index_key(&self.comment, position));
        Element { key, data: Value::Address(address), comment: self.comment.clone() }
    }

    /// The rules of the network's chain: nothing to the network's own addresses, to exempt ones or to multicast groups is
    /// masqueraded.
    fn rules(&self) -> Vec<Rule> {
        let exempt = self.prefixes.iter().copied().chain([super::multicast(self.family)]);
        let returns = exempt.map(|net| {
            let to = Statement::Within { side: Side::Destination, net, inside: true };
            vec![to, Statement::Verdict(Verdict::Return)]
        });
        let all = returns.chain([vec![Statement::Masquerade]]);
        all.map(|statements| rule(self.family, &self.chain, statements)).collect()
    }
}

/// What makes the attachment's addresses of both families masqueraded, and its former ones not.
pub fn plan_add(
    nft: &mut Socket,
    at: &Attachment,
    addresses: &[IpNet],
    exempt: &[IpNet],
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for family in FAMILIES {
        let wanted = Wanted::new(at, family, addresses, exempt);
        if !wanted.addresses.is_empty() {
            plan_add_family(nft, &wanted, &mut changes)?;
        }
    }
    Ok(changes)
}

fn plan_add_family(nft: &mut Socket, wanted: &Wanted, changes: &mut Vec<Change>) -> Result<()> {
    let (family, masquerade, index) =
        (wanted.family, masquerade_map(wanted.family), index_map(wanted.family));
    if nft.chain(table(family), &wanted.chain)?.is_none() {
        if !nft.has_table(table(family))? {
            changes.extend(skeleton(family));
        }
        let (table, name) = (table(family), wanted.chain.clone());
        changes.push(Change::CreateChain(Chain { table, name, base: None }));
        changes.extend(wanted.rules().into_iter().map(Change::AddRule));
    }
    let former = indexed(nft, family, &wanted.comment)?;
    for address in former.iter().filter(|address| !wanted.addresses.contains(address)) {
        if owned(nft, family, *address, &wanted.comment)?.is_some() {
            changes.push(Change::DestroyElement(masquerade, Value::Address(*address)));
        }
    }
    for address in &wanted.addresses {
        let element = wanted.element(*address);
        // An element of another attachment is a stale one: the address was given to this one.
        let present = nft.element(&masquerade, &element.key)?;
        if present.as_ref() == Some(&element) {
            continue;
        }
        if present.is_some() {
            changes.push(Change::DestroyElement(masquerade, element.key.clone()));
        }
        changes.push(Change::CreateElement(masquerade, element));
    }
    for position in 0..former.len().max(wanted.addresses.len()) {
        let (old, new) = (former.get(position), wanted.addresses.get(position));
        if old == new {
            continue;
        }
        if old.is_some() {
            let key = Value::Name(names::index_key(&wanted.comment, position));
            changes.push(Change::DestroyElement(index, key));
        }
        if let Some(address) = new {
            changes.push(Change::CreateElement(index, wanted.index(position, *address)));
        }
    }
    Ok(())
}

/// The addresses that the index has for an attachment, in order.
fn indexed(nft: &mut Socket, family: Family, comment: &str) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    loop {
        let key = Value::Name(names::index_key(comment, addresses.len()));
        match nft.element(&index_map(family), &key)? {
            Some(Element { data: Value::Address(address), .. }) => addresses.push(address),
            _ => return Ok(addresses),
        }
    }
}

/// The chain that the element of an address goes to, when the element is the attachment's.
fn owned(nft: &mut Socket, family: Family, address: IpAddr, comment: &str) -> Result<Option<String>> {
    let found = nft.element(&masquerade_map(family), &Value::Address(address))?;
    Ok(found.filter(|element| element.comment == comment).map(|element| goes_to(&element)))
}

/// The chain that an element goes to; empty when someone made it something else.
fn goes_to(element: &Element) -> String {
    match &element.data {
        Value::Verdict(Verdict::Goto(chain)) => chain.clone(),
        _ => String::new(),
    }
}

/// What removes all elements of an attachment, and the network's chain when they are the last that need it.
///
/// `known` are addresses to look at besides those of the index.
///
/// The chains that the elements go to are put into `chains`, for [`plan_unused`].
pub fn plan_del(
    nft: &mut Socket,
    at: &Attachment,
    known: &[IpAddr],
    chains: &mut BTreeSet<(Family, String)>,
) -> Result<Vec<Change>> {
    let comment = names::element_comment(at);
    let mut changes = Vec::new();
    for family in FAMILIES {
        let former = indexed(nft, family, &comment)?;
        let mut candidates = former.clone();
        candidates.extend(known.iter().filter(|address| Family::of(**address) == family));
        candidates.sort_unstable();
        candidates.dedup();
        let mut references: BTreeMap<String, u32> = BTreeMap::new();
        for address in candidates {
            if let Some(chain) = owned(nft, family, address, &comment)? {
                changes.push(Change::DestroyElement(masquerade_map(family), Value::Address(address)));
                *references.entry(chain).or_default() += 1;
            }
        }
        for position in 0..former.len() {
            let key = Value::Name(names::index_key(&comment, position));
            changes.push(Change::DestroyElement(index_map(family), key));
        }
        chains.extend(references.keys().map(|chain| (family, chain.clone())));
        drop_unused(nft, family, &references, &mut changes)?;
    }
    Ok(changes)
}

/// What removes those of these chains that nothing refers to any more.
///
/// Two DELs that look at the same moment each see the other's element and leave the chain: so each looks again after it
/// has removed its own.
pub fn plan_unused(nft: &mut Socket, chains: &BTreeSet<(Family, String)>) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for (family, chain) in chains {
        drop_unused(nft, *family, &BTreeMap::from([(chain.clone(), 0)]), &mut changes)?;
    }
    Ok(changes)
}

/// Removes the network chains that only the counted elements, about to go, refer to.
///
/// When an ADD puts a new element into such a chain meanwhile, the kernel refuses the batch (EBUSY); when the ADD comes
/// after, it is refused (ENOENT). Either then looks again.
pub fn drop_unused(
    nft: &mut Socket,
    family: Family,
    references: &BTreeMap<String, u32>,
    changes: &mut Vec<Change>,
) -> Result<()> {
    for (name, going) in references {
        let Some(chain) = nft.chain(table(family), name)?.filter(|_| names::is_network_chain(name)) else {
            continue;
        };
        // A chain has a few rules; listing them is only worth it when little else can refer to it.
        if chain.uses > going + 16 {
            continue;
        }
        let rules = nft.rules(table(family), Some(name))?.len() as u32;
        if chain.uses == going + rules {
            changes.push(Change::FlushChain { table: table(family), chain: name.clone() });
            changes.push(Change::DeleteChain { table: table(family), chain: name.clone() });
        }
    }
    Ok(())
}

/// What removes the elements of this network that belong to none of the valid attachments, and unused chains.
pub fn plan_gc(nft: &mut Socket, network: &str, valid: &[(String, String)]) -> Result<Vec<Change>> {
    let prefix = names::network_prefix(network);
    let alive = |(container_id, ifname): &(String, String)| {
        names::element_comment(&Attachment { network, container_id, ifname })
    };
    let valid: Vec<String> = valid.iter().map(alive).collect();
    let stale = |element: &Element| element.comment.starts_with(&prefix) && !valid.contains(&element.comment);
    let mut changes = Vec::new();
    for family in FAMILIES {
        if !nft.has_table(table(family))? {
            continue;
        }
        let mut references: BTreeMap<String, u32> = BTreeMap::new();
        for chain in nft.chains(table(family))? {
            references.insert(chain.name, 0);
        }
        for element in nft.elements(&masquerade_map(family))?.into_iter().filter(stale) {
            *references.entry(goes_to(&element)).or_default() += 1;
            changes.push(Change::DestroyElement(masquerade_map(family), element.key));
        }
        for element in nft.elements(&index_map(family))?.into_iter().filter(stale) {
            changes.push(Change::DestroyElement(index_map(family), element.key));
        }
        drop_unused(nft, family, &references, &mut changes)?;
    }
    Ok(changes)
}

/// Compares what is with what ADD makes, and names the first difference.
pub fn check(nft: &mut Socket, at: &Attachment, addresses: &[IpNet], exempt: &[IpNet]) -> Result<()> {
    for family in FAMILIES {
        let wanted = Wanted::new(at, family, addresses, exempt);
        if wanted.addresses.is_empty() {
            continue;
        }
        for hook in [Hook::Prerouting, Hook::Postrouting] {
            let chain = base_chain(family, hook);
            match nft.chain(chain.table, &chain.name)? {
                Some(found) if found.base == chain.base => {}
                Some(_) => return Err(differs(format!("nft chain {chain} has another hook or priority"))),
                None => return Err(differs(format!("nft chain {chain} is missing"))),
            }
        }
        let main = postrouting_rule(family);
        let listed = nft.rules(table(family), Some(&main.chain))?;
        let steps = program(&main)?;
        if !listed.iter().any(|rule| rule.steps == steps) {
            return Err(differs(format!("nft rule {main} is missing")));
        }
        for (position, address) in wanted.addresses.iter().enumerate() {
            check_element(nft, &masquerade_map(family), &wanted.element(*address))?;
            check_element(nft, &index_map(family), &wanted.index(position, *address))?;
        }
        compare_rules(&wanted.rules(), &nft.rules(table(family), Some(&wanted.chain))?)?;
    }
    Ok(())
}

/// An element must be there as it is wanted.
pub fn check_element(nft: &mut Socket, map: &Map, wanted: &Element) -> Result<()> {
    match nft.element(map, &wanted.key)? {
        Some(found) if found == *wanted => Ok(()),
        Some(found) => Err(differs(format!("nft map {map} has {{ {found} }} instead of {{ {wanted} }}"))),
        None => Err(differs(format!("nft map {map} does not have {{ {wanted} }}"))),
    }
}

/// The listed rules of a chain must be the wanted ones, in order.
pub fn compare_rules(wanted: &[Rule], listed: &[ListedRule]) -> Result<()> {
    for (position, rule) in wanted.iter().enumerate() {
        let steps = program(rule)?;
        match listed.get(position) {
            Some(found) if found.steps == steps => {}
            Some(_) => return Err(differs(format!("rule {} of its chain is not: {rule}", position + 1))),
            None => return Err(differs(format!("missing: {rule}"))),
        }
    }
    match (wanted.first(), listed.get(wanted.len())) {
        (Some(rule), Some(extra)) => {
            let (table, chain) = (rule.table, &rule.chain);
            Err(differs(format!("nft chain {table} {chain} has a rule more, handle {}", extra.handle)))
        }
        _ => Ok(()),
    }
}

/// CHECK found that something is not as ADD made it.
pub fn differs(what: String) -> Error {
    Error::new(Code::CHECK_FAILED, what)
}
