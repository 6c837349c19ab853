//! Entries of the neighbour tables: which hardware address an IP address has on a link.

use std::net::IpAddr;

use neli::consts::{
    nl::NlmF,
    rtnl::{Nda, Rtm},
};

use super::{Mac, uapi::*, wire::Batch};

/// `ip neigh replace IP lladdr MAC dev INDEX nud permanent` (with `mac`), `ip neigh del IP dev INDEX` (without).
pub(super) fn encode(index: u32, ip: IpAddr, mac: Option<Mac>, batch: &mut Batch) {
    let (kind, flags) = match mac {
        Some(_) => (Rtm::Newneigh, NlmF::CREATE | NlmF::REPLACE),
        None => (Rtm::Delneigh, NlmF::empty()),
    };
    let family = if ip.is_ipv6() { AF_INET6 } else { AF_INET };
    batch.message(kind, flags, &ndmsg(family, index, NUD_PERMANENT), |a| {
        a.ip(Nda::Dst, ip);
        if let Some(mac) = mac {
            a.bytes(Nda::Lladdr, &mac.0);
        }
    });
}

/// `struct ndmsg`, linux/neighbour.h.
fn ndmsg(family: u8, index: u32, state: u16) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header
}
