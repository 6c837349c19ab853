//! A device into the container and back: each way is one message, which renames it on arrival.
//!
//! The Go plugin moves it through a third namespace, where a crash destroys or loses it. The kernel moves and renames under
//! one lock: nobody sees the device under a name that is not its own.

use std::time::Duration;

use super::record::Record;
use crate::attach::container::Container;
use crate::attach::owner::Owner;
use crate::cni::{Error, Result, names};
use crate::kernel::Kernel;
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{Change, Event, Handle, Link, LinkWatch, SetLink, Step};

/// How long hardware may take until it is back from a namespace that has ended. It is a matter of milliseconds, unless a
/// process still holds the namespace.
const RETURN_BUDGET: Duration = Duration::from_secs(1);

/// `ip link set dev DEVICE netns CONTAINER name IFNAME alias DEVICE`.
///
/// # Errors
/// The kernel refuses.
pub fn take(host: &mut Handle, container: &Container, link: &Link, ifname: &str) -> Result<()> {
    host.apply(&[Change::SetLink(SetLink {
        netns: Some(container.netns.for_peer()),
        alias: Some(link.name.clone()),
        rename: Some(ifname.to_owned()),
        ..SetLink::of(link.dev())
    })])
}

/// Gives a device back to the host, wherever it is: a link in a container, or on the host under another name, where the
/// kernel puts it when its namespace ends. Then restores what the record tells. A device that is at home is left as it is.
///
/// False when the device is nowhere, but may still come: the record will be needed.
///
/// # Errors
/// Another link has its name: it stays where it is. What could not be restored, when everything was tried.
pub fn give_back(kernel: &mut Kernel, record: &Record, inside: Option<(Container, Link)>) -> Result<bool> {
    if let Some((mut container, link)) = inside {
        let host = Netns::current()?;
        must_be_free(
            kernel.host()?,
            record,
            &format!("stays in {} as {}", container.netns.path(), link.name),
        )?;
        container.rtnl.apply(&[Change::SetLink(SetLink {
            netns: Some(host.for_peer()),
            alias: Some(record.device.clone()),
            rename: Some(record.device.clone()),
            ..SetLink::of(link.dev())
        })])?;
    }
    let host = kernel.host()?;
    let link = match find(host, record)? {
        Place::Host(link) => link,
        Place::Home => return Ok(true),
        Place::Nowhere if !record.hardware => return Ok(true),
        Place::Nowhere => match wait_for(host, record)? {
            Some(link) => link,
            None => return Ok(false),
        },
    };
    let link = if link.name == record.device { link } else { rename(host, link, record)? };
    let steps: Vec<Step> = record.changes(&link, host)?.into_iter().map(Step::Change).collect();
    let errors = host.exchange(&steps)?.into_iter().filter_map(Result::err).filter(|e| !e.is_exists());
    let failed = Error::all(errors.collect());
    failed.map_or(Ok(true), |e| Err(e.context(format_args!("{} is back, but not as it was", link.name))))
}

/// Where a device is that is not in its container.
enum Place {
    /// On the host, with its name as its alias: something is still to be done.
    Host(Link),
    /// On the host, and nothing is to be done; or another link has its name, and it is nowhere.
    Home,
    /// Not on the host.
    Nowhere,
}

fn find(host: &mut Handle, record: &Record) -> Result<Place> {
    let named = host.link(&record.device)?;
    let taken = match named {
        Some(link) if link.alias == record.device => return Ok(Place::Host(link)),
        other => other.is_some(),
    };
    let stray = host.links(None)?.into_iter().find(|link| link.alias == record.device);
    Ok(match stray {
        Some(link) => Place::Host(link),
        None if taken => Place::Home,
        None => Place::Nowhere,
    })
}

/// Hardware of a namespace that has just ended: the kernel moves it back a little later (`cleanup_net`).
fn wait_for(host: &mut Handle, record: &Record) -> Result<Option<Link>> {
    let mut watch = LinkWatch::open()?;
    // It may have come before the notifications were asked for.
    if let Place::Host(link) = find(host, record)? {
        return Ok(Some(link));
    }
    let came = watch.wait(RETURN_BUDGET, |event| match event {
        Event::New(link) if link.alias == record.device => Some(()),
        Event::Lost => Some(()),
        Event::New(_) | Event::Gone { .. } => None,
    })?;
    match (came, find(host, record)?) {
        (Some(()), Place::Host(link)) => Ok(Some(link)),
        _ => Ok(None),
    }
}

fn rename(host: &mut Handle, link: Link, record: &Record) -> Result<Link> {
    must_be_free(host, record, &format!("stays {}", link.name))?;
    let down = SetLink { up: Some(false), ..SetLink::of(link.dev()) };
    let named = SetLink { rename: Some(record.device.clone()), ..SetLink::of(link.dev()) };
    host.apply(&[Change::SetLink(down), Change::SetLink(named)])?;
    Ok(Link { name: record.device.clone(), flags: 0, ..link })
}

fn must_be_free(host: &mut Handle, record: &Record, otherwise: &str) -> Result<()> {
    match host.link(&record.device)? {
        None => Ok(()),
        Some(_) => Err(Error::internal(format!(
            "another link on the host has the name {}: the device {otherwise}",
            record.device
        ))),
    }
}

/// Whether the alias can be the name that the link had on the host.
pub fn has_name_as_alias(link: &Link) -> bool {
    names::check_ifname(&link.alias).is_ok() && Owner::parse(&link.alias).is_none()
}
