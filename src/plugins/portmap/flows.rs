//! UDP flows that the kernel remembers: it would go on sending a client's packets to where they went before a mapping
//! was made, or to a container that is gone.
//!
//! Exactly those flows are forgotten: addressed to a mapped port of this host (the Go plugin forgets every flow to that
//! port, those to other machines too), on ADD; led to the container by a mapping that is removed, on DEL (the Go plugin
//! leaves them).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use nix::libc;

use super::record::Record;
use crate::cni::Result;
use crate::kernel::Kernel;
use crate::kernel::conntrack::{Conntrack, Flow};

/// `RTN_LOCAL` (linux/rtnetlink.h): an address of this host.
const RTN_LOCAL: u8 = 2;

/// Forgets flows that went elsewhere than these new mappings say.
pub fn forget_stale(records: &[Record], kernel: &mut Kernel) -> Result<()> {
    let mut local: BTreeMap<IpAddr, bool> = BTreeMap::new();
    forget(records, |record, flow| {
        let to = flow.original_to.ip();
        if leads_to(record, flow) {
            return false;
        }
        if !record.host_ip.is_unspecified() {
            return record.host_ip == to;
        }
        *local.entry(to).or_insert_with(|| {
            let route = kernel.host().and_then(|host| host.route_to(to));
            matches!(route, Ok(Some(route)) if route.kind == RTN_LOCAL)
        })
    })
}

/// Forgets flows that these mappings, now gone, had led to the container.
pub fn forget_led(records: &[Record]) -> Result<()> {
    forget(records, leads_to)
}

fn leads_to(record: &Record, flow: &Flow) -> bool {
    flow.answered_from == SocketAddr::new(record.container_ip, record.container_port)
}

/// Forgets those flows to a mapping's port of which `goes` says so.
fn forget(records: &[Record], mut goes: impl FnMut(&Record, &Flow) -> bool) -> Result<()> {
    let udp = libc::IPPROTO_UDP as u8;
    for v4 in [true, false] {
        let own: Vec<&Record> = records
            .iter()
            .filter(|record| record.protocol == udp && record.container_ip.is_ipv4() == v4)
            .collect();
        let Some(first) = own.first() else { continue };
        let one_port = own.iter().all(|record| record.host_port == first.host_port);
        let mut conntrack = Conntrack::open()?;
        let flows = conntrack.flows(v4, udp, one_port.then_some(first.host_port))?;
        let stale: Vec<Flow> = flows
            .into_iter()
            .filter(|flow| {
                own.iter().any(|record| flow.original_to.port() == record.host_port && goes(record, flow))
            })
            .collect();
        conntrack.forget(&stale)?;
    }
    Ok(())
}
