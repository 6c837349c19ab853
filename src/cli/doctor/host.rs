//! Settings, foreign firewalls, files and leftovers of this host.

use std::fs;
use std::path::Path;

use super::{Finding, Severity, Wanted};
use crate::cli::show::gather;
use crate::kernel::nft::{self, Family, Table};
use crate::kernel::sysctl;
use crate::plugins;

/// Looks at everything.
pub fn look(wanted: &Wanted, bin: &Path, conf_dir: &Path, findings: &mut Vec<Finding>) {
    settings(wanted, findings);
    firewalls(findings);
    programs(wanted, bin, findings);
    if wanted.has("dhcp") && !Path::new("/run/cni/dhcp.sock").exists() {
        let reason = "a configuration uses dhcp, and /run/cni/dhcp.sock is not there";
        findings.push(Finding::new(
            Severity::Error,
            "dhcp daemon",
            reason,
            format!("{}/dhcp daemon", bin.display()),
        ));
    }
    match gather::state(conf_dir) {
        Ok(state) => {
            for lease in state.networks.iter().flat_map(|n| &n.leases).filter(|lease| !lease.in_use) {
                let reason = format!(
                    "no interface that can be seen has {}; if no runtime knows container {} any more, free it",
                    lease.address, lease.container
                );
                let mend = format!("rm {}", lease.file.display());
                findings.push(Finding::new(Severity::Warning, "stale lease", reason, mend));
            }
        }
        Err(e) => findings.push(Finding::new(Severity::Warning, "attachments", e.to_string(), "")),
    }
}

fn settings(wanted: &Wanted, findings: &mut Vec<Finding>) {
    let routed = wanted.has("bridge") || wanted.has("ptp");
    let mut check = |path: &str, bad: &str, severity: Severity, reason: &str, good: &str| {
        if sysctl::read(path).is_ok_and(|value| value == bad) {
            let name = path.replace('/', ".");
            findings.push(Finding::new(severity, &name, reason, format!("sysctl -w {name}={good}")));
        }
    };
    if routed {
        let reason =
            "is 0; plugins set it with gateways and masquerading, without those nothing is forwarded";
        check("net/ipv4/ip_forward", "0", Severity::Note, reason, "1");
    }
    let reason = "is 1: answers that arrive by another interface than questions leave by are dropped";
    check("net/ipv4/conf/all/rp_filter", "1", Severity::Note, reason, "2");
    let reason = "is 1: frames between ports of one bridge pass the host's IP firewall, too";
    check("net/bridge/bridge-nf-call-iptables", "1", Severity::Note, reason, "0");
}

fn firewalls(findings: &mut Vec<Finding>) {
    for (path, tool) in
        [("/proc/net/ip_tables_names", "iptables"), ("/proc/net/ip6_tables_names", "ip6tables")]
    {
        let names = fs::read_to_string(path).unwrap_or_default();
        let names: Vec<&str> = names.split_whitespace().collect();
        if !names.is_empty() {
            let reason = format!(
                "tables {} of the old backend are loaded and filter beside nftables",
                names.join(", ")
            );
            let mend = format!("{tool}-legacy-save");
            findings.push(Finding::new(Severity::Warning, &format!("{tool}-legacy"), reason, mend));
        }
    }
    let Ok(mut socket) = nft::Socket::open() else { return };
    for (family, tool) in [(Family::Ip, "iptables"), (Family::Ip6, "ip6tables")] {
        let table = Table { family, name: "filter" };
        if socket.chain(table, "FORWARD").is_ok_and(|found| found.is_some_and(|chain| chain.drops)) {
            let reason = format!(
                "policy of chain FORWARD in nftables table {table} is drop: what containers send through this host is \
                 dropped unless a rule accepts it"
            );
            let mend = format!("{tool} -P FORWARD ACCEPT");
            findings.push(Finding::new(Severity::Warning, &format!("{tool} FORWARD"), reason, mend));
        }
    }
    for (family, name, chain, who) in [
        (Family::Inet, "firewalld", None, "firewalld"),
        (Family::Ip, "filter", Some("DOCKER-USER"), "Docker"),
        (Family::Ip, "filter", Some("ufw-user-forward"), "ufw"),
    ] {
        let table = Table { family, name };
        let found = match chain {
            Some(chain) => socket.chain(table, chain).is_ok_and(|found| found.is_some()),
            None => socket.has_table(table).unwrap_or(false),
        };
        if found {
            let reason = format!("nftables table {table} is there: {who} may drop what containers forward");
            let mend = format!("nft list table {table}");
            findings.push(Finding::new(Severity::Warning, who, reason, mend));
        }
    }
}

fn programs(wanted: &Wanted, bin: &Path, findings: &mut Vec<Finding>) {
    let install = format!("cni-all install {}", bin.display());
    let own = fs::read(bin.join("cni-all")).ok();
    let mut seen: Vec<&str> = Vec::new();
    for name in &wanted.types {
        if seen.contains(&name.as_str()) {
            continue;
        }
        seen.push(name);
        let path = bin.join(name);
        let built_in = plugins::find(name).is_some();
        let finding = match fs::read(&path) {
            Err(_) if built_in => Some((Severity::Error, "is not there", install.clone())),
            Err(_) => Some((Severity::Error, "is not there, and is no plugin of cni-all", String::new())),
            Ok(bytes) if built_in && own.as_ref() != Some(&bytes) => Some((
                Severity::Warning,
                "is another program than cni-all beside it",
                format!("{install} --force"),
            )),
            Ok(_) => None,
        };
        if let Some((severity, reason, mend)) = finding {
            findings.push(Finding::new(severity, "plugin", format!("{} {reason}", path.display()), mend));
        }
    }
}
