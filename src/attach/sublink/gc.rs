//! GC of links on a master of this host: they are found by their alias, in whatever namespace they are.

use super::link::remove_all;
use crate::attach::Attachment;
use crate::attach::container::Container;
use crate::attach::owner::Owner;
use crate::cni::{Error, Result, ValidAttachment};
use crate::kernel::Kernel;
use crate::kernel::namespaces;
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{Handle, Link};

/// Removes the links of this kind and network that belong to no valid attachment.
///
/// # Errors
/// All failures together; every link was tried.
pub fn links(network: &str, kind: &str, valid: &[ValidAttachment], kernel: &Kernel) -> Result<()> {
    let own = Netns::current()?;
    let mut errors = Vec::new();
    for netns in namespaces::others(Vec::new()) {
        // It may go away at any moment, and takes its links with it.
        let Ok(rtnl) = netns.enter(Handle::open) else { continue };
        let mut container = Container { netns, rtnl };
        match stale(network, kind, valid, &own, &mut container) {
            Ok(links) => errors.extend(remove_all(&mut container.rtnl, &links, kernel.waits()).err()),
            Err(e) => errors.push(e),
        }
    }
    Error::all(errors).map_or(Ok(()), Err)
}

fn stale(
    network: &str,
    kind: &str,
    valid: &[ValidAttachment],
    own: &Netns,
    container: &mut Container,
) -> Result<Vec<Link>> {
    let is_valid = |owner: &Owner| {
        valid
            .iter()
            .any(|v| owner.is(&Attachment { network, container_id: &v.container_id, ifname: &v.ifname }))
    };
    let mut links = container.rtnl.links(Some(kind))?;
    links.retain(|link| {
        Owner::parse(&link.alias).is_some_and(|owner| owner.is_on(network) && !is_valid(&owner))
    });
    if links.is_empty() {
        return Ok(links);
    }
    // A nested host, seen from here, may have a network of the same name: its masters are in its namespace, not in ours.
    let ours = container.rtnl.number_of(own)?;
    links.retain(|link| link.lower_netns.is_some() && link.lower_netns == ours);
    Ok(links)
}
