//! firewall: lets the container's traffic pass the host's firewall, and may isolate its bridge from others (reference:
//! ipam-and-meta.md section 6).

mod dbus;
mod filter;
mod firewalld;
mod isolation;
mod rules;

use std::cell::Cell;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use self::firewalld::{Firewalld, Records};
use self::isolation::{Policy, Subject};
use self::rules::Left;
use super::keys::{Key, Shape, key};
use super::{Kind, Plugin, Update};
use crate::attach::masquerade::{self, names};
use crate::attach::undo::or_take_back;
use crate::attach::verify::difference;
use crate::attach::{Attachment, teardown, veth};
use crate::cni::{CniResult, Code, Error, Request, Result, ResultExt};
use crate::kernel::Kernel;
use crate::kernel::nft::{Family, Socket, Table};

/// The administrators' chain when the configuration names none.
const ADMIN_CHAIN: &str = "CNI-ADMIN";
/// Longest name of a chain that iptables takes (`XT_EXTENSION_MAXNAMELEN` less the final zero).
const CHAIN_NAME_MAX: usize = 28;

/// The keys of the configuration.
const KEYS: &[Key] = &[
    key(
        "backend",
        Shape::OneOf(&["iptables", "firewalld"]),
        "who lets traffic pass: rules in table filter, or firewalld; default: firewalld when it runs, else rules",
    ),
    key("firewalldZone", Shape::Text, "firewalld's zone for the container's addresses; default: trusted"),
    key(
        "iptablesAdminChainName",
        Shape::Text,
        "chain that is passed before any rule of the plugin; default: CNI-ADMIN",
    ),
    key(
        "ingressPolicy",
        Shape::OneOf(&["open", "same-bridge", "isolated"]),
        "which neighbours reach the container: all, those of its bridge, none; default: open",
    ),
];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    backend: String,
    firewalld_zone: String,
    iptables_admin_chain_name: String,
    ingress_policy: String,
}

/// What of the configuration DEL and GC look at.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Former {
    backend: String,
    firewalld_zone: String,
}

/// Who lets the traffic pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    /// firewalld when it runs, else rules. Any word that is no backend means this, as for the Go plugin.
    Auto,
    /// Rules in table filter.
    Iptables,
    /// firewalld.
    Firewalld,
}

impl Backend {
    fn of(word: &str) -> Backend {
        match word {
            "iptables" => Backend::Iptables,
            "firewalld" => Backend::Firewalld,
            _ => Backend::Auto,
        }
    }

    /// firewalld, when it is to be used.
    ///
    /// # Errors
    /// It must be used and does not run.
    fn firewalld(self, kernel: &Kernel) -> Result<Option<Firewalld>> {
        match self {
            Backend::Auto => Ok(Firewalld::running(kernel)),
            Backend::Iptables => Ok(None),
            Backend::Firewalld => {
                Firewalld::connect(kernel).map(Some).map_err(|err| err.context("backend: \"firewalld\""))
            }
        }
    }
}

/// Whether firewalld could be asked, on a bus with these addresses (`DBUS_SYSTEM_BUS_ADDRESS`).
///
/// # Errors
/// Why not.
pub fn firewalld_answers(system_bus: Option<&str>) -> Result<()> {
    Firewalld::connect(&Kernel::new(false).with_system_bus(system_bus.map(str::to_owned))).map(drop)
}

/// The configuration, checked.
struct Conf {
    backend: Backend,
    zone: String,
    admin: String,
    policy: Policy,
}

impl Conf {
    fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        Ok(Conf {
            backend: Backend::of(&wire.backend),
            zone: zone(wire.firewalld_zone),
            admin: admin_chain(wire.iptables_admin_chain_name)?,
            policy: Policy::of(&wire.ingress_policy)?,
        })
    }
}

/// firewalld's zone for containers, which it lets do everything unless another is named.
fn zone(written: String) -> String {
    if written.is_empty() { "trusted".to_owned() } else { written }
}

/// The administrators' chain. iptables must be able to name it, and a jump there must not lead back.
fn admin_chain(written: String) -> Result<String> {
    if written.is_empty() {
        return Ok(ADMIN_CHAIN.to_owned());
    }
    let reason = match written.as_str() {
        name if name.len() > CHAIN_NAME_MAX => "has more than 28 bytes",
        name if name.starts_with(['-', '!']) => "starts with a character that iptables does not allow",
        name if name.chars().any(|c| c.is_whitespace() || c.is_control()) => {
            "has a space or control character"
        }
        "ACCEPT" | "DROP" | "RETURN" | "QUEUE" | "REJECT" => "is a verdict",
        "INPUT" | "FORWARD" | "OUTPUT" | filter::CNI_FORWARD => "is a chain that leads there",
        _ => return Ok(written),
    };
    Err(Error::config(format!("iptablesAdminChainName: {written:?} {reason}")))
}

/// The plugin.
pub struct Firewall;

impl Plugin for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn kind(&self) -> Kind {
        Kind::Meta
    }

    fn about(&self) -> &'static str {
        "lets the container's traffic pass the host's firewall"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[]
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &["backend", "firewalldZone", "iptablesAdminChainName", "ingressPolicy"]
    }

    fn joins(&self) -> bool {
        true
    }

    fn update(&self, update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
        let prev = prev_result(update.to)?;
        if update.is_changed {
            let conf = Conf::new(update.to)?;
            attach(update.to, &conf, &prev, kernel)?;
            if conf.backend.firewalld(kernel)?.is_none() {
                let own = names::element_comment(&Attachment::of(update.to));
                remove_sources(kernel, &|tag| tag == own)?;
            }
        }
        Ok(prev)
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::new(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(req)?;
        let prev = prev_result(req)?;
        attach(req, &conf, &prev, kernel)?;
        Ok(prev)
    }

    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        detach(req, kernel)
    }

    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        let prev = prev_result(req)?;
        let addresses = addresses(&prev);
        let mut firewalld = conf.backend.firewalld(kernel)?;
        if let Some(firewalld) = &mut firewalld
            && let Some(what) = firewalld.check(&conf.zone, &addresses)?
        {
            return Err(difference(what));
        }
        let nft = kernel.nft()?;
        let by_rules = needing_rules(nft, &addresses, firewalld.is_some())?;
        if let Some(what) = rules::check(nft, &by_rules, &conf.admin)? {
            return Err(difference(what));
        }
        let Some(bridge) = conf.policy.bridge(&prev)? else { return Ok(()) };
        let subject = Subject { network: &req.config.name, bridge };
        isolation::check(nft, subject, conf.policy, &families(&addresses))?
            .map_or(Ok(()), |what| Err(difference(what)))
    }

    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let Some(valid) = req.config.valid_attachments()? else { return Ok(()) };
        let network = req.config.name.as_str();
        let tag = |v: &crate::cni::ValidAttachment| {
            names::element_comment(&Attachment { network, container_id: &v.container_id, ifname: &v.ifname })
        };
        let valid: Vec<String> = valid.iter().map(tag).collect();
        let prefix = names::network_prefix(network);
        let stale = |tag: &str| tag.starts_with(&prefix) && !valid.iter().any(|valid| valid == tag);
        let rules = remove_rules(kernel, network, &stale, None).map(drop);
        Error::all(rules.err().into_iter().chain(remove_sources(kernel, &stale).err()).collect())
            .map_or(Ok(()), Err)
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        let firewalld = conf.backend.firewalld(kernel).map(drop);
        let ready = firewalld.and_then(|()| kernel.nft().and_then(masquerade::status));
        ready.map_err(|err| err.with_code(Code::NOT_AVAILABLE))
    }
}

/// `prevResult`, whose addresses are what the rules are about.
fn prev_result(req: &Request) -> Result<CniResult> {
    req.config.prev_result()?.ok_or_else(|| Error::config("missing prevResult from earlier plugin"))
}

fn addresses(result: &CniResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| IpNet::addr(&ip.address)).collect()
}

/// The families of these addresses, IPv4 first.
fn families(addresses: &[IpAddr]) -> Vec<Family> {
    let has = |family: &Family| addresses.iter().any(|address| Family::of(*address) == *family);
    masquerade::maps::FAMILIES.into_iter().filter(has).collect()
}

/// Those of the addresses whose traffic only a rule in FORWARD can let pass: all without firewalld. With it, those of
/// families where FORWARD drops besides (Docker makes it), unless firewalld's own rules are in that table.
fn needing_rules(nft: &mut Socket, addresses: &[IpAddr], firewalld: bool) -> Result<Vec<IpAddr>> {
    let mut needing = addresses.to_vec();
    if !firewalld {
        return Ok(needing);
    }
    let apart = nft.has_table(Table { family: Family::Inet, name: "firewalld" })?;
    for family in masquerade::maps::FAMILIES {
        let forward = nft.chain(filter::table(family), filter::FORWARD)?;
        if !apart || !forward.is_some_and(|chain| chain.drops) {
            needing.retain(|address| Family::of(*address) != family);
        }
    }
    Ok(needing)
}

fn attach(req: &Request, conf: &Conf, prev: &CniResult, kernel: &mut Kernel) -> Result<()> {
    let (at, addresses) = (Attachment::of(req), addresses(prev));
    let families = families(&addresses);
    let subject = conf.policy.bridge(prev)?.map(|bridge| Subject { network: at.network, bridge });
    let mut firewalld = conf.backend.firewalld(kernel)?;
    or_take_back(kernel, |kernel, undo| {
        undo.push(move |kernel| remove_rules(kernel, at.network, &|_| false, None).map(drop));
        if let Some(subject) = subject {
            // Of another policy, which those that are attached keep when this fails.
            let before = isolation::frames(kernel.nft()?, subject)?;
            undo.push(move |kernel| isolation::restore_frames(kernel.nft()?, subject, &before));
            isolation::apply_frames(kernel.nft()?, subject, conf.policy, &families)?;
        }
        // firewalld first: one that is just starting has its name before its table, and answers when that is there.
        if let Some(firewalld) = &mut firewalld {
            let added = firewalld::add(kernel.nft()?, firewalld, &at, &conf.zone, &addresses)?;
            undo.push(move |kernel| match Firewalld::running(kernel) {
                Some(mut firewalld) => added.take_back(kernel.nft()?, &mut firewalld),
                None => Ok(()),
            });
        }
        // Rules are written all or none.
        kernel.nft()?.commit_exclusive(|nft| {
            let by_rules = needing_rules(nft, &addresses, firewalld.is_some())?;
            let mut changes = Vec::new();
            for family in &families {
                let admin = by_rules.iter().any(|address| Family::of(*address) == *family);
                let admin = admin.then_some(conf.admin.as_str());
                let isolation = conf.policy != Policy::Open;
                if admin.is_some() || isolation {
                    filter::ensure(nft, *family, admin, isolation, &mut changes)?;
                }
            }
            rules::plan_add(nft, &at, &by_rules, &conf.admin, &mut changes)?;
            if let Some(subject) = subject {
                isolation::plan_add(nft, subject, conf.policy, &families, &mut changes)?;
            }
            Ok(changes)
        })
    })
    .context("firewall")
}

/// Removes everything of the attachment, whatever the configuration says now.
fn detach(req: &Request, kernel: &mut Kernel) -> Result<()> {
    let at = Attachment::of(req);
    let own = names::element_comment(&at);
    // The link's alias knows more addresses than prevResult does when there is none; without it there is still the tag.
    let ends = kernel.host().and_then(|host| veth::host_ends(host, &at)).unwrap_or_default();
    let known = teardown::known_addresses(req, &ends);
    let stale = |tag: &str| tag == own;
    let rules = remove_rules(kernel, at.network, &stale, Some(&known));
    let sources = remove_sources(kernel, &stale);
    // What had neither is a Go plugin's, or nobody's.
    let foreign = matches!((&rules, &sources), (Ok(false), Ok(false)));
    let former: Former = req.config.read().unwrap_or_default();
    if foreign && !known.is_empty() && Backend::of(&former.backend) != Backend::Iptables {
        remove_former(kernel, zone(former.firewalld_zone), &known)?;
    }
    Error::all(rules.err().into_iter().chain(sources.err()).collect()).map_or(Ok(()), Err)
}

/// Removes rules of attachments that are stale, by tag, and of a Go plugin for the `known` addresses; and isolation when
/// the network has no attachment left. Whether there were any stale ones.
fn remove_rules(
    kernel: &mut Kernel,
    network: &str,
    stale: &dyn Fn(&str) -> bool,
    known: Option<&[IpAddr]>,
) -> Result<bool> {
    let Some(nft) = kernel.nft_if_there()? else { return Ok(false) };
    let found = Cell::new(false);
    let plan = |nft: &mut Socket| {
        let (mut changes, mut left) = (Vec::new(), Left::default());
        rules::plan_del(nft, stale, known.unwrap_or_default(), &mut left, &mut changes)?;
        found.set(!changes.is_empty());
        left.tags.extend(Records::read(nft)?.tags().filter(|tag| !stale(tag)).cloned());
        let prefix = names::network_prefix(network);
        // Attachments of a Go plugin may be this network's, and isolation that was on stays on.
        if !left.untagged && !left.tags.iter().any(|tag| tag.starts_with(&prefix)) {
            isolation::plan_del(nft, network, &mut changes)?;
        }
        Ok(changes)
    };
    nft.commit_exclusive(plan).context("firewall")?;
    Ok(found.get())
}

/// Removes sources of firewalld's zones that were added for attachments that are stale, by tag. Whether there were any.
fn remove_sources(kernel: &mut Kernel, stale: &dyn Fn(&str) -> bool) -> Result<bool> {
    let Some(nft) = kernel.nft_if_there()? else { return Ok(false) };
    let records = Records::read(nft)?;
    if !records.tags().any(|tag| stale(tag)) {
        return Ok(false);
    }
    let mut firewalld = Firewalld::running(kernel);
    firewalld::remove(kernel.nft()?, firewalld.as_mut(), &records, stale).context("firewall")?;
    Ok(true)
}

/// Removes the sources that a Go plugin added for these addresses, when firewalld runs.
fn remove_former(kernel: &mut Kernel, zone: String, known: &[IpAddr]) -> Result<()> {
    let Some(mut firewalld) = Firewalld::running(kernel) else { return Ok(()) };
    let records = kernel.nft_if_there()?.map(Records::read).transpose()?.unwrap_or_default();
    firewalld::remove_former(&mut firewalld, &records, &zone, known);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrators_chain_must_be_one_that_iptables_can_name() {
        assert_eq!(admin_chain(String::new()).unwrap(), "CNI-ADMIN");
        for good in ["NOMAD-ADMIN", "x", &"x".repeat(28)] {
            assert_eq!(admin_chain(good.to_owned()).unwrap(), good);
        }
        for bad in ["-x", "!x", "a b", "a\n", "ACCEPT", "FORWARD", "CNI-FORWARD", &"x".repeat(29)] {
            let err = admin_chain(bad.to_owned()).unwrap_err();
            assert_eq!(err.code(), Code::INVALID_CONFIG);
            assert!(err.msg().starts_with(&format!("iptablesAdminChainName: {bad:?} ")), "{err}");
        }
    }

    #[test]
    fn a_backend_that_is_none_means_what_no_backend_means() {
        for (word, backend) in [
            ("", Backend::Auto),
            ("nftables", Backend::Auto),
            ("iptables", Backend::Iptables),
            ("firewalld", Backend::Firewalld),
        ] {
            assert_eq!(Backend::of(word), backend, "{word}");
        }
    }
}
