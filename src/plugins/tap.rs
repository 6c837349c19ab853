//! tap: a persistent tap interface in the container, for virtual machines and user-space networking
//! (reference: main-plugins.md section 18).

use serde::Deserialize;

use super::keys::{self, Key, Shape, key};
use super::{Kind, Plugin};
use crate::attach::container::{Container, Ipv6, wait_usable};
use crate::attach::mtu::Mtu;
use crate::attach::owner::{Owner, alias};
use crate::attach::undo::{Undo, or_take_back};
use crate::attach::verify::{self, difference};
use crate::attach::{Attachment, address, ipam, mac};
use crate::cni::{CniResult, Code, Dns, Error, Interface, Request, Result, ResultExt};
use crate::kernel::Kernel;
use crate::kernel::detach::remove_links;
use crate::kernel::rtnl::{Change, Dev, Link, Mac, SetLink, Step};
use crate::kernel::tun::{self, NewTap};

/// Number of the interface in the result: the only one.
const CONTAINER: i64 = 0;

const KEYS: &[Key] = &[
    key("multiQueue", Shape::Bool, "several processes or threads may each have a queue; default: false"),
    keys::MTU,
    key("mac", Shape::Mac, "MAC address of the interface; default: random"),
    key("owner", Shape::Int(0, u32::MAX as i64), "id of the user who may attach to it; default: any"),
    key("group", Shape::Int(0, u32::MAX as i64), "id of the group that may attach to it; default: any"),
    key("selinuxContext", Shape::Text, "SELinux context of the interface; default: that of the caller"),
    key("bridge", Shape::Ifname, "bridge inside the container that the interface becomes a port of"),
];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    multi_queue: bool,
    /// Bytes; 0 and less mean "not set".
    mtu: Mtu,
    mac: String,
    /// 0 is root, not "not set".
    owner: Option<u32>,
    group: Option<u32>,
    selinux_context: String,
    bridge: String,
}

/// The configuration, checked.
struct Conf {
    multi_queue: bool,
    mtu: Mtu,
    mac: Option<Mac>,
    owner: Option<u32>,
    group: Option<u32>,
    selinux_context: Option<String>,
    bridge: Option<String>,
    ipam: Option<String>,
    dns: Option<Dns>,
}

impl Conf {
    fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let common = req.config.common()?;
        if !wire.bridge.is_empty() {
            crate::cni::names::check_ifname(&wire.bridge)
                .map_err(|e| Error::config(format!("bridge: {:?}: {}", wire.bridge, e.msg())))?;
        }
        let written = match wire.mac.as_str() {
            "" => None,
            text => Some(mac::of_interface("mac", text)?),
        };
        if let Some(plugin) = &common.ipam {
            ipam::must_not_need_link(plugin, "nothing gets through a tap before a process has opened it")?;
        }
        Ok(Conf {
            multi_queue: wire.multi_queue,
            mtu: wire.mtu,
            mac: mac::requested(req)?.or(written),
            owner: wire.owner,
            group: wire.group,
            selinux_context: Some(wire.selinux_context).filter(|text| !text.is_empty()),
            bridge: Some(wire.bridge).filter(|name| !name.is_empty()),
            ipam: common.ipam,
            dns: common.dns,
        })
    }
}

/// The plugin.
pub struct Tap;

impl Plugin for Tap {
    fn name(&self) -> &'static str {
        "tap"
    }

    fn kind(&self) -> Kind {
        Kind::Main
    }

    fn about(&self) -> &'static str {
        "gives the container a tap interface, for virtual machines"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[keys::MAC]
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::new(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(req)?;
        CniResult::fits(conf.ipam.is_some(), req.config.version)?;
        let mut container = Container::open(req)?;
        container.must_be_free(&req.ifname)?;
        or_take_back(kernel, |kernel, undo| attach(req, &conf, &mut container, kernel, undo))
    }

    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let removed = remove(req, kernel).err();
        let released = match req.config.ipam() {
            Ok(Some(plugin)) => ipam::del(&plugin, req, kernel).err(),
            Ok(None) => None,
            Err(e) => Some(e),
        };
        Error::all(removed.into_iter().chain(released).collect()).map_or(Ok(()), Err)
    }

    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        check(req, &Conf::new(req)?, kernel)
    }

    /// The interface is the container's, and goes with its namespace: only addresses can be left.
    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        match req.config.ipam()? {
            Some(plugin) => ipam::forward(&plugin, req, kernel),
            None => Ok(()),
        }
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        tun::status().map_err(|e| e.with_code(Code::NOT_AVAILABLE))?;
        conf.ipam.as_deref().map_or(Ok(()), |plugin| ipam::forward(plugin, req, kernel))
    }
}

/// Attaches the container; every step that leaves something is pushed on `undo`.
fn attach<'a>(
    req: &'a Request,
    conf: &'a Conf,
    container: &mut Container,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let master = conf.bridge.as_deref().map(|name| bridge(container, name)).transpose()?;
    let mut result = match &conf.ipam {
        Some(plugin) => ipam::add(plugin, req, kernel, undo)?,
        None => CniResult::default(),
    };
    for ip in &mut result.ips {
        ip.interface = Some(CONTAINER);
    }
    let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();

    let tap = NewTap {
        name: &req.ifname,
        owner: conf.owner,
        group: conf.group,
        multi_queue: conf.multi_queue,
        selinux_context: conf.selinux_context.as_deref(),
    };
    container.netns.enter(|| tun::create(&tap))?;
    undo.push(move |kernel| remove(req, kernel));
    let set = SetLink {
        mac: conf.mac,
        mtu: conf.mtu.bytes(kernel.host()?)?,
        master: master.map(Some),
        alias: Some(alias(&Attachment::of(req), &addresses)),
        ..SetLink::of(Dev::named(&req.ifname))
    };
    let steps = [Step::Change(Change::SetLink(set)), Step::Link(Dev::named(&req.ifname))];
    let mut outcomes = container.rtnl.exchange(&steps)?.into_iter();
    outcomes.next().unwrap_or(Ok(None))?;
    let link = outcomes.next().unwrap_or(Ok(None))?;
    let link = link.ok_or_else(|| Error::internal(format!("{} vanished while it was set up", req.ifname)))?;

    let v6 = addresses.iter().any(|net| net.addr().is_ipv6());
    let watch = container.prepare(if v6 { Ipv6::NoDad } else { Ipv6::None }, &req.ifname)?;
    container.rtnl.apply(&address::changes(&link.dev(), &result, CONTAINER, false)?)?;
    wait_usable(watch, link.index, &addresses)?;

    result.interfaces = vec![Interface {
        name: req.ifname.clone(),
        mac: link.mac.map(|m| m.to_string()).unwrap_or_default(),
        mtu: i64::from(link.mtu),
        sandbox: req.netns.clone(),
        ..Interface::default()
    }];
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// The link inside the container that the tap becomes a port of.
fn bridge(container: &mut Container, name: &str) -> Result<Dev> {
    match container.rtnl.link(name)? {
        Some(link) => Ok(link.dev()),
        None => Err(Error::config(format!("bridge: there is no interface {name:?} inside the container"))),
    }
}

/// Removes the attachment's tap interface, ours or a Go plugin's, if its namespace is still there.
fn remove(req: &Request, kernel: &mut Kernel) -> Result<()> {
    let wait = kernel.waits();
    let Some(mut container) = Container::find(req)? else { return Ok(()) };
    let Some(link) = container.rtnl.link(&req.ifname)? else { return Ok(()) };
    if !is_own(&link, &Attachment::of(req)) {
        return Ok(());
    }
    let outcomes = remove_links(&mut container.rtnl, &[link.dev()], wait)?;
    outcomes.into_iter().try_for_each(|outcome| outcome.unless_gone().map(drop))
}

/// The path may name another container's namespace by now, whose interface says so. The Go plugin says nothing.
fn is_own(link: &Link, of: &Attachment<'_>) -> bool {
    link.kind == "tun" && Owner::parse(&link.alias).is_none_or(|owner| owner.is(of))
}

/// Compares interface, port, addresses and routes with what ADD made.
fn check(req: &Request, conf: &Conf, kernel: &mut Kernel) -> Result<()> {
    if let Some(plugin) = &conf.ipam {
        ipam::forward(plugin, req, kernel)?;
    }
    let prev = verify::prev_result(req)?;
    let (mut container, index, interface) = verify::sandbox(req, &prev)?;
    let link = verify::link(&mut container.rtnl, interface, "tun")?;
    verify::is_up(&link)?;
    if let Some(what) = tap_difference(&link, conf) {
        return Err(difference(format!("interface {:?} {what}", link.name)));
    }
    if let Some(name) = &conf.bridge {
        let bridge = container.rtnl.link(name)?;
        if bridge.is_none_or(|bridge| link.master != Some(bridge.index)) {
            return Err(difference(format!("interface {:?} is not a port of {name:?}", link.name)));
        }
    }
    verify::addresses(&mut container.rtnl, &link, verify::expected_addresses(&prev, index))?;
    verify::routes(&mut container.rtnl, &link, &prev)
}

/// The first setting that is not as configured, as the end of a sentence.
fn tap_difference(link: &Link, conf: &Conf) -> Option<String> {
    let tun = link.tun.unwrap_or_default();
    let id = |id: Option<u32>| id.map_or_else(|| "any".to_owned(), |id| id.to_string());
    if !tun.is_tap {
        return Some("is no tap but a tun interface".to_owned());
    }
    for (what, wanted, is) in [("owner", conf.owner, tun.owner), ("group", conf.group, tun.group)] {
        if wanted.is_some() && wanted != is {
            return Some(format!("has {what} {}, expected {}", id(is), id(wanted)));
        }
    }
    if conf.multi_queue && !tun.multi_queue {
        return Some("has a single queue, expected several".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::Tun;

    const CONF: Conf = Conf {
        multi_queue: true,
        mtu: Mtu::Unset,
        mac: None,
        owner: Some(0),
        group: None,
        selinux_context: None,
        bridge: None,
        ipam: None,
        dns: None,
    };

    #[test]
    fn a_setting_that_differs_is_named() {
        let found = |tun: Tun| tap_difference(&Link { tun: Some(tun), ..Link::default() }, &CONF);
        let right = Tun { is_tap: true, owner: Some(0), group: Some(5), multi_queue: true };
        assert_eq!(found(right), None);
        assert_eq!(found(Tun { owner: None, ..right }).unwrap(), "has owner any, expected 0");
        assert!(found(Tun { multi_queue: false, ..right }).unwrap().contains("single queue"));
        assert!(found(Tun { is_tap: false, ..right }).unwrap().contains("tun"));
    }

    #[test]
    fn a_tap_of_another_attachment_is_left_alone() {
        let of = Attachment { network: "net", container_id: "c1", ifname: "tap0" };
        let link =
            |kind: &str, alias: &str| Link { kind: kind.into(), alias: alias.into(), ..Link::default() };
        assert!(is_own(&link("tun", "cni-all net c1 tap0"), &of) && is_own(&link("tun", ""), &of));
        assert!(!is_own(&link("tun", "cni-all net c2 tap0"), &of) && !is_own(&link("veth", ""), &of));
    }
}
