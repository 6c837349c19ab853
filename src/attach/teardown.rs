//! DEL and GC of plugins that make a veth pair: everything an ADD, ours or a Go plugin's, can have left.

use std::net::IpAddr;

use super::{Attachment, ipam, masquerade, spoofcheck, veth};
use crate::attach::owner::Owner;
use crate::cni::{Error, Request, Result, ValidAttachment};
use crate::kernel::Kernel;
use crate::kernel::rtnl::Link;

/// Detaches: rules and links, then addresses, so that no address is handed out again while a link still answers for it.
/// (Only what is released over the link itself is released before.)
/// Nothing is needed but the network's name, the container's id and the interface's name.
///
/// # Errors
/// All failures together; every step was tried.
pub fn del(req: &Request, kernel: &mut Kernel) -> Result<()> {
    ipam::around(req, kernel, ipam::del, |kernel| rules_and_links(req, kernel))
}

fn rules_and_links(req: &Request, kernel: &mut Kernel) -> Vec<Error> {
    let of = Attachment::of(req);
    let mut errors = Vec::new();
    let ends = kernel.host().and_then(|host| veth::host_ends(host, &of)).unwrap_or_else(|e| {
        errors.push(e);
        Vec::new()
    });
    let known = known_addresses(req, &ends);
    // Opened first, so that the process which sits out the removal has it too (see `begin_removal`).
    let nft = kernel.nft_if_there().map(drop);
    // Rules are removed while the kernel takes the links down.
    let removal = (!ends.is_empty()).then(|| veth::begin_removal_of_host_ends(kernel, &ends));
    errors.extend(nft.and_then(|()| rules(&of, &known, kernel)).err());
    let removed = match removal {
        Some(removal) => removal.and_then(|removal| veth::finish_removal(kernel, removal)),
        None => veth::remove_container_end(kernel, req),
    };
    errors.extend(removed.err());
    errors
}

/// Takes the links back that an ADD made.
///
/// # Errors
/// What is there but cannot be removed.
pub fn links(req: &Request, kernel: &mut Kernel) -> Result<()> {
    let ends = veth::host_ends(kernel.host()?, &Attachment::of(req))?;
    veth::remove(kernel, req, &ends)
}

/// Collects what belongs to this network and to no valid attachment. Without a list nothing is known to be stale, and
/// only the IPAM plugin is asked.
///
/// # Errors
/// All failures together; every step was tried.
pub fn gc(req: &Request, kernel: &mut Kernel) -> Result<()> {
    let valid = req.config.valid_attachments()?;
    ipam::around(req, kernel, ipam::forward, |kernel| {
        valid.and_then(|valid| collect(&req.config.name, valid, kernel).err()).into_iter().collect()
    })
}

fn collect(network: &str, valid: Vec<ValidAttachment>, kernel: &mut Kernel) -> Result<()> {
    let mut errors = Vec::new();
    let attachments: Vec<Attachment<'_>> = valid
        .iter()
        .map(|v| Attachment { network, container_id: &v.container_id, ifname: &v.ifname })
        .collect();
    let veths = kernel.host()?.links(Some("veth"))?;
    let stale: Vec<Link> =
        veths.iter().filter(|link| veth::is_stale(link, network, &attachments)).cloned().collect();
    let valid: Vec<(String, String)> = valid.into_iter().map(|v| (v.container_id, v.ifname)).collect();
    if let Some(nft) = kernel.nft_if_there()? {
        errors.extend(masquerade::gc(nft, network, &valid).err());
        let alive =
            |name: &str| veths.iter().any(|v| v.name == name) && !stale.iter().any(|v| v.name == name);
        errors.extend(spoofcheck::gc(nft, &valid, alive).err());
    }
    errors.extend(veth::remove_host_ends(kernel, &stale).err());
    Error::all(errors).map_or(Ok(()), Err)
}

/// Every address the attachment may have rules for, as far as it is known without asking for all rules: from the host
/// end's alias, and from prevResult.
pub fn known_addresses(req: &Request, ends: &[Link]) -> Vec<IpAddr> {
    let mut known: Vec<IpAddr> =
        ends.iter().filter_map(|end| Owner::parse(&end.alias)).flat_map(|owner| owner.addresses).collect();
    // A prevResult that cannot be read must not keep anything from being cleaned.
    if let Ok(Some(result)) = req.config.prev_result() {
        known.extend(result.ips.iter().map(|ip| ip.address.addr()));
    }
    known.sort_unstable();
    known.dedup();
    known
}

/// Removes masquerading and spoof check, whatever the configuration says now: it may have changed since ADD.
fn rules(of: &Attachment<'_>, known: &[IpAddr], kernel: &mut Kernel) -> Result<()> {
    let Some(nft) = kernel.nft_if_there()? else { return Ok(()) };
    let masquerade = masquerade::del(nft, of, known).err();
    let spoofcheck = spoofcheck::del(nft, of.container_id, of.ifname).err();
    Error::all(masquerade.into_iter().chain(spoofcheck).collect()).map_or(Ok(()), Err)
}
