//! Names and comments by which rules of an attachment are found again: ours, and those of the Go plugins.

use sha2::{Digest, Sha512};

use crate::attach::Attachment;
use crate::hex::hex;
use crate::kernel::nft::XT_COMMENT_MAX;

/// Longest network name that a comment of ours says in full; with [`ID_MAX`] and an ifname it stays within
/// [`crate::kernel::nft::COMMENT_MAX`].
const NETWORK_MAX: usize = 32;
/// Longest container id that a comment of ours says in full: a SHA-256 in hex.
const ID_MAX: usize = 64;
/// Longest interface name (`IFNAMSIZ` less the final zero).
const IFNAME_MAX: usize = 15;

/// Lower-case hex of the first bytes of the SHA-512 of the parts, one after the other.
pub fn hash(parts: &[&str], digits: usize) -> String {
    let mut sha = Sha512::new();
    for part in parts {
        sha.update(part.as_bytes());
    }
    let mut text = hex(&sha.finalize()[..digits.div_ceil(2)]);
    text.truncate(digits);
    text
}

/// The text itself when it has at most `longest` bytes, all of which CNI allows in names; else its start, `~`, which
/// CNI does not allow, and 16 digits of its hash. Different texts stay different, and it needs no quotes.
pub fn bounded(text: &str, longest: usize) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '@' | '+' | '=' | ':' | ',');
    if !text.is_empty() && text.len() <= longest && text.chars().all(plain) {
        return text.to_owned();
    }
    let start: String = text.chars().filter(|c| plain(*c)).take(longest.saturating_sub(17)).collect();
    format!("{start}~{}", hash(&[text], 16))
}

/// How the comment of every element of a network starts.
pub fn network_prefix(network: &str) -> String {
    format!("net {} ", bounded(network, NETWORK_MAX))
}

/// The comment of an attachment's elements: `net mynet if eth0 id 0123abcd`.
pub fn element_comment(at: &Attachment) -> String {
    let (ifname, id) = (bounded(at.ifname, IFNAME_MAX.max(17)), bounded(at.container_id, ID_MAX));
    format!("{}if {ifname} id {id}", network_prefix(at.network))
}

/// The key under which an attachment's n-th address is kept: 15 digits, because `ifname` has room for no more.
pub fn index_key(comment: &str, position: usize) -> String {
    hash(&[comment, " ", &position.to_string()], 15)
}

/// How the masquerading chain of a network is called; what it does depends on the network's own prefixes, so they are
/// part of it. At most 31 bytes, for kernels before 4.14.
pub fn network_chain(network: &str, prefixes: &[String]) -> String {
    format!("{CHAIN_PREFIX}{}", network_and_hash(network, prefixes, 13))
}

/// How the chain of a network is called that masquerades connections to mapped ports from these sources.
pub fn hairpin_chain(network: &str, sources: &[String]) -> String {
    format!("{HAIRPIN_PREFIX}{}", network_and_hash(network, sources, 10))
}

/// The start of a network's name, and a hash of all of it and what else the chain depends on.
fn network_and_hash(network: &str, more: &[String], longest: usize) -> String {
    let shown = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let start: String = network.chars().filter(shown).take(longest).collect();
    let parts: Vec<&str> =
        [network].into_iter().chain(more.iter().flat_map(|part| [" ", part.as_str()])).collect();
    format!("{start}-{}", hash(&parts, 12))
}

/// How the names of all masquerading chains of networks start.
const CHAIN_PREFIX: &str = "masq-";
/// How the names of all chains of networks for mapped ports start.
const HAIRPIN_PREFIX: &str = "hairpin-";

/// How the chain of an attachment's mappings with conditions is called; `comment` is its [`element_comment`].
pub fn conditional_chain(comment: &str) -> String {
    format!("{CONDITIONAL_PREFIX}{}", hash(&[comment], 12))
}

/// How the names of [`conditional_chain`] start.
const CONDITIONAL_PREFIX: &str = "cond-";

/// Whether a chain's name has the form of [`conditional_chain`].
pub fn is_conditional_chain(name: &str) -> bool {
    name.starts_with(CONDITIONAL_PREFIX)
}

/// Whether a chain in a table of ours is a network's: made for its first attachment, gone with its last.
pub fn is_network_chain(name: &str) -> bool {
    name.starts_with(CHAIN_PREFIX) || name.starts_with(HAIRPIN_PREFIX)
}

/// The iptables chain of the Go plugins for a container on a network; the interface's name is not part of it.
pub fn iptables_chain(network: &str, container_id: &str) -> String {
    format!("CNI-{}", hash(&[network, container_id], 24))
}

/// Whether a chain's name has the form of [`iptables_chain`].
pub fn is_iptables_chain(name: &str) -> bool {
    let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    name.strip_prefix("CNI-").is_some_and(|rest| rest.len() == 24 && rest.chars().all(digit))
}

/// The comment on every iptables rule of the Go plugins: `name: "NET" id: "CID"`.
///
/// One that is longer than xtables allows, with which the Go plugins fail, ends in `~` and a hash.
pub fn iptables_comment(network: &str, container_id: &str) -> String {
    cut(format!("{}{}", iptables_prefix(network), quoted(container_id)))
}

/// A comment that xtables has room for.
fn cut(comment: String) -> String {
    if comment.len() <= XT_COMMENT_MAX {
        return comment;
    }
    let mut start = comment.clone();
    start.truncate((0..=XT_COMMENT_MAX - 17).rev().find(|end| start.is_char_boundary(*end)).unwrap_or(0));
    format!("{start}~{}", hash(&[&comment], 16))
}

/// How [`iptables_comment`] starts for every container of a network.
pub fn iptables_prefix(network: &str) -> String {
    format!("name: {} id: ", quoted(network))
}

/// As Go's `%q` for the printable text that names are made of.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The iptables chain of the Go portmap plugin for a container on a network.
pub fn portmap_chain(network: &str, container_id: &str) -> String {
    format!("CNI-DN-{}", hash(&[network, container_id], 21))
}

/// The chain that releases of the Go portmap plugin before 2018 made besides.
pub fn old_portmap_chain(network: &str, container_id: &str) -> String {
    format!("CNI-SN-{}", hash(&[network, container_id], 21))
}

/// The comment on the rules that jump to [`portmap_chain`]: `dnat name: "NET" id: "CID"`.
///
/// One that is longer than xtables allows, with which the Go plugin fails, ends in `~` and a hash.
pub fn portmap_comment(network: &str, container_id: &str) -> String {
    cut(format!("{}{container_id}\"", portmap_prefix(network)))
}

/// How [`portmap_comment`] starts for every container of a network.
pub fn portmap_prefix(network: &str) -> String {
    format!("dnat name: \"{network}\" id: \"")
}

/// What starts the comment of each of an attachment's rules in the Go plugins' nftables layout.
pub fn upstream_key(at: &Attachment) -> String {
    format!("{}{}", upstream_network_key(at.network), hash(&[at.ifname, ":", at.container_id], 16))
}

/// How [`upstream_key`] starts for every attachment of a network.
pub fn upstream_network_key(network: &str) -> String {
    format!("{}-", hash(&[network], 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nft::COMMENT_MAX;

    #[test]
    fn iptables_chains_are_called_as_the_go_plugins_call_them() {
        assert_eq!(iptables_chain("test", "1234"), "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(
            iptables_chain("testalongnamethatdoesnotmakesense", "1234"),
            "CNI-374f33fe84ab0ed84dcdebe3"
        );
        assert_eq!(iptables_chain("netA", "c1"), "CNI-5db8dff416b2b92877622f9b");
        assert_eq!(iptables_comment("test", "1234"), "name: \"test\" id: \"1234\"");
        assert!(is_iptables_chain("CNI-2bbe0c48b91a7d1b8a6753a8"));
        assert!(!is_iptables_chain("CNI-DN-5db8dff416b2b92877622"));
        assert!(!is_iptables_chain("CNI-HOSTPORT-MASQ"));
    }

    #[test]
    fn nftables_keys_are_those_of_the_go_plugins() {
        assert_eq!(upstream_network_key("unit-test"), "6fd94d501e58f0aa-");
        let one = Attachment { network: "unit-test", container_id: "one", ifname: "eth0" };
        assert_eq!(upstream_key(&one), "6fd94d501e58f0aa-287fc69eff0574a2");
        let three = Attachment { network: "alternate", container_id: "three", ifname: "net1" };
        assert_eq!(upstream_key(&three), "82783ef24bdc7036-acb19d111858e348");
    }

    #[test]
    fn comments_fit_and_differ_for_names_of_any_length() {
        let (long, longer) = ("n".repeat(300), "n".repeat(301));
        let at = Attachment { network: &long, container_id: &long, ifname: "fifteen-bytes-x" };
        let comment = element_comment(&at);
        assert!(comment.len() <= COMMENT_MAX, "{comment}");
        assert_ne!(comment, element_comment(&Attachment { network: &longer, ..at }));
        assert_ne!(comment, element_comment(&Attachment { container_id: &longer, ..at }));
        assert!(iptables_comment(&long, &long).len() <= XT_COMMENT_MAX);
        assert_ne!(iptables_comment(&long, &long), iptables_comment(&long, &longer));
        assert!(network_chain(&long, &["10.1.0.0/16".into()]).len() <= 31);
        assert!(hairpin_chain(&long, &["10.1.0.0/16".into()]).len() <= 31);
    }

    #[test]
    fn a_name_that_could_end_a_quoted_comment_does_not_get_into_one() {
        let at = Attachment { network: "a\" }", container_id: "c 1", ifname: "eth0" };
        let comment = element_comment(&at);
        assert!(!comment.contains('"') && !comment.contains('}'), "{comment}");
        assert_eq!(comment.split(' ').count(), 6, "{comment}");
    }
}
