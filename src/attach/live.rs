//! Changes of an interface that is in use: what main plugins have in common when an attachment gets another configuration.

use ipnet::IpNet;

use super::container::Container;
use super::masquerade::{self, Masquerade};
use super::mtu::Mtu;
use super::{Attachment, address, verify, veth};
use crate::cni::{CniResult, Code, Dns, Error, Interface, Request, Result};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{Change, Link, Route, RouteSpec, SetLink};
use crate::plugins;

/// MTU of a veth end that nobody sets (`ETH_DATA_LEN`, linux/if_ether.h).
const DEFAULT_MTU: u32 = 1500;

/// Least MTU of a link with IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// Says that a key needs a new attachment after all.
pub fn needs_new(what: impl Into<String>) -> Error {
    Error::new(Code::NEEDS_NEW_ATTACHMENT, what)
        .with_details("nothing was changed; detach the container and attach it again")
}

/// The container's end of an attachment.
pub struct Inside {
    /// The container.
    pub container: Container,
    /// The interface in it.
    pub link: Link,
}

/// Both ends of an attachment's veth pair.
pub struct Pair {
    /// The container's end.
    pub inside: Inside,
    /// The host's end.
    pub host: Link,
}

fn missing(what: &str) -> Error {
    Error::internal(format!("{what}: the container is not attached any more"))
}

impl Pair {
    /// Finds both ends, whoever made them.
    ///
    /// # Errors
    /// One of them is missing.
    pub fn find(req: &Request, kernel: &mut Kernel) -> Result<Pair> {
        let inside = Inside::find(req, "veth")?;
        let host = veth::peer(kernel.host()?, &inside.link)?;
        let host = host.ok_or_else(|| missing(&format!("the host's end of {:?} is missing", req.ifname)))?;
        Ok(Pair { inside, host })
    }

    /// Gives both ends another MTU, unless the host's end has that of a configuration that is the same: the container's may
    /// have been tuned. The result tells.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_mtu(
        &mut self,
        (from, to): (Mtu, Mtu),
        kernel: &mut Kernel,
        result: &mut CniResult,
    ) -> Result<()> {
        let host = kernel.host()?;
        let was_set = from.bytes(host)?.is_some();
        let Some(mtu) = to.bytes(host)?.or(was_set.then_some(DEFAULT_MTU)) else { return Ok(()) };
        if self.host.mtu != mtu {
            keeps_addresses(mtu, result)?;
            host.apply(&[with_mtu(&self.host, mtu)])?;
        } else if from == to {
            return Ok(());
        }
        tell_mtu(result, |interface| interface.sandbox.is_empty() && interface.name == self.host.name, mtu);
        self.inside.set_mtu(mtu, result)
    }
}

/// Refuses an MTU with which the kernel would take the interface's IPv6 addresses away (net/ipv6/addrconf.c).
///
/// # Errors
/// [`Code::NEEDS_NEW_ATTACHMENT`].
pub fn keeps_addresses(mtu: u32, result: &CniResult) -> Result<()> {
    match result.ips.iter().find(|ip| ip.address.addr().is_ipv6()) {
        Some(ip) if mtu < IPV6_MIN_MTU => {
            let what = format!("mtu: {mtu} is less than the {IPV6_MIN_MTU} that IPv6 needs");
            Err(needs_new(format!("{what}: {} would be lost", ip.address)))
        }
        _ => Ok(()),
    }
}

fn with_mtu(link: &Link, mtu: u32) -> Change {
    Change::SetLink(SetLink { mtu: Some(mtu), ..SetLink::of(link.dev()) })
}

fn tell_mtu(result: &mut CniResult, is_meant: impl Fn(&Interface) -> bool, mtu: u32) {
    for interface in result.interfaces.iter_mut().filter(|interface| is_meant(interface)) {
        interface.mtu = mtu.into();
    }
}

impl Inside {
    /// Finds the interface, which must be of this kind.
    ///
    /// # Errors
    /// It is missing.
    pub fn find(req: &Request, kind: &str) -> Result<Inside> {
        let mut container = Container::open(req)?;
        let link = container.rtnl.link(&req.ifname)?.filter(|link| link.kind == kind);
        let link =
            link.ok_or_else(|| missing(&format!("there is no {kind} {:?} in {}", req.ifname, req.netns)))?;
        Ok(Inside { container, link })
    }

    /// Gives the interface another MTU. The result tells.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_mtu(&mut self, mtu: u32, result: &mut CniResult) -> Result<()> {
        if self.link.mtu != mtu {
            keeps_addresses(mtu, result)?;
            self.container.rtnl.apply(&[with_mtu(&self.link, mtu)])?;
        }
        tell_mtu(result, |interface| !interface.sandbox.is_empty() && interface.name == self.link.name, mtu);
        Ok(())
    }

    /// Makes the routes of `from` those of `to`, in the container and in the result. A route that leads elsewhere is
    /// replaced, so that there always is one; others of the interface, and of other interfaces, stay.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn set_routes(&mut self, from: &CniResult, to: &CniResult, result: &mut CniResult) -> Result<()> {
        let dev = self.link.dev();
        let (old, new) = (address::routes(&dev, from)?, address::routes(&dev, to)?);
        let same_place = |a: &RouteSpec, b: &RouteSpec| {
            (a.dst.trunc(), a.table, a.priority, a.scope) == (b.dst.trunc(), b.table, b.priority, b.scope)
        };
        let mut changes = Vec::new();
        for wanted in new.iter().filter(|wanted| !old.contains(wanted)) {
            if self.find_route(wanted)?.as_ref() == Some(wanted) {
                continue;
            }
            let Some(former) = old.iter().find(|former| same_place(former, wanted)) else {
                changes.push(Change::PrependRoute(wanted.clone()));
                continue;
            };
            if self.shares(wanted)? {
                changes.extend(self.find_route(former)?.map(Change::DelRoute));
                changes.push(Change::PrependRoute(wanted.clone()));
            } else {
                changes.push(Change::ReplaceRoute(wanted.clone()));
            }
        }
        for former in old.iter().rev() {
            if !new.iter().any(|wanted| same_place(former, wanted)) {
                changes.extend(self.find_route(former)?.map(Change::DelRoute));
            }
        }
        self.container.rtnl.apply(&changes)?;
        result.routes.retain(|route| to.routes.contains(route) || !from.routes.contains(route));
        let added = to.routes.iter().filter(|route| !from.routes.contains(route));
        for route in added {
            if !result.routes.contains(route) {
                result.routes.push(route.clone());
            }
        }
        Ok(())
    }

    /// Whether another interface has a route to the same destination too: the kernel might replace that one.
    fn shares(&mut self, route: &RouteSpec) -> Result<bool> {
        let index = self.link.index;
        let is_others = |r: &Route| match r.nexthops.as_slice() {
            [] => r.oif != Some(index),
            hops => hops.iter().any(|hop| hop.dev.index != index),
        };
        let all = self.container.rtnl.all_routes()?;
        Ok(all.iter().any(|present| verify::is_to(present, route) && is_others(present)))
    }

    /// The route, with MTU and segment size as the kernel has them: the Go plugins set none.
    fn find_route(&mut self, route: &RouteSpec) -> Result<Option<RouteSpec>> {
        match verify::specific_routes(&mut self.container.rtnl, &self.link, std::slice::from_ref(route)) {
            Ok(()) => {}
            Err(e) if e.code() == Code::CHECK_FAILED => return Ok(None),
            Err(e) => return Err(e),
        }
        let present = self.container.rtnl.routes(self.link.index)?;
        let found = present.into_iter().find(|present| verify::is_to(present, route));
        Ok(found.map(|found| RouteSpec { mtu: found.mtu, advmss: found.advmss, ..route.clone() }))
    }
}

/// What the IPAM plugin's configuration says besides addresses; `None` when only it knows.
///
/// # Errors
/// It is not valid.
pub fn given(req: &Request, ipam: Option<&str>) -> Result<Option<CniResult>> {
    match ipam {
        None => Ok(Some(CniResult::default())),
        Some(ipam) => plugins::find(ipam).map_or(Ok(None), |plugin| plugin.given(req)),
    }
}

/// The result's addresses with other routes, as a main plugin completes them.
pub fn with_routes(result: &CniResult, given: Option<&CniResult>, interface: i64) -> CniResult {
    let mut ips = result.ips.clone();
    ips.iter_mut().for_each(|ip| ip.interface = Some(interface));
    let routes = given.map(|given| given.routes.clone()).unwrap_or_default();
    CniResult { ips, routes, ..CniResult::default() }
}

/// Gives the result the name servers of the new configuration, when the old one's were others.
///
/// # Errors
/// [`Code::NEEDS_NEW_ATTACHMENT`]: only the IPAM plugin knows them, or a later plugin has changed them.
pub fn set_dns(
    (from, to): (Option<&Dns>, Option<&Dns>),
    (given_from, given_to): (Option<&CniResult>, Option<&CniResult>),
    result: &mut CniResult,
) -> Result<()> {
    let dns = |own: Option<&Dns>, given: Option<&CniResult>| {
        own.cloned().or_else(|| given.map(|given| given.dns.clone()))
    };
    if from == to && given_from.map(|given| &given.dns) == given_to.map(|given| &given.dns) {
        return Ok(());
    }
    let (was, will) = (dns(from, given_from), dns(to, given_to));
    let Some(will) = will else {
        return Err(needs_new("dns: not set any more, and what the IPAM plugin tells then is not known"));
    };
    if will == result.dns {
        return Ok(());
    }
    if was.is_some_and(|was| was != result.dns) {
        return Err(needs_new("dns: another plugin has changed the result's name servers"));
    }
    result.dns = will;
    Ok(())
}

/// Masquerades the addresses in another way, or no longer.
///
/// # Errors
/// The kernel refuses it.
pub fn set_masquerade(
    of: &Attachment<'_>,
    result: &CniResult,
    (from, to): (Option<&Masquerade>, Option<&Masquerade>),
    kernel: &mut Kernel,
) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
    if from.is_some() {
        let known: Vec<_> = addresses.iter().map(IpNet::addr).collect();
        masquerade::del(kernel.nft()?, of, &known)?;
    }
    match to.filter(|_| !addresses.is_empty()) {
        Some(to) => masquerade::add(kernel.nft()?, of, &addresses, to),
        None => Ok(()),
    }
}
