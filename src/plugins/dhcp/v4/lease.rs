//! A lease: what a server gave, and until when. What it means for an interface is in [`crate::plugins::dhcp::outcome`].

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::packet::{Options, Reply, code, is_host};
use crate::plugins::dhcp::clock::{Millis, NEVER, Random};

/// Lease time when the server says none, as in the Go plugin.
const DEFAULT_SECONDS: u32 = 3600;

/// The lease time that means "for ever" (RFC 2131 section 3.3).
const INFINITE: u32 = u32::MAX;

/// A lease. Moments are those of [`crate::plugins::dhcp::clock::now`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The server that gave it (option 54).
    pub server: Ipv4Addr,
    /// When the request that was granted was sent.
    pub obtained: Millis,
    /// T1: renew it with the server that gave it.
    pub renew_at: Millis,
    /// T2: renew it with any server.
    pub rebind_at: Millis,
    /// It must not be used any more.
    pub expires_at: Millis,
    /// All options of the ACK.
    pub options: Options,
}

impl Lease {
    /// The lease that an ACK grants to a request sent at `asked`.
    ///
    /// # Errors
    /// What makes it unusable.
    pub fn new(ack: &Reply, asked: Millis, random: &mut Random) -> Result<Lease, String> {
        let address = ack.yiaddr;
        if !is_host(address) {
            return Err(format!("the server gave the address {address}, which no host can have"));
        }
        let server = ack.options.ip(code::SERVER).filter(|ip| is_host(*ip));
        let server = server.ok_or("the server does not say who it is (option 54)")?;
        let seconds = ack.options.u32(code::LEASE_TIME).unwrap_or(DEFAULT_SECONDS);
        if seconds == 0 {
            return Err(format!("the server gave {address} for no time at all"));
        }
        let mut lease = Lease {
            address,
            server,
            obtained: asked,
            renew_at: NEVER,
            rebind_at: NEVER,
            expires_at: NEVER,
            options: ack.options.clone(),
        };
        if seconds != INFINITE {
            lease.set_times(u64::from(seconds) * 1000, random);
        }
        Ok(lease)
    }

    /// T1 and T2 as the server says, when they are in order; else half and seven eighths of the lease time with some
    /// jitter (RFC 2131 section 4.4.5).
    fn set_times(&mut self, duration: Millis, random: &mut Random) {
        let said = |code| self.options.u32(code).filter(|s| *s > 0).map(|s| u64::from(s) * 1000);
        let fuzz = |at: Millis, random: &mut Random| at - random.next() % (at / 25 + 1);
        let t2 = said(code::T2).filter(|t2| *t2 < duration);
        let t2 = t2.unwrap_or_else(|| fuzz(duration / 8 * 7, random));
        let t1 = said(code::T1).filter(|t1| *t1 < t2);
        let t1 = t1.unwrap_or_else(|| fuzz((duration / 2).min(t2), random));
        self.renew_at = self.obtained + t1;
        self.rebind_at = self.obtained + t2;
        self.expires_at = self.obtained + duration;
    }

    /// Address and prefix length; `None` without a (contiguous) subnet mask.
    pub fn net(&self) -> Option<Ipv4Net> {
        let mask = self.options.ip(code::SUBNET_MASK)?;
        let length = ipnet::ipv4_mask_to_prefix(mask).ok().filter(|length| *length > 0)?;
        Ipv4Net::new(self.address, length).ok()
    }
}
