//! A DHCPv6 lease: the addresses and prefixes of one server's answer.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

use crate::plugins::dhcp::clock::{Millis, NEVER};

/// The lifetime that means "for ever" (RFC 8415 section 7.7).
pub const INFINITE: u32 = u32::MAX;

/// A lease. Moments are those of [`crate::plugins::dhcp::clock::now`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// DUID of the server that gave it.
    pub server: Vec<u8>,
    /// Addresses (IA_NA).
    pub addresses: Vec<Ipv6Addr>,
    /// Prefixes (IA_PD).
    pub prefixes: Vec<Ipv6Net>,
    /// Name servers (option 23).
    pub dns: Vec<Ipv6Addr>,
    /// Search list (option 24).
    pub search: Vec<String>,
    /// NTP servers (option 56).
    pub ntp: Vec<String>,
    /// When the request that was granted was sent.
    pub obtained: Millis,
    /// T1: renew it with the server that gave it.
    pub renew_at: Millis,
    /// T2: renew it with any server.
    pub rebind_at: Millis,
    /// It must not be used any more.
    pub expires_at: Millis,
}

/// What an answer says about an identity association: lifetimes in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// T1; 0: the client's choice.
    pub t1: u32,
    /// T2; 0: the client's choice.
    pub t2: u32,
    /// The shortest preferred lifetime.
    pub preferred: u32,
    /// The shortest valid lifetime.
    pub valid: u32,
}

impl Lease {
    /// Sets the moments for an answer to a request sent at `asked` (RFC 8415 sections 14.2 and 21.4).
    pub fn set_times(&mut self, times: Times, asked: Millis) {
        let at = |seconds: u64| asked + seconds * 1000;
        self.obtained = asked;
        self.expires_at = if times.valid == INFINITE { NEVER } else { at(times.valid.into()) };
        let share = |tenths: u64| match times.preferred {
            INFINITE => NEVER,
            preferred => at((u64::from(preferred) * tenths / 10).max(1)),
        };
        let said = |seconds: u32| match seconds {
            0 => None,
            INFINITE => Some(NEVER),
            seconds => Some(at(seconds.into())),
        };
        self.rebind_at = said(times.t2).unwrap_or_else(|| share(8)).min(self.expires_at);
        self.renew_at = said(times.t1).unwrap_or_else(|| share(5)).min(self.rebind_at);
    }
}

/// An address that a host can have on more than its own link.
pub fn is_host(ip: Ipv6Addr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local())
        && ip.to_ipv4_mapped().is_none()
}
