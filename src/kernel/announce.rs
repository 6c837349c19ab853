//! Tells the neighbours which Ethernet address an IP address has now, so that a re-used address works at once for a peer
//! that remembers its former owner: gratuitous ARP (RFC 5227, section 3; RFC 826) and unsolicited neighbour advertisement
//! (RFC 4861, section 7.2.6).
#![allow(unsafe_code)]

use std::{
    mem::size_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::rtnl::Mac;
use crate::cni::{Error, Result};

/// A packet socket for one interface. It stays in the namespace it was opened in and can be used from outside.
#[derive(Debug)]
pub struct Announcer {
    socket: OwnedFd,
    index: u32,
}

impl Announcer {
    /// For the interface of this index in the calling thread's namespace.
    pub fn open(index: u32) -> Result<Announcer> {
        // Protocol 0: it never receives.
        let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|e| Error::system("socket(AF_PACKET)", e))?;
        Ok(Announcer { socket, index })
    }

    /// Sends one announcement for each address; the interface, whose address is `mac`, must be up.
    pub fn announce(&self, mac: Mac, addresses: &[IpAddr]) -> Result<()> {
        for address in addresses {
            let sent = match address {
                IpAddr::V4(v4) => self.send(libc::ETH_P_ARP, [0xff; 6], &gratuitous_arp(mac, *v4)),
                IpAddr::V6(v6) => {
                    self.send(libc::ETH_P_IPV6, [0x33, 0x33, 0, 0, 0, 1], &neighbour_advertisement(mac, *v6))
                }
            };
            sent.map_err(|e| {
                Error::system(format_args!("announce {address} at {mac} on if{}", self.index), e)
            })?;
        }
        Ok(())
    }

    fn send(&self, protocol: i32, destination: [u8; 6], packet: &[u8]) -> Result<(), Errno> {
        let mut to = [0; 8];
        to[..6].copy_from_slice(&destination);
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (protocol as u16).to_be(),
            sll_ifindex: self.index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: to,
        };
        // SAFETY: the descriptor is open, packet and address are valid for the lengths given, the kernel only reads them.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        Errno::result(sent).map(drop)
    }
}

/// An ARP request in which an address asks for itself: what every stack takes as an update of an entry it has.
fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet, IPv4, address lengths 6 and 4, request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    packet[8..14].copy_from_slice(&mac.0);
    packet[14..18].copy_from_slice(&address.octets());
    packet[24..].copy_from_slice(&address.octets());
    packet
}

/// An IPv6 packet to all nodes: neighbour advertisement with the override flag and the target's link-layer address.
fn neighbour_advertisement(mac: Mac, address: Ipv6Addr) -> [u8; 72] {
    const ICMPV6: u8 = 58;
    const LENGTH: u8 = 32;
    const OVERRIDE: u8 = 0x20;
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut packet = [0; 72];
    // Version 6; hop limit 255 proves that no router passed it on.
    packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, LENGTH, ICMPV6, 255]);
    packet[8..24].copy_from_slice(&address.octets());
    packet[24..40].copy_from_slice(&ALL_NODES.octets());
    packet[40] = 136;
    packet[44] = OVERRIDE;
    packet[48..64].copy_from_slice(&address.octets());
    // Option 2, one unit of 8 bytes: target link-layer address.
    packet[64..66].copy_from_slice(&[2, 1]);
    packet[66..].copy_from_slice(&mac.0);
    let checksum = checksum(&packet[8..], u32::from(LENGTH) + u32::from(ICMPV6));
    packet[42..44].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Internet checksum (RFC 1071) of the addresses and the ICMPv6 message, which follow each other in the packet; `sum` holds
/// the rest of the pseudo-header (RFC 8200, section 8.1).
fn checksum(bytes: &[u8], sum: u32) -> u16 {
    let words = bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let mut sum = words.fold(sum, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::{
        socket::{MsgFlags, SockProtocol, recv, setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike},
    };

    use super::*;
    use crate::kernel::{
        netns::Netns,
        rtnl::{AddVeth, Change, Dev, Handle, SetLink, VethPeer, private_netns::private_netns},
    };

    const MAC: Mac = Mac([0x0a, 0x58, 0x0a, 0x16, 0, 2]);

    #[test]
    fn the_arp_request_names_the_address_as_sender_and_target() {
        let packet = gratuitous_arp(MAC, Ipv4Addr::new(10, 22, 0, 2));
        assert_eq!(packet[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(packet[8..18], [0x0a, 0x58, 0x0a, 0x16, 0, 2, 10, 22, 0, 2]);
        assert_eq!(packet[18..], [0, 0, 0, 0, 0, 0, 10, 22, 0, 2]);
    }

    #[test]
    fn the_advertisement_carries_a_checksum_that_sums_up() {
        let packet = neighbour_advertisement(MAC, "fd00::2".parse().unwrap());
        assert_eq!(checksum(&packet[8..], 32 + 58), 0);
        assert_ne!(packet[42..44], [0, 0]);
    }

    #[test]
    fn the_other_end_of_the_wire_hears_both_announcements() {
        private_netns("the_other_end_of_the_wire", || {
            let mut host = Handle::open().unwrap();
            let container = Netns::create_unnamed().unwrap();
            let mut inside = container.enter(Handle::open).unwrap();
            let veth = AddVeth {
                name: "vethab".into(),
                up: true,
                peer: VethPeer {
                    name: "eth0".into(),
                    mac: Some(MAC),
                    netns: Some(container.for_peer()),
                    ..VethPeer::default()
                },
                ..AddVeth::default()
            };
            let mut watch = host.watch_links().unwrap();
            host.apply(&[Change::AddVeth(veth)]).unwrap();
            let link = host.link("vethab").unwrap().unwrap();
            let eth0 = link.peer.unwrap();
            let announcer = container.enter(|| Announcer::open(eth0)).unwrap();
            let addresses = ["10.22.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
            let down = announcer.announce(MAC, &addresses).unwrap_err();
            assert_eq!(down.errno(), Some(Errno::ENETDOWN));
            inside
                .apply(&[Change::SetLink(SetLink { up: Some(true), ..SetLink::of(Dev::indexed(eth0)) })])
                .unwrap();
            host.wait_port_up(&mut watch, link.index, Duration::from_secs(5)).unwrap();

            let ear =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                    .unwrap();
            setsockopt(&ear, ReceiveTimeout, &TimeVal::seconds(5)).unwrap();
            announcer.announce(MAC, &addresses).unwrap();
            let heard = |protocol: [u8; 2], length: usize| {
                let mut frame = [0; 2048];
                loop {
                    let n = recv(ear.as_raw_fd(), &mut frame, MsgFlags::empty()).unwrap();
                    if n == length
                        && frame[6..12] == MAC.0
                        && frame[12..14] == protocol
                        && (n != 86 || frame[54] == 136)
                    {
                        return frame[..n].to_vec();
                    }
                }
            };
            let arp = heard([8, 6], 42);
            assert_eq!(arp[..6], [0xff; 6]);
            assert_eq!(arp[14..], gratuitous_arp(MAC, "10.22.0.2".parse().unwrap()));
            let advertisement = heard([0x86, 0xdd], 86);
            assert_eq!(advertisement[..6], [0x33, 0x33, 0, 0, 0, 1]);
            assert_eq!(advertisement[14..], neighbour_advertisement(MAC, "fd00::2".parse().unwrap()));
        });
    }
}
