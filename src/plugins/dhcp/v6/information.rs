//! What a DHCPv6 server knows besides addresses, for a client that has its addresses from routers (RFC 8415 section
//! 18.2.6). Pure, as [`super::machine`].

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::machine::Retry;
use super::packet::{Kind, Outgoing, Reply, Status};
use crate::plugins::dhcp::clock::{Millis, NEVER, Random};

/// INF_TIMEOUT and INF_MAX_RT.
const ASK: Retry = Retry { first: 1_000, longest: 3_600_000, count: 0 };

/// IRT_DEFAULT and IRT_MINIMUM: what was told is asked for again after so many seconds.
const REFRESH_DEFAULT: u32 = 86_400;
const REFRESH_MINIMUM: u32 = 600;

/// What was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Name servers (option 23).
    pub dns: Vec<Ipv6Addr>,
    /// Search list (option 24).
    pub search: Vec<String>,
    /// NTP servers (option 56).
    pub ntp: Vec<String>,
    /// When to ask again.
    refresh_at: Millis,
}

/// One client.
#[derive(Clone, Debug)]
pub struct Information {
    duid: Vec<u8>,
    random: Random,
    known: Option<Known>,
    asking: bool,
    xid: u32,
    began: Millis,
    wait: Millis,
    longest: Millis,
    wake: Millis,
}

impl Information {
    /// A client that does nothing yet.
    pub fn new(duid: Vec<u8>, random: Random) -> Information {
        Information {
            duid,
            random,
            known: None,
            asking: false,
            xid: 0,
            began: NEVER,
            wait: 0,
            longest: ASK.longest,
            wake: NEVER,
        }
    }

    /// Goes on with what an earlier daemon was told.
    pub fn resume(&mut self, known: Known) {
        self.wake = known.refresh_at;
        self.known = Some(known);
    }

    /// Servers are there to be asked: [`Information::timer`] does so at once, unless it was done before.
    pub fn start(&mut self, now: Millis) {
        if self.known.is_none() && !self.asking {
            self.wake = now;
        }
    }

    /// What was told.
    pub fn known(&self) -> Option<&Known> {
        self.known.as_ref()
    }

    /// Whether an answer is awaited.
    pub fn listens(&self) -> bool {
        self.asking
    }

    /// When the question was first asked; [`NEVER`] before.
    pub fn began(&self) -> Millis {
        self.began
    }

    /// When [`Information::timer`] is to be called.
    pub fn wake(&self) -> Millis {
        self.wake
    }

    /// The time has come: the message to send, to all servers.
    pub fn timer(&mut self, now: Millis) -> Option<Outgoing> {
        if now < self.wake {
            return None;
        }
        if !self.asking {
            self.asking = true;
            self.xid = self.random.next_u32() >> 8;
            (self.began, self.wait) = (now, 0);
        }
        self.wait = ASK.next(self.wait, self.longest, &mut self.random);
        self.wake = now + self.wait;
        let elapsed = now - self.began;
        Some(Outgoing { kind: Kind::InformationRequest, xid: self.xid, elapsed, server: None, lease: None })
    }

    /// A server's message came in. True: what is known may have changed.
    pub fn received(&mut self, reply: &Reply, now: Millis) -> bool {
        if !self.asking
            || (reply.kind, reply.xid) != (Kind::Reply, self.xid)
            || reply.client != self.duid
            || reply.status.0 != Status::SUCCESS
        {
            return false;
        }
        self.longest = reply.information_longest.unwrap_or(self.longest);
        self.asking = false;
        let refresh_at = match reply.refresh.unwrap_or(REFRESH_DEFAULT) {
            u32::MAX => NEVER,
            seconds => now + u64::from(seconds.max(REFRESH_MINIMUM)) * 1000,
        };
        let told = &reply.lease;
        self.known = Some(Known {
            dns: told.dns.clone(),
            search: told.search.clone(),
            ntp: told.ntp.clone(),
            refresh_at,
        });
        self.wake = refresh_at;
        true
    }
}
