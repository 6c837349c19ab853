//! Kernel features, tried in a private namespace; the plugin of the kind's name is who needs it.

use nix::errno::Errno;
use nix::sys::utsname::uname;

use super::{Finding, Severity, Wanted};
use crate::cni::{Error, Result};
use crate::kernel::netns::Netns;
use crate::kernel::nft;
use crate::kernel::rtnl::{AddBridge, Change, Handle, has_kind, option_of_kind};

/// Kinds of links: what `ip link` calls them, the module, and the plugins that make them.
const KINDS: &[(&str, &str, &[&str])] = &[
    ("bridge", "bridge", &["bridge"]),
    ("veth", "veth", &["bridge", "ptp"]),
    ("vlan", "8021q", &["vlan"]),
    ("macvlan", "macvlan", &["macvlan"]),
    ("ipvlan", "ipvlan", &["ipvlan"]),
    ("dummy", "dummy", &["dummy"]),
    ("vrf", "vrf", &["vrf"]),
    ("ifb", "ifb", &["bandwidth"]),
];

/// Tries everything.
pub fn look(wanted: &Wanted, findings: &mut Vec<Finding>) {
    let netns = match Netns::create_unnamed() {
        Ok(netns) => netns,
        Err(e) => {
            let mend = "sudo cni-all doctor";
            findings.push(Finding::new(
                Severity::Error,
                "kernel",
                format!("features cannot be tried: {e}"),
                mend,
            ));
            return;
        }
    };
    for (kind, module, plugins) in KINDS {
        let needed = plugins.iter().any(|plugin| wanted.has(plugin));
        let outcome = netns.enter(|| has_kind(kind));
        report(
            findings,
            &format!("link kind {kind}"),
            module,
            option_of_kind(kind).unwrap_or_default(),
            needed,
            outcome,
        );
    }
    let filtering = netns.enter(|| {
        let bridge = AddBridge { name: "probe0".to_owned(), vlan_filtering: true, ..AddBridge::default() };
        match Handle::open()?.apply(&[Change::AddBridge(bridge)]) {
            Err(e) if lacks(&e) => Ok(false),
            other => other.map(|()| true),
        }
    });
    // A setting of the bridge module, decided when the kernel was built: there is no module to load.
    report(findings, "bridge VLAN filtering", "", "CONFIG_BRIDGE_VLAN_FILTERING", wanted.vlans, filtering);
    let nft = netns.enter(|| match nft::Socket::open().and_then(|mut socket| socket.probe()) {
        Err(e) if lacks(&e) => Ok(false),
        other => other.map(|()| true),
    });
    report(findings, "nf_tables", "nf_tables", "CONFIG_NF_TABLES", wanted.nft, nft);
}

/// The kernel has no such thing; any other refusal is reported as it is.
fn lacks(e: &Error) -> bool {
    matches!(e.errno(), Some(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EINVAL | Errno::ENOENT))
}

/// `option` is what the kernel must be built with.
fn report(
    findings: &mut Vec<Finding>,
    what: &str,
    module: &str,
    option: &str,
    needed: bool,
    outcome: Result<bool>,
) {
    let severity = if needed { Severity::Error } else { Severity::Note };
    let (reason, mend) = match outcome {
        Ok(true) => return,
        Err(e) => (e.to_string(), String::new()),
        Ok(false) if module.is_empty() => {
            (format!("the kernel was built without it ({option})"), String::new())
        }
        Ok(false) if available(module) => {
            (format!("the module {module} is there and not loaded"), format!("modprobe {module}"))
        }
        Ok(false) => (format!("the kernel does not have it, nor a module for it ({option})"), String::new()),
    };
    findings.push(Finding::new(severity, what, reason, mend));
}

/// Whether `modprobe` would find the module.
fn available(module: &str) -> bool {
    let Ok(name) = uname() else { return false };
    let release = name.release().to_string_lossy().into_owned();
    let file = format!("/{module}.ko");
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        let text = std::fs::read_to_string(format!("/lib/modules/{release}/{list}")).unwrap_or_default();
        text.lines().any(|line| line.split(':').next().unwrap_or_default().contains(&file))
    })
}
