//! Netlink messages as bytes: writing requests (linux/netlink.h, linux/rtnetlink.h) and walking replies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use neli::consts::{
    nl::{NlmF, Nlmsg, NlmsgerrAttr},
    rtnl::Rtm,
};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Requests collected for one send, each with its own sequence number.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    last_message: usize,
    sequence: u32,
}

impl Batch {
    /// Forgets the messages; sequence numbers go on.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.last_message = 0;
    }

    /// Number of the message added last.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// What to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds one message; `header` is the family's fixed header, `attributes` writes what follows it.
    pub fn message(
        &mut self,
        kind: impl Into<u16>,
        flags: NlmF,
        header: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.last_message = start;
        self.sequence = self.sequence.wrapping_add(1);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.into().to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NlmF::REQUEST).bits().to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        pad(&mut self.bytes);
        attributes(&mut Attributes { bytes: &mut self.bytes });
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Asks for an answer to the last message, so that the reader knows when everything was answered. RTM_GETLINK
    /// answers anyway.
    pub fn acknowledge_last(&mut self) {
        let Some(message) = self.bytes.get_mut(self.last_message..) else { return };
        if message.len() >= HEADER && u16_at(message, 4) != u16::from(Rtm::Getlink) {
            let flags = u16_at(message, 6) | NlmF::ACK.bits();
            message[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
    }
}

/// Writes attributes (`struct rtattr`) one after the other.
pub struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attributes<'_> {
    /// An attribute of raw bytes.
    pub fn bytes(&mut self, kind: impl Into<u16>, payload: &[u8]) {
        self.nest_after(kind, payload, |_| {});
    }

    /// A one-byte attribute.
    pub fn u8(&mut self, kind: impl Into<u16>, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// A four-byte attribute in host order.
    pub fn u32(&mut self, kind: impl Into<u16>, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// An address in network order.
    pub fn ip(&mut self, kind: impl Into<u16>, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.bytes(kind, &v4.octets()),
            IpAddr::V6(v6) => self.bytes(kind, &v6.octets()),
        }
    }

    /// A string with its terminating NUL.
    pub fn text(&mut self, kind: impl Into<u16>, text: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: impl Into<u16>, inner: impl FnOnce(&mut Attributes<'_>)) {
        self.nest_after(kind, &[], inner);
    }

    /// An attribute that holds a fixed structure followed by attributes.
    pub fn nest_after(
        &mut self,
        kind: impl Into<u16>,
        fixed: &[u8],
        inner: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(fixed);
        inner(&mut Attributes { bytes: self.bytes });
        self.close(start);
    }

    /// A `struct rtnexthop` (its first two bytes are its length) followed by attributes.
    pub fn next_hop(&mut self, flags: u8, hops: u8, index: u32, inner: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0, flags, hops]);
        self.bytes.extend_from_slice(&index.to_ne_bytes());
        inner(&mut Attributes { bytes: self.bytes });
        self.close(start);
    }

    fn open(&mut self, kind: impl Into<u16>) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.into().to_ne_bytes());
        start
    }

    /// Writes the length at `start`. Callers bound what they write: names, aliases and next hops stay far below 64 KiB.
    fn close(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        pad(self.bytes);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// `struct ifinfomsg`.
pub fn ifinfomsg(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: NlmF,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// The end of a dump, or a failure: its number (0 for success) and the kernel's text about it (extended ACK).
    pub fn outcome(&self) -> Option<(i32, String)> {
        let done = self.kind == u16::from(Nlmsg::Done);
        if !done && self.kind != u16::from(Nlmsg::Error) {
            return None;
        }
        let Some(code) = self.payload.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b)) else {
            return Some((0, String::new()));
        };
        // struct nlmsgerr: the error, the request's header and, unless NLM_F_CAPPED, the request; then attributes.
        let skip = if done {
            4
        } else if self.flags.contains(NlmF::CAPPED) || self.payload.len() < 8 {
            4 + HEADER
        } else {
            4 + (u32_at(self.payload, 4) as usize).next_multiple_of(4)
        };
        let text = if code != 0 && self.flags.contains(NlmF::ACK_TLVS) {
            Attrs(self.payload.get(skip..).unwrap_or_default()).find(NlmsgerrAttr::Msg).map(text_of)
        } else {
            None
        };
        Some((-code, text.unwrap_or_default()))
    }
}

/// Walks the messages of one received datagram.
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let bytes = self.0;
        if bytes.len() < HEADER {
            return None;
        }
        let length = u32_at(bytes, 0) as usize;
        let payload = bytes.get(HEADER..length)?;
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16_at(bytes, 4),
            flags: NlmF::from_bits_retain(u16_at(bytes, 6)),
            sequence: u32_at(bytes, 8),
            payload,
        })
    }
}

/// Walks attributes without copying them.
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Attrs<'a> {
    /// The attributes after a fixed header of `length` bytes.
    pub fn after(payload: &'a [u8], length: usize) -> Attrs<'a> {
        Attrs(payload.get(length..).unwrap_or_default())
    }

    /// The payload of the first attribute of this kind.
    pub fn find(mut self, kind: impl Into<u16>) -> Option<&'a [u8]> {
        let kind = kind.into();
        self.find_map(|(k, payload)| (k == kind).then_some(payload))
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        /// Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        const TYPE_MASK: u16 = 0x3fff;
        if self.0.len() < 4 {
            return None;
        }
        let length = usize::from(u16_at(self.0, 0));
        let item = (u16_at(self.0, 2) & TYPE_MASK, self.0.get(4..length)?);
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(item)
    }
}

/// Two bytes in host order; 0 when they are not there.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_ne_bytes(*b))
}

/// Four bytes in host order; 0 when they are not there.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
}

/// One byte; 0 when it is not there.
pub fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// A string attribute, with or without its NUL.
pub fn text_of(payload: &[u8]) -> String {
    let end = payload.iter().position(|b| *b == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

/// An address attribute: four or sixteen bytes.
pub fn ip_of(payload: &[u8]) -> Option<IpAddr> {
    match payload.len() {
        4 => <[u8; 4]>::try_from(payload).ok().map(|b| IpAddr::V4(Ipv4Addr::from(b))),
        16 => <[u8; 16]>::try_from(payload).ok().map(|b| IpAddr::V6(Ipv6Addr::from(b))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use neli::consts::rtnl::Ifla;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_with_its_padding() {
        let mut batch = Batch::default();
        batch.message(Rtm::Newlink, NlmF::CREATE, &ifinfomsg(0, 7, 1, 1), |a| {
            a.text(Ifla::Ifname, "eth0");
            a.nest(Ifla::Linkinfo, |a| a.u8(1u16, 5));
            a.u32(Ifla::Mtu, 1400);
        });
        batch.message(Rtm::Getlink, NlmF::empty(), &ifinfomsg(0, 7, 0, 0), |_| {});
        let messages: Vec<_> = Messages(batch.bytes()).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].sequence, messages[1].sequence), (1, 2));
        assert_eq!(messages[0].flags, NlmF::CREATE | NlmF::REQUEST);
        let attrs = Attrs::after(messages[0].payload, 16);
        assert_eq!(attrs.find(Ifla::Ifname).map(text_of).unwrap(), "eth0");
        assert_eq!(attrs.find(Ifla::Mtu).map(|b| u32_at(b, 0)), Some(1400));
        assert_eq!(attrs.find(Ifla::Linkinfo).and_then(|b| Attrs(b).find(1u16)), Some(&[5u8][..]));
    }

    #[test]
    fn only_the_last_message_is_acknowledged_and_a_get_never() {
        let mut batch = Batch::default();
        batch.message(Rtm::Newlink, NlmF::empty(), &[], |_| {});
        batch.message(Rtm::Dellink, NlmF::empty(), &[], |_| {});
        batch.acknowledge_last();
        let acks: Vec<_> = Messages(batch.bytes()).map(|m| m.flags.contains(NlmF::ACK)).collect();
        assert_eq!(acks, [false, true]);
        batch.clear();
        batch.message(Rtm::Getlink, NlmF::empty(), &[], |_| {});
        batch.acknowledge_last();
        assert!(!Messages(batch.bytes()).any(|m| m.flags.contains(NlmF::ACK)));
    }

    #[test]
    fn cut_off_messages_and_attributes_end_the_walk() {
        assert_eq!(Messages(&[200, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(Messages(&[0; 32]).count(), 0);
        assert_eq!(Attrs(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(Attrs(&[0, 0, 1, 0]).count(), 0);
    }
}
