//! firewall: lets the container's traffic pass the host's firewall, and may isolate its bridge from others (reference:
//! ipam-and-meta.md section 6).

mod filter;
mod isolation;
mod rules;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use self::isolation::{Policy, Subject};
use super::keys::{Key, Shape, key};
use super::{Kind, Plugin};
use crate::attach::masquerade::{self, names};
use crate::attach::undo::or_take_back;
use crate::attach::verify::difference;
use crate::attach::{Attachment, teardown, veth};
use crate::cni::{CniResult, Code, Error, Request, Result, ResultExt};
use crate::kernel::Kernel;
use crate::kernel::nft::{Change, Family, Socket};

/// The administrators' chain when the configuration names none.
const ADMIN_CHAIN: &str = "CNI-ADMIN";
/// Longest name of a chain that iptables takes (`XT_EXTENSION_MAXNAMELEN` less the final zero).
const CHAIN_NAME_MAX: usize = 28;

/// The keys of the configuration.
const KEYS: &[Key] = &[
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
    iptables_admin_chain_name: String,
    ingress_policy: String,
}

/// The configuration, checked.
struct Conf {
    admin: String,
    policy: Policy,
}

impl Conf {
    fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        Ok(Conf {
            admin: admin_chain(wire.iptables_admin_chain_name)?,
            policy: Policy::of(&wire.ingress_policy)?,
        })
    }
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
        let nft = kernel.nft()?;
        if let Some(what) = rules::check(nft, &addresses, &conf.admin)? {
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
        let Some(nft) = kernel.nft_if_there()? else { return Ok(()) };
        nft.commit_exclusive(|nft| {
            let (mut changes, mut left) = (Vec::new(), Vec::new());
            rules::plan_gc(nft, network, &valid, &mut left, &mut changes)?;
            plan_last(nft, network, &left, &mut changes)?;
            Ok(changes)
        })
        .context("firewall")
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        Conf::new(req)?;
        kernel.nft().and_then(masquerade::status).map_err(|err| err.with_code(Code::NOT_AVAILABLE))
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

fn attach(req: &Request, conf: &Conf, prev: &CniResult, kernel: &mut Kernel) -> Result<()> {
    let (at, addresses) = (Attachment::of(req), addresses(prev));
    let families = families(&addresses);
    let subject = conf.policy.bridge(prev)?.map(|bridge| Subject { network: at.network, bridge });
    or_take_back(kernel, |kernel, undo| {
        if let Some(subject) = subject {
            undo.push(move |kernel| forget_network(at.network, kernel));
            isolation::apply_frames(kernel.nft()?, subject, conf.policy, &families)?;
        }
        let plan = |nft: &mut Socket| {
            let mut changes = Vec::new();
            for family in &families {
                let isolation = conf.policy != Policy::Open;
                filter::ensure(nft, *family, Some(&conf.admin), isolation, &mut changes)?;
            }
            rules::plan_add(nft, &at, &addresses, &conf.admin, &mut changes)?;
            if let Some(subject) = subject {
                isolation::plan_add(nft, subject, conf.policy, &families, &mut changes)?;
            }
            Ok(changes)
        };
        kernel.nft()?.commit_exclusive(plan)
    })
    .context("firewall")
}

/// Removes everything of the attachment, whatever the configuration says now.
fn detach(req: &Request, kernel: &mut Kernel) -> Result<()> {
    let at = Attachment::of(req);
    let ends = kernel.host().and_then(|host| veth::host_ends(host, &at)).unwrap_or_default();
    let known = teardown::known_addresses(req, &ends);
    let Some(nft) = kernel.nft_if_there()? else { return Ok(()) };
    nft.commit_exclusive(|nft| {
        let (mut changes, mut left) = (Vec::new(), Vec::new());
        rules::plan_del(nft, &at, &known, &mut left, &mut changes)?;
        plan_last(nft, at.network, &left, &mut changes)?;
        Ok(changes)
    })
    .context("firewall")
}

/// Removes the isolation of a network unless attachments of it are `left`, given by tag.
fn plan_last(nft: &mut Socket, network: &str, left: &[String], changes: &mut Vec<Change>) -> Result<()> {
    let prefix = names::network_prefix(network);
    match left.iter().any(|tag| tag.starts_with(&prefix)) {
        true => Ok(()),
        false => isolation::plan_del(nft, network, changes),
    }
}

/// Removes the isolation of a network without attachments.
fn forget_network(network: &str, kernel: &mut Kernel) -> Result<()> {
    let Some(nft) = kernel.nft_if_there()? else { return Ok(()) };
    nft.commit_exclusive(|nft| {
        let (mut changes, left) = (Vec::new(), rules::tags(nft)?);
        plan_last(nft, network, &left, &mut changes)?;
        Ok(changes)
    })
}
