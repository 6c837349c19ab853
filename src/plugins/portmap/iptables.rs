//! The Go plugin's iptables layout, in the tables that iptables-nft owns: `ip nat` and `ip6 nat`. nerdctl and Nomad look
//! into it.
//!
//! ```text
//! -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT                                  # and OUTPUT
//! -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"n\" id: \"c\"" -m multiport --dports 8080 -j CNI-DN-5db8…
//! -A CNI-DN-5db8… -s 10.1.0.0/16 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
//! -A CNI-DN-5db8… -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
//! -A CNI-DN-5db8… -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.5:80
//! -A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
//! -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
//! -A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ      # the first one
//! ```
//!
//! Chain and comment do not have the interface's name: our rules have it in a tag that iptables does not show, and
//! rules without belong to every attachment of the container to the network, as they do for the Go plugin. What is
//! shared by all stays, as the Go plugin leaves it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use nix::libc;

use super::conf::Conf;
use super::record::Record;
use super::taken::{Taken, conditions, ports, protocol, read, refuse_covered};
use super::{maps, upstream};
use crate::attach::Attachment;
use crate::attach::masquerade::maps::{FAMILIES, differs};
use crate::attach::masquerade::names;
use crate::cni::{Error, Result};
use crate::kernel::nft::{
    Base, Chain, Change, Condition, Dialect, Family, Hook, Kind, ListedRule, Route, Rule, Side, Socket,
    Statement, Step, Table, Verdict, program,
};

const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
/// Of releases of the Go plugin before 2018.
const OLD_SNAT: &str = "CNI-HOSTPORT-SNAT";
/// The most ports that the match `multiport` takes (`XT_MULTI_PORTS`).
const PORTS: usize = 15;

fn table(family: Family) -> Table {
    Table { family, name: "nat" }
}

fn rule(family: Family, chain: &str, statements: Vec<Statement>) -> Rule {
    let (table, chain) = (table(family), chain.to_owned());
    Rule { table, chain, statements, comment: None, tag: None, dialect: Dialect::Iptables }
}

fn jump(to: &str) -> Statement {
    Statement::Verdict(Verdict::Jump(to.to_owned()))
}

/// A chain that rules of ours are in, with its hook if iptables has it by itself.
fn chain(family: Family, name: &str) -> Chain {
    let base = match name {
        "PREROUTING" => Some((Hook::Prerouting, -100)),
        "OUTPUT" => Some((Hook::Output, -100)),
        "POSTROUTING" => Some((Hook::Postrouting, 100)),
        _ => None,
    };
    let base = base.map(|(hook, priority)| Base { kind: Kind::Nat, hook, priority });
    Chain { table: table(family), name: name.to_owned(), base }
}

/// What all attachments share. The jump to [`MASQUERADE`] must come before ipMasq's rules, everything else after
/// those of others.
fn shared(conf: &Conf, family: Family) -> Vec<Rule> {
    let to_host = || vec![Statement::Only(Condition::Type(Side::Destination, Route::Local)), jump(DNAT)];
    let mut all = vec![rule(family, "PREROUTING", to_host()), rule(family, "OUTPUT", to_host())];
    if conf.snat && conf.external_set_mark_chain.is_none() {
        let said = |comment: &str, rule: Rule| Rule { comment: Some(comment.to_owned()), ..rule };
        let marked = Statement::Only(Condition::Mark { value: conf.mark, mask: conf.mark });
        all.extend([
            said("CNI portfwd masquerade mark", rule(family, SET_MARK, vec![Statement::SetMark(conf.mark)])),
            rule(family, MASQUERADE, vec![marked, Statement::Masquerade]),
            said("CNI portfwd requiring masquerade", rule(family, "POSTROUTING", vec![jump(MASQUERADE)])),
        ]);
    }
    all
}

/// One family of an attachment.
struct Own<'a> {
    family: Family,
    chain: String,
    comment: String,
    ifname: &'a str,
}

impl<'a> Own<'a> {
    fn new(at: &Attachment<'a>, family: Family) -> Own<'a> {
        let chain = names::portmap_chain(at.network, at.container_id);
        let comment = names::portmap_comment(at.network, at.container_id);
        Own { family, chain, comment, ifname: at.ifname }
    }

    fn tagged(&self, rule: Rule) -> Rule {
        Rule { tag: Some(self.ifname.to_owned()), ..rule }
    }

    /// Whether a rule of the container's is this attachment's.
    fn has(&self, rule: &ListedRule) -> bool {
        rule.tag.as_deref().is_none_or(|tag| tag == self.ifname)
    }

    /// The rules of the container's chain: for each mapping those that mark, then the translation, which is the end.
    fn rules(&self, conf: &Conf, container: IpNet) -> Vec<Rule> {
        let set_mark = conf.external_set_mark_chain.as_deref().unwrap_or(SET_MARK);
        let localhost = IpNet::V4(Ipv4Net::from(Ipv4Addr::LOCALHOST));
        let mut sources = Vec::new();
        if conf.snat {
            sources.push((!conf.masq_all).then_some(container));
            sources.extend((!conf.masq_all && self.family == Family::Ip).then_some(Some(localhost)));
        }
        let mut all = Vec::new();
        for record in Record::all(&conf.mappings, container.addr()) {
            let of = |source: Option<IpNet>, end: Statement| {
                let (protocol, port) = (record.protocol, record.host_port);
                let within = |side, net| Statement::Within { side, net, inside: true };
                let mut statements = vec![Statement::Only(Condition::Protocol(protocol))];
                statements.extend(source.map(|net| within(Side::Source, net)));
                if !record.host_ip.is_unspecified() {
                    statements.push(within(Side::Destination, record.host_ip.into()));
                }
                let side = Side::Destination;
                statements.push(Statement::Only(Condition::Port { side, protocol, from: port, to: port }));
                statements.push(end);
                self.tagged(rule(self.family, &self.chain, statements))
            };
            all.extend(sources.iter().map(|source| of(*source, jump(set_mark))));
            let to = (record.container_ip, record.container_port).into();
            all.push(of(None, Statement::Dnat(to)));
        }
        all
    }

    /// The rules that lead to the container's chain: by protocol, ports of all families together.
    fn entries(&self, conf: &Conf) -> Result<Vec<Rule>> {
        let mut all = Vec::new();
        for protocol in [libc::IPPROTO_SCTP, libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            let protocol = protocol as u8;
            let own = conf.mappings.iter().filter(|mapping| mapping.protocol == protocol);
            let ports: Vec<u16> = own.map(|mapping| mapping.host_port).collect();
            for ports in ports.chunks(PORTS) {
                for more in conf.conditions(self.family).alternatives(self.family, protocol)? {
                    let ports = Statement::Only(Condition::DestinationPorts(ports.to_vec()));
                    let mut statements = vec![Statement::Only(Condition::Protocol(protocol)), ports];
                    statements.extend(more);
                    statements.push(jump(&self.chain));
                    // The order in which iptables itself writes them.
                    statements.sort_by_key(place);
                    let entry = rule(self.family, DNAT, statements);
                    all.push(self.tagged(Rule { comment: Some(self.comment.clone()), ..entry }));
                }
            }
        }
        Ok(all)
    }

    /// The rules that lead to the container's chain now, whosever.
    fn listed_entries(&self, nft: &mut Socket) -> Result<Vec<ListedRule>> {
        let rules = nft.rules(table(self.family), Some(DNAT))?;
        Ok(rules.into_iter().filter(|rule| rule.target() == Some(&self.chain)).collect())
    }
}

fn place(statement: &Statement) -> u8 {
    match statement {
        Statement::Only(Condition::InputName(_)) | Statement::Unless(Condition::InputName(_)) => 0,
        Statement::Only(Condition::Protocol(_)) => 1,
        Statement::Within { side: Side::Source, .. } => 2,
        Statement::Within { .. } => 3,
        Statement::Verdict(_) => 5,
        _ => 4,
    }
}

fn delete(rule: &ListedRule, family: Family) -> Change {
    Change::DeleteRule { table: table(family), chain: rule.chain.clone(), handle: rule.handle }
}

/// What makes the attachment's mappings, and its former ones go.
///
/// # Errors
/// [`Code::PORT_IN_USE`] when another container has one of them.
pub fn plan_add(nft: &mut Socket, at: &Attachment, conf: &Conf, container: &[IpNet]) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let mapped = |net: &&IpNet| !Record::all(&conf.mappings, net.addr()).is_empty();
    let container: Vec<&IpNet> = container.iter().filter(mapped).collect();
    for family in FAMILIES {
        if !container.iter().any(|net| Family::of(net.addr()) == family) {
            plan_del_family(nft, at, family, &mut changes)?;
        }
    }
    for net in container {
        let own = Own::new(at, Family::of(net.addr()));
        let records = Record::all(&conf.mappings, net.addr());
        plan_shared(nft, conf, own.family, &mut changes)?;
        let entries = own.entries(conf)?;
        refuse_contested(nft, at, &entries, &records, &mut changes)?;
        let conditional = conf.conditions(own.family).language().is_some();
        let by_upstream = upstream::taken(nft, at, &records)?;
        refuse_covered(&by_upstream, &records, conditional)?;
        changes.extend(upstream::plan_stale(net.addr(), &by_upstream));
        maps::plan_after_rules(nft, at, &records, conditional, &mut changes)?;
        if nft.chain(table(own.family), &own.chain)?.is_none() {
            changes.push(Change::CreateChain(chain(own.family, &own.chain)));
        }
        let former = nft.rules(table(own.family), Some(&own.chain))?;
        plan_rules(&own, &former, own.rules(conf, *net), &mut changes)?;
        let former = own.listed_entries(nft)?;
        plan_rules(&own, &former, entries, &mut changes)?;
    }
    Ok(changes)
}

fn plan_shared(nft: &mut Socket, conf: &Conf, family: Family, changes: &mut Vec<Change>) -> Result<()> {
    if let Some(name) = conf.external_set_mark_chain.as_deref().filter(|_| conf.snat)
        && nft.chain(table(family), name)?.is_none()
    {
        let tool = if family == Family::Ip6 { "ip6tables" } else { "iptables" };
        return Err(Error::config(format!("externalSetMarkChain: {tool} -t nat has no chain {name:?}")));
    }
    if !nft.has_table(table(family))? {
        changes.push(Change::AddTable(table(family)));
    }
    // A chain must be there before a rule jumps to it.
    let rules = shared(conf, family);
    let mut names: Vec<&str> = vec![DNAT];
    names.extend(rules.iter().map(|rule| rule.chain.as_str()));
    for name in names {
        if nft.chain(table(family), name)?.is_none() {
            changes.push(Change::AddChain(chain(family, name)));
        }
    }
    for rule in rules {
        let steps = program(&rule)?;
        let listed = nft.rules(table(family), Some(&rule.chain))?;
        if !listed.iter().any(|listed| listed.steps == steps) {
            let first = rule.chain == "POSTROUTING";
            changes.push(if first { Change::InsertRule(rule) } else { Change::AddRule(rule) });
        }
    }
    Ok(())
}

/// Replaces the attachment's rules among those listed, unless they are what is wanted.
fn plan_rules(own: &Own, listed: &[ListedRule], wanted: Vec<Rule>, changes: &mut Vec<Change>) -> Result<()> {
    let former: Vec<&ListedRule> = listed.iter().filter(|rule| own.has(rule)).collect();
    let steps = wanted.iter().map(program).collect::<Result<Vec<_>>>()?;
    let tagged = former.iter().all(|rule| rule.tag.is_some());
    if tagged && former.iter().map(|rule| &rule.steps).eq(&steps) {
        return Ok(());
    }
    changes.extend(former.into_iter().map(|rule| delete(rule, own.family)));
    changes.extend(wanted.into_iter().map(Change::AddRule));
    Ok(())
}

/// Refuses mappings that another attachment has: its entry would go first, and everything to it. What there is of
/// containers that are gone goes.
fn refuse_contested(
    nft: &mut Socket,
    at: &Attachment,
    entries: &[Rule],
    records: &[Record],
    changes: &mut Vec<Change>,
) -> Result<()> {
    let Some(first) = records.first() else { return Ok(()) };
    let wanted = entries.iter().map(program).collect::<Result<Vec<_>>>()?;
    let all = taken(nft, at, records)?;
    for taken in all.iter().filter(|taken| !taken.is_stale(first.container_ip)) {
        let contested = |record: &&Record| {
            let same = |steps: &Vec<Step>| conditions(steps, record) == taken.conditions();
            taken.is_at(record) && taken.record.host_ip == record.host_ip && wanted.iter().any(same)
        };
        if records.iter().any(|record| contested(&record)) {
            return Err(taken.refused());
        }
    }
    plan_stale(nft, first.container_ip, &all, changes)
}

/// The mappings of other attachments at the ports of these, which are of one family, in the order in which entries lead
/// to them.
pub fn taken(nft: &mut Socket, at: &Attachment, records: &[Record]) -> Result<Vec<Taken>> {
    let Some(family) = records.first().map(Record::family) else { return Ok(Vec::new()) };
    let (own, table) = (Own::new(at, family), table(family));
    let mut all = Vec::new();
    if nft.chain(table, DNAT)?.is_none() {
        return Ok(all);
    }
    let is_wanted = |port: &u16| records.iter().any(|record| record.host_port == *port);
    let mut chains: BTreeMap<String, Vec<ListedRule>> = BTreeMap::new();
    for entry in nft.rules(table, Some(DNAT))? {
        let ports = ports(&entry);
        let Some(target) = entry.target() else { continue };
        if (target == own.chain && own.has(&entry))
            || !ports.iter().flatten().any(is_wanted) && ports.is_some()
        {
            continue;
        }
        if !chains.contains_key(target) {
            chains.insert(target.to_owned(), nft.rules(table, Some(target))?);
        }
        for rule in chains.get(target).into_iter().flatten().filter(|rule| rule.tag == entry.tag) {
            let Some(record) = read(rule, family) else { continue };
            let taken = Taken { record, rule: rule.clone(), entry: Some(entry.clone()) };
            let is_led = ports.as_ref().is_none_or(|ports| ports.contains(&record.host_port))
                && protocol(&entry).is_none_or(|number| number == record.protocol);
            if is_led && records.iter().any(|record| taken.is_at(record)) {
                all.push(taken);
            }
        }
    }
    Ok(all)
}

/// Removes, of mappings that others have, all that there is of the attachments whose address is now another one's.
pub fn plan_stale(
    nft: &mut Socket,
    address: IpAddr,
    taken: &[Taken],
    changes: &mut Vec<Change>,
) -> Result<()> {
    let family = Family::of(address);
    let mut stale: BTreeMap<&str, Vec<&Option<String>>> = BTreeMap::new();
    for taken in taken.iter().filter(|taken| taken.is_stale(address)) {
        stale.entry(&taken.rule.chain).or_default().push(&taken.rule.tag);
    }
    for (chain, tags) in stale {
        let mut entries = nft.rules(table(family), Some(DNAT))?;
        entries.retain(|entry| entry.target() == Some(chain));
        plan_removal(nft, family, chain, &entries, |rule| tags.contains(&&rule.tag), changes)?;
    }
    Ok(())
}

/// The mappings that an attachment has now.
pub fn records(nft: &mut Socket, at: &Attachment) -> Result<Vec<Record>> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let own = Own::new(at, family);
        if nft.chain(table(family), &own.chain)?.is_none() {
            continue;
        }
        let rules = nft.rules(table(family), Some(&own.chain))?;
        all.extend(rules.iter().filter(|rule| own.has(rule)).filter_map(|rule| read(rule, family)));
    }
    Ok(all)
}

/// What removes an attachment's rules, and the container's chain when no other attachment has rules there.
pub fn plan_del(nft: &mut Socket, at: &Attachment) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for family in FAMILIES {
        plan_del_family(nft, at, family, &mut changes)?;
    }
    Ok(changes)
}

fn plan_del_family(
    nft: &mut Socket,
    at: &Attachment,
    family: Family,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let own = Own::new(at, family);
    if nft.chain(table(family), &own.chain)?.is_some() {
        let entries = own.listed_entries(nft)?;
        plan_removal(nft, family, &own.chain, &entries, |rule| own.has(rule), changes)?;
    }
    let old = names::old_portmap_chain(at.network, at.container_id);
    if nft.chain(table(family), &old)?.is_some() {
        let entries = nft.rules(table(family), Some(OLD_SNAT))?;
        let entries: Vec<ListedRule> =
            entries.into_iter().filter(|rule| rule.target() == Some(&old)).collect();
        plan_removal(nft, family, &old, &entries, |_| true, changes)?;
    }
    Ok(())
}

/// Removes rules of a container's chain and those that lead there; the chain too when none is left.
fn plan_removal(
    nft: &mut Socket,
    family: Family,
    chain: &str,
    entries: &[ListedRule],
    stale: impl Fn(&ListedRule) -> bool,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let Some(listed) = nft.chain(table(family), chain)? else { return Ok(()) };
    let rules = nft.rules(table(family), Some(chain))?;
    changes.extend(entries.iter().filter(|rule| stale(rule)).map(|rule| delete(rule, family)));
    if !rules.iter().chain(entries).all(&stale) {
        changes.extend(rules.iter().filter(|rule| stale(rule)).map(|rule| delete(rule, family)));
        return Ok(());
    }
    let (table, chain) = (table(family), chain.to_owned());
    changes.push(Change::FlushChain { table, chain: chain.clone() });
    // Anything else that refers to it is an operator's.
    if listed.uses as usize == rules.len() + entries.len() {
        changes.push(Change::DeleteChain { table, chain });
    }
    Ok(())
}

/// What removes the rules of this network that belong to none of the valid attachments.
///
/// Of rules without tag (those of the Go plugin) only the container is known: they stay while it has any valid
/// attachment to the network.
pub fn plan_gc(nft: &mut Socket, network: &str, valid: &[(String, String)]) -> Result<Vec<Change>> {
    let prefix = names::portmap_prefix(network);
    let mut changes = Vec::new();
    for family in FAMILIES {
        let entries = nft.rules(table(family), Some(DNAT))?;
        let own = |rule: &&ListedRule| rule.comment.as_deref().is_some_and(|text| text.starts_with(&prefix));
        let mut chains: Vec<&str> = entries.iter().filter(own).filter_map(ListedRule::target).collect();
        chains.retain(|name| name.starts_with("CNI-DN-"));
        chains.sort_unstable();
        chains.dedup();
        for chain in chains {
            let alive: Vec<&str> = valid
                .iter()
                .filter(|(container_id, _)| names::portmap_chain(network, container_id) == chain)
                .map(|(_, ifname)| ifname.as_str())
                .collect();
            let stale = |rule: &ListedRule| match rule.tag.as_deref() {
                Some(tag) => !alive.contains(&tag),
                None => alive.is_empty(),
            };
            let entries: Vec<ListedRule> =
                entries.iter().filter(|rule| rule.target() == Some(chain)).cloned().collect();
            if entries.iter().any(stale) {
                plan_removal(nft, family, chain, &entries, stale, &mut changes)?;
            }
        }
    }
    Ok(changes)
}

/// Compares what is with what ADD makes, and names the first difference.
pub fn check(nft: &mut Socket, at: &Attachment, conf: &Conf, container: &[IpNet]) -> Result<()> {
    for net in container {
        let own = Own::new(at, Family::of(net.addr()));
        if Record::all(&conf.mappings, net.addr()).is_empty() {
            continue;
        }
        let wanted = [shared(conf, own.family), own.entries(conf)?, own.rules(conf, *net)].concat();
        for rule in wanted {
            let steps = program(&rule)?;
            let listed = nft.rules(rule.table, Some(&rule.chain))?;
            if !listed.iter().any(|listed| listed.steps == steps) {
                return Err(differs(format!("missing: {rule}")));
            }
        }
    }
    Ok(())
}
