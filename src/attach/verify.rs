//! CHECK: what ADD made against what is there. The first difference is an error that names it.
//!
//! What later plugins of a list may change is not compared, nor what the Go plugins do not make: attachments of theirs
//! have to pass (reference: main-plugins.md section 8, core.md T43).

use std::net::IpAddr;

use ipnet::IpNet;

use super::address;
use super::container::Container;
use crate::cni::{CniResult, Code, Error, Interface, Request, Result, ResultExt};
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{Change, Handle, Link, Mac, NextHop, Route, RouteSpec};

/// `RT_TABLE_MAIN`.
const TABLE_MAIN: u32 = 254;
/// `RT_TABLE_LOCAL`, linux/rtnetlink.h: the kernel's own routes to addresses.
const TABLE_LOCAL: u32 = 255;

/// A difference between what ADD made and what is there.
pub fn difference(what: impl Into<String>) -> Error {
    Error::new(Code::CHECK_FAILED, what)
}

/// `prevResult`, without which CHECK has nothing to compare with.
///
/// # Errors
/// It is missing.
pub fn prev_result(req: &Request) -> Result<CniResult> {
    req.config.prev_result()?.ok_or_else(|| Error::config("Required prevResult missing"))
}

/// Opens the container's namespace, and finds the container's interface in `prevResult`: the one with `CNI_IFNAME`
/// whose sandbox is `CNI_NETNS`, by whatever path it is named.
///
/// # Errors
/// There is none.
pub fn sandbox<'a>(req: &Request, prev: &'a CniResult) -> Result<(Container, i64, &'a Interface)> {
    let container = Container::open(req)?;
    let same = |sandbox: &str| {
        sandbox == req.netns || matches!(Netns::find(sandbox), Ok(Some(ns)) if ns.same_as(&container.netns))
    };
    let found = prev.interfaces.iter().enumerate().find(|(_, i)| i.name == req.ifname && same(&i.sandbox));
    let Some((index, interface)) = found else {
        return Err(difference(format!(
            "sandbox in prevResult does not match: no interface {:?} in {:?}",
            req.ifname, req.netns
        )));
    };
    Ok((container, index as i64, interface))
}

/// The link that an interface of a result names.
///
/// # Errors
/// It is not there, is of another kind, or has another MAC.
pub fn link(rtnl: &mut Handle, interface: &Interface, kind: &str) -> Result<Link> {
    let name = &interface.name;
    let Some(link) = rtnl.link(name)? else {
        return Err(difference(format!("interface {name:?} is missing")));
    };
    if link.kind != kind {
        return Err(difference(format!("interface {name:?} is not a {kind} but {:?}", link.kind)));
    }
    let expected: Option<Mac> = interface.mac.parse().ok();
    match (expected, link.mac) {
        (Some(expected), Some(found)) if expected != found => {
            Err(difference(format!("interface {name:?} has MAC {found}, expected {expected}")))
        }
        _ => Ok(link),
    }
}

/// Compares a link's state with being up.
///
/// # Errors
/// It is down.
pub fn is_up(link: &Link) -> Result<()> {
    match link.is_up() {
        true => Ok(()),
        false => Err(difference(format!("interface {:?} is down", link.name))),
    }
}

/// The addresses of interface number `interface` of the result.
pub fn expected_addresses(result: &CniResult, interface: i64) -> impl Iterator<Item = IpNet> + '_ {
    // Results of the oldest versions name no interface: then it is this one.
    result.ips.iter().filter(move |ip| ip.interface.is_none_or(|i| i == interface)).map(|ip| ip.address)
}

/// Compares the addresses of a link with those expected of it.
///
/// # Errors
/// The first that is missing.
pub fn addresses(rtnl: &mut Handle, link: &Link, expected: impl IntoIterator<Item = IpNet>) -> Result<()> {
    let present = rtnl.addresses(link.index)?;
    for wanted in expected {
        if !present.iter().any(|address| address.net == wanted) {
            return Err(difference(format!("{} has no address {wanted}", link.name)));
        }
    }
    Ok(())
}

/// Compares the routes of a link with those of the result.
///
/// # Errors
/// The first that is missing or leads elsewhere.
pub fn routes(rtnl: &mut Handle, link: &Link, result: &CniResult) -> Result<()> {
    let expected = address::routes(&link.dev(), result)?;
    specific_routes(rtnl, link, &expected)
}

/// As [`routes`], for routes that are given.
///
/// # Errors
/// As for [`routes`].
pub fn specific_routes(rtnl: &mut Handle, link: &Link, expected: &[RouteSpec]) -> Result<()> {
    let present = rtnl.routes(link.index).context("list routes")?;
    for wanted in expected {
        let text = Change::AddRoute(wanted.clone());
        let text = text.to_string().replacen("ip route add ", "", 1);
        let mut candidates: Vec<&Route> = present.iter().filter(|r| is_to(r, wanted)).collect();
        if candidates.is_empty() && wanted.table.is_none() {
            // sbr and vrf, later in the list, move routes to a table of theirs.
            let moved = |r: &&Route| {
                r.table != TABLE_LOCAL && is_to(r, &RouteSpec { table: Some(r.table), ..wanted.clone() })
            };
            candidates = present.iter().filter(moved).collect();
        }
        if candidates.is_empty() {
            return Err(difference(format!("route {text:?} is missing")));
        }
        let hops: Vec<Option<IpAddr>> = match wanted.nexthops.as_slice() {
            [] => vec![wanted.gw],
            hops => hops.iter().map(|hop| hop.gw).collect(),
        };
        for gw in hops {
            if !candidates.iter().any(|r| leads_to(r, gw, link.index)) {
                return Err(difference(format!("route {text:?} leads elsewhere: {}", gateways(&candidates))));
            }
        }
        let metric = |wanted: u32, found: u32| found == 0 || wanted == 0 || wanted == found;
        if !candidates.iter().any(|r| metric(wanted.mtu, r.mtu) && metric(wanted.advmss, r.advmss)) {
            return Err(difference(format!("route {text:?} has another mtu or advmss")));
        }
    }
    Ok(())
}

/// Whether a route of the kernel's leads to where the other one does, whichever way.
pub fn is_to(route: &Route, wanted: &RouteSpec) -> bool {
    route.dst == wanted.dst.trunc()
        && route.table == wanted.table.unwrap_or(TABLE_MAIN)
        && (wanted.priority == 0 || route.priority == wanted.priority)
        // The kernel has no scopes for IPv6 routes.
        && (wanted.dst.addr().is_ipv6() || wanted.scope.is_none_or(|scope| route.scope == scope))
}

fn leads_to(route: &Route, gw: Option<IpAddr>, index: u32) -> bool {
    let hop = |hop: &NextHop| hop.gw == gw && hop.dev.index == index;
    (route.nexthops.is_empty() && route.gw == gw) || route.nexthops.iter().any(hop)
}

fn gateways(routes: &[&Route]) -> String {
    let via = |gw: Option<IpAddr>| gw.map_or_else(|| "the link itself".to_owned(), |gw| format!("via {gw}"));
    let all: Vec<String> = routes
        .iter()
        .flat_map(|r| match r.nexthops.as_slice() {
            [] => vec![via(r.gw)],
            hops => hops.iter().map(|hop| via(hop.gw)).collect(),
        })
        .collect();
    all.join(", ")
}
