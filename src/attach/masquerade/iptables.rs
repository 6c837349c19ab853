//! The Go plugins' iptables layout, in the tables that iptables-nft owns: `ip nat` and `ip6 nat`.
//!
//! ```text
//! -A POSTROUTING -s 10.1.0.5/32 -m comment --comment "name: \"mynet\" id: \"0123abcd\"" -j CNI-2bbe0c48b91a7d1b8a6753a8
//! -A CNI-2bbe0c48b91a7d1b8a6753a8 -d 10.1.0.0/16 -m comment … -j ACCEPT
//! -A CNI-2bbe0c48b91a7d1b8a6753a8 ! -d 224.0.0.0/4 -m comment … -j MASQUERADE
//! ```
//!
//! Chain and comment do not have the interface's name: all attachments of one container to one network share them. Our
//! rules have it in a tag that iptables does not show; those of the Go plugins are told apart by address.
//!
//! With several own networks all are accepted before MASQUERADE, in whatever order the addresses come (the Go plugins
//! masquerade traffic to the second network).

use std::net::IpAddr;

use ipnet::IpNet;

use super::maps::{FAMILIES, compare_rules, differs};
use super::names;
use crate::attach::Attachment;
use crate::cni::Result;
use crate::kernel::nft::{
    Base, COMMENT_MAX, Chain, Change, Dialect, Family, Hook, Kind, ListedRule, Rule, Side, Socket, Statement,
    Table, Verdict, program,
};

const POSTROUTING: &str = "POSTROUTING";

fn table(family: Family) -> Table {
    Table { family, name: "nat" }
}

/// Chain and comment of a container on a network, and how its rules look.
struct Container<'a> {
    family: Family,
    chain: String,
    comment: String,
    ifname: &'a str,
}

impl<'a> Container<'a> {
    fn new(at: &Attachment<'a>, family: Family) -> Container<'a> {
        let chain = names::iptables_chain(at.network, at.container_id);
        let comment = names::iptables_comment(at.network, at.container_id);
        Container { family, chain, comment, ifname: at.ifname }
    }

    fn rule(&self, chain: &str, statements: Vec<Statement>, tag: Option<String>) -> Rule {
        let (table, chain, comment) = (table(self.family), chain.to_owned(), Some(self.comment.clone()));
        Rule { table, chain, statements, comment, tag, dialect: Dialect::Iptables }
    }

    fn jump(&self, address: IpAddr) -> Rule {
        let from = Statement::Within { side: Side::Source, net: address.into(), inside: true };
        let jump = Statement::Verdict(Verdict::Jump(self.chain.clone()));
        let tag = Some(self.ifname.to_owned()).filter(|tag| tag.len() <= COMMENT_MAX);
        self.rule(POSTROUTING, vec![from, jump], tag)
    }

    /// The rules of the chain: own networks, in order, then MASQUERADE.
    fn rules(&self, networks: &[IpNet]) -> Vec<Rule> {
        let to = |net: IpNet, inside: bool| Statement::Within { side: Side::Destination, net, inside };
        let accept = |net: &IpNet| vec![to(net.trunc(), true), Statement::Verdict(Verdict::Accept)];
        let masquerade = vec![to(super::multicast(self.family), false), Statement::Masquerade];
        let all = networks.iter().map(accept).chain([masquerade]);
        all.map(|statements| self.rule(&self.chain, statements, None)).collect()
    }

    /// The rules of POSTROUTING that jump to the chain.
    fn jumps(&self, nft: &mut Socket) -> Result<Vec<ListedRule>> {
        let rules = nft.rules(table(self.family), Some(POSTROUTING))?;
        Ok(rules.into_iter().filter(|rule| rule.target() == Some(&self.chain)).collect())
    }

    /// Whether a jump is this attachment's, as far as the addresses known tell: `None` for a rule of the Go plugins
    /// when none is known.
    fn is_own(&self, jump: &ListedRule, known: &[IpAddr]) -> Option<bool> {
        if let Some(tag) = &jump.tag {
            return Some(tag == self.ifname);
        }
        let mut known = known.iter().filter(|address| Family::of(**address) == self.family).peekable();
        known.peek()?;
        // The source is a bare address, or in old releases the address with its prefix length.
        let source = jump.within(Side::Source, self.family);
        Some(source.is_some_and(|net| known.any(|address| net.contains(address))))
    }

    fn delete(&self, rule: &ListedRule) -> Change {
        Change::DeleteRule { table: table(self.family), chain: rule.chain.clone(), handle: rule.handle }
    }
}

/// The addresses of one family, in order, each once.
fn of_family(addresses: &[IpNet], family: Family) -> Vec<IpNet> {
    let mut own: Vec<IpNet> = Vec::new();
    for net in addresses.iter().filter(|net| Family::of(net.addr()) == family) {
        if !own.contains(net) {
            own.push(*net);
        }
    }
    own
}

/// The networks of these addresses, in order, each once.
fn networks(addresses: &[IpNet]) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = Vec::new();
    for net in addresses.iter().map(IpNet::trunc) {
        if !networks.contains(&net) {
            networks.push(net);
        }
    }
    networks
}

/// What makes the attachment's addresses masqueraded.
pub fn plan_add(
    nft: &mut Socket,
    at: &Attachment,
    addresses: &[IpNet],
    exempt: &[IpNet],
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for family in FAMILIES {
        let own = of_family(addresses, family);
        if !own.is_empty() {
            plan_add_family(nft, &Container::new(at, family), &own, exempt, &mut changes)?;
        }
    }
    Ok(changes)
}

fn plan_add_family(
    nft: &mut Socket,
    container: &Container,
    addresses: &[IpNet],
    exempt: &[IpNet],
    changes: &mut Vec<Change>,
) -> Result<()> {
    let table = table(container.family);
    if nft.chain(table, POSTROUTING)?.is_none() {
        // As iptables-nft makes them; PREROUTING because before Linux 4.18 NAT needs both hooks.
        changes.push(Change::AddTable(table));
        for (name, hook, priority) in
            [("PREROUTING", Hook::Prerouting, -100), (POSTROUTING, Hook::Postrouting, 100)]
        {
            let base = Some(Base { kind: Kind::Nat, hook, priority });
            if nft.chain(table, name)?.is_none() {
                changes.push(Change::AddChain(Chain { table, name: name.into(), base }));
            }
        }
    }
    let mut own = networks(&[addresses, &of_family(exempt, container.family)].concat());
    let jumps: Vec<Rule> = addresses.iter().map(|net| container.jump(net.addr())).collect();
    if nft.chain(table, &container.chain)?.is_none() {
        changes.push(Change::CreateChain(Chain { table, name: container.chain.clone(), base: None }));
        changes.extend(container.rules(&own).into_iter().chain(jumps).map(Change::AddRule));
        return Ok(());
    }
    let known: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    let present = container.jumps(nft)?;
    let is_own = |jump: &&ListedRule| container.is_own(jump, &known).unwrap_or(false);
    let present_rules = nft.rules(table, Some(&container.chain))?;
    if !present.iter().all(|jump| is_own(&jump)) {
        // Another attachment of the container to the network needs its own networks accepted as well.
        own.extend(present_rules.iter().filter_map(|rule| rule.within(Side::Destination, container.family)));
        own = networks(&own);
    }
    let rules = container.rules(&own);
    if compare_rules(&rules, &present_rules).is_err() {
        changes.push(Change::FlushChain { table, chain: container.chain.clone() });
        changes.extend(rules.into_iter().map(Change::AddRule));
    }
    let former: Vec<&ListedRule> = present.iter().filter(is_own).collect();
    let steps = jumps.iter().map(program).collect::<Result<Vec<_>>>()?;
    let same = former.iter().map(|rule| &rule.steps).eq(&steps)
        && former.iter().all(|rule| rule.tag.as_deref() == Some(container.ifname));
    if !same {
        changes.extend(former.into_iter().map(|rule| container.delete(rule)));
        changes.extend(jumps.into_iter().map(Change::AddRule));
    }
    Ok(())
}

/// What removes an attachment's jumps, and the container's chain when nothing else jumps to it.
///
/// Rules of the Go plugins are the attachment's when their source is a known address; with none known all of the
/// container on this network are, because nothing tells them apart.
pub fn plan_del(nft: &mut Socket, at: &Attachment, known: &[IpAddr]) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for family in FAMILIES {
        let container = Container::new(at, family);
        let Some(chain) = nft.chain(table(family), &container.chain)? else { continue };
        let jumps = container.jumps(nft)?;
        let own = |jump: &ListedRule| container.is_own(jump, known).unwrap_or(true);
        plan_removal(nft, &container, chain.uses, &jumps, own, &mut changes)?;
    }
    Ok(changes)
}

/// Removes some of the jumps to a chain, and the chain when none is left.
fn plan_removal(
    nft: &mut Socket,
    container: &Container,
    uses: u32,
    jumps: &[ListedRule],
    stale: impl Fn(&ListedRule) -> bool,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let going = jumps.iter().filter(|jump| stale(jump));
    changes.extend(going.clone().map(|jump| container.delete(jump)));
    if going.count() < jumps.len() {
        return Ok(());
    }
    let (table, chain) = (table(container.family), container.chain.clone());
    let rules = nft.rules(table, Some(&chain))?.len();
    changes.push(Change::FlushChain { table, chain: chain.clone() });
    // Anything else that refers to it is an operator's.
    if uses as usize == rules + jumps.len() {
        changes.push(Change::DeleteChain { table, chain });
    }
    Ok(())
}

/// What removes the rules of this network that belong to none of the valid attachments.
///
/// Of rules without tag (those of the Go plugins) only the container is known: they stay while it has any valid
/// attachment to the network.
pub fn plan_gc(nft: &mut Socket, network: &str, valid: &[(String, String)]) -> Result<Vec<Change>> {
    let prefix = names::iptables_prefix(network);
    let mut changes = Vec::new();
    for family in FAMILIES {
        let rules = nft.rules(table(family), None)?;
        let ours = |rule: &&ListedRule| rule.comment.as_deref().is_some_and(|text| text.starts_with(&prefix));
        let chain_of = |rule: &ListedRule| match rule.chain.as_str() {
            POSTROUTING => rule.target().map(str::to_owned),
            chain => Some(chain.to_owned()),
        };
        let mut chains: Vec<String> = rules.iter().filter(ours).filter_map(chain_of).collect();
        chains.retain(|name| names::is_iptables_chain(name));
        chains.sort_unstable();
        chains.dedup();
        for name in chains {
            let Some(chain) = nft.chain(table(family), &name)? else { continue };
            let jump = |rule: &&ListedRule| rule.chain == POSTROUTING && rule.target() == Some(&name);
            let jumps: Vec<ListedRule> = rules.iter().filter(jump).cloned().collect();
            let alive: Vec<&str> = valid
                .iter()
                .filter(|(container_id, _)| names::iptables_chain(network, container_id) == name)
                .map(|(_, ifname)| ifname.as_str())
                .collect();
            let stale = |jump: &ListedRule| match jump.tag.as_deref() {
                Some(tag) => !alive.contains(&tag),
                None => alive.is_empty(),
            };
            if !alive.is_empty() && !jumps.iter().any(stale) {
                continue;
            }
            let container = Container { family, chain: name, comment: String::new(), ifname: "" };
            plan_removal(nft, &container, chain.uses, &jumps, stale, &mut changes)?;
        }
    }
    Ok(changes)
}

/// Compares what is with what ADD makes, and names the first difference.
pub fn check(nft: &mut Socket, at: &Attachment, addresses: &[IpNet], exempt: &[IpNet]) -> Result<()> {
    for family in FAMILIES {
        let own = of_family(addresses, family);
        if own.is_empty() {
            continue;
        }
        let container = Container::new(at, family);
        let jumps = container.jumps(nft)?;
        for net in &own {
            let wanted = container.jump(net.addr());
            let steps = program(&wanted)?;
            if !jumps.iter().any(|jump| jump.steps == steps) {
                return Err(differs(format!("missing: {wanted}")));
            }
        }
        // The chain may have networks of the container's other attachments besides.
        let listed = nft.rules(table(family), Some(&container.chain))?;
        let mut all = networks(&[&own[..], &of_family(exempt, family)].concat());
        all.extend(listed.iter().filter_map(|rule| rule.within(Side::Destination, family)));
        let (accepted, last) = (container.rules(&networks(&all)), listed.len().saturating_sub(1));
        for (position, wanted) in accepted.iter().enumerate() {
            let steps = program(wanted)?;
            let found = match wanted.statements.last() {
                Some(Statement::Masquerade) => listed.get(last).is_some_and(|rule| rule.steps == steps),
                _ => listed.iter().take(last).any(|rule| rule.steps == steps),
            };
            if !found {
                return Err(differs(format!(
                    "rule {} is missing or not in its place: {wanted}",
                    position + 1
                )));
            }
        }
    }
    Ok(())
}
