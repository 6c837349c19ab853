//! `cni-all doctor`: is this host able to run its networks? Each finding has a reason and the command to mend it.

mod firewalls;
mod host;
mod kernel;

use std::path::{Path, PathBuf};

use argh::{ArgsInfo, FromArgs};
use serde::Serialize;

use super::validate::expand;
use super::{FAILED, fail, print};
use crate::cni::convert::pretty;
use crate::cni::json::Value;
use crate::personality::Process;
use crate::plugins::dhcp;
use crate::runtime::NetworkList;
use crate::runtime::conflist::plugin_type;

/// Arguments of `cni-all doctor`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "doctor",
    help_triggers("-h", "--help"),
    description = "find out whether this host can run its networks\n\n\
        Kernel features are tried in a network namespace made for that; the kernel may load modules for it, as it does \
        for ADD. Nothing else is changed.\n\n\
        Exit status: 0 fine (there may be warnings), 1 something that a configured network needs is missing, 2 usage.",
    example = "{command_name}",
    example = "{command_name} --json | jq '.findings[] | .mend'"
)]
pub struct Doctor {
    /// print a JSON object with ok and findings: severity, subject, reason, mend
    #[argh(switch)]
    json: bool,
    /// where the configurations are; default: NETCONFPATH or /etc/cni/net.d
    #[argh(option, arg_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// where the plugins are; default: /opt/cni/bin
    #[argh(option, arg_name = "DIR", default = "String::from(\"/opt/cni/bin\")")]
    bin_dir: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A configured network does not work.
    Error,
    /// It may keep traffic from flowing, or is in the way.
    Warning,
    /// Fine, or of no consequence for what is configured.
    Note,
}

/// One finding.
#[derive(Debug, Serialize)]
pub struct Finding {
    severity: Severity,
    subject: String,
    reason: String,
    /// What to type; empty when there is nothing to mend.
    mend: String,
}

/// The plugins' types that configurations name, those of `ipam` among them, and whether any masquerades.
#[derive(Debug, Default)]
pub struct Wanted {
    types: Vec<String>,
    nft: bool,
    vlans: bool,
    /// Limits for some subnets only.
    subnets: bool,
    /// Sockets of DHCP daemons, each with what plugins do when nobody listens.
    dhcp: Vec<(PathBuf, dhcp::Daemon)>,
    bridges: Vec<String>,
    /// A firewall plugin must write rules even when firewalld runs.
    iptables_firewall: bool,
    /// `DBUS_SYSTEM_BUS_ADDRESS`
    system_bus: Option<String>,
}

#[derive(Serialize)]
struct Output<'a> {
    ok: bool,
    findings: &'a [Finding],
}

impl Finding {
    /// One finding.
    pub fn new(
        severity: Severity,
        subject: &str,
        reason: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        Finding { severity, subject: subject.to_owned(), reason: reason.into(), mend: mend.into() }
    }
}

impl Wanted {
    /// What the configurations of a directory need; findings for those that cannot be read.
    fn read(dir: &Path, findings: &mut Vec<Finding>) -> Wanted {
        let mut wanted = Wanted::default();
        let files = if dir.is_dir() { expand(dir).unwrap_or_default() } else { Vec::new() };
        for file in files {
            match NetworkList::load(&file) {
                Ok(list) => list.plugins.iter().for_each(|plugin| wanted.take(plugin)),
                Err(e) => {
                    let mend = format!("cni-all validate {}", file.display());
                    findings.push(Finding::new(Severity::Error, "configuration", e.to_string(), mend));
                }
            }
        }
        wanted
    }

    fn take(&mut self, plugin: &Value) {
        self.types.extend(plugin_type(plugin).ok());
        self.types.extend(plugin.get("ipam").and_then(|ipam| plugin_type(&ipam).ok()));
        let on = |key: &str| plugin.get(key).is_some_and(|v| *v == Value::Bool(true));
        self.nft |= on("ipMasq") || on("macspoofchk");
        let text = |key: &str| match plugin.get(key).as_deref() {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            _ => None,
        };
        match text("type").as_deref() {
            Some("bridge") => self.bridges.push(text("bridge").unwrap_or_else(|| "cni0".to_owned())),
            Some("firewall") => {
                self.nft = true;
                self.iptables_firewall |= text("backend").as_deref() == Some("iptables");
            }
            _ => {}
        }
        self.subnets |= plugin.get("shapedSubnets").is_some() || plugin.get("unshapedSubnets").is_some();
        if let Some(ipam) = plugin.get("ipam").filter(|i| plugin_type(i).is_ok_and(|name| name == "dhcp")) {
            let text = |key: &str| match ipam.get(key).as_deref() {
                Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
                _ => None,
            };
            let socket = text("daemonSocketPath").unwrap_or_else(|| dhcp::SOCKET.to_owned());
            let daemon = match text("daemon").as_deref() {
                Some("required") => dhcp::Daemon::Required,
                Some("auto") => dhcp::Daemon::Auto,
                _ => dhcp::Daemon::Default,
            };
            let wanted = (socket.into(), daemon);
            if !self.dhcp.contains(&wanted) {
                self.dhcp.push(wanted);
            }
        }
        self.vlans |= plugin.get("vlan").is_some() || plugin.get("vlanTrunk").is_some();
    }

    /// Whether a configuration names the plugin.
    pub fn has(&self, name: &str) -> bool {
        self.types.iter().any(|t| t == name)
    }
}

impl Doctor {
    /// Looks and prints.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        let from_env = (process.env)("NETCONFPATH").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let dir = self.conf_dir.clone().or(from_env).unwrap_or_else(|| "/etc/cni/net.d".into());
        let mut findings = Vec::new();
        let system_bus = (process.env)("DBUS_SYSTEM_BUS_ADDRESS");
        let wanted = Wanted { system_bus, ..Wanted::read(&dir, &mut findings) };
        kernel::look(&wanted, &mut findings);
        host::look(&wanted, Path::new(&self.bin_dir), &dir, &mut findings);
        let ok = !findings.iter().any(|f| f.severity == Severity::Error);
        let text = match self.json {
            true => match pretty(&Output { ok, findings: &findings }) {
                Ok(text) => text,
                Err(e) => return fail(process, "cni-all doctor", &e),
            },
            false => human(&findings),
        };
        match print(process, &text) {
            0 if !ok => FAILED,
            status => status,
        }
    }
}

fn human(findings: &[Finding]) -> String {
    let mut text = String::new();
    for f in findings {
        let severity = match f.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        text.push_str(&format!("{severity}: {}: {}\n", f.subject, f.reason));
        if !f.mend.is_empty() {
            text.push_str(&format!("    {}\n", f.mend));
        }
    }
    if text.is_empty() { "nothing to report\n".to_owned() } else { text }
}
