//! IPv4, UDP and ARP headers of the packets that go over packet sockets, and back. Pure.

use std::net::Ipv4Addr;

/// UDP ports of DHCPv4 (RFC 2131 section 4.1).
pub const CLIENT_PORT: u16 = 68;
/// See [`CLIENT_PORT`].
pub const SERVER_PORT: u16 = 67;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const PROTOCOL_UDP: u8 = 17;

/// An IPv4 packet with a UDP datagram from port 68 to port 67.
pub fn to_server(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let udp_length = UDP_HEADER + payload.len();
    let mut packet = vec![0; IP_HEADER + UDP_HEADER];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length16(IP_HEADER + udp_length));
    packet[8] = 64;
    packet[9] = PROTOCOL_UDP;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let sum = fold(add(0, &packet[..IP_HEADER]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..22].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    packet[22..24].copy_from_slice(&SERVER_PORT.to_be_bytes());
    packet[24..26].copy_from_slice(&length16(udp_length));
    packet.extend_from_slice(payload);
    let sum = match fold(udp_sum(from, to, &packet[IP_HEADER..])) {
        // Zero would say that there is no checksum.
        0 => u16::MAX,
        sum => sum,
    };
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The payload of an IPv4 packet to port 68, without padding; `None` for anything else and for a wrong checksum.
///
/// `unfinished`: the kernel has not filled in the UDP checksum, as between the ends of a veth pair.
pub fn to_client(packet: &[u8], unfinished: bool) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    if packet.first()? >> 4 != 4 || header < IP_HEADER || packet.get(9) != Some(&PROTOCOL_UDP) {
        return None;
    }
    let packet = packet.get(..usize::from(u16_at(packet, 2)?))?;
    // No fragments: a message of ours fits a frame.
    if fold(add(0, packet.get(..header)?)) != 0 || u16_at(packet, 6)? & 0x3fff != 0 {
        return None;
    }
    let udp = packet.get(header..)?;
    let udp = udp.get(..usize::from(u16_at(udp, 4)?)).filter(|udp| udp.len() >= UDP_HEADER)?;
    if u16_at(udp, 2)? != CLIENT_PORT {
        return None;
    }
    let (from, to) = (ip_at(packet, 12)?, ip_at(packet, 16)?);
    if !unfinished && u16_at(udp, 6)? != 0 && fold(udp_sum(from, to, udp)) != 0 {
        return None;
    }
    udp.get(UDP_HEADER..)
}

/// An ARP probe (RFC 5227 section 2.1.1): who has `address`, asked by nobody.
pub fn arp_probe(mac: [u8; 6], address: Ipv4Addr) -> [u8; 28] {
    let mut arp = [0; 28];
    // Ethernet, IPv4, lengths 6 and 4, request.
    arp[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    arp[8..14].copy_from_slice(&mac);
    arp[24..28].copy_from_slice(&address.octets());
    arp
}

/// Whether an ARP packet says that another machine than `mac` has `address`, or is about to take it.
pub fn is_conflict(arp: &[u8], mac: [u8; 6], address: Ipv4Addr) -> bool {
    let Some(arp) = arp.get(..28).filter(|arp| arp.starts_with(&[0, 1, 8, 0, 6, 4, 0])) else { return false };
    if arp[8..14] == mac {
        return false;
    }
    let (sender, target) = (ip_at(arp, 14), ip_at(arp, 24));
    let probe = arp[7] == 1 && sender == Some(Ipv4Addr::UNSPECIFIED) && target == Some(address);
    sender == Some(address) || probe
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn ip_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(bytes.into())
}

/// The sum over a UDP datagram and its pseudo header.
fn udp_sum(from: Ipv4Addr, to: Ipv4Addr, udp: &[u8]) -> u32 {
    let sum = add(add(0, &from.octets()), &to.octets());
    let length = length16(udp.len());
    add(add(add(sum, &[0, PROTOCOL_UDP]), &length), udp)
}

/// Adds 16-bit words to an Internet checksum (RFC 1071).
pub fn add(sum: u32, bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)));
    words.fold(sum, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    })
}

/// The checksum of a sum.
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const TO: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    /// A packet to a server, turned into one to a client.
    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut packet = to_server(FROM, TO, payload);
        // Swapping the ports leaves the checksum as it is.
        packet[20..24].rotate_left(2);
        packet
    }

    #[test]
    fn what_is_sent_can_be_read() {
        for payload in [b"".as_slice(), b"x", b"hello"] {
            let mut bytes = packet(payload);
            bytes.extend_from_slice(&[0; 18]);
            assert_eq!(to_client(&bytes, false), Some(payload));
        }
    }

    #[test]
    fn damage_anywhere_is_noticed() {
        let good = packet(b"some payload");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x41;
            assert_eq!(to_client(&bad, false), None, "byte {at}");
        }
        for length in 0..good.len() {
            assert_eq!(to_client(&good[..length], false), None, "{length} bytes");
        }
    }

    #[test]
    fn an_unfinished_checksum_is_not_looked_at() {
        let mut bytes = packet(b"x");
        bytes[26] ^= 1;
        assert_eq!(to_client(&bytes, false), None);
        assert_eq!(to_client(&bytes, true), Some(b"x".as_slice()));
    }

    #[test]
    fn a_probe_is_no_conflict_for_its_sender() {
        let (own, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let probe = arp_probe(other, TO);
        assert!(is_conflict(&probe, own, TO), "another machine probes for the same address");
        assert!(!is_conflict(&probe, other, TO) && !is_conflict(&probe, own, FROM));
        let mut reply = probe;
        reply[7] = 2;
        reply[14..18].copy_from_slice(&TO.octets());
        assert!(is_conflict(&reply, own, TO) && !is_conflict(&reply, own, FROM));
        assert!(!is_conflict(&reply[..27], own, TO));
    }
}
