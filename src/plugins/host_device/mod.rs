//! host-device: a device of the host becomes the container's, until DEL (reference: main-plugins.md section 16).

mod conf;
mod moves;
mod record;
mod sysfs;

use std::cmp::Reverse;
use std::path::Path;

use self::conf::{Conf, Selector};
use self::record::Kept;
pub use self::record::Record;
use self::sysfs::{Device, Sysfs};
use super::keys::Key;
use super::{Kind, Plugin};
use crate::attach::container::{Container, Ipv6, wait_usable};
use crate::attach::undo::{Undo, or_take_back};
use crate::attach::verify::{self, difference};
use crate::attach::{Attachment, address, ipam, state};
use crate::cni::{CniResult, Code, Error, Interface, Request, Result, ValidAttachment};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{Handle, Link, Mac};

/// Number of the interface in the result: the only one.
const CONTAINER: i64 = 0;

/// The plugin.
pub struct HostDevice;

impl Plugin for HostDevice {
    fn name(&self) -> &'static str {
        "host-device"
    }

    fn kind(&self) -> Kind {
        Kind::Main
    }

    fn about(&self) -> &'static str {
        "moves a device of the host into the container, and back"
    }

    fn keys(&self) -> &'static [Key] {
        conf::KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        conf::CAPABILITIES
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::new(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(req)?;
        CniResult::fits(conf.ipam.is_some(), req.config.version)?;
        let mut container = Container::open(req)?;
        match find(kernel.host()?, &conf)? {
            Found::Userspace { pci_id } => {
                or_take_back(kernel, |kernel, undo| userspace(req, &conf, pci_id, kernel, undo))
            }
            Found::Link { link, pci_id } => {
                container.must_be_free(&req.ifname)?;
                or_take_back(kernel, |kernel, undo| {
                    attach(req, &conf, &mut container, &link, pci_id, kernel, undo)
                })
            }
        }
    }

    /// The address stays reserved as long as the device cannot leave the container: somebody may still answer for it.
    /// (Only what is released over the device itself is released before.)
    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let plugin = req.config.ipam();
        if let Ok(Some(plugin)) = &plugin
            && ipam::needs_link(plugin)
        {
            let released = ipam::del(plugin, req, kernel);
            return Error::all(released.err().into_iter().chain(detach(req, kernel).err()).collect())
                .map_or(Ok(()), Err);
        }
        detach(req, kernel)?;
        plugin?.map_or(Ok(()), |plugin| ipam::del(&plugin, req, kernel))
    }

    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        check(req, &Conf::new(req)?, kernel)
    }

    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let valid = req.config.valid_attachments()?;
        ipam::around(req, kernel, ipam::forward, |kernel| {
            valid.and_then(|valid| collect(req, &valid, kernel).err()).into_iter().collect()
        })
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        if conf.selector.is_some() {
            kernel.host().and_then(|host| find(host, &conf)).map_err(|e| e.with_code(Code::NOT_AVAILABLE))?;
        }
        conf.ipam.as_deref().map_or(Ok(()), |plugin| ipam::forward(plugin, req, kernel))
    }
}

/// What the records in a directory (`dataDir`; `None`: the default) tell of devices that were moved, the latest first: what
/// an earlier one says of the same device is over.
pub fn moved(dir: Option<&str>) -> Vec<Record> {
    let mut kept = record::kept(Path::new(dir.unwrap_or(conf::DATA_DIR))).unwrap_or_default();
    kept.sort_by_key(|kept| Reverse(kept.written));
    kept.into_iter().map(|kept| kept.record).collect()
}

/// The device that the configuration names.
enum Found {
    /// It is an interface of the host.
    Link { link: Link, pci_id: String },
    /// It has a user-space driver (DPDK): no interface, nothing to move.
    Userspace { pci_id: String },
}

fn find(host: &mut Handle, conf: &Conf) -> Result<Found> {
    let selector = conf.device()?;
    let sysfs = Sysfs::new();
    let by_sysfs = match (selector, conf.userspace) {
        // The driver of a device that is named by its PCI address decides.
        (Selector::Name(_) | Selector::Hwaddr(_) | Selector::KernelPath(_), true) => {
            return Ok(Found::Userspace { pci_id: String::new() });
        }
        _ => sysfs.find(selector)?,
    };
    let missing = |what: String| {
        Error::config(what).with_details("another container may have it: then its DEL gives it back")
    };
    let (link, pci_id) = match (selector, by_sysfs) {
        (_, Some((Device::Userspace, pci_id))) => return Ok(Found::Userspace { pci_id }),
        (_, Some((Device::Link(name), pci_id))) => {
            let link = host.link(&name)?;
            (link.ok_or_else(|| missing(format!("there is no interface {name:?} on the host")))?, pci_id)
        }
        (Selector::Hwaddr(mac), None) => {
            let link = by_mac(host.links(None)?, *mac);
            let missing = || missing(format!("hwaddr: there is no interface with {mac} on the host"));
            (link.ok_or_else(missing)?, String::new())
        }
        (Selector::Name(name), None) => {
            let link = host.link(name)?;
            let missing = || missing(format!("device: there is no interface {name:?} on the host"));
            (link.ok_or_else(missing)?, String::new())
        }
        (selector, None) => return Err(Error::internal(format!("{selector:?} names no interface"))),
    };
    let pci_id = if pci_id.is_empty() { sysfs.pci_of(&link.name) } else { pci_id };
    Ok(Found::Link { link, pci_id })
}

/// The interface of this address; hardware before bridges and the like, which take the address of their ports.
fn by_mac(links: Vec<Link>, mac: Mac) -> Option<Link> {
    let mut same: Vec<Link> = links.into_iter().filter(|link| link.mac == Some(mac)).collect();
    same.sort_by_key(|link| !link.kind.is_empty());
    same.into_iter().next()
}

/// Asks for addresses; what takes them back is pushed on `undo`.
fn addresses<'a>(
    req: &'a Request,
    conf: &'a Conf,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let Some(plugin) = &conf.ipam else { return Ok(CniResult::default()) };
    let mut result = ipam::add(plugin, req, kernel, undo)?;
    for ip in &mut result.ips {
        ip.interface = Some(CONTAINER);
    }
    Ok(result)
}

/// Nothing is moved: who uses the device finds it, and its addresses, in the result.
fn userspace<'a>(
    req: &'a Request,
    conf: &'a Conf,
    pci_id: String,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let mut result = addresses(req, conf, kernel, undo)?;
    result.interfaces = vec![Interface {
        name: req.ifname.clone(),
        sandbox: req.netns.clone(),
        pci_id,
        ..Interface::default()
    }];
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// Moves the device; every step that leaves something is pushed on `undo`.
fn attach<'a>(
    req: &'a Request,
    conf: &'a Conf,
    container: &mut Container,
    link: &Link,
    pci_id: String,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let of = Attachment::of(req);
    let dir = conf::data_dir(req)?;
    let kept = record::kept(&dir)?;
    let path = match record::own(&kept, &of) {
        Some(earlier) if earlier.record.device != link.name => {
            return Err(Error::internal(format!(
                "the device {} still belongs to this attachment: run DEL first",
                earlier.record.device
            )));
        }
        Some(earlier) => earlier.path.clone(),
        None => record::path(&dir, &of, &kept),
    };
    let over_link = conf.ipam.as_deref().is_some_and(ipam::needs_link);
    let mut result = if over_link { CniResult::default() } else { addresses(req, conf, kernel, undo)? };
    Record::of(kernel.host()?, link, &of, &req.netns)?.write(&path)?;
    undo.push(move |kernel| detach(req, kernel));
    moves::take(kernel.host()?, container, link, &req.ifname)?;
    if over_link {
        result = addresses(req, conf, kernel, undo)?;
    }
    let nets: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();

    let inside = container.rtnl.link(&req.ifname)?;
    let inside =
        inside.ok_or_else(|| Error::internal(format!("{} vanished while it was moved", link.name)))?;
    let v6 = nets.iter().any(|net| net.addr().is_ipv6());
    let watch = container.prepare(if v6 { Ipv6::NoDad } else { Ipv6::None }, &req.ifname)?;
    container.rtnl.apply(&address::changes(&inside.dev(), &result, CONTAINER, false)?)?;
    wait_usable(watch, inside.index, &nets)?;
    let inside = container.rtnl.link_by_index(inside.index)?.unwrap_or(inside);
    if !nets.is_empty() && inside.is_oper_up() {
        container.announce(&inside)?;
    }

    result.interfaces = vec![Interface {
        name: req.ifname.clone(),
        mac: inside.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: i64::from(inside.mtu),
        sandbox: req.netns.clone(),
        pci_id,
        ..Interface::default()
    }];
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// Gives the attachment's device back, if it has one.
fn detach(req: &Request, kernel: &mut Kernel) -> Result<()> {
    let (dir, of) = (conf::data_dir(req)?, Attachment::of(req));
    let kept = record::kept(&dir)?;
    if let Some(own) = record::own(&kept, &of) {
        return restore(&kept, own, req, kernel);
    }
    let conf = Conf::new(req).ok();
    let userspace = conf.as_ref().is_some_and(|conf| is_userspace(kernel, conf));
    // A device that a Go plugin took, which has the host's name as its alias.
    let taken = |links: &[Link]| {
        links.iter().find(|link| link.name == req.ifname && moves::has_name_as_alias(link)).cloned()
    };
    let inside = if userspace { None } else { held(&kept, None, req, taken)? };
    if let Some((container, link)) = inside {
        moves::give_back(kernel, &Record::of_alias(&link, &req.ifname), Some((container, link)))?;
    } else if let Some(conf) = conf.filter(|_| !userspace) {
        returned(kernel, &conf, &kept)?;
    }
    state::remove(&record::path(&dir, &of, &kept))
}

/// Gives the device of a record back, from where the request says that it is, or the record. The record stays as long as
/// the device may still come.
fn restore(kept: &[Kept], own: &Kept, req: &Request, kernel: &mut Kernel) -> Result<()> {
    let pick = |links: &[Link]| own.record.pick(links).cloned();
    let mut inside = held(kept, Some(own), req, pick)?;
    if inside.is_none() && req.netns != own.record.netns {
        inside = held(kept, Some(own), &Request { netns: own.record.netns.clone(), ..req.clone() }, pick)?;
    }
    match moves::give_back(kernel, &own.record, inside)? {
        true => state::remove(&own.path),
        false => Ok(()),
    }
}

/// The device in the request's namespace: nothing to fetch from the one this process is in, nor what is another
/// attachment's.
fn held(
    kept: &[Kept],
    own: Option<&Kept>,
    req: &Request,
    pick: impl Fn(&[Link]) -> Option<Link>,
) -> Result<Option<(Container, Link)>> {
    let Some(mut container) = Container::find(req)? else { return Ok(None) };
    if container.netns.is_current()? {
        return Ok(None);
    }
    let links = container.rtnl.links(None)?;
    let link = pick(&links).filter(|link| !record::is_anothers(kept, own, &container.netns, link, &links));
    Ok(link.map(|link| (container, link)))
}

/// Whether the device has a user-space driver, as far as can be told.
fn is_userspace(kernel: &mut Kernel, conf: &Conf) -> bool {
    match conf.selector {
        None | Some(Selector::Name(_) | Selector::Hwaddr(_) | Selector::KernelPath(_)) => conf.userspace,
        Some(_) => {
            let found = kernel.host().and_then(|host| find(host, conf));
            matches!(found, Ok(Found::Userspace { .. }))
        }
    }
}

/// A device that a Go plugin took and that came back with the end of its namespace, under the name it had there: it still
/// has the alias. What another attachment has a record of waits for that one's DEL, which restores more.
fn returned(kernel: &mut Kernel, conf: &Conf, kept: &[Kept]) -> Result<()> {
    let host = kernel.host()?;
    let link = match &conf.selector {
        Some(Selector::Name(name)) if host.link(name)?.is_none() => {
            host.links(None)?.into_iter().find(|link| link.alias == *name)
        }
        None | Some(Selector::Name(_)) => None,
        // Found or not, DEL has nothing more to do.
        Some(_) => match find(host, conf) {
            Ok(Found::Link { link, .. }) => Some(link).filter(moves::has_name_as_alias),
            Ok(Found::Userspace { .. }) | Err(_) => None,
        },
    };
    match link.filter(|link| !kept.iter().any(|kept| kept.record.device == link.alias)) {
        Some(link) => moves::give_back(kernel, &Record::of_alias(&link, ""), None).map(drop),
        None => Ok(()),
    }
}

/// Gives back the devices of attachments that are not valid any more.
fn collect(req: &Request, valid: &[ValidAttachment], kernel: &mut Kernel) -> Result<()> {
    let kept = record::kept(&conf::data_dir(req)?)?;
    let is_stale = |Kept { record, .. }: &&Kept| {
        let named = |v: &ValidAttachment| v.container_id == record.container_id && v.ifname == record.ifname;
        record.network == req.config.name && !valid.iter().any(named)
    };
    let restored = kept.iter().filter(is_stale).map(|stale| {
        restore(&kept, stale, &Request { netns: stale.record.netns.clone(), ..req.clone() }, kernel)
    });
    Error::all(restored.filter_map(Result::err).collect()).map_or(Ok(()), Err)
}

/// Compares the interface, its addresses and routes with what ADD made.
fn check(req: &Request, conf: &Conf, kernel: &mut Kernel) -> Result<()> {
    if let Some(plugin) = &conf.ipam {
        ipam::forward(plugin, req, kernel)?;
    }
    let prev = verify::prev_result(req)?;
    let (mut container, index, interface) = verify::sandbox(req, &prev)?;
    if is_userspace(kernel, conf) {
        return Ok(());
    }
    let link = container.rtnl.link(&req.ifname)?;
    let link = link.ok_or_else(|| difference(format!("interface {:?} is missing", req.ifname)))?;
    let expected: Option<Mac> = interface.mac.parse().ok();
    if let (Some(expected), Some(found)) = (expected, link.mac)
        && expected != found
    {
        return Err(difference(format!("interface {:?} has MAC {found}, expected {expected}", link.name)));
    }
    verify::is_up(&link)?;
    verify::addresses(&mut container.rtnl, &link, verify::expected_addresses(&prev, index))?;
    verify::routes(&mut container.rtnl, &link, &prev)
}
