//! vrf: puts the container's interface into a VRF inside the container, which is made when it is first needed and goes
//! with its last interface (reference: ipam-and-meta.md section 10).

mod transfer;

use nix::errno::Errno;
use serde::Deserialize;

use self::transfer::{TABLE_MAIN, transfer};
use super::keys::{Key, Shape, key};
use super::{Kind, Plugin};
use crate::attach::address;
use crate::attach::container::Container;
use crate::attach::undo::or_take_back;
use crate::attach::verify::{self, difference};
use crate::cni::names::check_ifname;
use crate::cni::{CniResult, Code, Error, Request, Result, ResultExt, Version};
use crate::kernel::Kernel;
use crate::kernel::detach::remove_links;
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{AddVrf, Change, Dev, Link, SetLink, Step, free_table, has_kind};

/// Alias of a VRF that was made here. The Go plugin sets none.
const ALIAS: &str = "cni-all vrf";

const KEYS: &[Key] = &[
    key("vrfname", Shape::Ifname, "the VRF's name inside the container").required(),
    key("table", Shape::Int(0, u32::MAX as i64), "its routing table; default: 0, a free one"),
];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    vrfname: String,
    table: u32,
}

/// The configuration, checked.
struct Conf {
    name: String,
    table: Option<u32>,
}

impl Conf {
    fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        if wire.vrfname.is_empty() {
            return Err(Error::config("vrfname: missing; it names the VRF inside the container"));
        }
        check_ifname(&wire.vrfname)
            .map_err(|e| Error::config(format!("vrfname: {:?}: {}", wire.vrfname, e.msg())))?;
        if wire.vrfname == req.ifname {
            return Err(Error::config(format!("vrfname: {:?} is the container's interface", wire.vrfname)));
        }
        Ok(Conf { name: wire.vrfname, table: Some(wire.table).filter(|table| *table != 0) })
    }
}

/// The plugin.
pub struct Vrf;

impl Plugin for Vrf {
    fn name(&self) -> &'static str {
        "vrf"
    }

    fn kind(&self) -> Kind {
        Kind::Meta
    }

    fn about(&self) -> &'static str {
        "puts the container's interface into a VRF with a routing table of its own"
    }

    fn versions(&self) -> &'static [Version] {
        &Version::ALL[3..]
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[]
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::new(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(req)?;
        let prev = req.config.prev_result()?.ok_or_else(|| {
            Error::config("prevResult: missing; vrf must stand behind a plugin that makes an interface")
        })?;
        let mut container = Container::open(req)?;
        let lock = container.netns.lock()?;
        let (vrf, link) = links(&mut container, &conf.name, &req.ifname)?;
        let link = link.ok_or_else(|| {
            Error::internal(format!("there is no interface {:?} in {}", req.ifname, req.netns))
        })?;
        if let Some(vrf) = &vrf {
            is_usable(vrf, &conf)?;
        }
        match (link.master, &vrf) {
            (None, _) => {}
            (Some(master), Some(vrf)) if master == vrf.index => return Ok(prev),
            (Some(master), _) => {
                let master = container.rtnl.link_by_index(master)?.map_or(Dev::indexed(master), |m| m.dev());
                return Err(Error::internal(format!("interface {:?} is a port of {master}", req.ifname)));
            }
        }
        or_take_back(kernel, |_, undo| {
            let there = vrf.as_ref().map(|vrf| vrf.index);
            undo.push(move |kernel| release(req, &mut Container::open(req)?, there, kernel.waits()));
            let vrf = match vrf {
                Some(vrf) => vrf,
                None => create(&mut container, &conf)?,
            };
            let table = vrf.vrf_table.unwrap_or(TABLE_MAIN);
            transfer(&mut container, &link, Some(vrf.dev()), TABLE_MAIN, table)?.map_or(Ok(()), Err)
        })?;
        drop(lock);
        Ok(prev)
    }

    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let Some(mut container) = Container::find(req)? else { return Ok(()) };
        let _lock = container.netns.lock()?;
        if let Some(link) = container.rtnl.link(&req.ifname)?
            && container.is_own(&link, req, kernel.host()?)? == Some(false)
        {
            return Ok(());
        }
        release(req, &mut container, None, kernel.waits())
    }

    fn check(&self, req: &Request, _kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        let prev = verify::prev_result(req)?;
        check(req, &conf, &prev, &mut Container::open(req)?)
    }

    /// VRFs are in the containers, and go with them.
    fn gc(&self, _req: &Request, _kernel: &mut Kernel) -> Result<()> {
        Ok(())
    }

    /// Tries it in a namespace of its own.
    fn status(&self, req: &Request, _kernel: &mut Kernel) -> Result<()> {
        Conf::new(req)?;
        let tried = Netns::create_unnamed().and_then(|netns| netns.enter(|| has_kind("vrf")));
        match tried.map_err(|e| e.with_code(Code::NOT_AVAILABLE))? {
            true => Ok(()),
            false => Err(Error::new(Code::NOT_AVAILABLE, "the kernel has no VRFs (CONFIG_NET_VRF)")),
        }
    }
}

/// The VRF, or whatever has its name, and the interface.
fn links(container: &mut Container, vrf: &str, ifname: &str) -> Result<(Option<Link>, Option<Link>)> {
    let steps = [vrf, ifname].map(|name| Step::Link(Dev::named(name)));
    let mut found = container.rtnl.exchange(&steps)?.into_iter();
    Ok((found.next().unwrap_or(Ok(None))?, found.next().unwrap_or(Ok(None))?))
}

fn is_usable(vrf: &Link, conf: &Conf) -> Result<()> {
    let name = &conf.name;
    if vrf.kind != "vrf" {
        return Err(Error::config(format!("vrfname: {name:?} is no VRF but {:?}", vrf.kind)));
    }
    match conf.table {
        Some(table) if vrf.vrf_table != Some(table) => Err(Error::config(format!(
            "table: {table}, but the VRF {name:?} is there with table {}",
            vrf.vrf_table.unwrap_or(0)
        ))),
        _ => Ok(()),
    }
}

/// Makes the VRF with the table that was asked for, or the first that nothing uses.
fn create(container: &mut Container, conf: &Conf) -> Result<Link> {
    let table = match conf.table {
        Some(table) => table,
        None => free_table(1, &container.rtnl.tables_in_use()?)
            .ok_or_else(|| Error::internal("no routing table is free"))?,
    };
    let dev = Dev::named(&conf.name);
    let steps = [
        Step::Change(Change::AddVrf(AddVrf { name: conf.name.clone(), table })),
        Step::Change(Change::SetLink(SetLink { alias: Some(ALIAS.to_owned()), ..SetLink::of(dev.clone()) })),
        Step::Link(dev),
    ];
    let mut outcomes = container.rtnl.exchange(&steps)?.into_iter();
    outcomes.next().unwrap_or(Ok(None)).map_err(|e| match e.errno() {
        Some(Errno::EOPNOTSUPP) => e
            .with_code(Code::UNSUPPORTED_FIELD)
            .with_details(format!("vrfname: {}: the kernel has no VRFs (CONFIG_NET_VRF)", conf.name)),
        _ => e,
    })?;
    let vrf = outcomes.nth(1).unwrap_or(Ok(None))?;
    vrf.ok_or_else(|| Error::internal(format!("{} vanished while it was set up", conf.name)))
}

/// Takes the interface out of its VRF, with its routes, and removes the VRFs that have no interface any more but for the one
/// with index `kept`. The configuration may name another one by now, or none.
fn release(req: &Request, container: &mut Container, kept: Option<u32>, wait: bool) -> Result<()> {
    let vrfs = container.rtnl.links(Some("vrf"))?;
    let link = container.rtnl.link(&req.ifname)?;
    let own = vrfs.iter().find(|vrf| link.as_ref().is_some_and(|link| link.master == Some(vrf.index)));
    let left = match (link, own) {
        // What somebody has damaged since cannot all be put back, and that must not keep the interface in.
        (Some(link), Some(vrf)) => {
            let table = vrf.vrf_table.unwrap_or(TABLE_MAIN);
            transfer(container, &link, None, table, TABLE_MAIN).unless_gone().map(drop)
        }
        _ => Ok(()),
    };
    let links = container.rtnl.links(None)?;
    let name = Conf::new(req).map(|conf| conf.name).ok().or_else(|| own.map(|vrf| vrf.name.clone()));
    // One without alias may be the Go plugin's; with another it is somebody's who did not expect it to go.
    let is_ours =
        |vrf: &Link| vrf.alias == ALIAS || (vrf.alias.is_empty() && name.as_ref() == Some(&vrf.name));
    let is_empty = |vrf: &Link| !links.iter().any(|link| link.master == Some(vrf.index));
    let stale = vrfs.iter().filter(|vrf| Some(vrf.index) != kept && is_ours(vrf) && is_empty(vrf));
    let stale: Vec<Dev> = stale.map(Link::dev).collect();
    let removed = match stale.is_empty() {
        true => Vec::new(),
        false => remove_links(&mut container.rtnl, &stale, wait)?,
    };
    let removed = removed.into_iter().filter_map(|outcome| outcome.unless_gone().err());
    Error::all(left.err().into_iter().chain(removed).collect()).map_or(Ok(()), Err)
}

/// Compares the VRF, its table, and the interface's addresses and routes with what ADD made.
fn check(req: &Request, conf: &Conf, prev: &CniResult, container: &mut Container) -> Result<()> {
    let (vrf, link) = links(container, &conf.name, &req.ifname)?;
    let missing = |name: &str| difference(format!("interface {name:?} is missing"));
    let (vrf, link) = (vrf.ok_or_else(|| missing(&conf.name))?, link.ok_or_else(|| missing(&req.ifname))?);
    is_usable(&vrf, conf).map_err(|e| e.with_code(Code::CHECK_FAILED))?;
    if link.master != Some(vrf.index) {
        return Err(difference(format!("interface {:?} is not in the VRF {:?}", req.ifname, conf.name)));
    }
    verify::is_up(&vrf)?;
    let own = prev.interfaces.iter().position(|i| i.name == req.ifname && !i.sandbox.is_empty());
    if let Some(index) = own {
        let expected = verify::expected_addresses(prev, index as i64);
        verify::addresses(&mut container.rtnl, &link, expected)?;
    }
    let mut routes = address::routes(&link.dev(), prev)?;
    for route in routes.iter_mut().filter(|route| route.table.is_none_or(|table| table == TABLE_MAIN)) {
        route.table = vrf.vrf_table;
    }
    verify::specific_routes(&mut container.rtnl, &link, &routes)
}
