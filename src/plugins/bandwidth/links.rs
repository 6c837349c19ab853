//! The links of a limited attachment: the host's end of its veth pair, and the `ifb` that what the container sends goes
//! through.

use sha2::{Digest, Sha512};

use crate::attach::Attachment;
use crate::attach::container::Container;
use crate::attach::owner::Owner;
use crate::attach::{redirect, veth};
use crate::cni::{CniResult, Error, Request, Result, ResultExt, ValidAttachment};
use crate::hex::hex;
use crate::kernel::Kernel;
use crate::kernel::detach::remove_links;
use crate::kernel::rtnl::tc::{TcHandle, is_no_qdisc};
use crate::kernel::rtnl::{Dev, Handle, Link, Step};

use super::shape;

/// How the names of all these links start.
const PREFIX: &str = "bwp";

/// The names an attachment's `ifb` may have: the Go plugin's, which all interfaces of a container on a network share, and
/// one of its own.
pub fn ifb_names(of: &Attachment<'_>) -> [String; 2] {
    let Attachment { network, container_id, ifname } = of;
    [format!("{network}{container_id}"), format!("{network}/{container_id}/{ifname}")]
        .map(|text| format!("{PREFIX}{}", hex(&Sha512::digest(text)[..6])))
}

/// The host's end of the container's interface.
///
/// # Errors
/// The interface is missing or no veth, or its other end is not on the host or not in the result.
pub fn host_end(
    ifname: &str,
    prev: &CniResult,
    container: &mut Container,
    host: &mut Handle,
) -> Result<Link> {
    let path = container.netns.path().to_owned();
    let Some(inside) = container.rtnl.link(ifname)? else {
        return Err(Error::internal(format!("there is no interface {ifname:?} in {path}")));
    };
    if inside.kind != "veth" {
        return Err(Error::config(format!(
            "interface {ifname:?} is not a veth but {:?}: only what goes through a veth pair can be limited",
            inside.kind
        )));
    }
    let Some(end) = veth::peer(host, &inside)? else {
        return Err(Error::internal(format!("the other end of {ifname:?} is not on the host")));
    };
    match prev.interfaces.iter().any(|i| i.name == end.name && i.sandbox.is_empty()) {
        true => Ok(end),
        false => Err(Error::config(format!(
            "prevResult: the host's end of {ifname:?}, {}, is not among its interfaces",
            end.name
        ))),
    }
}

/// The host's ends of an attachment, for DEL: ours by their names; else, as the Go plugins make it, by the container's.
///
/// # Errors
/// The kernel cannot be asked.
pub fn host_ends(req: &Request, kernel: &mut Kernel) -> Result<Vec<Link>> {
    let of = Attachment::of(req);
    let ends = veth::host_ends(kernel.host()?, &of)?;
    if !ends.is_empty() {
        return Ok(ends);
    }
    let Some(mut container) = Container::find(req)? else { return Ok(Vec::new()) };
    let Some(inside) = container.rtnl.link(&req.ifname)?.filter(|link| link.kind == "veth") else {
        return Ok(Vec::new());
    };
    // The path may name another container's namespace by now: its interface says so at its host end.
    let end = veth::peer(kernel.host()?, &inside)?;
    let ours = |end: &Link| Owner::parse(&end.alias).is_none_or(|owner| owner.is(&of));
    Ok(end.into_iter().filter(ours).collect())
}

/// The links that may be an attachment's `ifb`: its alias names it, or there is none (the Go plugin sets none).
///
/// # Errors
/// The kernel cannot be asked.
pub fn ifbs(host: &mut Handle, of: &Attachment<'_>) -> Result<Vec<Link>> {
    let steps = ifb_names(of).map(|name| Step::Link(Dev::named(name)));
    let links = host.exchange(&steps)?.into_iter().collect::<Result<Vec<_>>>()?;
    let may_be = |link: &Link| {
        let owner = Owner::parse(&link.alias);
        link.kind == "ifb" && (link.alias.is_empty() || owner.is_some_and(|owner| owner.is(of)))
    };
    Ok(links.into_iter().flatten().filter(may_be).collect())
}

/// Whether one of [`ifbs`] is the attachment's also when its end sends nothing there. One without alias that is up is the Go
/// plugin's: it may be that of another interface of the container. (Ours get both at once.)
pub fn is_own(of: &Attachment<'_>, ifb: &Link) -> bool {
    let [shared, _] = ifb_names(of);
    ifb.name != shared || !ifb.alias.is_empty() || !ifb.is_up()
}

/// Takes all limits of an attachment away: from the ends that are there, then the `ifb`.
///
/// # Errors
/// All failures together; every step was tried.
pub fn remove(req: &Request, ends: &[Link], kernel: &mut Kernel) -> Result<()> {
    let of = Attachment::of(req);
    let host = kernel.host()?;
    let mut ifbs = ifbs(host, &of)?;
    let mut errors = Vec::new();
    let mut redirected = Vec::new();
    for end in ends {
        match release(host, end, &ifbs) {
            Ok(to) => redirected.extend(to),
            Err(e) => errors.push(e),
        }
    }
    ifbs.retain(|ifb| is_own(&of, ifb) || ends.is_empty() || redirected.contains(&ifb.index));
    errors.extend(remove_all(kernel, &ifbs).err());
    Error::all(errors).map_or(Ok(()), Err)
}

/// Removes links, those that are gone already too.
///
/// # Errors
/// What is there but cannot be removed.
pub fn remove_all(kernel: &mut Kernel, links: &[Link]) -> Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    let wait = kernel.waits();
    let devs: Vec<Dev> = links.iter().map(Link::dev).collect();
    let outcomes = remove_links(kernel.host()?, &devs, wait)?;
    outcomes.into_iter().try_for_each(|outcome| outcome.unless_gone().map(drop))
}

/// Takes the limits off a host's end; the indexes of the links that what arrives was redirected to.
fn release(host: &mut Handle, end: &Link, ifbs: &[Link]) -> Result<Vec<u32>> {
    if host.qdisc(end.index, TcHandle::ROOT)?.is_some_and(|qdisc| shape::is_ours(&qdisc)) {
        match host.apply(&[shape::stop(&end.dev())]) {
            Err(e) if !is_no_qdisc(&e) => return Err(e),
            _ => {}
        }
    }
    let indexes: Vec<u32> = ifbs.iter().map(|ifb| ifb.index).collect();
    redirect::stop(host, end, &indexes)
}

/// Removes the `ifb` links of a network that belong to no valid attachment.
///
/// # Errors
/// All failures together; every step was tried.
pub fn collect(network: &str, valid: &[ValidAttachment], kernel: &mut Kernel) -> Result<()> {
    let valid: Vec<Attachment<'_>> = valid
        .iter()
        .map(|v| Attachment { network, container_id: &v.container_id, ifname: &v.ifname })
        .collect();
    let mut links = kernel.host()?.links(Some("ifb"))?;
    links.retain(|link| veth::is_stale(link, network, &valid));
    remove_all(kernel, &links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_is_the_go_plugins() {
        let of = Attachment { network: "n", container_id: "c1", ifname: "eth0" };
        let [go, own] = ifb_names(&of);
        assert_eq!(go, "bwp9b00b9b7c279");
        assert!(own != go && own.len() == 15);
        let [same, other] = ifb_names(&Attachment { ifname: "eth1", ..of });
        assert!(same == go && other != own);
    }
}
