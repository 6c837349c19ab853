//! The container's interface: found, brought up, watched, and changed when a lease changes.

use std::net::{IpAddr, Ipv6Addr};

use nix::libc;

use crate::cni::{Error, Result, ResultExt};
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{Change, Dev, Event, Handle, LinkWatch, Mac, RouteSpec, SetLink};
use crate::kernel::sysctl;

use super::super::outcome::Outcome;

/// `RTPROT_RA`, linux/rtnetlink.h: routes of the kernel's own from router advertisements.
const RTPROT_RA: u8 = 9;

/// An interface in a namespace, which lives at least as long as this.
pub struct Link {
    netns: Netns,
    watch: LinkWatch,
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: [u8; 6],
    /// MTU before a server had a say in it, bytes.
    pub mtu: u32,
    /// Kind as in `ip link add type KIND`.
    pub kind: String,
    /// Frames get through.
    up: bool,
    carrier: bool,
}

/// What happened to a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// It is operationally up, and was not before.
    pub up: bool,
    /// Its carrier was lost.
    pub carrier_lost: bool,
    /// It has its carrier again.
    pub carrier_returned: bool,
    /// It does not exist any more.
    pub gone: bool,
}

impl Link {
    /// Finds the interface in the namespace at `path` and sets it up.
    ///
    /// # Errors
    /// There is no such namespace or interface, or it has no Ethernet address.
    pub fn open(path: &str, ifname: &str, ipv6: bool) -> Result<Link> {
        let netns = Netns::open(path).context("open the container's network namespace")?;
        let (mut rtnl, watch) = netns.enter(|| Ok((Handle::open()?, LinkWatch::open()?)))?;
        let missing = || {
            Error::internal(format!("there is no interface {ifname:?} in {path}")).with_details(
                "dhcp needs the interface before the address: the main plugin has to make the link first",
            )
        };
        let link = rtnl.link(ifname)?.ok_or_else(missing)?;
        let mac =
            link.mac.ok_or_else(|| Error::internal(format!("{ifname} in {path} has no Ethernet address")))?;
        if ipv6 {
            prepare_ipv6(&netns, ifname, link.is_up())?;
            forget_routers(&mut rtnl, &link.dev())?;
        }
        if !link.is_up() {
            rtnl.apply(&[Change::SetLink(SetLink { up: Some(true), ..SetLink::of(link.dev()) })])?;
        }
        let now = rtnl.link_by_index(link.index)?.ok_or_else(missing)?;
        Ok(Link {
            netns,
            watch,
            index: link.index,
            name: link.name,
            mac: mac.0,
            mtu: link.mtu,
            kind: link.kind,
            up: now.is_oper_up(),
            carrier: has_carrier(now.flags),
        })
    }

    /// The namespace's device and inode.
    pub fn namespace(&self) -> (u64, u64) {
        self.netns.identity()
    }

    /// Whether `path` still names this namespace.
    pub fn is_at(&self, path: &str) -> bool {
        matches!(Netns::find(path), Ok(Some(found)) if found.same_as(&self.netns))
    }

    /// Operationally up: frames get through.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Becomes readable when something happens to the namespace's links.
    pub fn watch(&self) -> &LinkWatch {
        &self.watch
    }

    /// What happened since it was last asked for.
    ///
    /// # Errors
    /// Notifications cannot be received.
    pub fn happened(&mut self) -> Result<Happened> {
        let (index, mut up, mut carrier, mut happened) =
            (self.index, self.up, self.carrier, Happened::default());
        let mut lost_news = false;
        self.watch.drain(|event| {
            match event {
                Event::New(link) if link.index == index => {
                    let has = has_carrier(link.flags);
                    happened.up |= link.is_oper_up() && !up;
                    happened.carrier_lost |= carrier && !has;
                    happened.carrier_returned |= !carrier && has;
                    (up, carrier) = (link.is_oper_up(), has);
                }
                Event::Gone { index: i } if i == index => happened.gone = true,
                Event::Lost => lost_news = true,
                Event::New(_) | Event::Gone { .. } => {}
            }
            None::<()>
        })?;
        if lost_news {
            match self.rtnl()?.link_by_index(index)? {
                Some(link) => (up, carrier) = (link.is_oper_up(), has_carrier(link.flags)),
                None => happened.gone = true,
            }
        }
        (self.up, self.carrier) = (up, carrier);
        Ok(happened)
    }

    /// The address that IPv6 speaks from on the link, as soon as it is usable.
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        let addresses = self.rtnl().ok()?.addresses(self.index).ok()?;
        addresses.iter().filter(|a| !a.is_tentative()).find_map(|a| match a.net.addr() {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(ip),
            _ => None,
        })
    }

    /// Runs `work` inside the namespace.
    ///
    /// # Errors
    /// Those of `work`, and that the namespace cannot be entered.
    pub fn inside<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.netns.enter(work)
    }

    fn rtnl(&self) -> Result<Handle> {
        self.netns.enter(Handle::open)
    }

    /// Gives the interface what `after` says instead of what `before` said.
    ///
    /// # Errors
    /// All failures together; every change was tried. What is there or gone already is none.
    pub fn update(&self, before: &Outcome, after: &Outcome) -> Result<Vec<Change>> {
        let dev = Dev { index: self.index, name: self.name.clone() };
        let mut changes = after.changes(before, &dev)?;
        for change in &mut changes {
            if let Change::SetLink(SetLink { mtu: Some(mtu), .. }) = change {
                *mtu = self.mtu.min(*mtu);
            }
        }
        let mut rtnl = self.rtnl()?;
        let mut errors = Vec::new();
        let added = changes.iter().any(|change| matches!(change, Change::AddAddress(_)));
        for change in &changes {
            match rtnl.apply(std::slice::from_ref(change)) {
                Err(e) if e.is_exists() || e.is_gone() => {}
                outcome => errors.extend(outcome.err()),
            }
        }
        if added {
            self.announce(&mut rtnl);
        }
        Error::all(errors).map_or(Ok(changes), Err)
    }

    /// Makes the kernel announce the addresses (RFC 5227 section 2.3), as `attach::container` does for the first ones:
    /// neighbours may know an earlier owner. Those that it does not reach find out by themselves, only later.
    fn announce(&self, rtnl: &mut Handle) {
        let _ = self.inside(|| {
            sysctl::ensure(&format!("net/ipv4/conf/{}/arp_notify", self.name), "1")?;
            sysctl::ensure(&format!("net/ipv6/conf/{}/ndisc_notify", self.name), "1")
        });
        let dev = Dev { index: self.index, name: self.name.clone() };
        let _ = rtnl.apply(&[Change::SetLink(SetLink { mac: Some(Mac(self.mac)), ..SetLink::of(dev) })]);
    }

    /// Lowers the MTU to what a server asks for; it is never raised above what the main plugin chose.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lower_mtu(&self, mtu: u32) -> Result<()> {
        if mtu >= self.mtu {
            return Ok(());
        }
        let dev = Dev { index: self.index, name: self.name.clone() };
        self.rtnl()?.apply(&[Change::SetLink(SetLink { mtu: Some(mtu), ..SetLink::of(dev) })])
    }
}

/// Lets the daemon and nobody else listen to routers, and makes the link-local address, which is made from the interface's
/// own hardware address, usable at once when the link comes up.
fn prepare_ipv6(netns: &Netns, ifname: &str, is_up: bool) -> Result<()> {
    let path = |key: &str| format!("net/ipv6/conf/{ifname}/{key}");
    netns.enter(|| {
        sysctl::ensure(&path("disable_ipv6"), "0").context("IPv6 addresses need IPv6 to be enabled")?;
        sysctl::ensure(&path("accept_ra"), "0")?;
        if !is_up {
            let _ = sysctl::write(&path("accept_dad"), "0");
        }
        Ok(())
    })
}

/// Removes what the kernel has taken from routers before it was told not to listen: the same addresses and routes are about
/// to be set by others.
fn forget_routers(rtnl: &mut Handle, dev: &Dev) -> Result<()> {
    let mut changes = Vec::new();
    for address in rtnl.addresses(dev.index)? {
        let global = address.net.addr().is_ipv6() && address.scope == 0;
        if global && address.flags & libc::IFA_F_PERMANENT == 0 {
            changes.push(Change::DelAddress { dev: dev.clone(), net: address.net });
        }
    }
    for route in rtnl.routes(dev.index)?.into_iter().filter(|route| route.protocol == RTPROT_RA) {
        let (gw, priority, protocol) = (route.gw, route.priority, Some(route.protocol));
        changes.push(Change::DelRoute(RouteSpec {
            gw,
            priority,
            protocol,
            ..RouteSpec::new(route.dst, dev.clone())
        }));
    }
    for change in &changes {
        rtnl.apply(std::slice::from_ref(change)).unless_gone()?;
    }
    Ok(())
}

fn has_carrier(flags: u32) -> bool {
    flags & libc::IFF_LOWER_UP as u32 != 0
}
