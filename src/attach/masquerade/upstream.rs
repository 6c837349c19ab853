//! What the Go plugins leave in their nftables layout: rules in `inet cni_plugins_masquerade`, chain `masq_checks`, one
//! per address, each with a comment that starts with the attachment's key. They are removed, never made.

use ipnet::IpNet;

use super::maps::differs;
use super::names;
use crate::attach::Attachment;
use crate::cni::Result;
use crate::kernel::nft::{Change, Family, ListedRule, Side, Socket, Table};

const TABLE: Table = Table { family: Family::Inet, name: "cni_plugins_masquerade" };
const CHAIN: &str = "masq_checks";

/// Looks for a rule for each address. The Go plugins know nothing of what is exempt.
///
/// # Errors
/// The first that is missing.
pub fn check(nft: &mut Socket, at: &Attachment, addresses: &[IpNet], exempt: &[IpNet]) -> Result<()> {
    let key = names::upstream_key(at);
    let mut rules = nft.rules(TABLE, Some(CHAIN))?;
    rules.retain(|rule| exempt.is_empty() && rule.comment.as_deref().is_some_and(|c| c.starts_with(&key)));
    for ip in addresses.iter().map(IpNet::addr) {
        let is_from = |rule: &ListedRule| rule.within(Side::Source, Family::of(ip)) == Some(ip.into());
        if !rules.iter().any(is_from) {
            return Err(differs(format!("nft chain {TABLE} {CHAIN} has no rule for {ip}")));
        }
    }
    Ok(())
}

/// What removes the rules of an attachment.
pub fn plan_del(nft: &mut Socket, at: &Attachment) -> Result<Vec<Change>> {
    // The key is followed by ", net: ...", or by nothing where the comment was cut.
    let key = names::upstream_key(at);
    plan(nft, |comment| comment.starts_with(&key))
}

/// What removes the rules of this network that belong to none of the valid attachments.
pub fn plan_gc(nft: &mut Socket, network: &str, valid: &[(String, String)]) -> Result<Vec<Change>> {
    let prefix = names::upstream_network_key(network);
    let alive = |(container_id, ifname): &(String, String)| {
        names::upstream_key(&Attachment { network, container_id, ifname })
    };
    let valid: Vec<String> = valid.iter().map(alive).collect();
    plan(nft, |comment| comment.starts_with(&prefix) && !valid.iter().any(|key| comment.starts_with(key)))
}

fn plan(nft: &mut Socket, stale: impl Fn(&str) -> bool) -> Result<Vec<Change>> {
    if nft.chain(TABLE, CHAIN)?.is_none() {
        return Ok(Vec::new());
    }
    let rules = nft.rules(TABLE, Some(CHAIN))?.into_iter();
    let delete =
        |rule: ListedRule| Change::DeleteRule { table: TABLE, chain: CHAIN.into(), handle: rule.handle };
    Ok(rules.filter(|rule| rule.comment.as_deref().is_some_and(&stale)).map(delete).collect())
}
