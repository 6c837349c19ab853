//! Kernel features, tried in a private namespace; the plugin of the kind's name is who needs it.

use nix::errno::Errno;
use nix::sys::utsname::uname;

use super::{Finding, Severity, Wanted};
use crate::attach::masquerade::maps;
use crate::attach::redirect;
use crate::cni::{Error, Result};
use crate::kernel::netns::Netns;
use crate::kernel::nft;
use crate::kernel::rtnl::tc::{QdiscKind, TcChange, TcHandle, TokenBucket};
use crate::kernel::rtnl::{AddBridge, Change, Dev, Handle, has_kind, option_of_kind};
use crate::plugins::portmap;

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
        report(findings, &format!("link kind {kind}"), module, needed, outcome);
    }
    let filtering = netns.enter(|| {
        let bridge = AddBridge { name: "probe0".to_owned(), vlan_filtering: true, ..AddBridge::default() };
        tried(Handle::open()?.apply(&[Change::AddBridge(bridge)]))
    });
    // A setting of the bridge module, decided when the kernel was built: there is no module to load.
    report(findings, "bridge VLAN filtering", "", wanted.vlans, filtering);
    let nftables = |ask: &dyn Fn(&mut nft::Socket) -> Result<()>| {
        tried(netns.enter(|| nft::Socket::open().and_then(|mut socket| ask(&mut socket))))
    };
    report(findings, "nf_tables", "nf_tables", wanted.nft, nftables(&nft::Socket::probe));
    report(findings, "masquerading by nftables", "nft_masq", wanted.nft, nftables(&maps::probe));
    report(
        findings,
        "port mappings by nftables",
        "nft_nat",
        wanted.has("portmap"),
        nftables(&portmap::probe),
    );
    for (what, module, needed, kind) in [
        ("token bucket (tc tbf)", "sch_tbf", wanted.has("bandwidth"), bucket()),
        ("classes (tc htb)", "sch_htb", wanted.subnets, QdiscKind::Htb { default: 1 }),
    ] {
        let outcome = netns.enter(|| {
            let parent = TcHandle::ROOT;
            with_bridge(|rtnl, dev| {
                let handle = TcHandle::new(1, 0);
                rtnl.apply(&[Change::Tc(TcChange::AddQdisc { dev: dev.clone(), parent, handle, kind })])
            })
        });
        report(findings, what, module, needed, tried(outcome));
    }
    let redirects = wanted.has("bandwidth") || wanted.has("tc-redirect-tap");
    let outcome = netns.enter(|| {
        with_bridge(|rtnl, dev| {
            let Some(link) = rtnl.link(PROBE)? else { return Ok(()) };
            let changes = redirect::all(rtnl, &link, dev, 0, None)?;
            rtnl.apply(&changes)
        })
    });
    report(findings, "redirection (tc ingress, u32, mirred)", "act_mirred", redirects, tried(outcome));
}

/// A link to try things on.
const PROBE: &str = "probe1";

/// Does something with a bridge made for that, and removes it.
fn with_bridge(work: impl FnOnce(&mut Handle, &Dev) -> Result<()>) -> Result<()> {
    let mut rtnl = Handle::open()?;
    rtnl.apply(&[Change::AddBridge(AddBridge { name: PROBE.to_owned(), ..AddBridge::default() })])?;
    let outcome = match rtnl.link(PROBE)? {
        Some(link) => work(&mut rtnl, &link.dev()),
        None => Ok(()),
    };
    rtnl.apply(&[Change::DelLink(Dev::named(PROBE))])?;
    outcome
}

/// A rate that any kernel with the module accepts.
fn bucket() -> QdiscKind {
    QdiscKind::Tbf(TokenBucket { rate: 125_000, burst: 10_000, limit: 13_125 })
}

/// Whether it could be done.
fn tried(outcome: Result<()>) -> Result<bool> {
    match outcome {
        Err(e) if lacks(&e) => Ok(false),
        other => other.map(|()| true),
    }
}

/// The kernel has no such thing; any other refusal is reported as it is.
fn lacks(e: &Error) -> bool {
    matches!(e.errno(), Some(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EINVAL | Errno::ENOENT))
}

fn report(findings: &mut Vec<Finding>, what: &str, module: &str, needed: bool, outcome: Result<bool>) {
    let severity = if needed { Severity::Error } else { Severity::Note };
    let (reason, mend) = match outcome {
        Ok(true) => return,
        Err(e) => (e.to_string(), String::new()),
        Ok(false) if module.is_empty() => {
            (format!("the kernel was built without it ({})", option(module)), String::new())
        }
        Ok(false) if available(module) => {
            (format!("the module {module} is there and not loaded"), format!("modprobe {module}"))
        }
        Ok(false) => {
            (format!("the kernel does not have it, nor a module for it ({})", option(module)), String::new())
        }
    };
    findings.push(Finding::new(severity, what, reason, mend));
}

/// The option of the kernel's configuration that brings a module; for no module, VLANs of bridges.
fn option(module: &str) -> &'static str {
    match module {
        "" => "CONFIG_BRIDGE_VLAN_FILTERING",
        "8021q" => "CONFIG_VLAN_8021Q",
        "nf_tables" => "CONFIG_NF_TABLES",
        "nft_masq" => "CONFIG_NFT_MASQ",
        "nft_nat" => "CONFIG_NFT_NAT",
        "sch_tbf" => "CONFIG_NET_SCH_TBF",
        "sch_htb" => "CONFIG_NET_SCH_HTB",
        "act_mirred" => "CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED",
        kind => option_of_kind(kind).unwrap_or_default(),
    }
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
