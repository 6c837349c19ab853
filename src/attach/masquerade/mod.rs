//! ipMasq: traffic of an attachment's addresses to the outside leaves with the host's address.
//!
//! Three layouts are known: ours (`maps.rs`), the Go plugins' iptables layout (`iptables.rs`, for
//! `ipMasqBackend: iptables`), and their nftables layout (`upstream.rs`, never made). DEL and GC look into all of them, so
//! that a node upgraded in place keeps nothing, and any of them is enough for CHECK.
//!
//! Every operation looks first (2 µs per object), then sends one batch. What changed between the two makes the kernel
//! refuse the batch as a whole, and the operation starts over.

mod iptables;
pub mod maps;
pub mod names;
#[cfg(test)]
mod tests;
mod upstream;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Attachment;
use crate::cni::error::ResultExt;
use crate::cni::{Code, Error, Result};
use crate::kernel::nft::{Change, Family, Socket};

/// Which rules ADD writes (`ipMasqBackend`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Our maps; the default.
    Nftables,
    /// Rules that `iptables-nft -t nat -S` lists as the Go plugins would have written them.
    Iptables,
}

/// What is masqueraded, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Which rules ADD writes.
    pub backend: Backend,
    /// Networks to which nothing is masqueraded, besides the container's own (`ipMasqExempt`).
    pub exempt: Vec<IpNet>,
}

impl Masquerade {
    /// What `ipMasq`, `ipMasqBackend` and `ipMasqExempt` ask for; `None` without masquerading.
    ///
    /// # Errors
    /// [`Code::INVALID_CONFIG`] for a backend that does not exist, or what is no network.
    pub fn of(ip_masq: bool, backend: &str, exempt: &[String]) -> Result<Option<Masquerade>> {
        let net = |(i, text): (usize, &String)| {
            let parsed: Result<IpNet, _> = text.parse();
            parsed.map(|net| net.trunc()).map_err(|_| {
                Error::config(format!("ipMasqExempt[{i}]: {text:?} is not a network such as \"10.1.0.0/16\""))
            })
        };
        let exempt = exempt.iter().enumerate().map(net).collect::<Result<Vec<_>>>()?;
        let backend = match backend {
            "" | "nftables" => Backend::Nftables,
            "iptables" => Backend::Iptables,
            other => {
                let msg = format!("ipMasqBackend: {other:?} is neither \"nftables\" nor \"iptables\"");
                return Err(Error::config(msg));
            }
        };
        Ok(ip_masq.then_some(Masquerade { backend, exempt }))
    }
}

/// Destinations that are never masqueraded: groups (RFC 5771, RFC 4291).
fn multicast(family: Family) -> IpNet {
    match family {
        Family::Ip6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
        _ => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
    }
}

/// Masquerades what the attachment's addresses (each with the prefix length of its network) send to other networks than
/// these and the exempt ones.
///
/// Done again it changes nothing, or replaces what an earlier ADD of the attachment made. On failure nothing was
/// changed.
pub fn add(nft: &mut Socket, at: &Attachment, addresses: &[IpNet], wanted: &Masquerade) -> Result<()> {
    let exempt = &wanted.exempt;
    let plan = |nft: &mut Socket| match wanted.backend {
        Backend::Nftables => maps::plan_add(nft, at, addresses, exempt),
        Backend::Iptables => iptables::plan_add(nft, at, addresses, exempt),
    };
    nft.commit(plan).context("ipMasq")
}

/// Removes what ADD of either backend, or of the Go plugins, made for the attachment. Nothing there is success.
///
/// `known` are addresses that the attachment has or had, as far as the caller knows. Our own rules are found without;
/// the Go plugins' iptables rules of two attachments of one container to one network can only be told apart by them.
/// Costs the same with any number of containers, except where rules of the Go plugins' layouts exist.
pub fn del(nft: &mut Socket, at: &Attachment, known: &[IpAddr]) -> Result<()> {
    let chains = RefCell::default();
    let ours = |nft: &mut Socket| maps::plan_del(nft, at, known, &mut chains.borrow_mut());
    let upstream = |nft: &mut Socket| upstream::plan_del(nft, at);
    let iptables = |nft: &mut Socket| iptables::plan_del(nft, at, known);
    commit_all(nft, &[&ours, &upstream, &iptables]).context("ipMasq")?;
    nft.commit(|nft| maps::plan_unused(nft, &chains.borrow())).context("ipMasq")
}

/// Compares the rules with what ADD makes; the error ([`Code::CHECK_FAILED`]) names the first difference. The rules of
/// another layout do as well: the Go plugins may have made the attachment.
pub fn check(nft: &mut Socket, at: &Attachment, addresses: &[IpNet], wanted: &Masquerade) -> Result<()> {
    let mut layouts = [maps::check, iptables::check, upstream::check];
    if wanted.backend == Backend::Iptables {
        layouts.swap(0, 1);
    }
    let [own, others @ ..] = layouts;
    let mut check = |layout: Layout| layout(nft, at, addresses, &wanted.exempt);
    check(own).or_else(|e| others.into_iter().find_map(|other| check(other).ok()).ok_or(e)).context("ipMasq")
}

/// How the rules of one layout are compared: for these addresses, and what is exempt.
type Layout = fn(&mut Socket, &Attachment<'_>, &[IpNet], &[IpNet]) -> Result<()>;

/// Removes what belongs to this network but to none of its valid attachments (container id, interface name), in all
/// layouts.
pub fn gc(nft: &mut Socket, network: &str, valid: &[(String, String)]) -> Result<()> {
    let ours = |nft: &mut Socket| maps::plan_gc(nft, network, valid);
    let upstream = |nft: &mut Socket| upstream::plan_gc(nft, network, valid);
    let iptables = |nft: &mut Socket| iptables::plan_gc(nft, network, valid);
    commit_all(nft, &[&ours, &upstream, &iptables]).context("ipMasq")
}

/// Whether ADD could be served: the kernel has nf_tables and lets this process use it.
pub fn status(nft: &mut Socket) -> Result<()> {
    let hint = "ipMasq needs nf_tables in the kernel";
    nft.probe().map_err(|err| err.with_code(Code::NOT_AVAILABLE).context(hint))
}

/// Looks, and says what to change.
pub type Plan<'a> = &'a dyn Fn(&mut Socket) -> Result<Vec<Change>>;

/// All parts in one batch; when that fails each alone, so that what cannot be removed does not keep the rest.
pub fn commit_all(nft: &mut Socket, parts: &[Plan]) -> Result<()> {
    let together = nft.commit(|nft| {
        let mut changes = Vec::new();
        for part in parts {
            changes.extend(part(nft)?);
        }
        Ok(changes)
    });
    if together.is_ok() {
        return Ok(());
    }
    let failures = parts.iter().filter_map(|part| nft.commit(part).err()).collect();
    Error::all(failures).map_or(Ok(()), Err)
}
