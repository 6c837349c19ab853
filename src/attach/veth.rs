//! A veth pair between host and container: made, found again, and removed.

use std::time::Duration;

use ipnet::IpNet;

use super::Attachment;
use super::container::Container;
use super::owner::{Owner, alias, host_names};
use crate::cni::{Error, Request, Result, ResultExt};
use crate::kernel::detach::{Removal, begin_removal, remove_links};
use crate::kernel::rtnl::{AddVeth, Change, Dev, Handle, Link, Mac, PortFlags, SetLink, Step, VethPeer};
use crate::kernel::{Kernel, sysctl};

/// How long a host end may take until it passes frames. The kernel notices the carrier a little after both ends are up,
/// and drops what is sent before.
pub const UP_BUDGET: Duration = Duration::from_secs(10);

/// What a pair shall look like.
pub struct Wanted<'a> {
    /// Whose it is.
    pub attachment: Attachment<'a>,
    /// The container's addresses, remembered in the host end's alias.
    pub addresses: Vec<IpNet>,
    /// MTU of both ends.
    pub mtu: Option<u32>,
    /// MAC of the container's end.
    pub mac: Option<Mac>,
    /// Bridge of the host end.
    pub master: Option<Dev>,
    /// The bridge has no carrier yet. It gets one only from a port that first is up without: this link is up from the
    /// start. Any other comes up when it has its alias and its settings, as setting these on a link that is up makes the
    /// kernel look through all IPv6 routes.
    pub is_first_port: bool,
    /// Flags of that bridge port that differ from a new port's.
    pub port: PortFlags,
    /// The host end gets addresses: its IPv6 link-local address, which the host asks for neighbours with, must be usable
    /// at once.
    pub is_gateway: bool,
}

/// A pair that was made.
pub struct Pair {
    /// The host end: up, in its bridge.
    pub host: Link,
    /// The container's end under its final name: down.
    pub container: Link,
}

/// Makes the pair: the container's end straight in its namespace under its final name (moving a link costs 16 ms).
///
/// # Errors
/// The interface exists in the container, or the kernel refuses; nothing is left then.
pub fn create(host: &mut Handle, container: &mut Container, wanted: &Wanted<'_>) -> Result<Pair> {
    let link = add(host, container, wanted)?;
    let pair = finish(host, container, wanted, link.clone());
    if pair.is_err() {
        // The first failure is the one to report.
        let _ = host.apply(&[Change::DelLink(link.dev())]);
    }
    pair
}

/// Creates both ends under the first host name that is free.
fn add(host: &mut Handle, container: &mut Container, wanted: &Wanted<'_>) -> Result<Link> {
    let mut refused = None;
    for name in host_names(&wanted.attachment) {
        let add = Change::AddVeth(AddVeth {
            name: name.clone(),
            up: wanted.is_first_port,
            mtu: wanted.mtu,
            mac: None,
            master: wanted.master.clone(),
            peer: VethPeer {
                name: wanted.attachment.ifname.to_owned(),
                mtu: wanted.mtu,
                mac: wanted.mac,
                netns: Some(container.netns.for_peer()),
            },
        });
        let mut outcomes = host.exchange(&[Step::Change(add), Step::Link(Dev::named(&name))])?.into_iter();
        let (added, link) = (outcomes.next().unwrap_or(Ok(None)), outcomes.next().unwrap_or(Ok(None)));
        match (added, link?) {
            (Ok(_), Some(link)) => return Ok(link),
            (Ok(_), None) => {
                return Err(Error::internal(format!("{name} vanished while it was being set up")));
            }
            // Somebody's link has this name on the host: try the next. Otherwise it is the container's that is taken.
            (Err(e), Some(taken)) if e.is_exists() && !belongs(&taken, &wanted.attachment) => {
                refused = Some(e)
            }
            (Err(e), Some(own)) if e.is_exists() => {
                return Err(Error::internal(format!(
                    "{} on the host still belongs to this attachment: run DEL first",
                    own.name
                )));
            }
            (Err(e), _) if e.is_exists() => {
                container.must_be_free(wanted.attachment.ifname)?;
                return Err(e);
            }
            (Err(e), _) => return Err(e),
        }
    }
    Err(refused.unwrap_or_else(|| Error::internal("no name is free for the host's end of the veth pair")))
}

/// Names the owner and sets the port's flags; reads the container's end.
fn finish(host: &mut Handle, container: &mut Container, wanted: &Wanted<'_>, link: Link) -> Result<Pair> {
    quiet_ipv6(&link.name, wanted.is_gateway);
    let port = (wanted.port != PortFlags::default()).then_some(wanted.port);
    host.apply(&[
        Change::SetLink(SetLink {
            alias: Some(alias(&wanted.attachment, &wanted.addresses)),
            port,
            ..SetLink::of(link.dev())
        }),
        Change::SetLink(SetLink { up: Some(true), ..SetLink::of(link.dev()) }),
    ])?;
    let inside = container.rtnl.link(wanted.attachment.ifname)?;
    let inside = inside.ok_or_else(|| Error::internal("the container's end of the veth pair vanished"))?;
    Ok(Pair { host: link, container: inside })
}

/// Makes a host-side link take no routes from containers, and with `is_gateway` use its IPv6 addresses without duplicate
/// address detection. Best effort: a kernel without IPv6 has no such files.
pub fn quiet_ipv6(link: &str, is_gateway: bool) {
    let _ = sysctl::write(&format!("net/ipv6/conf/{link}/accept_ra"), "0");
    if is_gateway {
        let _ = sysctl::write(&format!("net/ipv6/conf/{link}/accept_dad"), "0");
    }
}

/// Whether a veth under one of the attachment's names is its own: the alias says so, or there is none: a Go plugin gives
/// none, and an ADD can have been killed before it could be set.
fn belongs(link: &Link, of: &Attachment<'_>) -> bool {
    link.kind == "veth"
        && (link.alias.is_empty() || Owner::parse(&link.alias).is_some_and(|owner| owner.is(of)))
}

/// The host ends of an attachment: one, or none; more only after an ADD that was killed.
///
/// # Errors
/// The kernel cannot be asked.
pub fn host_ends(host: &mut Handle, of: &Attachment<'_>) -> Result<Vec<Link>> {
    let steps = host_names(of).map(|name| Step::Link(Dev::named(name)));
    let links = host.exchange(&steps)?.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(links.into_iter().flatten().filter(|link| belongs(link, of)).collect())
}

/// The other end of the pair that `inside` is of; `None` for a link of another kind, and when that end is not on the host:
/// indexes mean nothing elsewhere.
///
/// # Errors
/// The kernel cannot be asked.
pub fn peer(host: &mut Handle, inside: &Link) -> Result<Option<Link>> {
    let Some(index) = inside.peer.filter(|_| inside.kind == "veth") else { return Ok(None) };
    Ok(host.link_by_index(index)?.filter(|end| end.kind == "veth" && end.peer == Some(inside.index)))
}

/// Removes the pair, wherever an end of it is found: the host's, or for one that a Go plugin made the container's.
///
/// # Errors
/// What is there but cannot be removed.
pub fn remove(kernel: &mut Kernel, req: &Request, ends: &[Link]) -> Result<()> {
    match ends.is_empty() {
        true => remove_container_end(kernel, req),
        false => remove_host_ends(kernel, ends),
    }
}

/// Removes the container's end of a pair whose host end does not say that it is the attachment's: a Go plugin's. The path
/// may name another container's namespace by now: what is no veth, has an alias (as a device that host-device has moved) or
/// another owner stays.
///
/// # Errors
/// It is there but cannot be removed.
pub fn remove_container_end(kernel: &mut Kernel, req: &Request) -> Result<()> {
    let wait = kernel.waits();
    let Some(mut container) = Container::find(req)? else { return Ok(()) };
    let Some(link) = container.rtnl.link(&req.ifname)? else { return Ok(()) };
    let of = Attachment::of(req);
    let owner = peer(kernel.host()?, &link)?.and_then(|end| Owner::parse(&end.alias));
    if !belongs(&link, &of) || owner.is_some_and(|owner| !owner.is(&of)) {
        return Ok(());
    }
    first_failure(remove_links(&mut container.rtnl, &[link.dev()], wait)?)
}

/// Removes host ends, and with them the ends in the containers.
///
/// # Errors
/// What is there but cannot be removed.
pub fn remove_host_ends(kernel: &mut Kernel, ends: &[Link]) -> Result<()> {
    let removal = begin_removal_of_host_ends(kernel, ends)?;
    finish_removal(kernel, removal)
}

/// Starts to remove host ends: the kernel works on it while the caller does something else.
///
/// # Errors
/// It cannot be begun.
pub fn begin_removal_of_host_ends(kernel: &mut Kernel, ends: &[Link]) -> Result<Removal> {
    let wait = kernel.waits();
    let devs: Vec<Dev> = ends.iter().map(Link::dev).collect();
    begin_removal(kernel.host()?, &devs, wait)
}

/// Returns when the links are gone.
///
/// # Errors
/// What is there but cannot be removed.
pub fn finish_removal(kernel: &mut Kernel, removal: Removal) -> Result<()> {
    first_failure(removal.finish(kernel.host()?)?)
}

fn first_failure(outcomes: Vec<Result<()>>) -> Result<()> {
    outcomes.into_iter().try_for_each(|outcome| outcome.unless_gone().map(drop))
}

/// Whether a link is the host end of an attachment of the network that is not among the valid ones.
pub fn is_stale(link: &Link, network: &str, valid: &[Attachment<'_>]) -> bool {
    let owner = Owner::parse(&link.alias);
    owner.is_some_and(|owner| owner.is_on(network) && !valid.iter().any(|attachment| owner.is(attachment)))
}
