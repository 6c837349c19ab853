//! What else filters on this host, and whether containers' traffic can pass it.
//!
//! A packet must pass every base chain of a hook: an accept in one does not overrule a drop in another. The firewall
//! plugin can therefore help where chain FORWARD of table filter drops, and where firewalld is asked; nowhere else.

use super::{Finding, Severity, Wanted};
use crate::kernel::legacy_tables;
use crate::kernel::nft::{self, Family, Hook, Table};
use crate::plugins::firewall;

/// Looks at everything.
pub fn look(wanted: &Wanted, findings: &mut Vec<Finding>) {
    for (family, tool) in [(Family::Ip, "iptables"), (Family::Ip6, "ip6tables")] {
        for name in legacy_tables::loaded(family) {
            findings.extend(legacy(family, tool, &name));
        }
    }
    let Ok(mut socket) = nft::Socket::open() else { return };
    for family in [Family::Ip, Family::Ip6, Family::Inet] {
        let chains = socket.chains_at(family, Hook::Forward).unwrap_or_default();
        for chain in chains.iter().filter(|chain| chain.drops) {
            let own = family != Family::Inet
                && (chain.table.as_str(), chain.name.as_str()) == ("filter", "FORWARD");
            findings.push(match own {
                true => forward(wanted, family),
                false => foreign(wanted, family, &chain.table, &chain.name),
            });
        }
    }
    if socket.has_table(Table { family: Family::Inet, name: "firewalld" }).unwrap_or(false) {
        findings.extend(firewalld(wanted));
    }
    if wanted.has("firewall") {
        return;
    }
    for (chain, who) in [("DOCKER-USER", "Docker"), ("ufw-user-forward", "ufw")] {
        let table = Table { family: Family::Ip, name: "filter" };
        if socket.chain(table, chain).is_ok_and(|found| found.is_some()) {
            let reason = format!("nftables table {table} is there: {who} may drop what containers forward");
            let mend = format!("nft list table {table}");
            findings.push(Finding::new(Severity::Warning, who, reason, mend));
        }
    }
}

/// A table of the old backend: nothing that is written to nftables overrules it.
fn legacy(family: Family, tool: &str, name: &str) -> Option<Finding> {
    let subject = format!("{tool}-legacy");
    let finding =
        |severity, reason: String, mend: String| Some(Finding::new(severity, &subject, reason, mend));
    // Alternatives are Debian's and its descendants'; others have one of the two programs.
    let leave = format!("update-alternatives --set {tool} /usr/sbin/{tool}-nft");
    match legacy_tables::table(family, name) {
        Ok(table) if table.forward_drops => finding(
            Severity::Warning,
            format!(
                "policy of chain FORWARD in table {name} of the old backend is drop: what containers send is dropped unless a \
                 rule there accepts it, and cni-all, which writes nftables only, cannot do that"
            ),
            format!("{leave} && {tool}-legacy -P FORWARD ACCEPT"),
        ),
        Ok(table) if table.has_rules => finding(
            Severity::Warning,
            format!("table {name} of the old backend has rules, which filter beside nftables"),
            format!(
                "{leave} && {tool}-legacy-save -t {name} | {tool}-nft-restore --noflush && {tool}-legacy -t {name} -F"
            ),
        ),
        Ok(_) => finding(
            Severity::Note,
            format!("table {name} of the old backend is loaded, and has no rules"),
            String::new(),
        ),
        Err(e) => finding(
            Severity::Warning,
            format!("table {name} of the old backend is loaded and filters beside nftables: {e}"),
            format!("{tool}-legacy-save -t {name}"),
        ),
    }
}

/// Chain FORWARD of table filter drops: what the firewall plugin is for.
fn forward(wanted: &Wanted, family: Family) -> Finding {
    let tool = if family == Family::Ip6 { "ip6tables" } else { "iptables" };
    let subject = format!("{tool} FORWARD");
    let drops = format!("policy of chain FORWARD in nftables table {family} filter is drop");
    if wanted.has("firewall") {
        let reason = format!("{drops}: containers' traffic passes by the rules of the firewall plugin");
        return Finding::new(Severity::Note, &subject, reason, "");
    }
    let reason = format!(
        "{drops}: what containers send through this host is dropped unless a rule accepts it; {{\"type\": \"firewall\"}} \
         in the network's list of plugins writes one for each container"
    );
    Finding::new(Severity::Warning, &subject, reason, format!("{tool} -P FORWARD ACCEPT"))
}

/// Another table's chain drops: only a rule in that chain can help.
fn foreign(wanted: &Wanted, family: Family, table: &str, chain: &str) -> Finding {
    let reason = format!(
        "policy of chain {chain} in nftables table {family} {table} is drop: what containers send through this host is dropped \
         unless a rule of that very chain accepts it; no rule elsewhere, and so no plugin, can overrule it"
    );
    let insert = |condition: &str| format!("nft insert rule {family} {table} {chain} {condition} accept");
    let outgoing = wanted.bridges.iter().map(|bridge| insert(&format!("iifname \"{bridge}\"")));
    let mend: Vec<String> = outgoing.chain([insert("ct state established,related")]).collect();
    Finding::new(Severity::Warning, &format!("nft chain {family} {table} {chain}"), reason, mend.join(" && "))
}

/// firewalld's table rejects what its zones do not accept.
fn firewalld(wanted: &Wanted) -> Option<Finding> {
    let finding =
        |reason: &str, mend: String| Some(Finding::new(Severity::Warning, "firewalld", reason, mend));
    let trust = |bridge: &String| format!("firewall-cmd --permanent --zone=trusted --add-interface={bridge}");
    let trust: Vec<String> =
        wanted.bridges.iter().map(trust).chain(["firewall-cmd --reload".to_owned()]).collect();
    if wanted.iptables_firewall {
        return finding(
            "its table rejects what no zone accepts, and the rules of a firewall plugin with backend \"iptables\" do not \
             overrule that; without \"backend\" in the configuration firewalld is asked itself",
            trust.join(" && "),
        );
    }
    if !wanted.has("firewall") {
        return finding(
            "its table rejects what containers forward unless a zone accepts it; {\"type\": \"firewall\"} in the network's \
             list of plugins makes each container's address a source of zone trusted",
            trust.join(" && "),
        );
    }
    match firewall::firewalld_answers(wanted.system_bus.as_deref()) {
        Ok(()) => None,
        Err(e) => finding(
            &format!(
                "its table is there and rejects what no zone accepts, and the firewall plugin cannot ask it: {e}"
            ),
            "systemctl restart firewalld".to_owned(),
        ),
    }
}
