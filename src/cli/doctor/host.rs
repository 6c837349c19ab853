//! Settings, foreign firewalls, files and leftovers of this host.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{Finding, Severity, Wanted, firewalls};
use crate::cli::show::gather;
use crate::kernel::sysctl;
use crate::plugins::{self, dhcp};
use crate::runtime::Runtime;

/// Looks at everything.
pub fn look(wanted: &Wanted, bin: &Path, conf_dir: &Path, findings: &mut Vec<Finding>) {
    settings(wanted, findings);
    firewalls::look(wanted, findings);
    programs(wanted, bin, findings);
    daemons(wanted, bin, findings);
    match gather::state(conf_dir, &Runtime::new(Vec::<PathBuf>::new()), None) {
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

/// Whether somebody answers at the sockets of DHCP daemons.
fn daemons(wanted: &Wanted, bin: &Path, findings: &mut Vec<Finding>) {
    for (socket, daemon) in &wanted.dhcp {
        let Err(e) = UnixStream::connect(socket) else { continue };
        let reason = format!("nobody answers at {}: {e}", socket.display());
        let is_missing = matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
        let (severity, reason) = match is_missing && dhcp::may_start(socket, *daemon) {
            true => (Severity::Note, format!("{reason}; the first ADD starts a daemon")),
            false => (Severity::Error, reason),
        };
        let mend = if severity == Severity::Note {
            String::new()
        } else if socket == Path::new(dhcp::SOCKET) {
            format!("{} daemon", bin.join("dhcp").display())
        } else {
            format!("{} daemon -socketpath {}", bin.join("dhcp").display(), socket.display())
        };
        findings.push(Finding::new(severity, "dhcp daemon", reason, mend));
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

fn programs(wanted: &Wanted, bin: &Path, findings: &mut Vec<Finding>) {
    let install = format!("cni-all install {}", bin.display());
    let own = fs::read(bin.join("cni-all")).ok();
    let mut seen: Vec<&str> = Vec::new();
    let mut missing: Vec<&str> = Vec::new();
    for name in &wanted.types {
        if seen.contains(&name.as_str()) {
            continue;
        }
        seen.push(name);
        let path = bin.join(name);
        let built_in = plugins::find(name).is_some();
        let finding = match fs::read(&path) {
            Err(_) if built_in => {
                missing.push(name);
                None
            }
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
    if !missing.is_empty() {
        let reason = format!("not in {}: {}", bin.display(), missing.join(", "));
        findings.push(Finding::new(Severity::Error, "plugins", reason, install));
    }
}
