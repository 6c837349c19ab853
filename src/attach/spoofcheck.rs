//! macspoofchk: frames that a container sends with another MAC address than its own are dropped at the bridge.
//!
//! The Go plugins' layout, name for name, so that either can take over (`ID` is `CONTAINERID-IFNAME`):
//!
//! ```text
//! table bridge nat {
//!   chain PREROUTING { type filter hook prerouting priority -300; iifname "veth0" jump cni-br-iface-ID }
//!   chain cni-br-iface-ID { jump cni-br-iface-ID-mac }
//!   chain cni-br-iface-ID-mac { ether saddr 0a:58:0a:01:00:05 return; drop }
//! }
//! ```
//!
//! Every rule has the comment `macspoofchk-ID`. Table and PREROUTING stay.

use super::masquerade::names::bounded;
use crate::cni::error::ResultExt;
use crate::cni::{Code, Error, Result};
use crate::kernel::nft::{
    Base, Chain, Change, Dialect, Family, Hook, Kind, ListedRule, Rule, Socket, Statement, Step, Table,
    Verdict, program,
};

const TABLE: Table = Table { family: Family::Bridge, name: "nat" };
const PREROUTING: &str = "PREROUTING";
const CHAIN_PREFIX: &str = "cni-br-iface-";
const MAC_SUFFIX: &str = "-mac";
const COMMENT_PREFIX: &str = "macspoofchk-";
/// `nft`, and with it the Go plugins, take names of at most 128 bytes: what is left of them beside prefix and suffix.
/// A longer id, with which the Go plugins fail, ends in `.` and a hash.
const ID_MAX: usize = 128 - CHAIN_PREFIX.len() - MAC_SUFFIX.len();

/// The names of one attachment.
struct Names {
    interface_chain: String,
    mac_chain: String,
    comment: String,
}

impl Names {
    fn new(container_id: &str, ifname: &str) -> Names {
        // nft has no way to say a chain's name with `~`.
        Names::of_id(&bounded(&format!("{container_id}-{ifname}"), ID_MAX).replace('~', "."))
    }

    fn of_id(id: &str) -> Names {
        let interface_chain = format!("{CHAIN_PREFIX}{id}");
        let mac_chain = format!("{interface_chain}{MAC_SUFFIX}");
        Names { interface_chain, mac_chain, comment: format!("{COMMENT_PREFIX}{id}") }
    }

    fn rule(&self, chain: &str, statements: Vec<Statement>) -> Rule {
        let (chain, comment) = (chain.to_owned(), Some(self.comment.clone()));
        Rule { table: TABLE, chain, statements, comment, tag: None, dialect: Dialect::Nft }
    }

    fn entry(&self, host_link: &str) -> Rule {
        let jump = Statement::Verdict(Verdict::Jump(self.interface_chain.clone()));
        self.rule(PREROUTING, vec![Statement::InputLink(host_link.to_owned()), jump])
    }

    fn interface_rules(&self) -> Vec<Rule> {
        let jump = Statement::Verdict(Verdict::Jump(self.mac_chain.clone()));
        vec![self.rule(&self.interface_chain, vec![jump])]
    }

    fn mac_rules(&self, mac: [u8; 6]) -> Vec<Rule> {
        let own = vec![Statement::EtherSource(mac), Statement::Verdict(Verdict::Return)];
        let other = vec![Statement::Verdict(Verdict::Drop)];
        [own, other].map(|statements| self.rule(&self.mac_chain, statements)).into()
    }

    /// Whether a rule of PREROUTING is the attachment's.
    fn is_entry(&self, rule: &ListedRule) -> bool {
        rule.comment.as_ref() == Some(&self.comment) || rule.target() == Some(&self.interface_chain)
    }
}

/// Lets only frames from `mac` in by the host's end of the attachment, `host_link`. Done again it replaces what an
/// earlier ADD made.
pub fn add(nft: &mut Socket, container_id: &str, ifname: &str, host_link: &str, mac: [u8; 6]) -> Result<()> {
    let names = Names::new(container_id, ifname);
    nft.commit(|nft| {
        let mut changes = Vec::new();
        if nft.chain(TABLE, PREROUTING)?.is_none() {
            let base = Some(Base { kind: Kind::Filter, hook: Hook::Prerouting, priority: -300 });
            changes.push(Change::AddTable(TABLE));
            changes.push(Change::AddChain(Chain { table: TABLE, name: PREROUTING.into(), base }));
        }
        let mut again = false;
        for name in [&names.interface_chain, &names.mac_chain] {
            if nft.chain(TABLE, name)?.is_some() {
                again = true;
                changes.push(Change::FlushChain { table: TABLE, chain: name.clone() });
            } else {
                changes.push(Change::CreateChain(Chain { table: TABLE, name: name.clone(), base: None }));
            }
        }
        // Where the chains are new no rule can jump to them, and nothing needs to be listed.
        if again {
            changes.extend(entries(nft, |rule| names.is_entry(rule))?.iter().map(delete));
        }
        let rules =
            names.interface_rules().into_iter().chain(names.mac_rules(mac)).chain([names.entry(host_link)]);
        changes.extend(rules.map(Change::AddRule));
        Ok(changes)
    })
    .context("macspoofchk")
}

/// Removes what ADD, ours or the Go plugin's, made. Nothing there is success.
pub fn del(nft: &mut Socket, container_id: &str, ifname: &str) -> Result<()> {
    let names = Names::new(container_id, ifname);
    nft.commit(|nft| {
        let present = |nft: &mut Socket, name: &str| nft.chain(TABLE, name).map(|found| found.is_some());
        let (outer, inner) = (present(nft, &names.interface_chain)?, present(nft, &names.mac_chain)?);
        if !outer && !inner {
            return Ok(Vec::new());
        }
        let rules = entries(nft, |rule| names.is_entry(rule))?;
        Ok(removal(&names, &rules, outer, inner))
    })
    .context("macspoofchk")
}

/// Compares the rules with what ADD makes; the error ([`Code::CHECK_FAILED`]) names the first difference.
pub fn check(
    nft: &mut Socket,
    container_id: &str,
    ifname: &str,
    host_link: &str,
    mac: [u8; 6],
) -> Result<()> {
    let names = Names::new(container_id, ifname);
    for (chain, wanted) in [
        (PREROUTING, vec![names.entry(host_link)]),
        (&names.interface_chain, names.interface_rules()),
        (&names.mac_chain, names.mac_rules(mac)),
    ] {
        let mut listed = nft.rules(TABLE, Some(chain)).context("macspoofchk")?;
        listed.retain(|rule| rule.comment.as_ref() == Some(&names.comment));
        for (position, rule) in wanted.iter().enumerate() {
            let steps = program(rule)?;
            // Listed rules may have gained counters.
            let counted = |step: &&Step| **step != Step::Counter;
            let same =
                listed.get(position).is_some_and(|found| found.steps.iter().filter(counted).eq(&steps));
            if !same {
                let what = format!("macspoofchk: missing or changed: nft rule {rule}");
                return Err(Error::new(Code::CHECK_FAILED, what));
            }
        }
    }
    Ok(())
}

/// Removes what belongs to none of the valid attachments (container id, interface name) and to no link any more.
///
/// The names in this layout do not have the network's: of an attachment that is not valid on the caller's network only
/// `link_exists` tells whether it is alive on another.
pub fn gc(nft: &mut Socket, valid: &[(String, String)], link_exists: impl Fn(&str) -> bool) -> Result<()> {
    let alive = |(container_id, ifname): &(String, String)| Names::new(container_id, ifname).interface_chain;
    let valid: Vec<String> = valid.iter().map(alive).collect();
    nft.commit(|nft| {
        let mut changes = Vec::new();
        let chains = nft.chains(TABLE)?;
        let all = entries(nft, |rule| rule.target().is_some_and(|chain| chain.starts_with(CHAIN_PREFIX)))?;
        let has = |name: &str| chains.iter().any(|chain| chain.name == name);
        for chain in &chains {
            // `…-mac` goes with the chain it belongs to; alone it is what a crash of the Go plugin left.
            let Some(id) = chain.name.strip_prefix(CHAIN_PREFIX) else { continue };
            let id =
                id.strip_suffix(MAC_SUFFIX).filter(|id| has(&format!("{CHAIN_PREFIX}{id}"))).unwrap_or(id);
            let names = Names::of_id(id);
            if chain.name != names.interface_chain || valid.contains(&names.interface_chain) {
                continue;
            }
            let rules: Vec<ListedRule> = all.iter().filter(|rule| names.is_entry(rule)).cloned().collect();
            if !rules.iter().filter_map(input_link).any(|link| link_exists(&link)) {
                changes.extend(removal(&names, &rules, true, has(&names.mac_chain)));
            }
        }
        Ok(changes)
    })
    .context("macspoofchk")
}

/// The rules of PREROUTING that are meant.
fn entries(nft: &mut Socket, meant: impl Fn(&ListedRule) -> bool) -> Result<Vec<ListedRule>> {
    Ok(nft.rules(TABLE, Some(PREROUTING))?.into_iter().filter(meant).collect())
}

fn delete(rule: &ListedRule) -> Change {
    Change::DeleteRule { table: TABLE, chain: rule.chain.clone(), handle: rule.handle }
}

/// Entries first, then the chains from the outside in, so that nothing refers to what is deleted.
fn removal(names: &Names, entries: &[ListedRule], outer: bool, inner: bool) -> Vec<Change> {
    let mut changes: Vec<Change> = entries.iter().map(delete).collect();
    for (chain, present) in [(&names.interface_chain, outer), (&names.mac_chain, inner)] {
        if present {
            changes.push(Change::FlushChain { table: TABLE, chain: chain.clone() });
            changes.push(Change::DeleteChain { table: TABLE, chain: chain.clone() });
        }
    }
    changes
}

/// The link that a rule is for.
fn input_link(rule: &ListedRule) -> Option<String> {
    rule.steps.iter().find_map(|step| match step {
        Step::Compare { equal: true, data } => {
            let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
            data.get(..end).map(|name| String::from_utf8_lossy(name).into_owned())
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nft::testing::{in_namespace, ruleset, sh};

    const MAC: [u8; 6] = [0x0a, 0x58, 0x0a, 1, 0, 5];
    const EMPTY: &str = "table bridge nat {\n\tchain PREROUTING {\n\t\ttype filter hook prerouting priority dstnat; policy accept;\n\t}\n}\n";

    /// What the Go plugin makes.
    fn upstream(id: &str, link: &str) {
        sh(&format!(
            "nft -f - <<'E'
add table bridge nat
add chain bridge nat PREROUTING {{ type filter hook prerouting priority -300; policy accept; }}
add chain bridge nat cni-br-iface-{id}
add chain bridge nat cni-br-iface-{id}-mac
add rule bridge nat PREROUTING iifname \"{link}\" jump cni-br-iface-{id} comment \"macspoofchk-{id}\"
add rule bridge nat cni-br-iface-{id} jump cni-br-iface-{id}-mac comment \"macspoofchk-{id}\"
add rule bridge nat cni-br-iface-{id}-mac ether saddr 0a:58:0a:01:00:05 return comment \"macspoofchk-{id}\"
add rule bridge nat cni-br-iface-{id}-mac drop comment \"macspoofchk-{id}\"
E"
        ));
    }

    #[test]
    fn rules_are_those_of_the_go_plugin_and_all_go() {
        in_namespace("rules_are_those_of_the_go_plugin_and_all_go", || {
            let mut nft = Socket::open().unwrap();
            upstream("c1-eth0", "veth0");
            let theirs = ruleset();
            check(&mut nft, "c1", "eth0", "veth0", MAC).unwrap();
            sh("nft flush ruleset");
            add(&mut nft, "c1", "eth0", "veth0", MAC).unwrap();
            assert_eq!(ruleset(), theirs);
            check(&mut nft, "c1", "eth0", "veth0", MAC).unwrap();
            // Again, behind another link: the stale jump is replaced.
            add(&mut nft, "c1", "eth0", "veth1", MAC).unwrap();
            assert_eq!(ruleset(), theirs.replace("veth0", "veth1"));
            let err = check(&mut nft, "c1", "eth0", "veth0", MAC).unwrap_err();
            assert_eq!(err.code(), Code::CHECK_FAILED);
            assert_eq!(
                err.msg(),
                "macspoofchk: missing or changed: nft rule bridge nat PREROUTING iifname \"veth0\" jump \
                 cni-br-iface-c1-eth0 comment \"macspoofchk-c1-eth0\""
            );
            del(&mut nft, "c1", "eth0").unwrap();
            assert_eq!(ruleset(), EMPTY);
            del(&mut nft, "c1", "eth0").unwrap();
            assert_eq!(ruleset(), EMPTY);
        });
    }

    #[test]
    fn spoof_check_leftovers_of_the_go_plugin_go_and_others_stay() {
        in_namespace("spoof_check_leftovers_of_the_go_plugin_go_and_others_stay", || {
            let mut nft = Socket::open().unwrap();
            del(&mut nft, "c1", "eth0").unwrap();
            gc(&mut nft, &[], |_| false).unwrap();
            assert_eq!(ruleset(), "");
            upstream("c2-eth0", "veth2");
            sh(
                "nft add rule bridge nat PREROUTING iifname eth9 counter accept comment mine; nft add chain bridge nat mine",
            );
            let others = sh("nft -a list ruleset");
            upstream("c1-eth0", "veth0");
            // As the Go plugin leaves it when ADD is repeated.
            sh(
                "nft add rule bridge nat PREROUTING iifname veth7 jump cni-br-iface-c1-eth0 comment macspoofchk-c1-eth0",
            );
            del(&mut nft, "c1", "eth0").unwrap();
            assert_eq!(sh("nft -a list ruleset"), others);
        });
    }

    #[test]
    fn spoof_check_gc_removes_only_what_has_no_link_any_more() {
        in_namespace("spoof_check_gc_removes_only_what_has_no_link_any_more", || {
            let mut nft = Socket::open().unwrap();
            for (id, link) in [("valid", "veth0"), ("elsewhere", "veth1"), ("gone", "veth2")] {
                add(&mut nft, id, "eth0", link, MAC).unwrap();
            }
            let valid = [("valid".to_owned(), "eth0".to_owned())];
            gc(&mut nft, &valid, |link| link == "veth1").unwrap();
            let text = ruleset();
            assert!(text.contains("iface-valid-eth0"), "{text}");
            assert!(text.contains("iface-elsewhere-eth0") && !text.contains("gone"), "{text}");
            gc(&mut nft, &[], |_| false).unwrap();
            assert_eq!(ruleset(), EMPTY);
        });
    }

    #[test]
    fn over_long_container_ids_are_spoof_checked() {
        in_namespace("over_long_container_ids_are_spoof_checked", || {
            let mut nft = Socket::open().unwrap();
            let (one, two) = ("f".repeat(300), "f".repeat(301));
            for id in [&one, &two] {
                add(&mut nft, id, "eth0", "veth0", MAC).unwrap();
                check(&mut nft, id, "eth0", "veth0", MAC).unwrap();
            }
            del(&mut nft, &one, "eth0").unwrap();
            check(&mut nft, &two, "eth0", "veth0", MAC).unwrap();
            del(&mut nft, &two, "eth0").unwrap();
            assert_eq!(ruleset(), EMPTY);
        });
    }
}
