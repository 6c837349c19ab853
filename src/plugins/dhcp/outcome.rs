//! What leases mean: for the result of ADD, and for an interface whose lease has changed since. Pure.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::v4::lease::Lease;
use super::v4::packet::code;
use super::v6;
use super::v6::information::Known;
use super::v6::slaac::Slaac;
use crate::attach::address;
use crate::cni::{CniResult, IpConfig, Result, Route};
use crate::kernel::rtnl::{AddAddress, Change, Dev, RouteSpec, SetLink};

/// `RT_SCOPE_LINK`, linux/rtnetlink.h.
const SCOPE_LINK: i64 = 253;

/// Smallest MTU that IPv4 works with (RFC 791).
const LEAST_MTU: u16 = 68;

/// What an attachment has got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Addresses, routes and name servers.
    #[serde(with = "as_json")]
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

    /// Adds what routers tell (`addresses`: also the addresses made from it), and what DHCPv6 servers give.
    pub fn add_v6(
        &mut self,
        lease: Option<&v6::lease::Lease>,
        known: Option<&Known>,
        slaac: &Slaac,
        addresses: bool,
    ) {
        let gateway = slaac.gateway().map(IpAddr::V6);
        let mut add = |net: Ipv6Net| {
            self.result.ips.push(IpConfig { address: IpNet::V6(net), gateway, interface: None });
        };
        for address in lease.map(|l| l.addresses.as_slice()).unwrap_or_default() {
            // A server does not say what is on the link (RFC 5942), routers do.
            Ipv6Net::new(*address, 128).into_iter().for_each(&mut add);
        }
        if addresses {
            slaac.addresses().into_iter().for_each(&mut add);
        }
        let own: Vec<IpNet> = self.result.ips.iter().map(|ip| ip.address.trunc()).collect();
        let on_link = slaac.on_link().map(IpNet::V6).filter(|net| !own.contains(net));
        let on_link = on_link.map(|net| Route { scope: Some(SCOPE_LINK), ..Route::new(net, None) });
        self.result.routes.extend(on_link);
        let routes = &mut self.result.routes;
        let told = slaac.routes();
        routes.extend(told.map(|(net, router)| Route::new(IpNet::V6(net), Some(router.into()))));
        routes.extend(gateway.map(|gw| Route::new(address::default_destination(false), Some(gw))));
        let dns = &mut self.result.dns;
        let servers = lease.into_iter().flat_map(|l| &l.dns).chain(known.into_iter().flat_map(|k| &k.dns));
        for server in servers.copied().chain(slaac.dns()).map(|ip| ip.to_string()) {
            if !dns.nameservers.contains(&server) {
                dns.nameservers.push(server);
            }
        }
        let names =
            lease.into_iter().flat_map(|l| &l.search).chain(known.into_iter().flat_map(|k| &k.search));
        for name in names.map(String::as_str).chain(slaac.search()) {
            if !dns.search.iter().any(|known| known == name) {
                dns.search.push(name.to_owned());
            }
        }
        self.mtu = self.mtu.into_iter().chain(slaac.mtu()).min();
    }

    /// Gives every route a metric, unless 0.
    pub fn set_priority(&mut self, priority: u32) {
        if priority != 0 {
            self.result.routes.iter_mut().for_each(|route| route.priority = priority.into());
        }
    }

    /// What has to change on `dev` to get from `before` to this; empty when nothing does.
    ///
    /// # Errors
    /// A route that cannot be.
    pub fn changes(&self, before: &Outcome, dev: &Dev) -> Result<Vec<Change>> {
        let (old, new) = (before.on(dev)?, self.on(dev)?);
        let mut changes = Vec::new();
        let gone = |r: &&RouteSpec| !new.1.contains(r);
        changes.extend(old.1.iter().filter(gone).map(|route| Change::DelRoute(route.clone())));
        // First: a second address of one network goes away together with the first.
        for net in old.0.iter().filter(|net| !new.0.contains(net)) {
            changes.push(Change::DelAddress { dev: dev.clone(), net: *net });
        }
        for net in new.0.iter().filter(|net| !old.0.contains(net)) {
            changes.push(Change::AddAddress(AddAddress { dev: dev.clone(), net: *net, nodad: true }));
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

/// A result as the protocol's newest version writes it.
mod as_json {
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::value::RawValue;

    use crate::cni::json::Value;
    use crate::cni::{CniResult, Version};

    pub fn serialize<S: Serializer>(result: &CniResult, serializer: S) -> Result<S::Ok, S::Error> {
        let text = result.to_json(Version::LATEST).map_err(S::Error::custom)?;
        RawValue::from_string(text).map_err(S::Error::custom)?.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CniResult, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let value = Value::parse(raw.get().as_bytes()).map_err(D::Error::custom)?;
        CniResult::from_json(&value, Version::LATEST).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(address: &str, gateway: Option<&str>, mtu: Option<u32>) -> Outcome {
        let mut outcome = Outcome { mtu, ..Outcome::default() };
        let gateway = gateway.map(|gw| gw.parse().unwrap());
        outcome.result.ips.push(IpConfig { address: address.parse().unwrap(), gateway, interface: None });
        outcome
            .result
            .routes
            .extend(gateway.map(|gw| Route::new(address::default_destination(true), Some(gw))));
        outcome
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn printed(before: &Outcome, after: &Outcome) -> Vec<String> {
        let dev = Dev { index: 7, name: "eth0".into() };
        after.changes(before, &dev).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_new_address_takes_the_place_of_the_old_one_with_all_routes() {
        let (before, after) = (
            outcome("10.0.0.5/24", Some("10.0.0.1"), None),
            outcome("10.0.0.6/24", Some("10.0.0.1"), Some(1400)),
        );
        assert_eq!(
            printed(&before, &after),
            [
                "ip addr del 10.0.0.5/24 dev eth0",
                "ip addr add 10.0.0.6/24 dev eth0",
                "ip link set dev eth0 mtu 1400",
                "ip route add default via 10.0.0.1 dev eth0",
            ]
        );
        assert!(printed(&after, &after).is_empty());
    }

    #[test]
    fn routes_alone_change_without_a_gap_in_the_address() {
        let (before, after) =
            (outcome("10.0.0.5/24", Some("10.0.0.1"), None), outcome("10.0.0.5/24", None, None));
        assert_eq!(printed(&before, &after), ["ip route del default via 10.0.0.1 dev eth0"]);
        assert_eq!(printed(&after, &before), ["ip route add default via 10.0.0.1 dev eth0"]);
    }

    #[test]
    fn what_was_given_can_be_written_down() {
        let mut outcome = outcome("10.0.0.5/24", Some("10.0.0.1"), Some(1400));
        outcome.result.routes[0].priority = 7_u32.into();
        outcome.result.routes.push(Route { scope: Some(SCOPE_LINK), ..Route::new(net("fd00::/64"), None) });
        outcome.result.dns.nameservers.push("10.0.0.2".into());
        for outcome in [outcome, Outcome::default()] {
            let text = serde_json::to_string(&outcome).unwrap();
            assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome, "{text}");
        }
    }

    #[test]
    fn a_lost_lease_leaves_an_empty_interface() {
        let before = outcome("10.0.0.5/24", Some("10.0.0.1"), None);
        assert_eq!(
            printed(&before, &Outcome::default()),
            ["ip route del default via 10.0.0.1 dev eth0", "ip addr del 10.0.0.5/24 dev eth0"]
        );
    }
}
