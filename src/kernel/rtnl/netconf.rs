//! Settings of all interfaces together, which also are files under /proc/sys. Looking a file up there takes longer with
//! every network namespace whose files were ever opened: the kernel keeps all of them under one name.

use neli::consts::{nl::NlmF, rtnl::Rtm};

use super::{
    uapi::*,
    wire::{Attrs, Batch, u32_at},
};

/// `ip -4|-6 netconf show dev all`.
pub(super) fn encode_get(v4: bool, batch: &mut Batch) {
    // `struct netconfmsg` is the family alone; attributes begin at the next multiple of four.
    let family = if v4 { AF_INET } else { AF_INET6 };
    batch.message(Rtm::Getnetconf, NlmF::ACK, &[family, 0, 0, 0], |a| {
        a.u32(NETCONFA_IFINDEX, NETCONFA_IFINDEX_ALL);
    });
}

/// Whether the answer says that packets are forwarded.
pub(super) fn forwarding(payload: &[u8]) -> Option<bool> {
    Attrs::after(payload, 4).find(NETCONFA_FORWARDING).map(|value| u32_at(value, 0) != 0)
}
