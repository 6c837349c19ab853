//! The client's state diagram, walked through with a clock that stands where it is put.

use std::net::Ipv4Addr;

use super::machine::{Machine, Output, Params, To};
use super::packet::{Kind, Options, Outgoing, Reply, code};
use crate::plugins::dhcp::clock::{Millis, NEVER, Random};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// Of the lease that [`Walk::reply`] gives.
const LEASE: Millis = 1_000_000;

/// A machine, the time, and what it said.
struct Walk {
    machine: Machine,
    now: Millis,
    sent: Vec<(To, Outgoing)>,
    said: Vec<Output>,
}

impl Walk {
    fn with(probe: bool) -> Walk {
        let options = Options([(code::CLIENT_ID, vec![0, b'c'])].into());
        let (broadcast, first_wait, longest_wait) = (false, 4000, 62_000);
        let params = Params { mac: MAC, options, broadcast, first_wait, longest_wait, probe };
        Walk { machine: Machine::new(params, Random::from_seed(7)), now: 5000, sent: vec![], said: vec![] }
    }

    fn started() -> Walk {
        let mut walk = Walk::with(false);
        let outputs = walk.machine.start(walk.now);
        walk.take(outputs);
        walk
    }

    fn bound() -> Walk {
        let mut walk = Walk::started();
        walk.reply(Kind::Offer, ADDRESS);
        walk.reply(Kind::Ack, ADDRESS);
        assert_eq!(walk.machine.state(), "BOUND");
        walk.clear();
        walk
    }

    fn take(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(to, message) => self.sent.push((to, *message)),
                other => self.said.push(other),
            }
        }
    }

    fn clear(&mut self) {
        self.sent.clear();
        self.said.clear();
    }

    /// The time of the next timer comes.
    fn next(&mut self) -> Millis {
        assert_ne!(self.machine.wake(), NEVER, "nothing is to come in {}", self.machine.state());
        let waited = self.machine.wake().saturating_sub(self.now);
        self.now = self.now.max(self.machine.wake());
        let outputs = self.machine.timer(self.now);
        self.take(outputs);
        waited
    }

    fn last(&self) -> &Outgoing {
        &self.sent.last().unwrap().1
    }

    fn to(&self) -> To {
        self.sent.last().unwrap().0
    }

    fn reply(&mut self, kind: Kind, address: Ipv4Addr) {
        self.reply_with(kind, address, SERVER, |_| {});
    }

    fn reply_with(&mut self, kind: Kind, address: Ipv4Addr, server: Ipv4Addr, change: impl Fn(&mut Reply)) {
        let options = Options(
            [
                (code::SERVER, server.octets().to_vec()),
                (code::SUBNET_MASK, vec![255, 255, 255, 0]),
                (code::LEASE_TIME, 1000u32.to_be_bytes().to_vec()),
                (code::T1, 500u32.to_be_bytes().to_vec()),
                (code::T2, 875u32.to_be_bytes().to_vec()),
            ]
            .into(),
        );
        let mut reply = Reply { kind, xid: self.last().xid, mac: MAC, yiaddr: address, options };
        change(&mut reply);
        let outputs = self.machine.received(&reply, self.now);
        self.take(outputs);
    }
}

#[test]
fn an_offer_is_requested_and_its_ack_is_a_lease() {
    let mut walk = Walk::started();
    assert_eq!((walk.last().kind, walk.to()), (Kind::Discover, To::Everybody));
    walk.now += 20;
    walk.reply(Kind::Offer, ADDRESS);
    assert_eq!(walk.said, [Output::Requesting { address: ADDRESS, server: SERVER }]);
    let request = walk.last();
    assert_eq!((request.kind, request.ciaddr), (Kind::Request, Ipv4Addr::UNSPECIFIED));
    assert_eq!(request.xid, walk.sent[0].1.xid);
    assert_eq!(request.options.ip(code::REQUESTED), Some(ADDRESS));
    assert_eq!(request.options.ip(code::SERVER), Some(SERVER));
    walk.now += 20;
    walk.reply(Kind::Ack, ADDRESS);
    assert_eq!(walk.said.last(), Some(&Output::Leased));
    let lease = walk.machine.lease().unwrap();
    assert_eq!((lease.address, lease.server, lease.obtained), (ADDRESS, SERVER, 5020));
    assert_eq!((lease.renew_at, lease.rebind_at, lease.expires_at), (505_020, 880_020, 1_005_020));
    assert!(!walk.machine.listens());
}

#[test]
fn a_request_has_the_seconds_of_its_discover() {
    let mut walk = Walk::started();
    walk.next();
    walk.next();
    let secs = walk.last().secs;
    assert!(secs > 9);
    walk.now += 3000;
    walk.reply(Kind::Offer, ADDRESS);
    walk.next();
    assert_eq!((walk.last().kind, walk.last().secs), (Kind::Request, secs));
}

#[test]
fn discovers_are_sent_again_with_growing_jittered_waits_and_seconds() {
    let mut walk = Walk::started();
    let waits: Vec<Millis> = (0..7).map(|_| walk.next()).collect();
    for (wait, nominal) in waits.iter().zip([4000, 8000, 16_000, 32_000, 62_000, 62_000, 62_000]) {
        assert!(wait.abs_diff(nominal) <= 1000, "{waits:?}");
    }
    assert!(waits.iter().any(|w| w % 1000 != 0), "no jitter: {waits:?}");
    assert_eq!(walk.sent[0].1.secs, 0);
    assert!((178..=192).contains(&walk.sent[6].1.secs), "{}", walk.sent[6].1.secs);
    assert!(walk.sent.iter().all(|(_, m)| m.xid == walk.sent[0].1.xid));
}

#[test]
fn an_offer_that_is_not_confirmed_leads_back_to_discover() {
    let mut walk = Walk::started();
    walk.reply(Kind::Offer, ADDRESS);
    let first = walk.last().xid;
    for _ in 0..3 {
        walk.next();
        assert_eq!((walk.last().kind, walk.last().xid), (Kind::Request, first));
    }
    walk.next();
    assert_eq!(walk.last().kind, Kind::Discover);
    assert_ne!(walk.last().xid, first);
    assert!(walk.machine.problem().unwrap().contains("did not confirm"));
}

#[test]
fn answers_of_others_and_to_others_are_not_heard() {
    let mut walk = Walk::started();
    walk.reply_with(Kind::Offer, ADDRESS, SERVER, |r| r.xid ^= 1);
    walk.reply_with(Kind::Offer, ADDRESS, SERVER, |r| r.mac[5] ^= 1);
    walk.reply(Kind::Ack, ADDRESS);
    walk.reply(Kind::Nak, ADDRESS);
    assert_eq!((walk.machine.state(), walk.said.len()), ("SELECTING", 0));
    walk.reply(Kind::Offer, ADDRESS);
    walk.reply_with(Kind::Ack, ADDRESS, OTHER, |_| {});
    walk.reply_with(Kind::Nak, ADDRESS, OTHER, |_| {});
    walk.reply(Kind::Offer, ADDRESS);
    assert_eq!(walk.machine.state(), "REQUESTING");
    walk.reply(Kind::Ack, OTHER);
    assert_eq!(walk.machine.state(), "REQUESTING", "another address than was asked for");
}

#[test]
fn offers_that_nobody_could_use_are_passed_over() {
    let mut walk = Walk::started();
    walk.reply(Kind::Offer, Ipv4Addr::new(127, 0, 0, 1));
    walk.reply(Kind::Offer, Ipv4Addr::UNSPECIFIED);
    walk.reply(Kind::Offer, Ipv4Addr::BROADCAST);
    let without = |code: u8| move |reply: &mut Reply| drop(reply.options.0.remove(&code));
    walk.reply_with(Kind::Offer, ADDRESS, SERVER, without(code::SERVER));
    walk.reply_with(Kind::Offer, ADDRESS, SERVER, without(code::SUBNET_MASK));
    let set = |code: u8, value: Vec<u8>| move |r: &mut Reply| drop(r.options.0.insert(code, value.clone()));
    walk.reply_with(Kind::Offer, ADDRESS, SERVER, set(code::SUBNET_MASK, vec![255, 0, 255, 0]));
    walk.reply_with(Kind::Offer, ADDRESS, SERVER, set(code::LEASE_TIME, vec![0; 4]));
    assert_eq!((walk.machine.state(), walk.sent.len()), ("SELECTING", 1));
    assert_eq!(walk.said.len(), 7);
}

#[test]
fn a_refused_request_begins_anew_at_once_then_ever_later() {
    let mut walk = Walk::started();
    for wait in [0, 4000, 8000, 16_000] {
        walk.reply(Kind::Offer, ADDRESS);
        walk.reply_with(Kind::Nak, ADDRESS, SERVER, |r| {
            r.options.0.insert(code::MESSAGE, b"no\nway".to_vec());
        });
        assert_eq!(walk.machine.problem(), Some("10.0.0.1 refuses the address (NAK): no way"));
        if wait > 0 {
            assert_eq!((walk.machine.state(), walk.next()), ("INIT", wait));
        }
        assert_eq!((walk.machine.state(), walk.last().kind), ("SELECTING", Kind::Discover));
    }
}

#[test]
fn a_lease_is_renewed_by_its_server_and_keeps_its_address() {
    let mut walk = Walk::bound();
    walk.next();
    assert_eq!(walk.machine.state(), "RENEWING");
    assert_eq!(walk.to(), To::Server { from: ADDRESS, to: SERVER });
    let request = walk.last();
    assert_eq!((request.kind, request.ciaddr), (Kind::Request, ADDRESS));
    assert!(request.options.get(code::REQUESTED).is_none() && request.options.get(code::SERVER).is_none());
    walk.reply_with(Kind::Ack, ADDRESS, OTHER, |_| {});
    assert_eq!(walk.machine.state(), "RENEWING", "another server's answer");
    let asked = walk.now;
    walk.now += 30;
    walk.reply(Kind::Ack, ADDRESS);
    assert_eq!(walk.machine.state(), "BOUND");
    assert_eq!(walk.said, [Output::Leased]);
    assert_eq!(walk.machine.lease().unwrap().expires_at, asked + LEASE);
}

#[test]
fn without_its_server_any_server_is_asked_and_then_the_lease_is_over() {
    let mut walk = Walk::bound();
    let expires = walk.machine.lease().unwrap().expires_at;
    let mut renewals = 0;
    while walk.machine.state() != "REBINDING" {
        walk.next();
        renewals += 1;
    }
    assert!((4..=9).contains(&renewals), "{renewals} renewals in 375 s");
    assert_eq!(walk.to(), To::EverybodyFrom(ADDRESS));
    assert_eq!(walk.last().ciaddr, ADDRESS);
    let mut rebindings = 0;
    while walk.machine.lease().is_some() {
        walk.next();
        rebindings += 1;
    }
    assert_eq!(walk.now, expires);
    assert!((2..=4).contains(&rebindings), "{rebindings} rebindings in 125 s");
    assert!(matches!(walk.said.last(), Some(Output::Lost(why)) if why.contains("expired")));
    assert_eq!((walk.machine.state(), walk.last().kind), ("SELECTING", Kind::Discover));
}

#[test]
fn another_server_may_rebind_with_another_address() {
    let mut walk = Walk::bound();
    while walk.machine.state() != "REBINDING" {
        walk.next();
    }
    walk.said.clear();
    walk.reply_with(Kind::Ack, OTHER, OTHER, |_| {});
    assert_eq!(walk.machine.lease().map(|l| (l.address, l.server)), Some((OTHER, OTHER)));
    assert_eq!(walk.said, [Output::Leased]);
}

#[test]
fn a_renewal_that_is_refused_ends_the_lease() {
    let mut walk = Walk::bound();
    walk.next();
    walk.reply(Kind::Nak, Ipv4Addr::UNSPECIFIED);
    assert!(matches!(walk.said[..], [Output::Lost(_)]));
    assert_eq!(walk.machine.lease(), None);
    assert_eq!(walk.last().kind, Kind::Discover);
}

#[test]
fn an_address_is_probed_before_it_is_used() {
    let mut walk = Walk::with(true);
    let outputs = walk.machine.start(walk.now);
    walk.take(outputs);
    walk.reply(Kind::Offer, ADDRESS);
    walk.reply(Kind::Ack, ADDRESS);
    assert_eq!((walk.machine.state(), walk.machine.lease()), ("PROBING", None));
    let begun = walk.now;
    while walk.machine.state() == "PROBING" {
        walk.next();
    }
    let probes = walk.said.iter().filter(|o| **o == Output::Probe(ADDRESS)).count();
    assert_eq!((probes, walk.machine.state()), (3, "BOUND"));
    assert!((90..=180).contains(&(walk.now - begun)));
    walk.clear();
    walk.next();
    walk.reply(Kind::Ack, ADDRESS);
    assert_eq!(walk.machine.state(), "BOUND", "a renewed address is not probed again");
}

#[test]
fn an_address_in_use_is_declined_and_another_one_asked_for() {
    let mut walk = Walk::with(true);
    let outputs = walk.machine.start(walk.now);
    walk.take(outputs);
    for wait in [0, 10_000] {
        walk.reply(Kind::Offer, ADDRESS);
        walk.reply(Kind::Ack, ADDRESS);
        walk.clear();
        let outputs = walk.machine.conflict(ADDRESS, walk.now);
        walk.take(outputs);
        let (to, decline) = &walk.sent[0];
        assert_eq!(
            (*to, decline.kind, decline.ciaddr),
            (To::Everybody, Kind::Decline, Ipv4Addr::UNSPECIFIED)
        );
        assert_eq!(decline.options.ip(code::REQUESTED), Some(ADDRESS));
        assert_eq!(decline.options.ip(code::SERVER), Some(SERVER));
        assert_eq!(decline.options.get(code::CLIENT_ID), Some(&[0, b'c'][..]));
        assert_eq!((decline.secs, decline.broadcast, decline.options.0.len()), (0, false, 3));
        if wait > 0 {
            assert_eq!(walk.next(), wait);
        }
        assert_eq!(walk.last().kind, Kind::Discover);
    }
}

#[test]
fn an_earlier_lease_is_asked_for_first() {
    let lease = Walk::bound().machine.lease().unwrap().clone();
    let mut walk = Walk::with(false);
    let outputs = walk.machine.reboot(lease.clone(), false, walk.now);
    walk.take(outputs);
    assert_eq!((walk.machine.state(), walk.machine.lease()), ("REBOOTING", None));
    let request = walk.last();
    assert_eq!((request.kind, request.ciaddr), (Kind::Request, Ipv4Addr::UNSPECIFIED));
    assert_eq!(request.options.ip(code::REQUESTED), Some(ADDRESS));
    assert!(request.options.get(code::SERVER).is_none());
    let mut refused =
        Walk { machine: walk.machine.clone(), now: walk.now, sent: walk.sent.clone(), said: vec![] };
    walk.reply(Kind::Ack, ADDRESS);
    assert_eq!(walk.machine.state(), "BOUND");

    refused.reply(Kind::Nak, Ipv4Addr::UNSPECIFIED);
    assert!(matches!(refused.said[..], [Output::Note(_)]), "it was not in use: {:?}", refused.said);
    assert_eq!(refused.last().kind, Kind::Discover);

    let outputs = walk.machine.reboot(lease, false, 10 * LEASE);
    assert!(matches!(&outputs[..], [Output::Send(_, m)] if m.kind == Kind::Discover), "it has expired");
}

#[test]
fn when_the_link_returns_the_lease_is_confirmed_and_stays_without_an_answer() {
    let mut walk = Walk::bound();
    walk.now += 1000;
    let outputs = walk.machine.link_returned(walk.now);
    walk.take(outputs);
    assert_eq!(walk.machine.state(), "REBOOTING");
    assert!(walk.machine.lease().is_some());
    for _ in 0..3 {
        walk.next();
    }
    assert_eq!((walk.machine.state(), walk.machine.wake()), ("BOUND", 505_000));

    let outputs = walk.machine.link_returned(walk.now);
    walk.take(outputs);
    walk.reply(Kind::Nak, Ipv4Addr::UNSPECIFIED);
    assert!(matches!(walk.said.last(), Some(Output::Lost(_))), "another network");
}

#[test]
fn a_restarted_program_goes_on_where_the_lease_is() {
    let lease = Walk::bound().machine.lease().unwrap().clone();
    for (now, state) in
        [(6000, "BOUND"), (600_000, "RENEWING"), (900_000, "REBINDING"), (2_000_000, "SELECTING")]
    {
        let mut walk = Walk::with(true);
        walk.now = now;
        let outputs = walk.machine.resume(lease.clone(), now);
        walk.take(outputs);
        assert_eq!(walk.machine.state(), state);
        assert_eq!(walk.sent.len(), usize::from(state != "BOUND"));
    }
}

#[test]
fn a_lease_is_released_from_its_address_with_the_same_identifier() {
    let mut walk = Walk::bound();
    let outputs = walk.machine.release(walk.now);
    walk.take(outputs);
    let release = walk.last();
    assert_eq!(walk.to(), To::Server { from: ADDRESS, to: SERVER });
    assert_eq!((release.kind, release.ciaddr), (Kind::Release, ADDRESS));
    assert_eq!(release.options.get(code::CLIENT_ID), Some(&[0, b'c'][..]));
    assert_eq!(release.options.ip(code::SERVER), Some(SERVER));
    assert_eq!((walk.machine.state(), walk.machine.wake()), ("STOPPED", NEVER));
    assert_eq!(walk.machine.release(walk.now), []);

    let mut asked = Walk::started();
    assert_eq!(asked.machine.release(asked.now), [], "nothing was reserved yet");
    let mut asked = Walk::started();
    asked.reply(Kind::Offer, ADDRESS);
    assert_eq!(asked.machine.release(asked.now).len(), 1, "the server may have said yes");
}

#[test]
fn times_out_of_order_are_replaced_and_an_infinite_lease_has_none() {
    let times = |t1: u32, t2: u32, lease: u32| {
        let mut walk = Walk::started();
        walk.reply(Kind::Offer, ADDRESS);
        walk.reply_with(Kind::Ack, ADDRESS, SERVER, |r| {
            for (code, value) in [(code::T1, t1), (code::T2, t2), (code::LEASE_TIME, lease)] {
                r.options.0.insert(code, value.to_be_bytes().to_vec());
            }
        });
        let lease = walk.machine.lease().unwrap();
        let from = lease.obtained;
        (lease.renew_at.saturating_sub(from), lease.rebind_at.saturating_sub(from), lease.expires_at - from)
    };
    assert_eq!(times(1, 2, 3), (1000, 2000, 3000));
    for (t1, t2) in [(0, 0), (900, 800), (5000, 5000), (u32::MAX, 1)] {
        let (renew, rebind, expires) = times(t1, t2, 1000);
        assert!(renew <= rebind && rebind < expires && expires == LEASE, "{renew} {rebind} {expires}");
    }
    let (renew, ..) = times(0, 0, 1000);
    assert!((480_000..=500_000).contains(&renew));
    assert_eq!(times(1, 2, u32::MAX).1, NEVER - 5000);
}

/// Whatever comes in, in whatever state: no panic, no lease without an address, no timer in the past that never moves.
#[test]
fn any_sequence_of_events_leaves_a_machine_that_goes_on() {
    for seed in 0..300 {
        let mut random = Random::from_seed(seed);
        let mut walk = Walk::with(seed % 2 == 0);
        let outputs = walk.machine.start(walk.now);
        walk.take(outputs);
        for _ in 0..200 {
            let kind = [Kind::Offer, Kind::Ack, Kind::Nak][(random.next() % 3) as usize];
            let address = [ADDRESS, OTHER, Ipv4Addr::UNSPECIFIED][(random.next() % 3) as usize];
            let server = [SERVER, OTHER][(random.next() % 2) as usize];
            let times: Vec<u32> = (0..3).map(|_| random.next_u32() >> (random.next() % 32)).collect();
            match random.next() % 8 {
                0..=3 => walk.reply_with(kind, address, server, |r| {
                    for (code, value) in [code::LEASE_TIME, code::T1, code::T2].into_iter().zip(&times) {
                        r.options.0.insert(code, value.to_be_bytes().to_vec());
                    }
                }),
                4 => {
                    let outputs = walk.machine.conflict(address, walk.now);
                    walk.take(outputs);
                }
                5 => {
                    let outputs = walk.machine.link_returned(walk.now);
                    walk.take(outputs);
                }
                _ if walk.machine.wake() == NEVER => break,
                _ => drop(walk.next()),
            }
            for _ in 0..10 {
                if walk.machine.wake() <= walk.now {
                    walk.next();
                }
            }
            assert!(walk.machine.wake() > walk.now, "{} has nothing to wait for", walk.machine.state());
            assert!(walk.sent.len() < 2000);
            if let Some(lease) = walk.machine.lease() {
                assert!(lease.expires_at > walk.now && lease.net().is_some());
            }
        }
    }
}
