//! The container's interface: made, and removed.

use ipnet::IpNet;
use nix::errno::Errno;

use crate::attach::Attachment;
use crate::attach::container::Container;
use crate::attach::owner::{Owner, alias, host_names};
use crate::cni::{Code, Error, Request, Result, ResultExt};
use crate::kernel::Kernel;
use crate::kernel::detach::remove_links;
use crate::kernel::rtnl::{AddSubLink, Change, Dev, Handle, Link, Mac, SetLink, Step, SubKind};

/// What an interface shall look like.
pub struct Wanted<'a> {
    /// Whose it is.
    pub attachment: Attachment<'a>,
    /// Kind and settings.
    pub kind: SubKind,
    /// The link below; `None` for a dummy.
    pub lower: Option<&'a Link>,
    /// The link below is in the container too.
    pub in_container: bool,
    /// Bytes; `None` for the link below's.
    pub mtu: Option<u32>,
    /// `None` for a random one, or the link below's.
    pub mac: Option<Mac>,
    /// The container's addresses, remembered in the alias.
    pub addresses: &'a [IpNet],
}

/// Makes the interface straight in the container: down, with its final name, owner, MTU and MAC.
///
/// # Errors
/// The kernel refuses; nothing is left then.
pub fn make(kernel: &mut Kernel, container: &mut Container, wanted: &Wanted<'_>) -> Result<Link> {
    let name = add(kernel, container, wanted)?;
    let mut made = Dev::named(name);
    let link = finish(container, wanted, &mut made);
    if link.is_err() {
        // The first failure is the one to report.
        let _ = container.rtnl.apply(&[Change::DelLink(made)]);
    }
    link
}

/// Creates it: under its final name if that is possible, else under a name that DEL can derive as well. Returns the name.
fn add(kernel: &mut Kernel, container: &mut Container, wanted: &Wanted<'_>) -> Result<String> {
    let ifname = wanted.attachment.ifname;
    let change = |name: &str| {
        Change::AddSubLink(AddSubLink {
            name: name.to_owned(),
            mtu: wanted.mtu,
            mac: wanted.mac,
            lower: wanted.lower.map(Link::dev),
            netns: (!wanted.in_container).then(|| container.netns.for_peer()),
            kind: wanted.kind,
        })
    };
    let explain = |e: Error| explain(e, wanted);
    if wanted.in_container {
        return container.rtnl.apply(&[change(ifname)]).map(|()| ifname.to_owned()).map_err(explain);
    }
    match kernel.host()?.apply(&[change(ifname)]) {
        Ok(()) => Ok(ifname.to_owned()),
        // Before Linux 6.15 the name must be free in the namespace of the request too, where the host's own link has it.
        Err(e) if e.is_exists() && kernel.host()?.link(ifname)?.is_some() => {
            let [name, ..] = host_names(&wanted.attachment);
            kernel.host()?.apply(&[change(&name)]).map(|()| name).map_err(explain)
        }
        Err(e) => Err(explain(e)),
    }
}

/// Names the owner, gives it the final name, and what the kernel did not take at creation. `made` is what it can be found
/// by, whatever fails.
fn finish(container: &mut Container, wanted: &Wanted<'_>, made: &mut Dev) -> Result<Link> {
    let ifname = wanted.attachment.ifname;
    if made.name != ifname {
        *made = container.rtnl.link(&made.name)?.ok_or_else(|| vanished(&made.name))?.dev();
    }
    let set = Change::SetLink(SetLink {
        alias: Some(alias(&wanted.attachment, wanted.addresses)),
        rename: (made.name != ifname).then(|| ifname.to_owned()),
        ..SetLink::of(made.clone())
    });
    let link = set_and_read(&mut container.rtnl, set, ifname)?;
    // A macvlan in mode passthru starts with the address of the link below, whatever it was asked for.
    let mac = wanted.mac.filter(|mac| link.mac != Some(*mac));
    let mtu = wanted.mtu.filter(|mtu| link.mtu != *mtu);
    if mac.is_none() && mtu.is_none() {
        return Ok(link);
    }
    let set = Change::SetLink(SetLink { mac, mtu, ..SetLink::of(link.dev()) });
    set_and_read(&mut container.rtnl, set, ifname)
}

fn set_and_read(rtnl: &mut Handle, set: Change, name: &str) -> Result<Link> {
    let mut outcomes = rtnl.exchange(&[Step::Change(set), Step::Link(Dev::named(name))])?.into_iter();
    outcomes.next().unwrap_or(Ok(None))?;
    outcomes.next().unwrap_or(Ok(None))?.ok_or_else(|| vanished(name))
}

fn vanished(name: &str) -> Error {
    Error::internal(format!("{name} vanished while it was being set up"))
}

/// Says what the kernel's answer to a creation means.
fn explain(err: Error, wanted: &Wanted<'_>) -> Error {
    let kind = wanted.kind.name();
    let master = wanted.lower.map_or("", |link| &link.name);
    match (err.errno(), wanted.kind) {
        (Some(Errno::EOPNOTSUPP), _) => {
            let what = format!("type: this kernel has no links of kind {kind}");
            err.context(what).with_code(Code::UNSUPPORTED_FIELD)
        }
        (Some(Errno::EEXIST), SubKind::Vlan { id }) => {
            err.context(format!("vlanId: another link may have VLAN {id} of {master:?}"))
        }
        (Some(Errno::EBUSY), _) => err.context(format!(
            "master: {master:?} is a port of something else, or carries links of another kind than {kind}"
        )),
        (Some(Errno::EINVAL), SubKind::Macvlan { .. }) => err.context(format!(
            "master: {master:?} cannot carry it; a macvlan of mode passthru needs the master for itself"
        )),
        _ => err,
    }
}

/// The links in the container that an ADD for this attachment made: one, or none; with another name than `CNI_IFNAME`
/// only after an ADD that was killed. A link without owner counts if it is of this kind, as the Go plugins make it.
fn found(container: &mut Container, of: &Attachment<'_>, kind: &str) -> Result<Vec<Link>> {
    let [temporary, ..] = host_names(of);
    let steps = [of.ifname, temporary.as_str()].map(|name| Step::Link(Dev::named(name)));
    let links = container.rtnl.exchange(&steps)?.into_iter().collect::<Result<Vec<_>>>()?;
    // The path may name another container's namespace by now.
    let is_own = |link: &Link| match Owner::parse(&link.alias) {
        Some(owner) => owner.is(of),
        None => link.kind == kind,
    };
    Ok(links.into_iter().flatten().filter(is_own).collect())
}

/// Removes the interface, if the namespace is (still) there: the kernel removes it with the namespace.
///
/// # Errors
/// It is there but cannot be removed.
pub fn remove(kernel: &Kernel, req: &Request, kind: &str) -> Result<()> {
    let Some(mut container) = Container::find(req)? else { return Ok(()) };
    let links = found(&mut container, &Attachment::of(req), kind)?;
    remove_all(&mut container.rtnl, &links, kernel.waits())
}

/// Removes links of one namespace; `wait` as for [`remove_links`].
///
/// # Errors
/// What is there but cannot be removed.
pub fn remove_all(rtnl: &mut Handle, links: &[Link], wait: bool) -> Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    let devs: Vec<Dev> = links.iter().map(Link::dev).collect();
    let outcomes = remove_links(rtnl, &devs, wait)?;
    outcomes.into_iter().try_for_each(|outcome| outcome.unless_gone().map(drop))
}
