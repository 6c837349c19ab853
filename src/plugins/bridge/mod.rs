//! bridge: a veth pair between the container and a host bridge, which is created when it is missing and can be the
//! gateway (reference: main-plugins.md section 10).

mod check;
mod conf;
mod gateway;
mod link;
mod port;
mod update;

use ipnet::IpNet;
use nix::errno::Errno;

use self::conf::Conf;
use super::keys::{Key, MAC};
use super::{Kind, Plugin, Update};
use crate::attach::container::{Container, Ipv6, wait_usable};
use crate::attach::owner::alias;
use crate::attach::undo::{Undo, or_take_back};
use crate::attach::{Attachment, address, forwarding, ipam, masquerade, spoofcheck, teardown, veth};
use crate::cni::{CniResult, Code, Error, Interface, Request, Result, ResultExt};
use crate::kernel::rtnl::{AddressWatch, Change, Link, PortFlags, SetLink};
use crate::kernel::{Kernel, sysctl};

/// Number of the container's interface in the result: after the bridge and the host's end.
const CONTAINER: i64 = 2;

/// The plugin.
pub struct Bridge;

impl Plugin for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn kind(&self) -> Kind {
        Kind::Main
    }

    fn about(&self) -> &'static str {
        "connects the container to a host bridge, which can be its gateway"
    }

    fn keys(&self) -> &'static [Key] {
        conf::KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[MAC]
    }

    fn live_keys(&self) -> &'static [&'static str] {
        update::LIVE_KEYS
    }

    fn update(&self, update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
        update::update(update, kernel)
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
        teardown::del(req, kernel)
    }

    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        check::check(req, &Conf::new(req)?, kernel)
    }

    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        teardown::gc(req, kernel)
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        let unavailable = |e: Error| e.with_code(Code::NOT_AVAILABLE);
        if let Some(found) = kernel.host().and_then(|host| host.link(&conf.bridge)).map_err(unavailable)? {
            link::must_be_bridge(&found).map_err(unavailable)?;
        }
        if conf.masquerade.is_some() || conf.macspoofchk {
            kernel.nft().and_then(masquerade::status).map_err(unavailable)?;
        }
        conf.ipam.as_deref().map_or(Ok(()), |plugin| ipam::forward(plugin, req, kernel))
    }
}

/// Attaches the container; every step that leaves something is pushed on `undo`.
///
/// The bridge itself, its addresses and forwarding are the network's, not the attachment's: they stay.
fn attach<'a>(
    req: &'a Request,
    conf: &'a Conf,
    container: &mut Container,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let of = Attachment::of(req);
    let over_link = conf.ipam.as_deref().is_some_and(ipam::needs_link);
    let mut result = if over_link { CniResult::default() } else { assign(req, conf, kernel, undo)? };
    let mut addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();

    let bridge = link::ensure(kernel.host()?, conf)?;
    let mut vlan_gateway = ensure_gateway(kernel, conf, &bridge, &result)?;

    let mtu = conf.mtu.bytes(kernel.host()?)?;
    let wanted = veth::Wanted {
        attachment: of,
        addresses: addresses.clone(),
        mtu,
        mac: conf.mac,
        master: Some(bridge.dev()),
        is_first_port: !bridge.is_oper_up(),
        port: PortFlags { hairpin: conf.hairpin.then_some(true), isolated: conf.isolated.then_some(true) },
        is_gateway: false,
    };
    let pair = veth::create(kernel.host()?, container, &wanted)?;
    undo.push(move |kernel| teardown::links(req, kernel));
    let host = pair.host;
    set_vlans(kernel, conf, &bridge, &host)?;
    let mac = pair.container.mac.ok_or_else(|| Error::internal(format!("{} has no MAC", req.ifname)))?;
    if conf.macspoofchk {
        spoofcheck::add(kernel.nft()?, of.container_id, of.ifname, &host.name, mac.0)?;
        undo.push(move |kernel| spoofcheck::del(kernel.nft()?, of.container_id, of.ifname));
    }
    if over_link {
        connect(kernel, container, &bridge, &host, &pair.container)?;
        result = assign(req, conf, kernel, undo)?;
        addresses = result.ips.iter().map(|ip| ip.address).collect();
        vlan_gateway = ensure_gateway(kernel, conf, &bridge, &result)?;
        let alias = Some(alias(&of, &addresses));
        kernel.host()?.apply(&[Change::SetLink(SetLink { alias, ..SetLink::of(host.dev()) })])?;
    }
    let mut host_mac = host.mac;
    if !conf.leave_down {
        let watch = container.prepare(ipv6(conf, &result), &req.ifname)?;
        let changes = address::changes(&pair.container.dev(), &result, CONTAINER, conf.dad)?;
        container.rtnl.apply(&changes)?;
        if let Some(wanted) = conf.masquerade.as_ref().filter(|_| !addresses.is_empty()) {
            masquerade::add(kernel.nft()?, &of, &addresses, wanted)?;
            undo.push(move |kernel| masquerade::del(kernel.nft()?, &of, &[]));
        }
        let up = kernel.host()?.wait_port_up(host.index, veth::UP_BUDGET).context("bridge port")?;
        host_mac = up.mac;
        if !bridge.is_oper_up() {
            // Its first port: until the bridge has a carrier too, what the gateway sends is dropped.
            kernel.host()?.wait_port_up(bridge.index, veth::UP_BUDGET).context("bridge")?;
        }
        match conf.dad {
            true => container.wait_settled(pair.container.index)?,
            false => wait_usable(watch, pair.container.index, &addresses)?,
        }
        if !addresses.is_empty() {
            container.announce(&pair.container)?;
        }
    }

    let text = |mac: Option<crate::kernel::rtnl::Mac>| mac.map(|m| m.to_string()).unwrap_or_default();
    result.interfaces = vec![
        // Its MTU follows its ports', and may have changed with this one.
        Interface { name: bridge.name.clone(), mac: text(bridge.mac), ..Interface::default() },
        Interface { name: host.name, mac: text(host_mac), mtu: host.mtu.into(), ..Interface::default() },
        Interface {
            name: req.ifname.clone(),
            mac: mac.to_string(),
            mtu: pair.container.mtu.into(),
            sandbox: req.netns.clone(),
            ..Interface::default()
        },
    ];
    result.interfaces.extend(vlan_gateway.map(|l| Interface {
        name: l.name,
        mac: text(l.mac),
        mtu: l.mtu.into(),
        ..Interface::default()
    }));
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// Asks the IPAM plugin, and completes its result with gateway and default routes.
fn assign<'a>(
    req: &'a Request,
    conf: &'a Conf,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let mut result = match &conf.ipam {
        Some(plugin) => ipam::add(plugin, req, kernel, undo)?,
        None => CniResult::default(),
    };
    gateway::complete(&mut result, CONTAINER, conf.is_gateway, conf.is_default_gateway);
    Ok(result)
}

/// Sets the container's end up and waits until the bridge forwards its frames: the IPAM plugin is about to send some.
fn connect(
    kernel: &mut Kernel,
    container: &mut Container,
    bridge: &Link,
    host: &Link,
    inside: &Link,
) -> Result<()> {
    // An IPv6 link-local address that it may send from must work at once, too.
    let dad = format!("net/ipv6/conf/{}/accept_dad", inside.name);
    container.netns.enter(|| {
        let _ = sysctl::write(&dad, "0");
        container.rtnl.apply(&[up(inside)])
    })?;
    kernel.host()?.wait_port_up(host.index, veth::UP_BUDGET).context("bridge port")?;
    if !bridge.is_oper_up() {
        kernel.host()?.wait_port_up(bridge.index, veth::UP_BUDGET).context("bridge")?;
    }
    container.rtnl.wait_port_up(inside.index, veth::UP_BUDGET).context("container").map(drop)
}

fn ipv6(conf: &Conf, result: &CniResult) -> Ipv6 {
    match (result.ips.iter().any(|ip| ip.address.addr().is_ipv6()), conf.dad) {
        (false, _) => Ipv6::None,
        (true, false) => Ipv6::NoDad,
        (true, true) => Ipv6::Dad,
    }
}

/// Gives the gateway its addresses and turns forwarding on. With a native VLAN the gateway is a link of its own, which
/// is returned.
fn ensure_gateway(
    kernel: &mut Kernel,
    conf: &Conf,
    bridge: &Link,
    result: &CniResult,
) -> Result<Option<Link>> {
    let wanted = if conf.is_gateway { gateway::addresses(result) } else { Vec::new() };
    if wanted.is_empty() {
        return Ok(None);
    }
    let host = kernel.host()?;
    let vlan_gateway = match conf.vlan_gateway() {
        Some(name) => Some(link::ensure_vlan_gateway(host, conf, bridge, &name)?),
        None => None,
    };
    let target = vlan_gateway.as_ref().unwrap_or(bridge);
    let mut present: Vec<_> = host.addresses(target.index)?.into_iter().map(|a| a.net).collect();
    let is_new = |net: &&IpNet| net.addr().is_ipv6() && !present.contains(net);
    let watch = wanted.iter().any(|net| is_new(&net)).then(AddressWatch::open).transpose()?;
    let mut added = Vec::new();
    for net in &wanted {
        let changes = gateway::address_changes(target, &present, *net, conf.force_address)?;
        present.retain(|p| !changes.contains(&Change::DelAddress { dev: target.dev(), net: *p }));
        present.push(*net);
        for change in changes {
            let adds = matches!(change, Change::AddAddress(_));
            match host.apply(&[change]) {
                // Another ADD was faster with the same address, or with removing the same one.
                Err(e) if e.is_exists() || e.is_gone() => {}
                Err(e) => return Err(e),
                Ok(()) => added.extend(adds.then_some(*net)),
            }
        }
    }
    wait_usable(watch, target.index, &added)?;
    forwarding::ensure(host, &wanted).context("a gateway has to forward")?;
    Ok(vlan_gateway)
}

fn set_vlans(kernel: &mut Kernel, conf: &Conf, bridge: &Link, port: &Link) -> Result<()> {
    let Some(vlans) = &conf.vlans else { return Ok(()) };
    let default = bridge.bridge.and_then(|b| b.default_pvid);
    kernel.host()?.apply(&port::vlan_changes(&port.dev(), vlans, default)).map_err(link::explain_vlan)
}

/// The kernel lacks a feature.
fn is_unsupported(err: &Error) -> bool {
    matches!(err.errno(), Some(Errno::EOPNOTSUPP))
}

/// A change that sets a link up.
fn up(link: &Link) -> Change {
    Change::SetLink(SetLink { up: Some(true), ..SetLink::of(link.dev()) })
}
