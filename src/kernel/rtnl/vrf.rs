//! VRF links (Documentation/networking/vrf.rst): interfaces that are their ports look up routes in their table.

use std::fmt::{self, Display, Formatter};

use neli::consts::{
    nl::NlmF,
    rtnl::{Ifla, IflaInfo, Rtm},
};
use nix::libc;

use super::{
    link::check_name,
    uapi::*,
    wire::{Batch, ifinfomsg},
};
use crate::cni::Result;

/// A new VRF, up from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddVrf {
    /// Name.
    pub name: String,
    /// Its routing table.
    pub table: u32,
}

impl AddVrf {
    pub(super) fn encode(&self, batch: &mut Batch) -> Result<()> {
        check_name(&self.name, self)?;
        let up = libc::IFF_UP as u32;
        batch.message(Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, &ifinfomsg(0, 0, up, up), |a| {
            a.text(Ifla::Ifname, &self.name);
            a.nest(Ifla::Linkinfo, |a| {
                a.bytes(IflaInfo::Kind, b"vrf");
                a.nest(IflaInfo::Data, |a| a.u32(IFLA_VRF_TABLE, self.table));
            });
        });
        Ok(())
    }
}

impl Display for AddVrf {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "ip link add {} up type vrf table {}", self.name, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_vrf_is_sent_as_ip_link_sends_it() {
        // iproute2 6.1 (`strace -e write=3`), less sequence number and ACK flag.
        let vrf = AddVrf { name: "vrf0".into(), table: 10 };
        assert_eq!(vrf.to_string(), "ip link add vrf0 up type vrf table 10");
        let mut batch = Batch::default();
        vrf.encode(&mut batch).unwrap();
        let mut message = batch.bytes().to_vec();
        message[8..12].fill(0);
        let hex: String = message.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "44000000100001060000000000000000000000000000000001000000010000000900030076726630000000001800120007000100767266\
             000c000200080001000a000000"
        );
    }
}
