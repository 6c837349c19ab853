//! The container's side of an attachment: its namespace, and the settings of the interface in it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nix::errno::Errno;

use super::owner::Owner;
use super::teardown::known_addresses;
use super::{Attachment, veth};
use crate::cni::{Error, Request, Result, ResultExt};
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{AddressWatch, Change, Handle, Link, SetLink};
use crate::kernel::sysctl;

/// The container's network namespace with a handle to it, used from outside.
pub struct Container {
    /// The namespace.
    pub netns: Netns,
    /// rtnetlink inside it.
    pub rtnl: Handle,
}

/// How IPv6 is set up on the container's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    /// The interface gets no IPv6 address: nothing to set.
    None,
    /// Addresses are usable at once.
    NoDad,
    /// Duplicate address detection, the enhanced kind (RFC 7527).
    Dad,
}

/// How long the kernel may take until an IPv6 address works; it mostly is a fraction of a millisecond.
const USABLE_BUDGET: Duration = Duration::from_secs(1);

/// Waits until the IPv6 addresses among `nets`, just added to link `index` without duplicate address detection, work.
///
/// # Errors
/// Notifications cannot be received. That it takes too long is none: the addresses are there.
pub fn wait_usable(watch: Option<AddressWatch>, index: u32, nets: &[IpNet]) -> Result<()> {
    let Some(mut watch) = watch else { return Ok(()) };
    let wanted: Vec<IpAddr> = nets.iter().map(IpNet::addr).filter(IpAddr::is_ipv6).collect();
    watch.wait_usable(index, wanted, USABLE_BUDGET).map(drop)
}

/// Whether a path that could not be opened is none (path_resolution(7)), or that of a plain file, such as the empty one
/// that `ip netns` leaves when its mount is gone: then no system call failed.
fn leads_nowhere(err: &Error) -> bool {
    use Errno::{EINVAL, ELOOP, ENAMETOOLONG, ENOTDIR};
    err.is_gone() || matches!(err.errno(), None | Some(ENOTDIR | ELOOP | ENAMETOOLONG | EINVAL))
}

impl Container {
    /// Opens the namespace `CNI_NETNS` names.
    ///
    /// # Errors
    /// The path does not exist or is no network namespace.
    pub fn open(req: &Request) -> Result<Container> {
        let netns = Netns::open(&req.netns).context("open the container's network namespace")?;
        let rtnl = netns.enter(Handle::open)?;
        Ok(Container { netns, rtnl })
    }

    /// As [`Container::open`]; `None` when `CNI_NETNS` is empty, does not exist, can be no path, or is not a network
    /// namespace (any more): then there is nothing inside it to clean.
    ///
    /// # Errors
    /// The namespace is, or may be, there but cannot be entered.
    pub fn find(req: &Request) -> Result<Option<Container>> {
        if req.netns.is_empty() {
            return Ok(None);
        }
        let netns = match Netns::find(&req.netns) {
            Ok(Some(netns)) => netns,
            Ok(None) => return Ok(None),
            Err(e) if leads_nowhere(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        match netns.enter(|| Ok(Handle::open())) {
            Ok(rtnl) => Ok(Some(Container { rtnl: rtnl?, netns })),
            // setns(2): it is something else, such as a file of /proc.
            Err(e) if e.errno() == Some(Errno::EINVAL) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether an interface of this namespace is the attachment's: `CNI_NETNS` may name another container's namespace by
    /// now. The interface's alias says so, or that of the host's end of its pair, whatever the name of the network: another
    /// list may have made it. Where neither does, one with other addresses than prevResult's is another's; else `None`,
    /// nobody knows.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn is_own(&mut self, link: &Link, req: &Request, host: &mut Handle) -> Result<Option<bool>> {
        let end = veth::peer(host, link)?;
        let aliases = [Some(link), end.as_ref()].into_iter().flatten();
        if let Some(owner) = aliases.filter_map(|link| Owner::parse(&link.alias)).next() {
            return Ok(Some(owner.is_interface(&Attachment::of(req))));
        }
        let known = known_addresses(req, &[]);
        let mut present = self.rtnl.addresses(link.index)?;
        // RT_SCOPE_UNIVERSE, linux/rtnetlink.h: those of the link say nothing.
        present.retain(|address| address.scope == 0);
        let is_unlike = !present.iter().any(|address| known.contains(&address.net.addr()));
        Ok((is_unlike && !known.is_empty() && !present.is_empty()).then_some(false))
    }

    /// Refuses to go on when the interface exists already: it belongs to somebody.
    ///
    /// # Errors
    /// The interface's name and the namespace.
    pub fn must_be_free(&mut self, ifname: &str) -> Result<()> {
        match self.rtnl.link(ifname)? {
            None => Ok(()),
            Some(_) => Err(Error::internal(format!(
                "interface {ifname:?} already exists in {}: run DEL first, or choose another CNI_IFNAME",
                self.netns.path()
            ))),
        }
    }

    /// Waits until duplicate address detection is over for every IPv6 address of the interface.
    ///
    /// # Errors
    /// Another host has one of the addresses, or it takes longer than 5 s.
    pub fn wait_settled(&mut self, index: u32) -> Result<()> {
        let mut watch = self.rtnl.watch_addresses()?;
        self.rtnl.wait_addresses_settled(&mut watch, index, Duration::from_secs(5))
    }

    /// Sets what only files can set, before the interface gets addresses and comes up.
    ///
    /// `ndisc_notify` makes the kernel announce the addresses whenever the interface comes up or its address is set, as
    /// `arp_notify` does, which is set together with "up": see [`Container::announce`].
    ///
    /// With IPv6, what tells that the addresses work: see [`wait_usable`].
    ///
    /// # Errors
    /// A setting that IPv6 addresses need cannot be made; others are best effort, as kernels without IPv6 lack them.
    pub fn prepare(&self, ipv6: Ipv6, name: &str) -> Result<Option<AddressWatch>> {
        if ipv6 == Ipv6::None {
            return Ok(None);
        }
        self.netns.enter(|| {
            let path = |key: &str| format!("net/ipv6/conf/{name}/{key}");
            for file in ["net/ipv6/conf/lo/disable_ipv6".to_owned(), path("disable_ipv6")] {
                sysctl::ensure(&file, "0").context("IPv6 addresses need IPv6 to be enabled")?;
            }
            sysctl::ensure(&path("keep_addr_on_down"), "1")?;
            let _ = sysctl::write(&path("ndisc_notify"), "1");
            let dad = if ipv6 == Ipv6::Dad { "1" } else { "0" };
            let _ = sysctl::write(&path("accept_dad"), dad);
            if ipv6 == Ipv6::Dad {
                let _ = sysctl::write(&path("enhanced_dad"), "1");
            }
            AddressWatch::open().map(Some)
        })
    }

    /// Makes the kernel announce the interface's addresses (gratuitous ARP, unsolicited neighbour advertisement), so that
    /// neighbours which knew an earlier owner of an address reach this one at once. To be called when frames get through.
    ///
    /// Setting the address that the link has is what triggers it (NETDEV_CHANGEADDR in net/ipv4/devinet.c and
    /// net/ipv6/ndisc.c). A packet socket of our own would do the same, and take 20 ms to close.
    ///
    /// # Errors
    /// The link cannot be changed.
    pub fn announce(&mut self, link: &Link) -> Result<()> {
        self.rtnl.apply(&[Change::SetLink(SetLink { mac: link.mac, ..SetLink::of(link.dev()) })])
    }
}
