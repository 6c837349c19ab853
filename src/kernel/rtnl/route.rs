//! Routes: what to add or remove, and what the kernel has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use neli::consts::{
    nl::NlmF,
    rtnl::{Rta, Rtm},
};

use super::{
    Dev,
    uapi::*,
    wire::{Attributes, Attrs, Batch, ip_of, u8_at, u16_at, u32_at},
};
use crate::cni::Result;

/// A route to add or remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destination; host bits are ignored, prefix length 0 is the default route.
    pub dst: IpNet,
    /// Gateway; may be of the other family (Linux 5.2).
    pub gw: Option<IpAddr>,
    /// Output interface; its index must be known. Not used when there are `nexthops`.
    pub dev: Dev,
    /// Preferred source address.
    pub src: Option<IpAddr>,
    /// Metric, lower wins; 0 is the kernel's default.
    pub priority: u32,
    /// Routing table; `None` is main.
    pub table: Option<u32>,
    /// `RT_SCOPE_*`, linux/rtnetlink.h; `None` is global when adding, any when removing.
    pub scope: Option<u8>,
    /// Path MTU, bytes; 0 for the interface's.
    pub mtu: u32,
    /// MSS to announce, bytes; 0 for the kernel's choice.
    pub advmss: u32,
    /// The gateway is on the interface's link even when no address says so.
    pub onlink: bool,
    /// `RTPROT_*`, linux/rtnetlink.h; `None` is boot when adding, any when removing.
    pub protocol: Option<u8>,
    /// Several next hops in place of `gw` and `dev`.
    pub nexthops: Vec<NextHop>,
}

impl RouteSpec {
    /// A route out of `dev` with nothing else set.
    pub fn new(dst: IpNet, dev: Dev) -> RouteSpec {
        RouteSpec {
            dst,
            gw: None,
            dev,
            src: None,
            priority: 0,
            table: None,
            scope: None,
            mtu: 0,
            advmss: 0,
            onlink: false,
            protocol: None,
            nexthops: Vec::new(),
        }
    }
}

/// One of several ways of a multipath route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Gateway; `None` when the destination is on the link.
    pub gw: Option<IpAddr>,
    /// Output interface; its index must be known.
    pub dev: Dev,
    /// Share of the traffic, 1 to 256.
    pub weight: u16,
    /// As [`RouteSpec::onlink`].
    pub onlink: bool,
}

/// A route that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination; prefix length 0 is the default route.
    pub dst: IpNet,
    /// Gateway, when there is one next hop.
    pub gw: Option<IpAddr>,
    /// Index of the output interface, when there is one next hop.
    pub oif: Option<u32>,
    /// Preferred source address.
    pub src: Option<IpAddr>,
    /// Metric.
    pub priority: u32,
    /// Routing table: 254 main, 255 local.
    pub table: u32,
    /// `RT_SCOPE_*`, linux/rtnetlink.h.
    pub scope: u8,
    /// `RTPROT_*`, linux/rtnetlink.h.
    pub protocol: u8,
    /// `RTN_*`, linux/rtnetlink.h: 1 unicast, 2 local, 3 broadcast.
    pub kind: u8,
    /// `RTNH_F_*` and `RTM_F_*`, linux/rtnetlink.h.
    pub flags: u32,
    /// Path MTU, bytes; 0 for the interface's.
    pub mtu: u32,
    /// MSS to announce, bytes; 0 for the kernel's choice.
    pub advmss: u32,
    /// All next hops of a multipath route; empty otherwise.
    pub nexthops: Vec<NextHop>,
}

impl Route {
    /// Leaves, or can leave, through this interface.
    pub fn leaves_by(&self, index: u32) -> bool {
        self.oif == Some(index) || self.nexthops.iter().any(|hop| hop.dev.index == index)
    }

    /// The next hops through this interface, each as a route, when there are others besides. IPv6 only, where each of them
    /// comes and goes alone: the kernel has joined the routes of several interfaces to one destination.
    pub fn legs(&self, dev: &Dev) -> Vec<Route> {
        let is_own = |hop: &&NextHop| hop.dev.index == dev.index;
        if self.dst.addr().is_ipv4() || self.nexthops.iter().all(|hop| is_own(&hop)) {
            return vec![self.clone()];
        }
        let alone =
            |hop: &NextHop| Route { gw: hop.gw, oif: Some(dev.index), nexthops: Vec::new(), ..self.clone() };
        self.nexthops.iter().filter(is_own).map(alone).collect()
    }

    /// This route, in that table: to add or to remove. `dev` is the interface of its one next hop.
    pub fn spec(&self, dev: &Dev, table: u32) -> RouteSpec {
        RouteSpec {
            dst: self.dst,
            gw: self.gw,
            dev: dev.clone(),
            src: self.src,
            priority: self.priority,
            table: Some(table),
            // The kernel has no scopes for IPv6 routes.
            scope: self.dst.addr().is_ipv4().then_some(self.scope),
            mtu: self.mtu,
            advmss: self.advmss,
            onlink: self.flags & RTNH_F_ONLINK != 0,
            protocol: Some(self.protocol),
            nexthops: self.nexthops.clone(),
        }
    }

    /// Reads the payload of an RTM_NEWROUTE; `None` for a family other than IPv4 and IPv6.
    pub(super) fn decode(payload: &[u8]) -> Option<Route> {
        let v6 = match u8_at(payload, 0) {
            AF_INET => false,
            AF_INET6 => true,
            _ => return None,
        };
        let any = default_net(v6).addr();
        let mut route = Route {
            dst: IpNet::new(any, u8_at(payload, 1)).ok()?,
            gw: None,
            oif: None,
            src: None,
            priority: 0,
            table: u32::from(u8_at(payload, 4)),
            protocol: u8_at(payload, 5),
            scope: u8_at(payload, 6),
            kind: u8_at(payload, 7),
            flags: u32_at(payload, 8),
            mtu: 0,
            advmss: 0,
            nexthops: Vec::new(),
        };
        for (kind, value) in Attrs::after(payload, 12) {
            match Rta::from(kind) {
                Rta::Dst => route.dst = IpNet::new(ip_of(value)?, route.dst.prefix_len()).ok()?,
                Rta::Oif => route.oif = Some(u32_at(value, 0)),
                Rta::Prefsrc => route.src = ip_of(value),
                Rta::Priority => route.priority = u32_at(value, 0),
                Rta::Table => route.table = u32_at(value, 0),
                Rta::Metrics => {
                    let metric = |kind: u16| Attrs(value).find(kind).map_or(0, |b| u32_at(b, 0));
                    route.mtu = metric(RTAX_MTU);
                    route.advmss = metric(RTAX_ADVMSS);
                }
                Rta::Multipath => route.nexthops = decode_nexthops(value),
                _ => {}
            }
        }
        route.gw = decode_gateway(Attrs::after(payload, 12));
        Some(route)
    }
}

/// `0.0.0.0/0` or `::/0`.
fn default_net(v6: bool) -> IpNet {
    if v6 {
        IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0))
    } else {
        IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0))
    }
}

fn decode_gateway(attrs: Attrs<'_>) -> Option<IpAddr> {
    match attrs.find(Rta::Gateway) {
        Some(value) => ip_of(value),
        None => attrs.find(RTA_VIA).and_then(|value| ip_of(value.get(2..)?)),
    }
}

/// A run of `struct rtnexthop`, each followed by its attributes.
fn decode_nexthops(mut bytes: &[u8]) -> Vec<NextHop> {
    let mut hops = Vec::new();
    while let Some(hop) = bytes.get(..usize::from(u16_at(bytes, 0))).filter(|hop| hop.len() >= 8) {
        hops.push(NextHop {
            gw: decode_gateway(Attrs::after(hop, 8)),
            dev: Dev::indexed(u32_at(hop, 4)),
            weight: u16::from(u8_at(hop, 3)) + 1,
            onlink: u32::from(u8_at(hop, 2)) & RTNH_F_ONLINK != 0,
        });
        bytes = bytes.get(hop.len().next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

/// `ip route show table all dev INDEX`, both families.
pub(super) fn encode_dump(index: u32, batch: &mut Batch) {
    batch.message(Rtm::Getroute, NlmF::DUMP, &[0; 12], |a| a.u32(Rta::Oif, index));
}

/// `ip route show table all`, both families.
pub(super) fn encode_dump_all(batch: &mut Batch) {
    batch.message(Rtm::Getroute, NlmF::DUMP, &[0; 12], |_| {});
}

/// `ip route get ADDRESS`
pub(super) fn encode_get(to: IpAddr, batch: &mut Batch) {
    let mut header = [0; 12];
    (header[0], header[1]) = if to.is_ipv6() { (AF_INET6, 128) } else { (AF_INET, 32) };
    batch.message(Rtm::Getroute, NlmF::ACK, &header, |a| a.ip(Rta::Dst, to));
}

/// `ip route add|append|replace|del ROUTE`; `what` is that command, for the error when an index is missing.
pub(super) fn encode(
    kind: Rtm,
    flags: NlmF,
    route: &RouteSpec,
    what: &dyn std::fmt::Display,
    batch: &mut Batch,
) -> Result<()> {
    let mut hops = Vec::with_capacity(route.nexthops.len());
    for hop in &route.nexthops {
        hops.push((hop, hop.dev.need_index(what)?));
    }
    let oif = if hops.is_empty() { Some(route.dev.need_index(what)?) } else { None };

    let adding = kind == Rtm::Newroute;
    let dst = route.dst.trunc();
    let table = route.table.unwrap_or(RT_TABLE_MAIN);
    let mut header = [0; 12];
    header[0] = if dst.addr().is_ipv6() { AF_INET6 } else { AF_INET };
    header[1] = dst.prefix_len();
    header[4] = u8::try_from(table).unwrap_or(0);
    header[5] = route.protocol.unwrap_or(if adding { RTPROT_BOOT } else { 0 });
    header[6] = route.scope.unwrap_or(if adding { RT_SCOPE_UNIVERSE } else { RT_SCOPE_NOWHERE });
    header[7] = RTN_UNICAST;
    if route.onlink {
        header[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    batch.message(kind, flags, &header, |a| {
        if dst.prefix_len() > 0 {
            a.ip(Rta::Dst, dst.addr());
        }
        if hops.is_empty() {
            encode_gateway(a, route.gw, dst);
        } else {
            a.nest(Rta::Multipath, |a| {
                for (hop, index) in &hops {
                    let share = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
                    let flags = if hop.onlink { RTNH_F_ONLINK as u8 } else { 0 };
                    a.next_hop(flags, share, *index, |a| encode_gateway(a, hop.gw, dst));
                }
            });
        }
        if let Some(src) = route.src {
            a.ip(Rta::Prefsrc, src);
        }
        if route.priority != 0 {
            a.u32(Rta::Priority, route.priority);
        }
        if table > u32::from(u8::MAX) {
            a.u32(Rta::Table, table);
        }
        if let Some(oif) = oif {
            a.u32(Rta::Oif, oif);
        }
        if route.mtu != 0 || route.advmss != 0 {
            a.nest(Rta::Metrics, |a| {
                for (metric, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
                    if value != 0 {
                        a.u32(metric, value);
                    }
                }
            });
        }
    });
    Ok(())
}

fn encode_gateway(a: &mut Attributes<'_>, gw: Option<IpAddr>, dst: IpNet) {
    match gw {
        Some(gw) if gw.is_ipv6() == dst.addr().is_ipv6() => a.ip(Rta::Gateway, gw),
        Some(IpAddr::V6(gw)) => {
            let mut via = [0; 18];
            via[..2].copy_from_slice(&u16::from(AF_INET6).to_ne_bytes());
            via[2..].copy_from_slice(&gw.octets());
            a.bytes(RTA_VIA, &via);
        }
        Some(IpAddr::V4(gw)) => {
            let mut via = [0; 6];
            via[..2].copy_from_slice(&u16::from(AF_INET).to_ne_bytes());
            via[2..].copy_from_slice(&gw.octets());
            a.bytes(RTA_VIA, &via);
        }
        None => {}
    }
}
