//! Flows that connection tracking remembers: listed and forgotten over netlink (`conntrack -L`, `conntrack -D`).
//! Kernel interface: `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::net::SocketAddr;

use neli::consts::nl::NlmF;
use neli::consts::socket::Msg;
use nix::errno::Errno;
use nix::libc;

use super::dry_run;
use super::rtnl::{Attributes, Attrs, Batch, Messages, Socket, ip_of};
use crate::cni::{Error, Result};

/// `NFNL_SUBSYS_CTNETLINK` (linux/netfilter/nfnetlink.h), the upper byte of a message's type.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`, `CTA_ZONE`, `CTA_FILTER`
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
/// `CTA_FILTER_ORIG_FLAGS`, `CTA_FILTER_REPLY_FLAGS`: which parts of a tuple are to be compared.
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Bits of these (net/netfilter/nf_internals.h): the protocol, the destination port.
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;
/// `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
/// `CTA_IP_V4_SRC`, `CTA_IP_V4_DST`, `CTA_IP_V6_SRC`, `CTA_IP_V6_DST`
const CTA_IP_SRC: [u16; 2] = [1, 3];
const CTA_IP_DST: [u16; 2] = [2, 4];
/// `CTA_PROTO_NUM`, `CTA_PROTO_SRC_PORT`, `CTA_PROTO_DST_PORT`
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `NLA_F_NESTED` (linux/netlink.h)
const NESTED: u16 = 1 << 15;
/// The most the kernel fills into one datagram of a dump.
const RECEIVE: usize = 32 * 1024;
/// Deletions that are sent at once; each is answered when it fails.
const AT_ONCE: usize = 64;

/// A flow of packets, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// To what address and port its first packet was sent.
    pub original_to: SocketAddr,
    /// From what address and port answers come: another one when the destination was translated.
    pub answered_from: SocketAddr,
    /// The attributes by which the kernel finds it again.
    key: Vec<(u16, Vec<u8>)>,
    v4: bool,
}

/// Connection tracking of one network namespace.
pub struct Conntrack {
    socket: Socket,
    batch: Batch,
}

impl Conntrack {
    /// Opens that of the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel has no netfilter netlink.
    pub fn open() -> Result<Conntrack> {
        Ok(Conntrack { socket: Socket::netfilter()?, batch: Batch::default() })
    }

    /// The flows of one family and protocol, or those of them to one port: `conntrack -L -p udp --orig-port-dst 53`.
    ///
    /// # Errors
    /// The kernel has no conntrack netlink, or does not let this process use it.
    pub fn flows(&mut self, v4: bool, protocol: u8, port: Option<u16>) -> Result<Vec<Flow>> {
        self.batch.clear();
        self.batch.message(GET, NlmF::DUMP, &header(v4), |a| {
            // Linux before 5.8 does not know the filter: what comes is looked at below anyway.
            a.nest(CTA_TUPLE_ORIG | NESTED, |a| {
                a.nest(CTA_TUPLE_PROTO | NESTED, |a| {
                    a.u8(CTA_PROTO_NUM, protocol);
                    if let Some(port) = port {
                        a.bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                    }
                });
            });
            a.nest(CTA_FILTER | NESTED, |a: &mut Attributes<'_>| {
                let by_port = if port.is_some() { FILTER_DESTINATION_PORT } else { 0 };
                a.u32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTOCOL | by_port);
                a.u32(CTA_FILTER_REPLY_FLAGS, 0);
            });
        });
        let failed = |errno| Error::system(format_args!("conntrack -L -p {protocol}"), errno);
        self.socket.send(self.batch.bytes()).map_err(failed)?;
        let mut buffer = vec![0; RECEIVE];
        let mut flows = Vec::new();
        loop {
            let length = self.socket.receive(&mut buffer, Msg::empty()).map_err(failed)?;
            for message in Messages(&buffer[..length]) {
                match message.outcome() {
                    _ if message.sequence != self.batch.sequence() => {}
                    // What came while the table changed is good enough: other flows are new ones.
                    Some((0, _)) => return Ok(flows),
                    Some((errno, text)) => {
                        return Err(failed(Errno::from_raw(errno)).with_details(text));
                    }
                    None => flows.extend(
                        Flow::read(message.payload, v4, protocol)
                            .filter(|flow| port.is_none_or(|port| port == flow.original_to.port())),
                    ),
                }
            }
        }
    }

    /// Forgets flows: `conntrack -D …`. One that is gone already is no failure.
    ///
    /// # Errors
    /// The first that the kernel does not let go.
    pub fn forget(&mut self, flows: &[Flow]) -> Result<()> {
        if dry_run::is_on() {
            for Flow { original_to: to, answered_from: from, .. } in flows {
                let (ip, port, source) = (to.ip(), to.port(), from.ip());
                dry_run::note(format_args!(
                    "conntrack -D --orig-dst {ip} --orig-port-dst {port} --reply-src {source}"
                ));
            }
            return Ok(());
        }
        for some in flows.chunks(AT_ONCE) {
            self.forget_some(some)?;
        }
        Ok(())
    }

    fn forget_some(&mut self, flows: &[Flow]) -> Result<()> {
        self.batch.clear();
        let first = self.batch.sequence().wrapping_add(1);
        for flow in flows {
            self.batch.message(DELETE, NlmF::empty(), &header(flow.v4), |a| {
                for (kind, bytes) in &flow.key {
                    a.bytes(*kind, bytes);
                }
            });
        }
        self.batch.acknowledge_last();
        let what = |sequence: u32| {
            let flow = flows.get(sequence.wrapping_sub(first) as usize);
            flow.map_or_else(String::new, |flow| format!(" -d {}", flow.original_to))
        };
        let failed = |sequence, errno| Error::system(format_args!("conntrack -D{}", what(sequence)), errno);
        self.socket.send(self.batch.bytes()).map_err(|errno| failed(first, errno))?;
        let mut buffer = vec![0; RECEIVE];
        let mut outcome = Ok(());
        loop {
            let length =
                self.socket.receive(&mut buffer, Msg::empty()).map_err(|errno| failed(first, errno))?;
            for message in Messages(&buffer[..length]) {
                let Some((errno, _)) = message.outcome() else { continue };
                if message.sequence.wrapping_sub(first) as usize >= flows.len() {
                    continue;
                }
                if errno != 0 && errno != libc::ENOENT && outcome.is_ok() {
                    outcome = Err(failed(message.sequence, Errno::from_raw(errno)));
                }
                if message.sequence == self.batch.sequence() {
                    return outcome;
                }
            }
        }
    }
}

impl Flow {
    /// Reads the payload of a message; `None` for a flow of another family or protocol.
    fn read(payload: &[u8], v4: bool, protocol: u8) -> Option<Flow> {
        let attributes = Attrs::after(payload, 4);
        let tuple = |kind: u16| attributes.find(kind).map(Attrs);
        let part = |tuple: Attrs<'_>, addresses: [u16; 2], port: u16| {
            let proto = Attrs(tuple.find(CTA_TUPLE_PROTO)?);
            if proto.find(CTA_PROTO_NUM)? != [protocol] {
                return None;
            }
            let address = ip_of(Attrs(tuple.find(CTA_TUPLE_IP)?).find(addresses[usize::from(!v4)])?)?;
            let port = u16::from_be_bytes(proto.find(port)?.try_into().ok()?);
            Some(SocketAddr::new(address, port))
        };
        let kept = |(kind, bytes): (u16, &[u8])| match kind {
            CTA_TUPLE_ORIG => Some((kind | NESTED, bytes.to_vec())),
            CTA_ID | CTA_ZONE => Some((kind, bytes.to_vec())),
            _ => None,
        };
        Some(Flow {
            original_to: part(tuple(CTA_TUPLE_ORIG)?, CTA_IP_DST, CTA_PROTO_DST_PORT)?,
            answered_from: part(tuple(CTA_TUPLE_REPLY)?, CTA_IP_SRC, CTA_PROTO_SRC_PORT)?,
            key: attributes.filter_map(kept).collect(),
            v4,
        })
    }
}

/// `struct nfgenmsg`.
fn header(v4: bool) -> [u8; 4] {
    [if v4 { libc::AF_INET } else { libc::AF_INET6 } as u8, 0, 0, 0]
}
