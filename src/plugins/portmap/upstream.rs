//! What the Go plugin leaves in its nftables layout: rules in the tables `ip cni_hostport` and `ip6 cni_hostport`, whose
//! comment is the container's id alone. They are removed, never made.

use std::net::IpAddr;

use super::record::Record;
use super::taken::{Taken, read};
use crate::attach::Attachment;
use crate::attach::masquerade::maps::FAMILIES;
use crate::cni::Result;
use crate::kernel::nft::{Change, Family, ListedRule, Side, Socket, Step, Table};

/// `hostip_hostports` had the mappings with a host address once.
const CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];

fn table(family: Family) -> Table {
    Table { family, name: "cni_hostport" }
}

/// What removes the rules of an attachment.
///
/// Only addresses tell the attachments of one container apart: with none `known` of a family all rules of the container
/// go, as the Go plugin does it always.
pub fn plan_del(nft: &mut Socket, at: &Attachment, known: &[IpAddr]) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for family in FAMILIES {
        let table = table(family);
        let known: Vec<IpAddr> =
            known.iter().copied().filter(|address| Family::of(*address) == family).collect();
        for name in CHAINS {
            if nft.chain(table, name)?.is_none() {
                continue;
            }
            let own = |rule: &ListedRule| {
                rule.comment.as_deref() == Some(at.container_id)
                    && (known.is_empty() || known.iter().any(|address| leads_to(rule, family, *address)))
            };
            let delete =
                |rule: ListedRule| Change::DeleteRule { table, chain: name.into(), handle: rule.handle };
            changes.extend(nft.rules(table, Some(name))?.into_iter().filter(own).map(delete));
        }
    }
    Ok(changes)
}

/// The mappings of others at the ports of these, which are of one family.
///
/// Conditions are those of the container that came last there, for all: they are not looked at.
pub fn taken(nft: &mut Socket, at: &Attachment, records: &[Record]) -> Result<Vec<Taken>> {
    let Some(first) = records.first() else { return Ok(Vec::new()) };
    let table = table(first.family());
    let mut all = Vec::new();
    let [mappings @ .., _] = CHAINS;
    for name in mappings {
        if nft.chain(table, name)?.is_none() {
            break;
        }
        for rule in nft.rules(table, Some(name))? {
            let Some(record) = read(&rule, first.family()) else { continue };
            let taken = Taken { record, rule, entry: None };
            let is_own =
                taken.rule.comment.as_deref() == Some(at.container_id) && taken.is_stale(first.container_ip);
            if !is_own && records.iter().any(|record| taken.is_at(record)) {
                all.push(taken);
            }
        }
    }
    Ok(all)
}

/// Removes those of mappings that others have that lead to an address which is another one's now.
pub fn plan_stale(address: IpAddr, taken: &[Taken]) -> impl Iterator<Item = Change> {
    taken.iter().filter(move |taken| taken.is_stale(address)).map(move |taken| Change::DeleteRule {
        table: table(Family::of(address)),
        chain: taken.rule.chain.clone(),
        handle: taken.rule.handle,
    })
}

/// Whether a rule translates to this address, or masquerades what goes there.
fn leads_to(rule: &ListedRule, family: Family, address: IpAddr) -> bool {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let translated = rule.steps.iter().any(|step| matches!(step, Step::Constant(bytes) if *bytes == octets));
    let to = rule.within(Side::Destination, family);
    translated
        || (!rule.steps.iter().any(|step| matches!(step, Step::Nat { .. })) && to == Some(address.into()))
}
