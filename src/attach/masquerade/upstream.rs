//! What the Go plugins leave in their nftables layout: rules in `inet cni_plugins_masquerade`, chain `masq_checks`, one
//! per address, each with a comment that starts with the attachment's key. They are removed, never made.

use super::names;
use crate::attach::Attachment;
use crate::cni::Result;
use crate::kernel::nft::{Change, Family, ListedRule, Socket, Table};

const TABLE: Table = Table { family: Family::Inet, name: "cni_plugins_masquerade" };
const CHAIN: &str = "masq_checks";

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
