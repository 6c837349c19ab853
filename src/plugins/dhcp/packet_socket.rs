//! Packet sockets (packet(7)): how a client speaks on a link before it has an address there.
#![allow(unsafe_code)]

use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void, sockaddr_ll, socklen_t};

use super::frame;
use crate::cni::{Error, Result};

/// `TP_STATUS_CSUMNOTREADY`, linux/if_packet.h.
const CHECKSUM_NOT_READY: u32 = 1 << 3;

/// Room for one packet: longer ones are none of ours.
const RECEIVE: usize = 2048;

/// `FF:FF:FF:FF:FF:FF`.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// IPv4 packets, UDP to port 68 only.
    Dhcp,
    /// ARP packets.
    Arp,
    /// IPv6 packets, neighbour solicitations and advertisements only.
    Neighbours,
    /// IPv6 packets, router advertisements only.
    Routers,
}

impl Protocol {
    fn ether_type(self) -> u16 {
        match self {
            Protocol::Dhcp => libc::ETH_P_IP as u16,
            Protocol::Arp => libc::ETH_P_ARP as u16,
            Protocol::Neighbours | Protocol::Routers => libc::ETH_P_IPV6 as u16,
        }
    }

    /// The classic BPF program (linux/filter.h) that the kernel runs on each packet, which begins with its own header.
    fn filter(self) -> Vec<libc::sock_filter> {
        let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let (load_byte, load_half) =
            (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, libc::BPF_LD | libc::BPF_H | libc::BPF_ABS);
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let end = libc::BPF_RET | libc::BPF_K;
        // Next header ICMPv6, and one of two types.
        let icmpv6 = |one, other| {
            vec![
                op(load_byte, 0, 0, 6),
                op(equal, 0, 4, 58),
                op(load_byte, 0, 0, 40),
                op(equal, 1, 0, one),
                op(equal, 0, 1, other),
                op(end, 0, 0, RECEIVE as u32),
                op(end, 0, 0, 0),
            ]
        };
        match self {
            Protocol::Dhcp => vec![
                // Protocol UDP, no later fragment, destination port 68.
                op(load_byte, 0, 0, 9),
                op(equal, 0, 6, 17),
                op(load_half, 0, 0, 6),
                op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 4, 0, 0x1fff),
                op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
                op(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 0, 0, 2),
                op(equal, 0, 1, u32::from(frame::CLIENT_PORT)),
                op(end, 0, 0, RECEIVE as u32),
                op(end, 0, 0, 0),
            ],
            Protocol::Arp => vec![op(end, 0, 0, RECEIVE as u32)],
            Protocol::Neighbours => icmpv6(135, 136),
            Protocol::Routers => icmpv6(134, 134),
        }
    }
}

/// A received packet, without its Ethernet header.
#[derive(Clone, Debug)]
pub struct Received {
    /// The packet.
    pub bytes: Vec<u8>,
    /// Who sent it on this link.
    pub from: [u8; 6],
    /// The kernel has not filled in the checksum.
    pub unfinished: bool,
}

/// A non-blocking packet socket, bound to one interface of one namespace; it stays there wherever it is used.
///
/// Closing one waits for a grace period of the kernel, some 20 ms: see `Closer`.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    index: u32,
    protocol: Protocol,
}

impl PacketSocket {
    /// Opens a socket on interface `index` of the calling thread's namespace.
    ///
    /// # Errors
    /// The step that failed.
    pub fn open(protocol: Protocol, index: u32) -> Result<PacketSocket> {
        let failed =
            |what: &str| Error::system(format_args!("packet socket on if{index}: {what}"), Errno::last());
        let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0: nothing is received before the filter is there and the socket bound.
        // SAFETY: socket(2) takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        if fd < 0 {
            return Err(failed("socket"));
        }
        // SAFETY: the descriptor is new, open, and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut filter = protocol.filter();
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        set(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program).map_err(|_| failed("filter"))?;
        let on: c_int = 1;
        set(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, &on).map_err(|_| failed("PACKET_AUXDATA"))?;
        let socket = PacketSocket { fd, index, protocol };
        let address = socket.address(BROADCAST);
        // SAFETY: the address is a sockaddr_ll of this length.
        let bound = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<sockaddr_ll>() as socklen_t,
            )
        };
        if bound < 0 { Err(failed("bind")) } else { Ok(socket) }
    }

    /// Sends one packet to a hardware address.
    ///
    /// # Errors
    /// The kernel's, such as ENETDOWN.
    pub fn send(&self, packet: &[u8], to: [u8; 6]) -> Result<(), Errno> {
        let address = self.address(to);
        // SAFETY: buffer and address are valid for the lengths given with them.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                std::ptr::from_ref(&address).cast(),
                size_of::<sockaddr_ll>() as socklen_t,
            )
        };
        Errno::result(sent).map(drop)
    }

    /// The next packet from the link, without waiting; `None` when there is none. What this host sends is left out.
    ///
    /// # Errors
    /// The kernel's, such as ENETDOWN, which is told once.
    pub fn receive(&self) -> Result<Option<Received>, Errno> {
        loop {
            let mut bytes = vec![0; RECEIVE];
            let mut control = [0u64; 16];
            // SAFETY: all-zero bytes are a valid sockaddr_ll.
            let mut from: sockaddr_ll = unsafe { zeroed() };
            let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            // SAFETY: all-zero bytes are a valid msghdr (musl's has private padding).
            let mut message: libc::msghdr = unsafe { zeroed() };
            message.msg_name = std::ptr::from_mut(&mut from).cast();
            message.msg_namelen = size_of::<sockaddr_ll>() as socklen_t;
            message.msg_iov = &mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            // SAFETY: all buffers that `message` points to live until the call returns, and have the lengths given.
            let length = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &mut message, 0) };
            match Errno::result(length) {
                Ok(length) => bytes.truncate(usize::try_from(length).unwrap_or(0)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            }
            if from.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            let [a, b, c, d, e, f, ..] = from.sll_addr;
            return Ok(Some(Received { bytes, from: [a, b, c, d, e, f], unfinished: unfinished(&message) }));
        }
    }

    fn address(&self, to: [u8; 6]) -> sockaddr_ll {
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut address: sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = self.protocol.ether_type().to_be();
        address.sll_ifindex = self.index as c_int;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&to);
        address
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set<T>(fd: &OwnedFd, level: c_int, name: c_int, value: &T) -> Result<(), Errno> {
    let value: *const c_void = std::ptr::from_ref(value).cast();
    // SAFETY: `value` points to a T, whose size is given.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, size_of::<T>() as socklen_t) };
    Errno::result(set).map(drop)
}

/// Whether the auxiliary data of a received message says that the checksum is not filled in.
fn unfinished(message: &libc::msghdr) -> bool {
    // SAFETY: recvmsg(2) filled in `message`, whose control buffer lives and is aligned for a cmsghdr; the macros stay
    // within it.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(message);
        while !control.is_null() {
            let header = &*control;
            if header.cmsg_level == libc::SOL_PACKET
                && header.cmsg_type == libc::PACKET_AUXDATA
                && header.cmsg_len as usize
                    >= libc::CMSG_LEN(size_of::<libc::tpacket_auxdata>() as u32) as usize
            {
                let data: libc::tpacket_auxdata = std::ptr::read_unaligned(libc::CMSG_DATA(control).cast());
                return data.tp_status & CHECKSUM_NOT_READY != 0;
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
    }
    false
}

/// Addresses of a packet that is sent from a bound address: for [`UnicastSocket`].
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The leased address.
    pub from: Ipv4Addr,
    /// The server's address.
    pub to: Ipv4Addr,
}

/// A UDP socket from the leased address, port 68, to the server: the kernel finds the way. Answers come in by the packet
/// socket; this one stays open meanwhile, so that the kernel does not call the port unreachable.
#[derive(Debug)]
pub struct UnicastSocket(std::net::UdpSocket);

impl UnicastSocket {
    /// Opens it in the calling thread's namespace, for one interface.
    ///
    /// # Errors
    /// EADDRNOTAVAIL when the interface does not have the address.
    pub fn open(ifname: &str, pair: Pair) -> Result<UnicastSocket, Errno> {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::BindToDevice, &ifname.into())?;
        let address = |ip, port| SockaddrIn::from(std::net::SocketAddrV4::new(ip, port));
        bind(fd.as_raw_fd(), &address(pair.from, frame::CLIENT_PORT))?;
        connect(fd.as_raw_fd(), &address(pair.to, frame::SERVER_PORT))?;
        Ok(UnicastSocket(fd.into()))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, payload: &[u8]) -> Result<(), Errno> {
        self.0.send(payload).map(drop).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
    }
}

impl From<PacketSocket> for OwnedFd {
    fn from(socket: PacketSocket) -> OwnedFd {
        socket.fd
    }
}
