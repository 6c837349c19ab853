//! What router advertisements have told (RFC 4861 section 6.3, RFC 4862 section 5.5), until when it is true, and when to
//! ask again. Pure.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use super::advert::Advertisement;
use crate::plugins::dhcp::clock::{Millis, NEVER, Random};

/// RTR_SOLICITATION_INTERVAL, and the longest wait (RFC 7559 section 2).
const SOLICIT_FIRST: Millis = 4_000;
const SOLICIT_LONGEST: Millis = 3_600_000;

/// A shortened lifetime is believed down to this (RFC 4862 section 5.5.3 e): an attacker could end addresses otherwise.
const TWO_HOURS: Millis = 7_200_000;

/// Most entries of one kind: a flood of advertisements must not fill the memory.
const MOST: usize = 16;

/// A prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    net: Ipv6Net,
    on_link: bool,
    autonomous: bool,
    until: Millis,
}

/// Everything known of a link from its routers.
#[derive(Clone, Debug)]
pub struct Slaac {
    /// The interface identifier: last half of addresses.
    id: [u8; 8],
    random: Random,
    routers: Vec<(Ipv6Addr, Millis)>,
    prefixes: Vec<Prefix>,
    routes: Vec<(Ipv6Net, Ipv6Addr, Millis)>,
    dns: Vec<(Ipv6Addr, Millis)>,
    search: Vec<(String, Millis)>,
    mtu: Option<u32>,
    /// When to solicit again, and how long the wait before was.
    solicit: (Millis, Millis),
    heard: bool,
}

impl Slaac {
    /// Nothing is known.
    pub fn new(random: Random) -> Slaac {
        Slaac {
            id: [0; 8],
            random,
            routers: Vec::new(),
            prefixes: Vec::new(),
            routes: Vec::new(),
            dns: Vec::new(),
            search: Vec::new(),
            mtu: None,
            solicit: (NEVER, 0),
            heard: false,
        }
    }

    /// Begins to ask: [`Slaac::timer`] says so at once. Addresses get the interface identifier of the link-local address:
    /// interfaces that share a hardware address have different ones.
    pub fn start(&mut self, local: Ipv6Addr, now: Millis) {
        let [.., a, b, c, d, e, f, g, h] = local.octets();
        self.id = [a, b, c, d, e, f, g, h];
        self.ask(now);
    }

    /// Begins to ask again.
    pub fn ask(&mut self, now: Millis) {
        self.solicit = (now, 0);
    }

    /// Whether a router has been heard.
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// When [`Slaac::timer`] is to be called.
    pub fn wake(&self) -> Millis {
        let ends = self.routers.iter().map(|r| r.1).chain(self.prefixes.iter().map(|p| p.until));
        let ends = ends.chain(self.routes.iter().map(|r| r.2)).chain(self.dns.iter().map(|d| d.1));
        ends.chain(self.search.iter().map(|s| s.1)).min().unwrap_or(NEVER).min(self.solicit.0)
    }

    /// Forgets what has ended. True: a router is to be solicited.
    pub fn timer(&mut self, now: Millis) -> bool {
        self.routers.retain(|(_, until)| *until > now);
        self.prefixes.retain(|prefix| prefix.until > now);
        self.routes.retain(|(.., until)| *until > now);
        self.dns.retain(|(_, until)| *until > now);
        self.search.retain(|(_, until)| *until > now);
        if self.solicit.0 > now {
            return false;
        }
        let nominal =
            if self.solicit.1 == 0 { SOLICIT_FIRST } else { self.solicit.1 * 2 }.min(SOLICIT_LONGEST);
        let wait = self.random.around(nominal, nominal / 10);
        self.solicit = (now + wait, wait);
        true
    }

    /// A router has advertised.
    pub fn heard_from(&mut self, router: Ipv6Addr, advert: &Advertisement, now: Millis) {
        self.heard = true;
        let until = |seconds: u32| if seconds == u32::MAX { NEVER } else { now + u64::from(seconds) * 1000 };
        if advert.lifetime > 0 {
            // RFC 7559: a default router ends the asking.
            self.solicit = (NEVER, 0);
        }
        set(
            &mut self.routers,
            |r| r.0 == router,
            (router, until(advert.lifetime.into())),
            advert.lifetime > 0,
        );
        for told in &advert.prefixes {
            self.prefix(told, now, until(told.valid));
        }
        for (net, seconds) in &advert.routes {
            set(
                &mut self.routes,
                |r| (r.0, r.1) == (*net, router),
                (*net, router, until(*seconds)),
                *seconds > 0,
            );
        }
        for (ip, seconds) in &advert.dns {
            set(&mut self.dns, |d| d.0 == *ip, (*ip, until(*seconds)), *seconds > 0);
        }
        for (name, seconds) in &advert.search {
            set(&mut self.search, |s| s.0 == *name, (name.clone(), until(*seconds)), *seconds > 0);
        }
        self.mtu = advert.mtu.or(self.mtu);
    }

    fn prefix(&mut self, told: &super::advert::Prefix, now: Millis, until: Millis) {
        let known = self.prefixes.iter().find(|p| p.net == told.net).copied();
        let until = match known {
            Some(known) if known.autonomous => {
                let left = known.until.saturating_sub(now);
                let new = until.saturating_sub(now);
                if new > TWO_HOURS || new > left {
                    until
                } else if left <= TWO_HOURS {
                    known.until
                } else {
                    now + TWO_HOURS
                }
            }
            _ => until,
        };
        // Addresses are made from prefixes that leave room for the identifier.
        let autonomous = told.autonomous && told.net.prefix_len() == 64;
        let prefix = Prefix { net: told.net, on_link: told.on_link, autonomous, until };
        set(&mut self.prefixes, |p| p.net == told.net, prefix, until > now);
    }

    /// The addresses made from prefixes; the length is that of the prefix where it is on the link.
    pub fn addresses(&self) -> Vec<Ipv6Net> {
        let own = self.prefixes.iter().filter(|prefix| prefix.autonomous);
        let nets = own.filter_map(|prefix| {
            let mut bytes = prefix.net.network().octets();
            bytes[8..].copy_from_slice(&self.id);
            Ipv6Net::new(bytes.into(), if prefix.on_link { 64 } else { 128 }).ok()
        });
        nets.collect()
    }

    /// Networks that are on the link.
    pub fn on_link(&self) -> impl Iterator<Item = Ipv6Net> + '_ {
        self.prefixes.iter().filter(|prefix| prefix.on_link).map(|prefix| prefix.net)
    }

    /// The default router that was heard first.
    pub fn gateway(&self) -> Option<Ipv6Addr> {
        self.routers.first().map(|(router, _)| *router)
    }

    /// Routes to more specific networks, and their routers.
    pub fn routes(&self) -> impl Iterator<Item = (Ipv6Net, Ipv6Addr)> + '_ {
        self.routes.iter().map(|(net, router, _)| (*net, *router))
    }

    /// Name servers.
    pub fn dns(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        self.dns.iter().map(|(ip, _)| *ip)
    }

    /// Search list.
    pub fn search(&self) -> impl Iterator<Item = &str> {
        self.search.iter().map(|(name, _)| name.as_str())
    }

    /// The link's MTU.
    pub fn mtu(&self) -> Option<u32> {
        self.mtu
    }
}

/// Replaces the entry that `is_it`, or adds one if there is room; without `keep` it is removed.
fn set<T>(list: &mut Vec<T>, is_it: impl Fn(&T) -> bool, entry: T, keep: bool) {
    match (list.iter().position(is_it), keep) {
        (Some(at), true) => list[at] = entry,
        (Some(at), false) => drop(list.remove(at)),
        (None, true) if list.len() < MOST => list.push(entry),
        (None, _) => {}
    }
}
