//! The `iptables` backend: the rules that let an attachment's traffic pass where chain FORWARD drops.
//!
//! ```text
//! -A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
//! -A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
//! -A CNI-FORWARD -d 10.1.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
//! -A CNI-FORWARD -s 10.1.0.5/32 -j ACCEPT
//! ```
//!
//! Only a rule within FORWARD itself can do that: an accept in another table does not overrule a drop in this one. Each
//! rule has the attachment in a tag that iptables does not show, so that DEL and GC need no addresses, and an address
//! that was given to another container meanwhile stays that one's. Rules without tag are a Go plugin's.
//!
//! Chains and the jumps to them stay, as those of the Go plugin do: operators fill the admin chain, and order FORWARD.

use std::cell::RefCell;
use std::net::IpAddr;

use super::filter::{CNI_FORWARD, check_jumps, delete, does, equal, jump, rule, table};
use crate::attach::Attachment;
use crate::attach::masquerade::maps::FAMILIES;
use crate::attach::masquerade::names;
use crate::cni::Result;
use crate::kernel::nft::{Change, Family, Rule, Side, Socket, Statement, Verdict, program};

/// Comment of the jump to the administrators' chain.
const ADMIN_COMMENT: &str = "CNI firewall plugin admin overrides";

/// The rules of one address: answers come in, everything goes out.
fn rules_of(address: IpAddr, tag: &str) -> [Rule; 2] {
    let is = |side| Statement::Within { side, net: address.into(), inside: true };
    let accept = Statement::Verdict(Verdict::Accept);
    let answers = vec![is(Side::Destination), Statement::Established, accept.clone()];
    let outgoing = vec![is(Side::Source), accept];
    [answers, outgoing].map(|statements| Rule {
        tag: Some(tag.to_owned()),
        ..rule(Family::of(address), CNI_FORWARD, statements, None)
    })
}

/// The rules of all addresses of one family, each once.
fn rules_of_family(addresses: &[IpAddr], family: Family, tag: &str) -> Vec<Rule> {
    let mut own: Vec<IpAddr> = Vec::new();
    for address in addresses.iter().filter(|address| Family::of(**address) == family) {
        if !own.contains(address) {
            own.push(*address);
        }
    }
    own.into_iter().flat_map(|address| rules_of(address, tag)).collect()
}

/// What lets the attachment's addresses pass, and its former ones no longer. The chains are there, or made before.
pub fn plan_add(
    nft: &mut Socket,
    at: &Attachment,
    addresses: &[IpAddr],
    admin: &str,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let tag = names::element_comment(at);
    for family in FAMILIES {
        let wanted = rules_of_family(addresses, family, &tag);
        let own_or_untagged = |text: Option<&str>| text.is_none_or(|text| text == tag);
        let listed = nft.rules_by_tag(table(family), CNI_FORWARD, own_or_untagged)?;
        let to_admin = jump(family, CNI_FORWARD, admin, ADMIN_COMMENT);
        if !wanted.is_empty() && equal(&listed, &to_admin)?.is_empty() {
            changes.push(Change::InsertRule(to_admin));
        }
        let steps = wanted.iter().map(program).collect::<Result<Vec<_>>>()?;
        let mut there = vec![false; wanted.len()];
        for found in &listed {
            let place = steps.iter().position(|steps| does(found, steps));
            match (found.tag.as_deref(), place.and_then(|place| there.get_mut(place))) {
                (Some(text), Some(there)) if text == tag && !*there => *there = true,
                (Some(text), _) if text == tag => changes.push(delete(family, found)),
                (None, Some(_)) => changes.push(delete(family, found)),
                _ => {}
            }
        }
        let missing = wanted.into_iter().zip(there).filter(|(_, there)| !there);
        changes.extend(missing.map(|(rule, _)| Change::AddRule(rule)));
    }
    Ok(())
}

/// Whose rules stay.
#[derive(Debug, Default)]
pub struct Left {
    /// The tags of ours.
    pub tags: Vec<String>,
    /// A Go plugin's, whose network is not known.
    pub untagged: bool,
}

/// What removes the rules of stale attachments, by tag, and those of a Go plugin for the `known` addresses.
pub fn plan_del(
    nft: &mut Socket,
    stale: &dyn Fn(&str) -> bool,
    known: &[IpAddr],
    left: &mut Left,
    changes: &mut Vec<Change>,
) -> Result<()> {
    for family in FAMILIES {
        let former = rules_of_family(known, family, "");
        let former = former.iter().map(program).collect::<Result<Vec<_>>>()?;
        let others = RefCell::new(Vec::new());
        let stale_or_untagged = |tag: Option<&str>| match tag {
            Some(tag) if !stale(tag) => {
                others.borrow_mut().push(tag.to_owned());
                false
            }
            _ => true,
        };
        let listed = nft.rules_by_tag(table(family), CNI_FORWARD, stale_or_untagged)?;
        left.tags.extend(others.into_inner());
        for found in listed {
            if found.tag.is_some() || former.iter().any(|steps| does(&found, steps)) {
                changes.push(delete(family, &found));
            } else {
                let sides = [Side::Source, Side::Destination];
                left.untagged |= sides.into_iter().any(|side| found.within(side, family).is_some());
            }
        }
    }
    Ok(())
}

/// The first difference from what [`plan_add`] makes; a Go plugin's rules are as good.
pub fn check(nft: &mut Socket, addresses: &[IpAddr], admin: &str) -> Result<Option<String>> {
    for family in FAMILIES {
        let wanted = rules_of_family(addresses, family, "");
        if wanted.is_empty() {
            continue;
        }
        if let Some(difference) = check_jumps(nft, family, true, false)? {
            return Ok(Some(difference));
        }
        let listed = nft.rules(table(family), Some(CNI_FORWARD))?;
        let to_admin = jump(family, CNI_FORWARD, admin, ADMIN_COMMENT);
        for wanted in [to_admin].into_iter().chain(wanted) {
            if equal(&listed, &wanted)?.is_empty() {
                return Ok(Some(format!("missing: {wanted}")));
            }
        }
    }
    Ok(None)
}
