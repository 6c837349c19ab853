//! Links on a master (vlan, macvlan, ipvlan), and the dummy, which stands on none: the container's interface is one
//! link, made straight in its namespace (reference: main-plugins.md sections 12 to 14 and 17).

pub mod conf;
mod gc;
mod link;
pub mod master;
mod shim;

use ipnet::IpNet;

use self::conf::Conf;
use super::container::{Container, Ipv6, wait_usable};
use super::live::{self, Inside};
use super::mtu::Mtu;
use super::owner::alias;
use super::undo::{Undo, or_take_back};
use super::verify::{self, difference};
use super::{Attachment, address, ipam};
use crate::cni::{CniResult, Code, Error, Interface, Request, Result};
use crate::kernel::Kernel;
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{Change, Link, Mac, SetLink, Step, SubKind, has_kind, option_of_kind};
use crate::plugins::Update;

/// Number of the container's interface in the result: the only one.
const CONTAINER: i64 = 0;

/// What a plugin wants to be made.
pub struct Spec {
    /// Kind and settings of the link.
    pub kind: SubKind,
    /// The shared keys.
    pub conf: Conf,
    /// The link's address; `None`: random, or the master's where the kind shares it.
    pub mac: Option<Mac>,
    /// Where its IP addresses come from.
    pub addresses: Addresses,
}

/// Where an interface's IP addresses come from.
pub enum Addresses {
    /// This IPAM plugin.
    Ipam(String),
    /// An earlier plugin of the list: its addresses, routes and name servers.
    Given(CniResult),
    /// Nowhere: it has none.
    None,
}

impl Spec {
    fn ipam(&self) -> Option<&str> {
        match &self.addresses {
            Addresses::Ipam(plugin) => Some(plugin),
            Addresses::Given(_) | Addresses::None => None,
        }
    }

    /// A dummy stands on nothing.
    fn has_master(&self) -> bool {
        self.kind != SubKind::Dummy
    }
}

/// ADD.
///
/// # Errors
/// Codes of [`Code`]; nothing is left then.
pub fn add(req: &Request, spec: &Spec, kernel: &mut Kernel) -> Result<CniResult> {
    CniResult::fits(!matches!(spec.addresses, Addresses::None), req.config.version)?;
    let mut container = Container::open(req)?;
    container.must_be_free(&req.ifname)?;
    let (lower, mtu) = match spec.has_master() {
        true => {
            let side = master::side(spec, kernel, &mut container)?;
            let lower = master::find(spec.conf.master.as_deref(), side)?;
            let mtu = spec.conf.mtu.on(&lower, side)?;
            must_be_up(&lower, spec.kind)?;
            if spec.conf.host_shim {
                shim::must_be_possible(side, &lower, spec.kind)?;
            }
            (Some(lower), mtu)
        }
        false => (None, None),
    };
    or_take_back(kernel, |kernel, undo| attach(req, spec, lower.as_ref(), mtu, &mut container, kernel, undo))
}

/// The kernel does not set a vlan up on a link that is down, and says no more than ENETDOWN.
fn must_be_up(lower: &Link, kind: SubKind) -> Result<()> {
    if matches!(kind, SubKind::Vlan { .. }) && !lower.is_up() {
        let name = &lower.name;
        return Err(Error::config(format!("master: {name:?} is down (ip link set dev {name} up)")));
    }
    Ok(())
}

fn attach<'a>(
    req: &'a Request,
    spec: &'a Spec,
    lower: Option<&Link>,
    mtu: Option<u32>,
    container: &mut Container,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let over_link = spec.ipam().is_some_and(ipam::needs_link);
    let mut result = if over_link { CniResult::default() } else { assign(req, spec, kernel, undo)? };
    let mut addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();

    let wanted = link::Wanted {
        attachment: Attachment::of(req),
        kind: spec.kind,
        lower,
        in_container: spec.conf.in_container,
        mtu,
        mac: spec.mac,
        addresses: &addresses,
    };
    let made = link::make(kernel, container, &wanted)?;
    undo.push(move |kernel| link::remove(kernel, req, spec.kind.name()));
    if over_link {
        result = assign(req, spec, kernel, undo)?;
        addresses = result.ips.iter().map(|ip| ip.address).collect();
        let alias = Some(alias(&Attachment::of(req), &addresses));
        container.rtnl.apply(&[Change::SetLink(SetLink { alias, ..SetLink::of(made.dev()) })])?;
    }

    let has_v6 = addresses.iter().any(|net| net.addr().is_ipv6());
    let watch = container.prepare(if has_v6 { Ipv6::NoDad } else { Ipv6::None }, &req.ifname)?;
    let changes = address::changes(&made.dev(), &result, CONTAINER, false)?;
    let mut steps: Vec<Step> = changes.into_iter().map(Step::Change).collect();
    steps.push(Step::Link(made.dev()));
    let outcomes = container.rtnl.exchange(&steps)?.into_iter().collect::<Result<Vec<_>>>()?;
    let up = outcomes.into_iter().flatten().next_back();
    let up =
        up.ok_or_else(|| Error::internal(format!("{} vanished while it was being set up", req.ifname)))?;
    // Without a carrier below, addresses wait for one; that can be long.
    if up.has_carrier() {
        wait_usable(watch, up.index, &addresses)?;
        // An ipvlan has the master's address, which nobody takes for another's; a dummy has no neighbours.
        if !addresses.is_empty() && matches!(spec.kind, SubKind::Macvlan { .. } | SubKind::Vlan { .. }) {
            container.announce(&up)?;
        }
    }

    if let Some(lower) = lower.filter(|_| spec.conf.host_shim) {
        let attachment = Attachment::of(req);
        undo.push(move |kernel| shim::leave(kernel, &attachment));
        let guest = shim::Guest { attachment, kind: spec.kind, lower, link: &up, addresses: &addresses };
        shim::join(kernel, container, &guest)?;
    }

    result.interfaces = vec![Interface {
        name: req.ifname.clone(),
        mac: up.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: up.mtu.into(),
        sandbox: req.netns.clone(),
        ..Interface::default()
    }];
    if let Some(dns) = &spec.conf.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// Addresses of the container's interface: the IPAM plugin's, or those that an earlier plugin has got.
fn assign<'a>(
    req: &'a Request,
    spec: &'a Spec,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let mut result = match &spec.addresses {
        Addresses::Ipam(plugin) => ipam::add(plugin, req, kernel, undo)?,
        Addresses::Given(prev) => prev.clone(),
        Addresses::None => CniResult::default(),
    };
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(CONTAINER));
    Ok(result)
}

/// DEL: the host's way to the container, the link, then the addresses, so that none is handed out again while a link still
/// answers for it. (Only what is released over the link itself is released before.) Neither the master nor a configuration
/// that is still right is needed.
///
/// # Errors
/// All failures together; every step was tried.
pub fn del(req: &Request, kind: &str, kernel: &mut Kernel) -> Result<()> {
    ipam::around(req, kernel, ipam::del, |kernel| {
        let left = shim::leave(kernel, &Attachment::of(req)).err();
        left.into_iter().chain(link::remove(kernel, req, kind).err()).collect()
    })
}

/// GC: links on masters of this host, then the IPAM plugin. Without a list nothing is known to be stale. Links on a
/// master inside the container, and dummies, hold nothing of the host: they end with the container.
///
/// # Errors
/// All failures together; every step was tried.
pub fn gc(req: &Request, kind: &str, kernel: &mut Kernel) -> Result<()> {
    let valid = req.config.valid_attachments()?;
    ipam::around(req, kernel, ipam::forward, |kernel| {
        let Some(valid) = valid else { return Vec::new() };
        let shim = shim::gc(kernel, &req.config.name, &valid).err();
        shim.into_iter().chain(gc::links(&req.config.name, kind, &valid, kernel).err()).collect()
    })
}

/// GC of a plugin whose links hold nothing of the host: the IPAM plugin is asked.
///
/// # Errors
/// Those of the IPAM plugin.
pub fn gc_addresses(req: &Request, kernel: &mut Kernel) -> Result<()> {
    req.config.valid_attachments()?;
    req.config.ipam()?.map_or(Ok(()), |plugin| ipam::forward(&plugin, req, kernel))
}

/// CHECK: the link with its settings, what it stands on, its addresses and routes.
///
/// # Errors
/// The first difference.
pub fn check(req: &Request, spec: &Spec, kernel: &mut Kernel) -> Result<()> {
    if let Some(plugin) = spec.ipam() {
        ipam::forward(plugin, req, kernel)?;
    }
    let prev = verify::prev_result(req)?;
    let (mut container, index, interface) = verify::sandbox(req, &prev)?;
    let link = verify::link(&mut container.rtnl, interface, spec.kind.name())?;
    if let Some(what) = kind_difference(spec.kind, link.sub) {
        return Err(difference(format!("interface {:?} has {what}", link.name)));
    }
    let addresses: Vec<IpNet> = verify::expected_addresses(&prev, index).collect();
    // A master that was not named is what it was at ADD: the default route may have changed since.
    if let Some(name) = spec.conf.master.as_deref().filter(|_| spec.has_master()) {
        let side = master::side(spec, kernel, &mut container)?;
        let lower = master::find(Some(name), side).map_err(|e| e.with_code(Code::CHECK_FAILED))?;
        let is_there = link.lower_netns.is_none() == spec.conf.in_container;
        if link.peer != Some(lower.index) || !is_there {
            return Err(difference(format!("interface {:?} is not on master {name:?}", link.name)));
        }
    }
    if let Mtu::Bytes(wanted) = spec.conf.mtu
        && wanted != i64::from(link.mtu)
    {
        return Err(difference(format!("interface {:?} has MTU {}, expected {wanted}", link.name, link.mtu)));
    }
    verify::is_up(&link)?;
    verify::addresses(&mut container.rtnl, &link, addresses.iter().copied())?;
    verify::routes(&mut container.rtnl, &link, &prev)?;
    let lower = match link.peer.filter(|_| spec.conf.host_shim) {
        Some(index) => kernel.host()?.link_by_index(index)?,
        None => None,
    };
    let Some(lower) = lower else { return Ok(()) };
    let attachment = Attachment::of(req);
    let guest =
        shim::Guest { attachment, kind: spec.kind, lower: &lower, link: &link, addresses: &addresses };
    shim::check(kernel, &guest)
}

/// What is wrong with the settings that a link has.
fn kind_difference(wanted: SubKind, found: Option<SubKind>) -> Option<String> {
    let differ = |what: &str, found: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display| {
        Some(format!("{what} {found}, expected {wanted}"))
    };
    match (wanted, found) {
        (SubKind::Vlan { id: wanted }, Some(SubKind::Vlan { id })) if id != wanted => {
            differ("VLAN", &id, &wanted)
        }
        (SubKind::Ipvlan { mode: wanted }, Some(SubKind::Ipvlan { mode })) if mode != wanted => {
            differ("mode", &mode, &wanted)
        }
        (
            SubKind::Macvlan { mode: wanted, bc_queue_len: Some(length) },
            Some(SubKind::Macvlan { mode, bc_queue_len: Some(found) }),
        ) if mode == wanted && found != length => differ("bcqueuelen", &found, &length),
        (SubKind::Macvlan { mode: wanted, .. }, Some(SubKind::Macvlan { mode, .. })) if mode != wanted => {
            differ("mode", &mode, &wanted)
        }
        _ => None,
    }
}

/// Another configuration for a link that is in use: MTU, routes and name servers.
///
/// # Errors
/// As for [`crate::plugins::Plugin::update`].
pub fn update(update: Update<'_>, from: &Spec, to: &Spec, kernel: &mut Kernel) -> Result<CniResult> {
    let req = update.to;
    let mut result = verify::prev_result(req)?;
    let mut inside = Inside::find(req, to.kind.name())?;
    // An ipvlan has the master's.
    let has_mtu = to.has_master() && !matches!(to.kind, SubKind::Ipvlan { .. });
    if has_mtu && (from.conf.mtu != to.conf.mtu || to.conf.mtu == Mtu::Auto) {
        let side = master::side(to, kernel, &mut inside.container)?;
        let lower = master::find(to.conf.master.as_deref(), side)?;
        let mtu = to.conf.mtu.on(&lower, side)?.unwrap_or(lower.mtu);
        inside.set_mtu(mtu, &mut result)?;
    }
    let given = |req: &Request, spec: &Spec| match &spec.addresses {
        Addresses::Ipam(ipam) => live::given(req, Some(ipam)),
        // An earlier plugin of the list has them, or nobody.
        Addresses::Given(_) => Ok(None),
        Addresses::None => live::given(req, None),
    };
    let (was, is) = (given(update.from, from)?, given(req, to)?);
    let routed = [&was, &is].map(|given| live::with_routes(&result, given.as_ref(), CONTAINER));
    let [former, wanted] = &routed;
    inside.set_routes(former, wanted, &mut result)?;
    let dns = (from.conf.dns.as_ref(), to.conf.dns.as_ref());
    live::set_dns(dns, (was.as_ref(), is.as_ref()), &mut result)?;
    Ok(result)
}

/// STATUS: the kernel has the kind, the master is there and up, and the IPAM plugin is ready.
///
/// # Errors
/// [`Code::NOT_AVAILABLE`], or [`Code::LIMITED_CONNECTIVITY`] for a master that is missing or down.
pub fn status(req: &Request, spec: &Spec, kernel: &mut Kernel) -> Result<()> {
    let kind = spec.kind.name();
    // A dummy needs nothing: asked for, it would be made.
    let has = match spec.has_master() {
        true => has_kind(kind),
        false => Netns::create_unnamed()?.enter(|| has_kind(kind)),
    };
    if !has.map_err(|e| e.with_code(Code::NOT_AVAILABLE))? {
        let option = option_of_kind(kind).unwrap_or_default();
        let msg = format!("type: this kernel has no links of kind {kind} ({option})");
        return Err(Error::new(Code::NOT_AVAILABLE, msg));
    }
    if spec.has_master() && !spec.conf.in_container {
        let code = match spec.conf.master {
            Some(_) => Code::LIMITED_CONNECTIVITY,
            None => Code::NOT_AVAILABLE,
        };
        let lower =
            master::find(spec.conf.master.as_deref(), kernel.host()?).map_err(|e| e.with_code(code))?;
        if !lower.is_up() {
            let msg = format!("master: {:?} is down", lower.name);
            return Err(Error::new(Code::LIMITED_CONNECTIVITY, msg));
        }
        let unavailable = |e: Error| e.with_code(Code::NOT_AVAILABLE);
        spec.conf.mtu.on(&lower, kernel.host()?).map_err(unavailable)?;
        if spec.conf.host_shim {
            shim::must_be_possible(kernel.host()?, &lower, spec.kind).map_err(unavailable)?;
        }
    }
    spec.ipam().map_or(Ok(()), |plugin| ipam::forward(plugin, req, kernel))
}
