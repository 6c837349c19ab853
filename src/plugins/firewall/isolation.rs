//! `ingressPolicy`: isolated bridges cannot reach each other.
//!
//! ```text
//! -A FORWARD -m comment … -j CNI-ISOLATION-STAGE-1
//! -A CNI-ISOLATION-STAGE-1 -i cni0 -o cni0 -m comment … -j DROP                      # isolated only
//! -A CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 -m comment … -j CNI-ISOLATION-STAGE-2
//! -A CNI-ISOLATION-STAGE-1 -m comment … -j RETURN
//! -A CNI-ISOLATION-STAGE-2 -o cni0 -m comment … -j DROP
//! -A CNI-ISOLATION-STAGE-2 -m comment … -j RETURN
//! ```
//!
//! Frames between two ports of one bridge pass FORWARD only where the kernel's bridge netfilter is on. For `isolated`
//! there is a rule in table `bridge cni-all` besides, which they pass everywhere.
//!
//! The rules of a bridge have the network's name in a tag. ADD makes them what the configuration says now; they go with
//! the network's last attachment. Rules without tag are a Go plugin's, which never removes any: they count as the
//! network's whose bridge it is. Rules of this network for links that are gone (ptp has a link per container) go, too.

use nix::net::if_::if_nametoindex;

use super::filter::{SHARED_COMMENT, STAGE_1, STAGE_2, check_jumps, delete, does, equal, rule, table};
use crate::attach::masquerade::maps::FAMILIES;
use crate::attach::masquerade::names;
use crate::cni::{CniResult, Code, Error, Result};
use crate::kernel::nft::{
    Base, Chain, Change, Dialect, Family, Hook, Kind, ListedRule, Rule, Socket, Statement, Step, Table,
    Verdict, program,
};
use crate::kernel::sysctl;

/// Where frames are dropped that pass from one port of an isolated bridge to another.
const FRAMES: Table = Table { family: Family::Bridge, name: "cni-all" };
/// The chain in [`FRAMES`].
const FRAMES_CHAIN: &str = "isolation";

/// `ingressPolicy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Whoever has a way to the container may use it.
    Open,
    /// The bridge's own containers may, those of other bridges with such a policy may not.
    SameBridge,
    /// As `SameBridge`, and not the bridge's own containers either.
    Isolated,
}

impl Policy {
    /// The policy of a configuration's word.
    ///
    /// # Errors
    /// [`Code::INVALID_CONFIG`]: there is no such policy.
    pub fn of(word: &str) -> Result<Policy> {
        match word {
            "" | "open" => Ok(Policy::Open),
            "same-bridge" => Ok(Policy::SameBridge),
            "isolated" => Ok(Policy::Isolated),
            other => Err(Error::config(format!(
                "ingressPolicy: {other:?} is none of \"open\", \"same-bridge\", \"isolated\""
            ))),
        }
    }

    /// The link that rules name: the first on the host in the result of earlier plugins, which is the bridge when the
    /// bridge plugin made it. `None` with `open` when there is none.
    ///
    /// # Errors
    /// Another policy, and no link on the host: a container's link would be taken for the host's of the same name.
    pub fn bridge(self, prev: &CniResult) -> Result<Option<&str>> {
        let found = prev.interfaces.iter().find(|interface| interface.sandbox.is_empty());
        match found.map(|interface| interface.name.as_str()).filter(|name| !name.is_empty()) {
            None if self != Policy::Open => Err(Error::config(format!(
                "ingressPolicy: {:?} needs the name of a bridge, and no earlier plugin's result has an interface on the host; \
                 chain \"firewall\" after \"bridge\"",
                self.word()
            ))),
            found => Ok(found),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Policy::Open => "open",
            Policy::SameBridge => "same-bridge",
            Policy::Isolated => "isolated",
        }
    }
}

/// Whose rules, and for which bridge.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The bridge.
    pub bridge: &'a str,
}

impl Subject<'_> {
    fn tag(&self) -> String {
        tag(self.network)
    }

    /// The rules of the bridge, each to be put in front of the others.
    fn rules(&self, family: Family, policy: Policy) -> Vec<Rule> {
        let from = || Statement::InputLink(self.bridge.to_owned());
        let to = |is| Statement::OutputLink { name: self.bridge.to_owned(), is };
        let comment = format!("CNI firewall plugin rules (ingressPolicy: {})", policy.word());
        let leaves = vec![from(), to(false), Statement::Verdict(Verdict::Jump(STAGE_2.to_owned()))];
        let stays = vec![from(), to(true), Statement::Verdict(Verdict::Drop)];
        let enters = vec![to(true), Statement::Verdict(Verdict::Drop)];
        let mut rules = Vec::new();
        if policy != Policy::Open {
            rules.push(rule(family, STAGE_1, leaves, Some(&comment)));
        }
        if policy == Policy::Isolated {
            rules.push(rule(family, STAGE_1, stays, Some(&comment)));
        }
        if policy != Policy::Open {
            rules.push(rule(family, STAGE_2, enters, Some(SHARED_COMMENT)));
        }
        for rule in &mut rules {
            rule.tag = Some(self.tag());
        }
        rules
    }

    /// The rule that drops frames between ports of the bridge.
    fn frames(&self, family: Family) -> Rule {
        let from = Statement::InputBridge(self.bridge.to_owned());
        Rule {
            table: FRAMES,
            chain: FRAMES_CHAIN.to_owned(),
            statements: vec![from, Statement::Carries(family), Statement::Verdict(Verdict::Drop)],
            comment: Some(self.tag()),
            tag: None,
            dialect: Dialect::Nft,
        }
    }
}

/// What a network's rules are tagged with.
fn tag(network: &str) -> String {
    names::network_prefix(network).trim_end().to_owned()
}

/// The link that one of our rules is about is not there any more.
fn is_of_gone_link(rule: &ListedRule) -> bool {
    let name = rule.steps.iter().find_map(|step| match step {
        Step::Compare { data, .. } => {
            let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
            data.get(..end).and_then(|bytes| std::str::from_utf8(bytes).ok())
        }
        _ => None,
    });
    name.is_some_and(|name| if_nametoindex(name).is_err())
}

/// What makes the bridge's rules those of the policy, for the families that the attachment has addresses of; with
/// `open` for both. The chains are there, or made before.
pub fn plan_add(
    nft: &mut Socket,
    subject: Subject,
    policy: Policy,
    families: &[Family],
    changes: &mut Vec<Change>,
) -> Result<()> {
    for family in FAMILIES {
        if policy != Policy::Open && !families.contains(&family) {
            continue;
        }
        let wanted = subject.rules(family, policy);
        let missing = plan_rules(nft, subject, family, wanted, changes)?;
        changes.extend(missing.into_iter().map(Change::InsertRule));
        if policy == Policy::Open {
            continue;
        }
        for chain in [STAGE_1, STAGE_2] {
            let last = vec![Statement::Verdict(Verdict::Return)];
            let last = rule(family, chain, last, Some(SHARED_COMMENT));
            if equal(&nft.rules(table(family), Some(chain))?, &last)?.is_empty() {
                changes.push(Change::AddRule(last));
            }
        }
    }
    Ok(())
}

/// Removes what this network has for the bridge and does not want; what it wants and does not have.
fn plan_rules(
    nft: &mut Socket,
    subject: Subject,
    family: Family,
    wanted: Vec<Rule>,
    changes: &mut Vec<Change>,
) -> Result<Vec<Rule>> {
    let tag = subject.tag();
    let possible = subject.rules(family, Policy::Isolated);
    let possible = possible.iter().map(program).collect::<Result<Vec<_>>>()?;
    let mut missing =
        wanted.into_iter().map(|rule| Ok((program(&rule)?, rule))).collect::<Result<Vec<_>>>()?;
    for chain in [STAGE_1, STAGE_2] {
        for found in nft.rules(table(family), Some(chain))? {
            let own = found.tag.as_deref() == Some(tag.as_str());
            if !possible.iter().any(|steps| does(&found, steps)) {
                if own && is_of_gone_link(&found) {
                    changes.push(delete(family, &found));
                }
                continue;
            }
            if found.tag.is_some() && !own {
                continue;
            }
            let same = |(steps, rule): &(Vec<Step>, Rule)| {
                own && rule.chain == chain && does(&found, steps) && rule.comment == found.comment
            };
            match missing.iter().position(same) {
                Some(place) => drop(missing.remove(place)),
                None => changes.push(delete(family, &found)),
            }
        }
    }
    Ok(missing.into_iter().map(|(_, rule)| rule).collect())
}

/// What removes all rules of a network.
pub fn plan_del(nft: &mut Socket, network: &str, changes: &mut Vec<Change>) -> Result<()> {
    let tag = tag(network);
    for family in FAMILIES {
        for chain in [STAGE_1, STAGE_2] {
            let listed = nft.rules(table(family), Some(chain))?;
            let own = listed.iter().filter(|rule| rule.tag.as_ref() == Some(&tag));
            changes.extend(own.map(|rule| delete(family, rule)));
        }
    }
    let own =
        nft.rules(FRAMES, Some(FRAMES_CHAIN))?.into_iter().filter(|rule| rule.comment.as_ref() == Some(&tag));
    changes.extend(own.map(|rule| delete_frames(&rule)));
    Ok(())
}

fn delete_frames(rule: &ListedRule) -> Change {
    Change::DeleteRule { table: FRAMES, chain: FRAMES_CHAIN.to_owned(), handle: rule.handle }
}

/// The families whose frames the kernel drops between ports of this network's bridge.
pub fn frames(nft: &mut Socket, subject: Subject) -> Result<Vec<Family>> {
    let tag = subject.tag();
    let mut listed = nft.rules(FRAMES, Some(FRAMES_CHAIN))?;
    listed.retain(|rule| rule.comment.as_ref() == Some(&tag));
    let mut dropped = Vec::new();
    for family in FAMILIES {
        let steps = program(&subject.frames(family))?;
        dropped.extend(listed.iter().any(|rule| rule.steps == steps).then_some(family));
    }
    Ok(dropped)
}

/// What makes the kernel drop frames of these families between the bridge's ports. Those of other families are dropped no
/// longer, unless `others_stay`.
fn plan_frames(
    nft: &mut Socket,
    subject: Subject,
    families: &[Family],
    others_stay: bool,
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let tag = subject.tag();
    let mut wanted: Vec<Rule> = families.iter().map(|family| subject.frames(*family)).collect();
    let possible =
        FAMILIES.iter().map(|family| program(&subject.frames(*family))).collect::<Result<Vec<_>>>()?;
    for found in nft.rules(FRAMES, Some(FRAMES_CHAIN))? {
        if found.comment.as_ref() != Some(&tag) {
            continue;
        }
        let mut place = None;
        for (number, rule) in wanted.iter().enumerate() {
            if found.steps == program(rule)? {
                place = Some(number);
            }
        }
        let other_family = others_stay && possible.contains(&found.steps);
        match place {
            Some(place) => drop(wanted.remove(place)),
            None if other_family => {}
            None if possible.contains(&found.steps) || is_of_gone_link(&found) => {
                changes.push(delete_frames(&found));
            }
            None => {}
        }
    }
    if !wanted.is_empty() && nft.chain(FRAMES, FRAMES_CHAIN)?.is_none() {
        let base = Base { kind: Kind::Filter, hook: Hook::Forward, priority: -200 };
        changes.push(Change::AddTable(FRAMES));
        let chain = Chain { table: FRAMES, name: FRAMES_CHAIN.to_owned(), base: Some(base) };
        changes.push(Change::CreateChain(chain));
    }
    changes.extend(wanted.into_iter().map(Change::AddRule));
    Ok(changes)
}

/// Makes the kernel drop frames between the bridge's ports (`isolated`), or no longer.
///
/// # Errors
/// [`Code::UNSUPPORTED_FIELD`]: the kernel can do neither this nor bridge netfilter, and `isolated` would do nothing.
pub fn apply_frames(nft: &mut Socket, subject: Subject, policy: Policy, families: &[Family]) -> Result<()> {
    let isolated = policy == Policy::Isolated;
    let dropped = if isolated { families } else { &[] };
    let refused = match nft.commit_exclusive(|nft| plan_frames(nft, subject, dropped, isolated)) {
        Err(err) if isolated => err,
        other => return other,
    };
    match families.iter().find(|family| !passes_forward(**family)) {
        None => Ok(()),
        Some(family) => Err(refused.with_code(Code::UNSUPPORTED_FIELD).context(format_args!(
            "ingressPolicy: \"isolated\" would do nothing: {} is not 1, and this kernel does not filter bridges",
            passes_forward_key(*family)
        ))),
    }
}

/// Makes the kernel drop frames of just these families between the bridge's ports.
///
/// # Errors
/// The kernel refuses it.
pub fn restore_frames(nft: &mut Socket, subject: Subject, families: &[Family]) -> Result<()> {
    nft.commit_exclusive(|nft| plan_frames(nft, subject, families, false))
}

fn passes_forward_key(family: Family) -> &'static str {
    match family {
        Family::Ip6 => "net/bridge/bridge-nf-call-ip6tables",
        _ => "net/bridge/bridge-nf-call-iptables",
    }
}

/// Frames between two ports of a bridge pass chain FORWARD of this family.
fn passes_forward(family: Family) -> bool {
    sysctl::read(passes_forward_key(family)).is_ok_and(|value| value == "1")
}

/// The first difference from what ADD makes; a Go plugin's rules are as good.
pub fn check(
    nft: &mut Socket,
    subject: Subject,
    policy: Policy,
    families: &[Family],
) -> Result<Option<String>> {
    let tag = subject.tag();
    for family in FAMILIES {
        let wanted = subject.rules(family, policy);
        let needed = policy != Policy::Open && families.contains(&family);
        if needed && let Some(difference) = check_jumps(nft, family, false, true)? {
            return Ok(Some(difference));
        }
        for candidate in subject.rules(family, Policy::Isolated) {
            let listed = nft.rules(table(family), Some(&candidate.chain))?;
            let found = equal(&listed, &candidate)?;
            let is_wanted = wanted.iter().any(|rule| rule.statements == candidate.statements);
            if is_wanted && needed && found.is_empty() {
                return Ok(Some(format!("missing: {candidate}")));
            }
            let of_other = |rule: &&&ListedRule| rule.tag.as_ref().is_some_and(|other| *other != tag);
            if !is_wanted && found.iter().any(|rule| !of_other(&rule)) {
                let word = policy.word();
                return Ok(Some(format!("of another ingressPolicy than {word:?}: {candidate}")));
            }
        }
        if needed && policy == Policy::Isolated && !passes_forward(family) {
            let wanted = subject.frames(family);
            let listed = nft.rules(FRAMES, Some(FRAMES_CHAIN))?;
            if equal(&listed, &wanted)?.is_empty() {
                return Ok(Some(format!("missing: nft rule {wanted}")));
            }
        }
    }
    Ok(None)
}
