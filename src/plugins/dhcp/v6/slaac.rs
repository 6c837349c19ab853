//! What router advertisements have told (RFC 4861 section 6.3, RFC 4862 section 5.5), until when it is true, and when to
//! ask again. Pure.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Prefix {
    net: Ipv6Net,
    on_link: bool,
    autonomous: bool,
    until: Millis,
}

/// What routers have told, and until when it is true. Kept on disk, so that the next daemon goes on with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The interface identifier: last half of addresses.
    id: [u8; 8],
    routers: Vec<(Ipv6Addr, Millis)>,
    prefixes: Vec<Prefix>,
    routes: Vec<(Ipv6Net, Ipv6Addr, Millis)>,
    dns: Vec<(Ipv6Addr, Millis)>,
    search: Vec<(String, Millis)>,
    mtu: Option<u32>,
    /// More can be learned from DHCPv6 servers.
    stateless: bool,
    heard: bool,
}

impl Told {
    /// When the first of it ends.
    fn ends(&self) -> Millis {
        let ends = self.routers.iter().map(|r| r.1).chain(self.prefixes.iter().map(|p| p.until));
        let ends = ends.chain(self.routes.iter().map(|r| r.2)).chain(self.dns.iter().map(|d| d.1));
        ends.chain(self.search.iter().map(|s| s.1)).min().unwrap_or(NEVER)
    }

    /// The same for ever: to compare what is told, whatever the time.
    fn timeless(mut self) -> Told {
        self.routers.iter_mut().for_each(|r| r.1 = NEVER);
        self.prefixes.iter_mut().for_each(|p| p.until = NEVER);
        self.routes.iter_mut().for_each(|r| r.2 = NEVER);
        self.dns.iter_mut().for_each(|d| d.1 = NEVER);
        self.search.iter_mut().for_each(|s| s.1 = NEVER);
        self
    }
}

/// Everything known of a link from its routers.
#[derive(Clone, Debug)]
pub struct Slaac {
    told: Told,
    random: Random,
    /// When to solicit again, and how long the wait before was.
    solicit: (Millis, Millis),
    /// From this moment on what routers tell is worth writing down, even if it is what they told before.
    save_at: Millis,
}

impl Slaac {
    /// Nothing is known.
    pub fn new(random: Random) -> Slaac {
        Slaac { told: Told::default(), random, solicit: (NEVER, 0), save_at: 0 }
    }

    /// What is known, to be written down: [`Slaac::heard_from`] says that it is, and then not for a while.
    pub fn told(&mut self, now: Millis) -> &Told {
        // Who goes on with it believes in ends that are too early by no more than a quarter of the time.
        self.save_at = now.saturating_add(self.told.ends().saturating_sub(now) / 4);
        &self.told
    }

    /// Goes on with what an earlier daemon was told, also with what has ended since: [`Slaac::timer`] forgets that.
    pub fn resume(&mut self, told: Told) {
        self.told = told;
    }

    /// Begins to ask: [`Slaac::timer`] says so at once. Addresses get the interface identifier of the link-local address:
    /// interfaces that share a hardware address have different ones.
    pub fn start(&mut self, local: Ipv6Addr, now: Millis) {
        let [.., a, b, c, d, e, f, g, h] = local.octets();
        self.told.id = [a, b, c, d, e, f, g, h];
        self.ask(now);
    }

    /// Begins to ask again.
    pub fn ask(&mut self, now: Millis) {
        self.solicit = (now, 0);
    }

    /// Whether a router has been heard.
    pub fn heard(&self) -> bool {
        self.told.heard
    }

    /// Whether DHCPv6 servers know more than routers tell: the flags M or O (RFC 4861 section 4.2).
    pub fn is_stateless(&self) -> bool {
        self.told.stateless
    }

    /// When [`Slaac::timer`] is to be called.
    pub fn wake(&self) -> Millis {
        self.told.ends().min(self.solicit.0)
    }

    /// Forgets what has ended. True: a router is to be solicited.
    pub fn timer(&mut self, now: Millis) -> bool {
        let told = &mut self.told;
        told.routers.retain(|(_, until)| *until > now);
        told.prefixes.retain(|prefix| prefix.until > now);
        told.routes.retain(|(.., until)| *until > now);
        told.dns.retain(|(_, until)| *until > now);
        told.search.retain(|(_, until)| *until > now);
        if self.solicit.0 > now {
            return false;
        }
        let nominal =
            if self.solicit.1 == 0 { SOLICIT_FIRST } else { self.solicit.1 * 2 }.min(SOLICIT_LONGEST);
        let wait = self.random.around(nominal, nominal / 10);
        self.solicit = (now + wait, wait);
        true
    }

    /// A router has advertised. True: what is told is to be written down.
    pub fn heard_from(&mut self, router: Ipv6Addr, advert: &Advertisement, now: Millis) -> bool {
        let before = self.told.clone().timeless();
        let until = |seconds: u32| if seconds == u32::MAX { NEVER } else { now + u64::from(seconds) * 1000 };
        if advert.lifetime > 0 {
            // RFC 7559: a default router ends the asking.
            self.solicit = (NEVER, 0);
        }
        for told in &advert.prefixes {
            self.prefix(told, now, until(told.valid));
        }
        let told = &mut self.told;
        told.heard = true;
        told.stateless = advert.stateless;
        let lifetime = u32::from(advert.lifetime);
        set(&mut told.routers, |r| r.0 == router, (router, until(lifetime)), lifetime > 0);
        for (net, seconds) in &advert.routes {
            let route = (*net, router, until(*seconds));
            set(&mut told.routes, |r| (r.0, r.1) == (*net, router), route, *seconds > 0);
        }
        for (ip, seconds) in &advert.dns {
            set(&mut told.dns, |d| d.0 == *ip, (*ip, until(*seconds)), *seconds > 0);
        }
        for (name, seconds) in &advert.search {
            set(&mut told.search, |s| s.0 == *name, (name.clone(), until(*seconds)), *seconds > 0);
        }
        told.mtu = advert.mtu.or(told.mtu);
        now >= self.save_at || self.told.clone().timeless() != before
    }

    fn prefix(&mut self, told: &super::advert::Prefix, now: Millis, until: Millis) {
        let known = self.told.prefixes.iter().find(|p| p.net == told.net).copied();
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
        set(&mut self.told.prefixes, |p| p.net == told.net, prefix, until > now);
    }

    /// The addresses made from prefixes; the length is that of the prefix where it is on the link.
    pub fn addresses(&self) -> Vec<Ipv6Net> {
        let own = self.told.prefixes.iter().filter(|prefix| prefix.autonomous);
        let nets = own.filter_map(|prefix| {
            let mut bytes = prefix.net.network().octets();
            bytes[8..].copy_from_slice(&self.told.id);
            Ipv6Net::new(bytes.into(), if prefix.on_link { 64 } else { 128 }).ok()
        });
        nets.collect()
    }

    /// Networks that are on the link.
    pub fn on_link(&self) -> impl Iterator<Item = Ipv6Net> + '_ {
        self.told.prefixes.iter().filter(|prefix| prefix.on_link).map(|prefix| prefix.net)
    }

    /// The default router that was heard first.
    pub fn gateway(&self) -> Option<Ipv6Addr> {
        self.told.routers.first().map(|(router, _)| *router)
    }

    /// Routes to more specific networks, and their routers.
    pub fn routes(&self) -> impl Iterator<Item = (Ipv6Net, Ipv6Addr)> + '_ {
        self.told.routes.iter().map(|(net, router, _)| (*net, *router))
    }

    /// Name servers.
    pub fn dns(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        self.told.dns.iter().map(|(ip, _)| *ip)
    }

    /// Search list.
    pub fn search(&self) -> impl Iterator<Item = &str> {
        self.told.search.iter().map(|(name, _)| name.as_str())
    }

    /// The link's MTU.
    pub fn mtu(&self) -> Option<u32> {
        self.told.mtu
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
