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

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use nix::libc;

use super::conf::Conf;
use super::record::Record;
use super::taken::{Reach, Taken, conditions, ports, protocol, read, refuse_covered};
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
                    all.push(self.entry(protocol, ports, more));
                }
            }
        }
        Ok(all)
    }

    /// A rule that leads to the container's chain.
    fn entry(&self, protocol: u8, ports: &[u16], more: Vec<Statement>) -> Rule {
        let ports = Statement::Only(Condition::DestinationPorts(ports.to_vec()));
        let mut statements = vec![Statement::Only(Condition::Protocol(protocol)), ports];
        statements.extend(more);
        statements.push(jump(&self.chain));
        // The order in which iptables itself writes them.
        statements.sort_by_key(place);
        let entry = rule(self.family, DNAT, statements);
        self.tagged(Rule { comment: Some(self.comment.clone()), ..entry })
    }

    /// Whether a rule of a chain that all share is this attachment's.
    fn has_entry(&self, rule: &ListedRule) -> bool {
        rule.target() == Some(&self.chain) && self.has(rule)
    }
}

/// A rule, and in front of which other it must be, by that one's handle.
type Placed = (Rule, Option<u64>);

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
        let conditional = conf.conditions(own.family).language().is_some();
        plan_shared(nft, conf, own.family, &mut changes)?;
        let by_upstream = upstream::taken(nft, at, &records)?;
        refuse_covered(&by_upstream, &records, conditional)?;
        changes.extend(upstream::plan_stale(net.addr(), &by_upstream));
        maps::plan_after_rules(nft, at, &records, conditional, &mut changes)?;
        let mut others = taken(nft, at, &records)?;
        plan_stale(nft, net.addr(), &others, &mut changes)?;
        others.retain(|taken| !taken.is_stale(net.addr()));
        refuse_contested(&own, conf, &records, &others)?;
        if nft.chain(table(own.family), &own.chain)?.is_none() {
            changes.push(Change::CreateChain(chain(own.family, &own.chain)));
        }
        let listed = nft.rules(table(own.family), Some(&own.chain))?;
        let rules = placed(&own.rules(conf, *net), &listed, &others);
        plan_rules(&own, &listed, |rule| own.has(rule), rules, &mut changes)?;
        let listed = nft.rules(table(own.family), Some(DNAT))?;
        let entries = placed_entries(&own, conf, &records, &listed, &others)?;
        plan_rules(&own, &listed, |rule| own.has_entry(rule), entries, &mut changes)?;
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
fn plan_rules(
    own: &Own,
    listed: &[ListedRule],
    is_own: impl Fn(&ListedRule) -> bool,
    wanted: Vec<Placed>,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let former: Vec<&ListedRule> = listed.iter().filter(|rule| is_own(rule)).collect();
    let mut are_there = former.len() == wanted.len() && former.iter().all(|rule| rule.tag.is_some());
    for (rule, (wanted, before)) in former.iter().zip(&wanted) {
        are_there = are_there && rule.steps == program(wanted)? && is_before(rule.handle, *before, listed);
    }
    if are_there {
        return Ok(());
    }
    changes.extend(former.into_iter().map(|rule| delete(rule, own.family)));
    changes.extend(wanted.into_iter().map(|(rule, before)| match before {
        Some(before) => Change::InsertBefore(rule, before),
        None => Change::AddRule(rule),
    }));
    Ok(())
}

/// Whether a listed rule comes before another one, if there must be one.
fn is_before(handle: u64, other: Option<u64>, listed: &[ListedRule]) -> bool {
    let first = |rule: &&ListedRule| rule.handle == handle || Some(rule.handle) == other;
    other.is_none() || listed.iter().find(first).is_some_and(|rule| rule.handle == handle)
}

/// Refuses mappings that another attachment has: its entry would go first, and everything to it.
///
/// The attachments of one container share its chain, in which there are no conditions.
fn refuse_contested(own: &Own, conf: &Conf, records: &[Record], others: &[Taken]) -> Result<()> {
    let wanted = own.entries(conf)?.iter().map(program).collect::<Result<Vec<_>>>()?;
    for taken in others {
        let contested = |record: &&Record| {
            let same = |steps: &Vec<Step>| conditions(steps, record) == taken.conditions();
            let conditional = || wanted.iter().any(|steps| !conditions(steps, record).is_empty());
            taken.is_at(record)
                && match taken.rule.chain == own.chain {
                    false => taken.record.host_ip == record.host_ip && wanted.iter().any(same),
                    true => {
                        taken.record.host_ip == record.host_ip || taken.reach().conditional || conditional()
                    }
                }
        };
        if records.iter().any(|record| contested(&record)) {
            return Err(taken.refused());
        }
    }
    Ok(())
}

/// Where rules of the container's chain must be: those for one address of the host before what another attachment of
/// the container has at one of these ports.
fn placed(rules: &[Rule], listed: &[ListedRule], others: &[Taken]) -> Vec<Placed> {
    let is_others = |rule: &&ListedRule| {
        others.iter().any(|taken| (&taken.rule.chain, &taken.rule.tag) == (&rule.chain, &rule.tag))
    };
    let first = listed.iter().find(is_others).map(|rule| rule.handle);
    let at_one = |part: &Statement| matches!(part, Statement::Within { side: Side::Destination, .. });
    let mut placed: Vec<Placed> = Vec::with_capacity(rules.len());
    for in_front in [true, false] {
        for rule in rules {
            let before = first.filter(|_| rule.statements.iter().any(at_one));
            if before.is_some() == in_front {
                placed.push((rule.clone(), before));
            }
        }
    }
    placed
}

/// The rules that lead to the container's chain, and where they must be: last, as the Go plugin has them. A mapping that
/// others' entries would leave nothing there, and that goes first, has one more in front of these.
fn placed_entries(
    own: &Own,
    conf: &Conf,
    records: &[Record],
    listed: &[ListedRule],
    others: &[Taken],
) -> Result<Vec<Placed>> {
    let entries = own.entries(conf)?;
    let steps = entries.iter().map(program).collect::<Result<Vec<_>>>()?;
    let conditions = conf.conditions(own.family);
    let conditional = conditions.language().is_some();
    let is_after = |taken: &Taken, record: &Record| {
        let reach = Reach { host_ip: record.host_ip, conditional };
        taken.is_at(record) && taken.rule.chain != own.chain && reach.goes_before(taken.reach())
    };
    let mut first: Vec<Placed> = Vec::new();
    // In the order of what they go before.
    let pairs =
        others.iter().enumerate().flat_map(|(n, taken)| records.iter().map(move |record| (n, taken, record)));
    for (n, taken, record) in pairs {
        let is_first = is_after(taken, record) && !others.iter().take(n).any(|other| is_after(other, record));
        let Some(after) = taken.entry.as_ref().filter(|_| is_first).map(|entry| entry.handle) else {
            continue;
        };
        let is_usual = |rule: &&ListedRule| {
            own.has_entry(rule)
                && steps.contains(&rule.steps)
                && protocol(rule) == Some(record.protocol)
                && ports(rule).is_some_and(|ports| ports.contains(&record.host_port))
        };
        let usual = listed.iter().find(is_usual);
        if usual.is_some_and(|usual| is_before(usual.handle, Some(after), listed)) {
            continue;
        }
        let at_one = Some(record.host_ip).filter(|host_ip| !host_ip.is_unspecified());
        let at_one = at_one.map(|host_ip| Statement::Within {
            side: Side::Destination,
            net: host_ip.into(),
            inside: true,
        });
        for more in conditions.alternatives(own.family, record.protocol)? {
            let more = at_one.iter().cloned().chain(more).collect();
            first.push((own.entry(record.protocol, &[record.host_port], more), Some(after)));
        }
    }
    first.extend(entries.into_iter().map(|rule| (rule, None)));
    Ok(first)
}

/// The mappings of other attachments at the ports of these, which are of one family, in the order in which entries lead
/// to them.
pub fn taken(nft: &mut Socket, at: &Attachment, records: &[Record]) -> Result<Vec<Taken>> {
    let Some(family) = records.first().map(Record::family) else { return Ok(Vec::new()) };
    let (table, mut all) = (table(family), Vec::new());
    if nft.chain(table, DNAT)?.is_none() {
        return Ok(all);
    }
    let own = Own::new(at, family);
    let is_wanted = |port: &u16| records.iter().any(|record| record.host_port == *port);
    for entry in nft.rules(table, Some(DNAT))? {
        let ports = ports(&entry);
        let Some(target) = entry.target() else { continue };
        if (target == own.chain && own.has(&entry))
            || !ports.iter().flatten().any(is_wanted) && ports.is_some()
        {
            continue;
        }
        for rule in nft.rules(table, Some(target))?.into_iter().filter(|rule| rule.tag == entry.tag) {
            let Some(record) = read(&rule, family) else { continue };
            let taken = Taken { record, rule, entry: Some(entry.clone()) };
            let is_led = ports.as_ref().is_none_or(|ports| ports.contains(&record.host_port))
                && protocol(&entry).is_none_or(|number| number == record.protocol);
            if is_led && records.iter().any(|record| taken.is_at(record)) {
                all.push(taken);
            }
        }
    }
    Ok(all)
}

/// The rules that lead to a container's chain now, whosever.
fn entries_of(nft: &mut Socket, family: Family, chain: &str) -> Result<Vec<ListedRule>> {
    let rules = nft.rules(table(family), Some(DNAT))?;
    Ok(rules.into_iter().filter(|rule| rule.target() == Some(chain)).collect())
}

/// Removes, of mappings that others have, all that there is of the attachments whose address is now another one's.
pub fn plan_stale(
    nft: &mut Socket,
    address: IpAddr,
    taken: &[Taken],
    changes: &mut Vec<Change>,
) -> Result<()> {
    let family = Family::of(address);
    let stale = |of: &Taken, chain: &str| of.is_stale(address) && of.rule.chain == chain;
    for (position, first) in taken.iter().enumerate() {
        let chain = first.rule.chain.as_str();
        if !first.is_stale(address) || taken.iter().take(position).any(|taken| stale(taken, chain)) {
            continue;
        }
        let entries = entries_of(nft, family, chain)?;
        let goes =
            |rule: &ListedRule| taken.iter().any(|taken| stale(taken, chain) && taken.rule.tag == rule.tag);
        plan_removal(nft, family, chain, &entries, goes, changes)?;
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
        let entries = entries_of(nft, family, &own.chain)?;
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
        let records = Record::all(&conf.mappings, net.addr());
        if records.is_empty() {
            continue;
        }
        let listed = nft.rules(table(own.family), Some(DNAT))?;
        let others = taken(nft, at, &records)?;
        let mut wanted = placed_entries(&own, conf, &records, &listed, &others)?;
        wanted.extend(
            [shared(conf, own.family), own.rules(conf, *net)].concat().into_iter().map(|r| (r, None)),
        );
        for (rule, before) in wanted {
            let steps = program(&rule)?;
            let listed = nft.rules(rule.table, Some(&rule.chain))?;
            let found = listed.iter().find(|listed| listed.steps == steps);
            if found.is_none_or(|found| !is_before(found.handle, before, &listed)) {
                return Err(differs(format!("missing: {rule}")));
            }
        }
    }
    Ok(())
}
