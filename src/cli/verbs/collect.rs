//! Which attachments of a network are in use, for a GC that nobody has told.

use std::path::Path;

use crate::cli::show::gather;
use crate::cni::{Result, ValidAttachment};
use crate::kernel::netns::Netns;
use crate::runtime::{NetworkList, Runtime};

/// Attachments with a namespace: kept ones whose path is one, links whose other end was found, devices that are in one, and
/// leases whose address somebody has. Too many are better than too few: what is not in the list is removed.
///
/// # Errors
/// The cache, or the host's links cannot be listed.
pub fn in_use(runtime: &Runtime, network: &NetworkList, conf_dir: &Path) -> Result<Vec<ValidAttachment>> {
    let mut valid = Vec::new();
    let mut add = |container_id: &str, ifname: &str| {
        let attachment = ValidAttachment { container_id: container_id.to_owned(), ifname: ifname.to_owned() };
        if !valid.contains(&attachment) {
            valid.push(attachment);
        }
    };
    for kept in runtime.cached_attachments(None)?.iter().filter(|kept| kept.network == network.name) {
        // Older releases of libcni keep no path; the result has it.
        let result = kept.result().ok().flatten().unwrap_or_default();
        let paths = result.interfaces.iter().map(|interface| &interface.sandbox).chain([&kept.netns]);
        if paths.filter(|path| !path.is_empty()).any(|path| matches!(Netns::find(path), Ok(Some(_)))) {
            add(&kept.container_id, &kept.ifname);
        }
    }
    let state = gather::state(conf_dir, runtime, Some(network))?;
    for found in state.attachments.iter().filter(|a| is_on(&a.network, &network.name) && a.netns.is_some()) {
        add(&found.container, &found.ifname);
    }
    for lease in state.networks.iter().filter(|n| n.name == network.name).flat_map(|n| &n.leases) {
        // A link without another end is a leftover, and so is the address that its alias names.
        let is_left = state
            .attachments
            .iter()
            .any(|a| (&a.container, &a.ifname) == (&lease.container, &lease.ifname) && a.netns.is_none());
        if lease.in_use && !is_left {
            add(&lease.container, &lease.ifname);
        }
    }
    Ok(valid)
}

/// Whether a link's alias, in which long names are cut and end in `#` and a hash, can mean the network.
fn is_on(told: &str, network: &str) -> bool {
    told.split_once('#').map_or(told == network, |(beginning, _)| network.starts_with(beginning))
}
