//! portmap: ports of the host lead to ports of the container (reference: ipam-and-meta.md section 5). Chained behind
//! the plugin that gives the container its addresses.

mod conditions;
mod conf;
mod flows;
mod iptables;
mod layout;
mod maps;
mod record;
mod taken;
#[cfg(test)]
mod tests;
mod upstream;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use self::conf::{Backend, Conf};
use self::record::Record;
use super::keys::{Key, Shape, key};
use super::{Kind, Plugin, Update};
use crate::attach::masquerade::{self, maps::plan_unused};
use crate::attach::undo::or_take_back;
use crate::attach::{Attachment, verify};
use crate::cni::{CniResult, Code, Error, Request, Result, ResultExt, json};
use crate::kernel::rtnl::{Change, PortFlags, SetLink};
use crate::kernel::{Kernel, nft, sysctl};

/// Makes what all mappings have in common, in a namespace made for that: can the kernel?
///
/// # Errors
/// What it has not, or that nobody may ask.
pub fn probe(nft: &mut nft::Socket) -> Result<()> {
    let changes = layout::prepare(nft, nft::Family::Ip)?;
    nft.apply(&changes)
}

/// Every mapping of the nftables layout, as the comment of its attachment's elements and a line for people.
///
/// # Errors
/// The kernel's tables cannot be read.
pub fn listed(nft: &mut nft::Socket) -> Result<Vec<(String, String)>> {
    let all = maps::all(nft)?;
    Ok(all.into_iter().map(|(comment, record)| (comment, record.line())).collect())
}

/// What a runtime's `portMappings` ask for at a container's addresses, as lines for people.
pub fn requested(mappings: &json::Value, addresses: &[IpAddr]) -> Vec<String> {
    let mappings = conf::requested(mappings).unwrap_or_default();
    addresses.iter().flat_map(|address| Record::all(&mappings, *address)).map(|r| r.line()).collect()
}

/// The plugin.
pub struct Portmap;

impl Plugin for Portmap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn kind(&self) -> Kind {
        Kind::Meta
    }

    fn about(&self) -> &'static str {
        "forwards ports of the host to the container"
    }

    fn keys(&self) -> &'static [Key] {
        const KEYS: &[Key] = &[
            key(
                "backend",
                Shape::OneOf(&["nftables", "iptables"]),
                "how rules are written; default: nftables maps",
            ),
            key(
                "conditionsV4",
                Shape::List(&Shape::Text),
                "further conditions on IPv4 connections, in words of iptables or nft",
            ),
            key("conditionsV6", Shape::List(&Shape::Text), "the same for IPv6"),
            key(
                "externalSetMarkChain",
                Shape::Text,
                "chain that marks what iptables rules masquerade, instead of markMasqBit",
            ),
            key(
                "snat",
                Shape::Bool,
                "masquerade connections from the container itself, its network and localhost; default: true",
            ),
            key("masqAll", Shape::Bool, "masquerade all forwarded connections; default: false"),
            key(
                "markMasqBit",
                Shape::Int(0, 31),
                "bit of the packet mark that iptables rules use; default: 13",
            ),
        ];
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        const MAPPING: &[Key] = &[
            key("hostPort", Shape::Int(1, 65535), "port at the host").required(),
            key("containerPort", Shape::Int(1, 65535), "port in the container").required(),
            key("protocol", Shape::Text, "tcp, udp or sctp").required(),
            key("hostIP", Shape::Ip, "address of the host; 0.0.0.0 or :: for all of a family; default: all"),
        ];
        const KEYS: &[Key] = &[key(
            "portMappings",
            Shape::List(&Shape::Object(MAPPING)),
            "ports of the host that lead to the container",
        )];
        KEYS
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &[
            "runtimeConfig.portMappings",
            "backend",
            "snat",
            "masqAll",
            "markMasqBit",
            "externalSetMarkChain",
            "conditionsV4",
            "conditionsV6",
        ]
    }

    fn joins(&self) -> bool {
        true
    }

    /// Mappings that stay are not touched, and neither are their connections.
    fn update(&self, update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
        let (conf, prev) = (Conf::new(update.to)?, verify::prev_result(update.to)?);
        if update.is_changed {
            replace(&Attachment::of(update.to), &conf, &prev, kernel)?;
        }
        if conf.snat && !conf.mappings.is_empty() {
            // Also when the bridge has turned it off.
            let container = conf::container_addresses(&prev, &update.to.ifname);
            let_frames_back(&prev, &container, kernel)?;
        }
        Ok(prev)
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::new(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(req)?;
        let Some(prev) = req.config.prev_result()? else {
            return Err(Error::config("must be called as chained plugin"));
        };
        let container = conf::container_addresses(&prev, &req.ifname);
        let known: Vec<IpAddr> = container.iter().map(IpNet::addr).collect();
        let of = Attachment::of(req);
        if conf.mappings.is_empty() {
            if has_mappings(&of, kernel) {
                remove(&of, &known, kernel)?;
            }
            return Ok(prev);
        }
        or_take_back(kernel, |kernel, undo| {
            undo.push(move |kernel| remove(&of, &known, kernel));
            add(&of, &conf, &container, kernel)?;
            if conf.snat { let_frames_back(&prev, &container, kernel) } else { Ok(()) }
        })?;
        Ok(prev)
    }

    /// Whatever the configuration says now: it may have changed since ADD, or lack the mappings.
    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        // A prevResult that cannot be read must not keep anything from being cleaned.
        let prev = req.config.prev_result().ok().flatten().unwrap_or_default();
        let known = conf::container_addresses(&prev, &req.ifname);
        let known: Vec<IpAddr> = known.iter().map(IpNet::addr).collect();
        remove(&Attachment::of(req), &known, kernel)
    }

    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        let prev = verify::prev_result(req)?;
        if conf.mappings.is_empty() {
            return Ok(());
        }
        let container = conf::container_addresses(&prev, &req.ifname);
        let nft = kernel.nft()?;
        match conf.backend {
            Backend::Nftables => maps::check(nft, &Attachment::of(req), &conf, &container),
            Backend::Iptables => iptables::check(nft, &Attachment::of(req), &conf, &container),
        }?;
        match localhost(&conf, &container) {
            Some(address) => {
                maps::check_martians(nft)?;
                check_localhost(address, kernel)
            }
            None => Ok(()),
        }
    }

    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let Some(valid) = req.config.valid_attachments()? else { return Ok(()) };
        let Some(nft) = kernel.nft_if_there()? else { return Ok(()) };
        let valid: Vec<(String, String)> = valid.into_iter().map(|v| (v.container_id, v.ifname)).collect();
        let network = &req.config.name;
        let ours = nft.commit(|nft| maps::plan_gc(nft, network, &valid));
        let iptables = nft.commit_exclusive(|nft| iptables::plan_gc(nft, network, &valid));
        both(ours, iptables)
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        Conf::new(req)?;
        let hint = "portmap needs nf_tables in the kernel";
        kernel
            .nft()
            .and_then(nft::Socket::probe)
            .map_err(|err| err.with_code(Code::NOT_AVAILABLE).context(hint))
    }
}

fn add(of: &Attachment, conf: &Conf, container: &[IpNet], kernel: &mut Kernel) -> Result<()> {
    let nft = kernel.nft()?;
    match conf.backend {
        Backend::Nftables => {
            nft.commit(|nft| plan_add(nft, of, conf, container))?;
            // Once more: the kernel does not refuse a port that rules got between look and commit.
            nft.commit(|nft| taken::plan_before_maps(nft, of, conf, container))?;
        }
        Backend::Iptables => nft.commit_exclusive(|nft| plan_add(nft, of, conf, container))?,
    }
    lead(&records(conf, container), conf, container, kernel)
}

/// What makes the mappings in the configuration's layout.
fn plan_add(
    nft: &mut nft::Socket,
    of: &Attachment,
    conf: &Conf,
    container: &[IpNet],
) -> Result<Vec<nft::Change>> {
    match conf.backend {
        Backend::Nftables => {
            let mut changes = taken::plan_before_maps(nft, of, conf, container)?;
            changes.extend(maps::plan_add(nft, of, conf, container)?);
            Ok(changes)
        }
        Backend::Iptables => iptables::plan_add(nft, of, conf, container),
    }
}

/// The mappings of a configuration, in full.
fn records(conf: &Conf, container: &[IpNet]) -> Vec<Record> {
    container.iter().flat_map(|net| Record::all(&conf.mappings, net.addr())).collect()
}

/// Makes the attachment's mappings those of the configuration, in its layout, and what there is in others' go: in one
/// transaction.
fn replace(of: &Attachment, conf: &Conf, prev: &CniResult, kernel: &mut Kernel) -> Result<()> {
    let container = conf::container_addresses(prev, of.ifname);
    let known: Vec<IpAddr> = container.iter().map(IpNet::addr).collect();
    if conf.mappings.is_empty() {
        return remove(of, &known, kernel);
    }
    let nft = kernel.nft()?;
    let mut former = maps::records(nft, of)?;
    former.extend(iptables::records(nft, of)?);
    let mut chains = BTreeSet::new();
    // What it plans is planned again below: these are the chains that may be left without use.
    maps::plan_del(nft, of, &mut chains)?;
    nft.commit_exclusive(|nft| {
        let mut changes = upstream::plan_del(nft, of, &known)?;
        match conf.backend {
            Backend::Nftables => changes.extend(iptables::plan_del(nft, of)?),
            Backend::Iptables => changes.extend(maps::plan_del(nft, of, &mut BTreeSet::new())?),
        }
        changes.extend(plan_add(nft, of, conf, &container)?);
        Ok(changes)
    })?;
    nft.commit(|nft| plan_unused(nft, &chains))?;
    let wanted = records(conf, &container);
    former.retain(|record| !wanted.contains(record));
    // As in `lead`.
    let _ = flows::forget_led(&former);
    lead(&wanted, conf, &container, kernel)
}

/// What mappings need besides rules, when these are there.
fn lead(records: &[Record], conf: &Conf, container: &[IpNet], kernel: &mut Kernel) -> Result<()> {
    // After the rules, so that a flow that starts now goes by them. Flows that stay end by themselves when their
    // clients are silent for half a minute: no reason to fail.
    let _ = flows::forget_stale(records, kernel);
    match localhost(conf, container) {
        Some(address) => {
            kernel.nft()?.commit(layout::plan_martians)?;
            open_localhost(address, kernel).context("localhost cannot reach the container")
        }
        None => Ok(()),
    }
}

/// The container's address that connections from 127.0.0.1 can be led to, if any.
fn localhost(conf: &Conf, container: &[IpNet]) -> Option<IpAddr> {
    let address = container.iter().find(|net| net.addr().is_ipv4())?.addr();
    (conf.snat && !Record::all(&conf.mappings, address).is_empty()).then_some(address)
}

/// Lets frames leave through the bridge port of the container that they came in by (`hairpin`) where the kernel
/// translates them in the bridge already (br_netfilter, `bridge-nf-call-iptables`): a connection of the container to its
/// own mapped port then does not get up to the host's own link, and would be dropped.
fn let_frames_back(prev: &CniResult, container: &[IpNet], kernel: &mut Kernel) -> Result<()> {
    let in_bridges = |v4: bool| {
        let path =
            if v4 { "net/bridge/bridge-nf-call-iptables" } else { "net/bridge/bridge-nf-call-ip6tables" };
        sysctl::read(path).is_ok_and(|value| value == "1")
    };
    if !container.iter().any(|net| in_bridges(net.addr().is_ipv4())) {
        return Ok(());
    }
    let host = kernel.host()?;
    for interface in prev.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        let Some(link) = host.link(&interface.name)? else { continue };
        if link.kind == "veth" && link.port.is_some_and(|port| !port.hairpin) {
            let port = Some(PortFlags { hairpin: Some(true), isolated: None });
            host.apply(&[Change::SetLink(SetLink { port, ..SetLink::of(link.dev()) })])?;
        }
    }
    Ok(())
}

/// Whether an earlier ADD of the attachment left mappings, as far as this process may look.
fn has_mappings(of: &Attachment, kernel: &mut Kernel) -> bool {
    let Ok(Some(nft)) = kernel.nft_if_there() else { return false };
    let any = |found: Result<Vec<Record>>| found.is_ok_and(|records| !records.is_empty());
    any(maps::records(nft, of)) || any(iptables::records(nft, of))
}

/// Removes what ADD of any backend, or the Go plugin, made for the attachment. Nothing there is success.
///
/// `known` are addresses of the container, as far as the caller knows: only the Go plugin's nftables rules need them.
fn remove(of: &Attachment, known: &[IpAddr], kernel: &mut Kernel) -> Result<()> {
    let Some(nft) = kernel.nft_if_there()? else { return Ok(()) };
    let mut records = maps::records(nft, of)?;
    records.extend(iptables::records(nft, of)?);
    let chains = RefCell::default();
    let ours = |nft: &mut nft::Socket| maps::plan_del(nft, of, &mut chains.borrow_mut());
    let upstream = |nft: &mut nft::Socket| upstream::plan_del(nft, of, known);
    let removed = masquerade::commit_all(nft, &[&ours, &upstream]);
    // Which of two DELs of a container leaves its chain empty, each only knows when nothing else changes meanwhile.
    let iptables = iptables::plan_del(nft, of).and_then(|changes| match changes.is_empty() {
        true => Ok(()),
        false => nft.commit_exclusive(|nft| iptables::plan_del(nft, of)),
    });
    both(removed, iptables)?;
    nft.commit(|nft| plan_unused(nft, &chains.borrow()))?;
    if !records.is_empty() {
        kernel.close_nft_late();
    }
    // As in `add`.
    let _ = flows::forget_led(&records);
    Ok(())
}

/// The outcome of two things that were both done.
fn both(one: Result<()>, two: Result<()>) -> Result<()> {
    match (one, two) {
        (Err(one), Err(two)) => Error::all(vec![one, two]).map_or(Ok(()), Err),
        (one, two) => one.and(two),
    }
}

/// The setting that lets loopback addresses through the link that leads to the container. `None` when none leads there.
fn localhost_setting(container: IpAddr, kernel: &mut Kernel) -> Result<Option<String>> {
    let host = kernel.host()?;
    let Ok(Some(route)) = host.route_to(container) else { return Ok(None) };
    let Some(link) = route.oif.map(|index| host.link_by_index(index)).transpose()?.flatten() else {
        return Ok(None);
    };
    Ok(Some(format!("net/ipv4/conf/{}/route_localnet", link.name)))
}

fn open_localhost(container: IpAddr, kernel: &mut Kernel) -> Result<()> {
    match localhost_setting(container, kernel)? {
        Some(path) => sysctl::ensure(&path, "1").map(drop),
        None => Ok(()),
    }
}

fn check_localhost(container: IpAddr, kernel: &mut Kernel) -> Result<()> {
    match localhost_setting(container, kernel)? {
        Some(path) if sysctl::read(&path)? != "1" => {
            Err(verify::difference(format!("/proc/sys/{path} is not 1")))
        }
        _ => Ok(()),
    }
}
