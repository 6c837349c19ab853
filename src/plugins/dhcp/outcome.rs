//! What leases mean: for the result of ADD, and for an interface whose lease has changed since. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::v4::lease::Lease;
use super::v4::packet::code;
use crate::attach::address;
use crate::cni::{CniResult, IpConfig, Result, Route};
use crate::kernel::rtnl::{AddAddress, Change, Dev, RouteSpec, SetLink};

/// `RT_SCOPE_LINK`, linux/rtnetlink.h.
const SCOPE_LINK: i64 = 253;

/// Smallest MTU that IPv4 works with (RFC 791).
const LEAST_MTU: u16 = 68;

/// What an attachment has got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Addresses, routes and name servers.
    pub result: CniResult,
    /// MTU that a server asks for, bytes.
    pub mtu: Option<u32>,
}

impl Outcome {
    /// Adds what an IPv4 lease gives.
    pub fn add_v4(&mut self, lease: &Lease) {
        let options = &lease.options;
        let routers = options.ips(code::ROUTERS);
        let gateway = routers.first().copied().map(IpAddr::V4);
        if let Some(net) = lease.net() {
            self.result.ips.push(IpConfig { address: IpNet::V4(net), gateway, interface: None });
        }
        let routes = &mut self.result.routes;
        match options.classless_routes() {
            // RFC 3442: then options 3 and 33 are not looked at.
            Some(classless) => routes.extend(classless.into_iter().map(|(net, router)| Route {
                scope: router.is_unspecified().then_some(SCOPE_LINK),
                ..Route::new(IpNet::V4(net), Some(IpAddr::V4(router)))
            })),
            None => {
                let classful = options.classful_routes().into_iter();
                routes.extend(classful.map(|(net, router)| Route::new(IpNet::V4(net), Some(router.into()))));
                routes.extend(gateway.map(|gw| Route::new(address::default_destination(true), Some(gw))));
            }
        }
        let dns = &mut self.result.dns;
        dns.nameservers.extend(options.ips(code::DNS).iter().map(ToString::to_string));
        dns.domain = options.domain().unwrap_or_default();
        dns.search.extend(options.search());
        self.mtu = options.u16(code::MTU).filter(|mtu| *mtu >= LEAST_MTU).map(u32::from);
    }

    /// Gives every route a metric, unless 0.
    pub fn set_priority(&mut self, priority: u32) {
        if priority != 0 {
            self.result.routes.iter_mut().for_each(|route| route.priority = priority.into());
        }
    }

    /// What has to change on `dev` to get from `before` to this; empty when nothing does. What is new comes first, so that
    /// connections that can go on do.
    ///
    /// # Errors
    /// A route that cannot be.
    pub fn changes(&self, before: &Outcome, dev: &Dev) -> Result<Vec<Change>> {
        let (old, new) = (before.on(dev)?, self.on(dev)?);
        let mut changes = Vec::new();
        let gone = |r: &&RouteSpec| !new.1.contains(r);
        changes.extend(old.1.iter().filter(gone).map(|route| Change::DelRoute(route.clone())));
        for net in new.0.iter().filter(|net| !old.0.contains(net)) {
            changes.push(Change::AddAddress(AddAddress { dev: dev.clone(), net: *net, nodad: true }));
        }
        for net in old.0.iter().filter(|net| !new.0.contains(net)) {
            changes.push(Change::DelAddress { dev: dev.clone(), net: *net });
        }
        if let (Some(mtu), true) = (self.mtu, self.mtu != before.mtu) {
            changes.push(Change::SetLink(SetLink { mtu: Some(mtu), ..SetLink::of(dev.clone()) }));
        }
        // The kernel removes routes together with the address they prefer, so all of them are set again.
        let moved = old.0 != new.0;
        let missing = new.1.into_iter().filter(|route| moved || !old.1.contains(route));
        changes.extend(missing.map(Change::AddRoute));
        Ok(changes)
    }

    /// Addresses and routes as the kernel gets them.
    fn on(&self, dev: &Dev) -> Result<(Vec<IpNet>, Vec<RouteSpec>)> {
        let mut result = self.result.clone();
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
        Ok((result.ips.iter().map(|ip| ip.address).collect(), address::routes(dev, &result)?))
    }
}
