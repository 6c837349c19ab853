//! The kernel's own cost: the changes that a plugin makes, with as few messages as possible and nothing else done.
//!
//! What is counted is what no implementation can avoid: the netlink sockets, one entry into the container's namespace,
//! the messages, and the lease's file. No process is started; the report adds the start of an empty program.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::sched::{CloneFlags, setns};

use crate::netlink::{ACK, CREATE, EXCL, Messages, Socket, link_header};
use crate::node::Netns;

/// `VETH_INFO_PEER` (linux/veth.h).
const VETH_INFO_PEER: u16 = 1;
/// The prefix length of the benchmark's network.
const PREFIX: u8 = 16;
/// The gateway of the benchmark's network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 22, 0, 1);

/// How the host's end is connected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As a port of the bridge `cni0`.
    Bridge,
    /// Routed, with the gateway's address and a route to the container.
    Ptp,
}

/// One attachment made by hand.
pub struct Floor<'n> {
    host: &'n Netns,
    container: &'n Netns,
    shape: Shape,
    masquerade: bool,
    number: u16,
    leases: PathBuf,
}

impl<'n> Floor<'n> {
    /// The attachment number `number` (its address is 10.22.0.2 plus that) of a container on a host.
    pub fn new(
        host: &'n Netns,
        container: &'n Netns,
        shape: Shape,
        masquerade: bool,
        number: u16,
        leases: PathBuf,
    ) -> Floor<'n> {
        Floor { host, container, shape, masquerade, number, leases }
    }

    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 22, 0, 2)) + u32::from(self.number))
    }

    fn link(&self) -> String {
        format!("floor{}", self.number)
    }

    /// A socket inside the container's namespace, opened by entering it for a moment.
    fn inside(&self) -> io::Result<Socket> {
        setns(self.container.fd(), CloneFlags::CLONE_NEWNET)?;
        let socket = Socket::open(libc::NETLINK_ROUTE, 0);
        setns(self.host.fd(), CloneFlags::CLONE_NEWNET)?;
        socket
    }

    /// What ADD changes. The calling thread must be in the host's namespace.
    pub fn add(&self) -> io::Result<()> {
        self.reserve()?;
        let host = Socket::open(libc::NETLINK_ROUTE, 0)?;
        let master = match self.shape {
            Shape::Bridge => host.link_index("cni0")?,
            Shape::Ptp => None,
        };
        let mut create = Messages::default();
        create.message(libc::RTM_NEWLINK, CREATE | EXCL | ACK, &link_header(0, true));
        create.text(libc::IFLA_IFNAME, &self.link());
        // Without it the kernel waits for an RCU grace period, for each end.
        create.number(libc::IFLA_NUM_TX_QUEUES, 1);
        if let Some(index) = master {
            create.number(libc::IFLA_MASTER, index);
        }
        create.nest(libc::IFLA_LINKINFO, &[], |info| {
            info.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, &[], |data| {
                data.nest(VETH_INFO_PEER, &link_header(0, false), |peer| {
                    let fd = self.container.fd().as_raw_fd() as u32;
                    peer.text(libc::IFLA_IFNAME, "eth0").number(libc::IFLA_NUM_TX_QUEUES, 1);
                    peer.number(libc::IFLA_NET_NS_FD, fd);
                });
            });
        });
        create.message(libc::RTM_NEWLINK, ACK, &link_header(0, false));
        create.text(libc::IFLA_IFNAME, &self.link());
        create.text(
            libc::IFLA_IFALIAS,
            &format!("floor bench container{} eth0 {}", self.number, self.address()),
        );
        host.exchange(&create)?;

        let inside = self.inside()?;
        let index = inside.link_index("eth0")?.ok_or(io::ErrorKind::NotFound)?;
        let prefix = if self.shape == Shape::Bridge { PREFIX } else { 32 };
        let mut configure = Messages::default();
        configure.message(libc::RTM_NEWLINK, 0, &link_header(index, true));
        address(&mut configure, 0, index, self.address(), prefix);
        if self.shape == Shape::Ptp {
            route(&mut configure, 0, index, Some((GATEWAY, 32)), None);
        }
        route(&mut configure, ACK, index, None, Some(GATEWAY));
        inside.exchange(&configure)?;

        if self.shape == Shape::Ptp {
            let index = host.link_index(&self.link())?.ok_or(io::ErrorKind::NotFound)?;
            let mut back = Messages::default();
            address(&mut back, 0, index, GATEWAY, 32);
            route(&mut back, ACK, index, Some((self.address(), 32)), None);
            host.exchange(&back)?;
        }
        if self.masquerade {
            let nft = Socket::open(libc::NETLINK_NETFILTER, 0)?;
            nft.exchange(&nft::elements(nft::NEW, self.address(), self.number))?;
        }
        Ok(())
    }

    /// What DEL changes, until the kernel has answered.
    pub fn del(&self) -> io::Result<()> {
        // Closing the nftables socket waits for the kernel's cleaning up: after the link's, there is nothing left of it.
        let _nft = self.forget()?;
        let host = Socket::open(libc::NETLINK_ROUTE, 0)?;
        let mut remove = Messages::default();
        remove.message(libc::RTM_DELLINK, ACK, &link_header(0, false)).text(libc::IFLA_IFNAME, &self.link());
        host.exchange(&remove)?;
        self.release()
    }

    /// What DEL changes, until the kernel has announced that the link is gone; another thread sits out the rest. The
    /// returned handle ends when that thread does.
    pub fn del_detached(&self) -> io::Result<thread::JoinHandle<io::Result<()>>> {
        let nft = self.forget()?;
        let watch = Socket::open(libc::NETLINK_ROUTE, libc::RTMGRP_LINK as u32)?;
        let index = watch.link_index(&self.link())?.ok_or(io::ErrorKind::NotFound)?;
        let host = Socket::open(libc::NETLINK_ROUTE, 0)?;
        let (ready, started) = mpsc::channel();
        let waiter = thread::spawn(move || {
            let _ = ready.send(());
            let mut remove = Messages::default();
            remove.message(libc::RTM_DELLINK, ACK, &link_header(index, false));
            let outcome = host.exchange(&remove);
            drop(nft);
            outcome
        });
        let _ = started.recv();
        let mut gone = false;
        while !gone {
            watch.receive(|kind, payload| {
                let announced = u32::from_ne_bytes([payload[4], payload[5], payload[6], payload[7]]);
                gone |= kind == libc::RTM_DELLINK && announced == index;
            })?;
        }
        self.release()?;
        Ok(waiter)
    }

    fn forget(&self) -> io::Result<Option<Socket>> {
        if !self.masquerade {
            return Ok(None);
        }
        let nft = Socket::open(libc::NETLINK_NETFILTER, 0)?;
        nft.exchange(&nft::elements(nft::DELETE, self.address(), self.number))?;
        Ok(Some(nft))
    }

    fn lock(&self) -> io::Result<Flock<File>> {
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.leases.join("lock"))?;
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
    }

    fn reserve(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        let path = self.leases.join(self.address().to_string());
        let mut lease = File::options().write(true).create_new(true).open(path)?;
        write!(lease, "container{}\r\neth0", self.number)?;
        fs::write(self.leases.join("last_reserved_ip.0"), self.address().to_string())
    }

    fn release(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        fs::remove_file(self.leases.join(self.address().to_string()))
    }
}

/// `ip link set lo up` or `down` inside a namespace.
pub fn loopback(host: &Netns, container: &Netns, up: bool) -> io::Result<()> {
    setns(container.fd(), CloneFlags::CLONE_NEWNET)?;
    let socket = Socket::open(libc::NETLINK_ROUTE, 0);
    setns(host.fd(), CloneFlags::CLONE_NEWNET)?;
    let mut header = link_header(1, true);
    if !up {
        header[8..12].copy_from_slice(&0u32.to_ne_bytes());
    }
    let mut change = Messages::default();
    change.message(libc::RTM_NEWLINK, ACK, &header);
    socket?.exchange(&change)
}

/// What the first container on a host finds: the bridge with its address, and the nftables table.
pub fn prepare(host: &Netns, shape: Shape, masquerade: bool) -> io::Result<()> {
    setns(host.fd(), CloneFlags::CLONE_NEWNET)?;
    if shape == Shape::Bridge {
        let socket = Socket::open(libc::NETLINK_ROUTE, 0)?;
        let mut create = Messages::default();
        create.message(libc::RTM_NEWLINK, CREATE | EXCL | ACK, &link_header(0, true));
        create.text(libc::IFLA_IFNAME, "cni0").nest(libc::IFLA_LINKINFO, &[], |info| {
            info.text(libc::IFLA_INFO_KIND, "bridge");
        });
        socket.exchange(&create)?;
        let index = socket.link_index("cni0")?.ok_or(io::ErrorKind::NotFound)?;
        let mut give = Messages::default();
        address(&mut give, ACK, index, GATEWAY, PREFIX);
        socket.exchange(&give)?;
    }
    if masquerade {
        Socket::open(libc::NETLINK_NETFILTER, 0)?.exchange(&nft::table())?;
    }
    Ok(())
}

fn address(to: &mut Messages, flags: u16, index: u32, address: Ipv4Addr, prefix: u8) {
    let mut header = vec![libc::AF_INET as u8, prefix, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    to.message(libc::RTM_NEWADDR, CREATE | EXCL | flags, &header)
        .attr(libc::IFA_LOCAL, &address.octets())
        .attr(libc::IFA_ADDRESS, &address.octets());
}

/// A route to a destination (the default route without one), through a gateway or on the link.
fn route(to: &mut Messages, flags: u16, dev: u32, dst: Option<(Ipv4Addr, u8)>, via: Option<Ipv4Addr>) {
    let scope = if via.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    let prefix = dst.map_or(0, |(_, prefix)| prefix);
    let mut header = vec![libc::AF_INET as u8, prefix, 0, 0];
    header.extend_from_slice(&[libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, scope, libc::RTN_UNICAST]);
    header.extend_from_slice(&0u32.to_ne_bytes());
    to.message(libc::RTM_NEWROUTE, CREATE | EXCL | flags, &header);
    if let Some((dst, _)) = dst {
        to.attr(libc::RTA_DST, &dst.octets());
    }
    if let Some(via) = via {
        to.attr(libc::RTA_GATEWAY, &via.octets());
    }
    to.number(libc::RTA_OIF, dev);
}

/// The nftables side: a verdict map and an index, as the layout of `cni-all` has them (src/attach/masquerade/maps.rs).
mod nft {
    use super::{ACK, CREATE, Ipv4Addr, Messages, libc};

    const TABLE: &str = "floor";
    /// `NFT_MSG_NEWSETELEM`.
    pub const NEW: u16 = libc::NFT_MSG_NEWSETELEM as u16;
    /// `NFT_MSG_DELSETELEM`.
    pub const DELETE: u16 = libc::NFT_MSG_DELSETELEM as u16;
    /// nft's own number for the type `ipv4_addr` (libnftables `enum datatypes`).
    const TYPE_IPV4: u32 = 7;
    /// nft's own number for the type `ifname`.
    const TYPE_IFNAME: u32 = 41;
    const NESTED: u16 = libc::NLA_F_NESTED as u16;

    /// `struct nfgenmsg` (linux/netfilter/nfnetlink.h).
    fn header(family: u8, resource: u16) -> [u8; 4] {
        let resource = resource.to_be_bytes();
        [family, 0, resource[0], resource[1]]
    }

    fn batch(inner: impl FnOnce(&mut Messages)) -> Messages {
        let subsystem = libc::NFNL_SUBSYS_NFTABLES as u16;
        let mut messages = Messages::default();
        messages.message(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, &header(0, subsystem));
        inner(&mut messages);
        messages.message(libc::NFNL_MSG_BATCH_END as u16, 0, &header(0, subsystem));
        messages
    }

    fn message(to: &mut Messages, kind: u16, flags: u16) -> &mut Messages {
        let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind;
        to.message(kind, flags, &header(libc::NFPROTO_IPV4 as u8, 0))
    }

    /// The table with two maps, the network's chain, and the rule in `postrouting` left out: it costs nothing per ADD.
    pub fn table() -> Messages {
        batch(|to| {
            // NFTA_TABLE_NAME
            message(to, libc::NFT_MSG_NEWTABLE as u16, CREATE).text(1, TABLE);
            // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
            message(to, libc::NFT_MSG_NEWCHAIN as u16, CREATE).text(1, TABLE).text(3, "masq");
            // NFTA_SET_TABLE, _NAME, _FLAGS (NFT_SET_MAP), _KEY_TYPE, _KEY_LEN, _DATA_TYPE (verdict), _ID
            message(to, libc::NFT_MSG_NEWSET as u16, CREATE).text(1, TABLE).text(2, "masqueraded");
            to.big_endian(3, 8)
                .big_endian(4, TYPE_IPV4)
                .big_endian(5, 4)
                .big_endian(6, 0xffff_ff00)
                .big_endian(10, 1);
            // … _DATA_TYPE, _DATA_LEN, _ID
            message(to, libc::NFT_MSG_NEWSET as u16, CREATE | ACK).text(1, TABLE).text(2, "attachments");
            to.big_endian(3, 8).big_endian(4, TYPE_IFNAME).big_endian(5, 16);
            to.big_endian(6, TYPE_IPV4).big_endian(7, 4).big_endian(10, 2);
        })
    }

    /// One attachment's element in each of the maps.
    pub fn elements(verb: u16, address: Ipv4Addr, number: u16) -> Messages {
        let mut key = [0; 16];
        let name = format!("attachment{number:05}");
        key[..name.len()].copy_from_slice(name.as_bytes());
        let comment = format!("net bench if eth0 id container{number}");
        let create = if verb == NEW { CREATE } else { 0 };
        batch(|to| {
            element(message(to, verb, create), "masqueraded", &address.octets(), &comment, |data| {
                // NFTA_DATA_VERDICT { NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN }
                data.nest(2 | NESTED, &[], |verdict| {
                    verdict.big_endian(1, libc::NFT_GOTO as u32).text(2, "masq");
                });
            });
            element(message(to, verb, create | ACK), "attachments", &key, &comment, |data| {
                data.attr(1, &address.octets());
            });
        })
    }

    fn element(to: &mut Messages, map: &str, key: &[u8], comment: &str, data: impl FnOnce(&mut Messages)) {
        let mut note = vec![0, comment.len() as u8 + 1];
        note.extend_from_slice(comment.as_bytes());
        note.push(0);
        // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS { NFTA_LIST_ELEM { NFTA_SET_ELEM_KEY, _DATA, _USERDATA } }
        to.text(1, TABLE).text(2, map).nest(3 | NESTED, &[], |list| {
            list.nest(1 | NESTED, &[], |element| {
                element.nest(1 | NESTED, &[], |value| {
                    value.attr(1, key);
                });
                element.nest(2 | NESTED, &[], data).attr(6, &note);
            });
        });
    }
}
