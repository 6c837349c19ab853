//! Where a namespace stands: the way out of it, and what it calls another one.

use neli::consts::{nl::NlmF, rtnl::Rtm};

use super::{
    Handle, Route,
    uapi::*,
    wire::{Attrs, Batch, u32_at},
};
use crate::cni::Result;
use crate::kernel::netns::Netns;

impl Handle {
    /// The default routes of the main table, the kernel's preference first: IPv4 before IPv6, then the lowest metric.
    ///
    /// # Errors
    /// Routes cannot be listed.
    pub fn default_routes(&mut self) -> Result<Vec<Route>> {
        let table = RT_TABLE_MAIN as u8;
        let encode = move |batch: &mut Batch| {
            // rtm_table, which the kernel filters by when it checks requests strictly.
            let header = [0, 0, 0, 0, table, 0, 0, 0, 0, 0, 0, 0];
            batch.message(Rtm::Getroute, NlmF::DUMP, &header, |_| {});
        };
        let mut routes = self.dump("ip route show table main default", encode, |message, found| {
            let route = Route::decode(message.payload);
            found
                .extend(route.filter(|r| {
                    r.dst.prefix_len() == 0 && r.table == RT_TABLE_MAIN && r.kind == RTN_UNICAST
                }));
        })?;
        routes.sort_by_key(|route| (route.dst.addr().is_ipv6(), route.priority));
        Ok(routes)
    }

    /// The number by which this handle's namespace knows `netns`, as in [`super::Link::lower_netns`]; `None` when it has
    /// never met it.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn number_of(&mut self, netns: &Netns) -> Result<Option<u32>> {
        let fd = netns.for_peer().fd;
        let encode = move |batch: &mut Batch| {
            // struct rtgenmsg, padded.
            batch.message(Rtm::Getnsid, NlmF::ACK, &[0; 4], |a| a.bytes(NETNSA_FD, &fd.to_ne_bytes()));
        };
        let found = self.dump("ip netns list-id", encode, |message, found| {
            found.extend(Attrs::after(message.payload, 4).find(NETNSA_NSID).map(|b| u32_at(b, 0)));
        })?;
        // NETNSA_NSID_NOT_ASSIGNED is -1.
        Ok(found.first().copied().filter(|number| *number != u32::MAX))
    }
}
