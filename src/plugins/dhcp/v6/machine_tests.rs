//! The DHCPv6 client's states, with a clock that stands where it is put.

use std::net::Ipv6Addr;

use super::information::Information;
use super::lease::{Lease, Times};
use super::machine::{Machine, Output};
use super::packet::{Identity, Kind, Outgoing, Reply, Status, decode, encode};
use crate::plugins::dhcp::clock::{Millis, NEVER, Random};

const ADDRESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);

struct Walk {
    machine: Machine,
    now: Millis,
    sent: Vec<Outgoing>,
    said: Vec<Output>,
}

fn identity() -> Identity {
    Identity { duid: b"client".to_vec(), iaid: 7, prefix: true }
}

impl Walk {
    fn started() -> Walk {
        let machine = Machine::new(identity(), Random::from_seed(3));
        let mut walk = Walk { machine, now: 1000, sent: vec![], said: vec![] };
        let outputs = walk.machine.start(walk.now);
        walk.take(outputs);
        walk
    }

    fn bound() -> Walk {
        let mut walk = Walk::started();
        walk.reply(Kind::Advertise, |r| r.preference = 255);
        walk.reply(Kind::Reply, |_| {});
        while walk.machine.state() == "PROBING" {
            walk.next();
        }
        assert_eq!(walk.machine.state(), "BOUND");
        walk.said.clear();
        walk
    }

    fn take(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(message) => self.sent.push(*message),
                other => self.said.push(other),
            }
        }
    }

    fn next(&mut self) -> Millis {
        let waited = self.machine.wake() - self.now;
        self.now = self.machine.wake();
        let outputs = self.machine.timer(self.now);
        self.take(outputs);
        waited
    }

    fn reply(&mut self, kind: Kind, change: impl Fn(&mut Reply)) {
        let lease = Lease { server: b"server".to_vec(), addresses: vec![ADDRESS], ..Lease::default() };
        let mut reply = Reply {
            kind,
            xid: self.sent.last().unwrap().xid,
            client: b"client".to_vec(),
            preference: 0,
            rapid: false,
            status: (Status::SUCCESS, String::new()),
            association: (Status::SUCCESS, String::new()),
            lease,
            withdrawn: vec![],
            refresh: None,
            solicit_longest: None,
            information_longest: None,
            times: Times { t1: 50, t2: 80, preferred: 100, valid: 200 },
        };
        change(&mut reply);
        let outputs = self.machine.received(&reply, self.now);
        self.take(outputs);
    }

    fn last(&self) -> &Outgoing {
        self.sent.last().unwrap()
    }
}

#[test]
fn the_best_advertisement_within_a_moment_is_requested() {
    let mut walk = Walk::started();
    assert_eq!((walk.last().kind, &walk.last().server), (Kind::Solicit, &None));
    walk.reply(Kind::Advertise, |_| {});
    walk.reply(Kind::Advertise, |r| (r.preference, r.lease.server) = (9, b"better".to_vec()));
    assert_eq!(walk.machine.state(), "SOLICITING");
    assert_eq!(walk.next(), 100);
    assert_eq!((walk.last().kind, walk.last().server.as_deref()), (Kind::Request, Some(&b"better"[..])));
    assert!(matches!(walk.said[..], [Output::Requesting(_)]));
    walk.reply(Kind::Reply, |_| {});
    assert_eq!(walk.machine.state(), "REQUESTING", "another server's answer");
    walk.reply(Kind::Reply, |r| r.lease.server = b"better".to_vec());
    walk.next();
    walk.next();
    assert_eq!((walk.machine.state(), walk.said.last()), ("BOUND", Some(&Output::Leased)));
    let lease = walk.machine.lease().unwrap();
    assert_eq!((lease.renew_at, lease.rebind_at, lease.expires_at), (51_100, 81_100, 201_100));
}

#[test]
fn a_rapid_commit_needs_no_request() {
    let mut walk = Walk::started();
    walk.reply(Kind::Reply, |_| {});
    assert_eq!(walk.machine.state(), "SOLICITING", "not rapid");
    walk.reply(Kind::Reply, |r| r.rapid = true);
    assert_eq!(walk.machine.state(), "PROBING");
}

#[test]
fn answers_without_addresses_or_to_others_give_nothing() {
    let mut walk = Walk::started();
    walk.reply(Kind::Advertise, |r| r.xid ^= 1);
    walk.reply(Kind::Advertise, |r| r.client = b"other".to_vec());
    assert!(walk.said.is_empty());
    walk.reply(Kind::Advertise, |r| r.lease.addresses.clear());
    walk.reply(Kind::Advertise, |r| r.association = (Status::NO_ADDRS_AVAIL, "none left".into()));
    assert_eq!(walk.machine.problem(), Some("the DHCPv6 server says NoAddrsAvail: none left"));
    let waits: Vec<Millis> = (0..4).map(|_| walk.next()).collect();
    for (wait, nominal) in waits.iter().zip([1000u64, 2000, 4000, 8000]) {
        assert!(wait.abs_diff(nominal) <= nominal / 3, "{waits:?}");
    }
    assert!(walk.last().elapsed > 10_000);
}

#[test]
fn a_lease_is_renewed_then_rebound_then_lost() {
    let mut walk = Walk::bound();
    walk.next();
    assert_eq!((walk.machine.state(), walk.last().kind), ("RENEWING", Kind::Renew));
    assert_eq!(walk.last().server.as_deref(), Some(&b"server"[..]));
    walk.reply(Kind::Reply, |_| {});
    assert_eq!(walk.machine.state(), "BOUND");
    while walk.machine.state() != "REBINDING" {
        walk.next();
    }
    assert_eq!((walk.last().kind, &walk.last().server), (Kind::Rebind, &None));
    let expires = walk.machine.lease().unwrap().expires_at;
    walk.said.clear();
    while walk.machine.lease().is_some() {
        walk.next();
    }
    assert_eq!(walk.now, expires);
    assert!(matches!(walk.said[..], [Output::Lost(_)]));
    assert_eq!(walk.last().kind, Kind::Solicit);
}

#[test]
fn another_address_at_renewal_is_probed_before_it_is_used() {
    let other = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 6);
    let mut walk = Walk::bound();
    walk.next();
    walk.reply(Kind::Reply, |r| r.lease.addresses = vec![other]);
    assert_eq!((walk.machine.state(), walk.machine.probed()), ("PROBING", vec![other]));
    while walk.machine.state() == "PROBING" {
        walk.next();
    }
    assert_eq!(
        (walk.machine.lease().unwrap().addresses[0], walk.said.last()),
        (other, Some(&Output::Leased))
    );
}

#[test]
fn a_server_without_prefixes_gives_an_address_all_the_same() {
    let option = |code: u16, value: &[u8]| {
        [&code.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
    };
    let association = |inside: Vec<u8>| [&[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0][..], &inside].concat();
    let address = [&ADDRESS.octets()[..], &[0, 0, 0, 9, 0, 0, 0, 9]].concat();
    let status = |code: u8| option(13, &[0, code]);
    let message = |na: Vec<u8>, pd: Vec<u8>| {
        let parts = [
            vec![7, 0, 0, 1],
            option(1, b"client"),
            option(2, b"server"),
            option(3, &association(na)),
            option(25, &association(pd)),
        ];
        decode(&parts.concat(), 7).unwrap()
    };
    let reply = message(option(5, &address), status(6));
    assert_eq!((reply.association.0, &reply.lease.addresses[..]), (Status::SUCCESS, &[ADDRESS][..]));
    assert_eq!(message(option(5, &address), status(3)).association.0, Status::NO_BINDING);
    assert_eq!(message(status(2), vec![]).association.0, Status::NO_ADDRS_AVAIL);
}

#[test]
fn a_server_that_forgot_is_asked_once_more_for_the_same() {
    let mut walk = Walk::bound();
    walk.next();
    walk.reply(Kind::Reply, |r| r.association = (Status::NO_BINDING, String::new()));
    assert_eq!(walk.last().kind, Kind::Request);
    assert_eq!(walk.last().lease.as_ref().unwrap().addresses, [ADDRESS]);
    let sent = walk.sent.len();
    walk.reply(Kind::Reply, |r| r.association = (Status::NO_BINDING, String::new()));
    assert_eq!(walk.sent.len(), sent, "no ping-pong");
    assert!(walk.machine.lease().is_some());
    walk.reply(Kind::Reply, |_| {});
    assert_eq!(walk.machine.state(), "BOUND");
}

#[test]
fn when_the_link_returns_the_addresses_are_confirmed() {
    let mut walk = Walk::bound();
    let outputs = walk.machine.link_returned(walk.now);
    walk.take(outputs);
    assert_eq!((walk.machine.state(), walk.last().kind), ("CONFIRMING", Kind::Confirm));
    let mut elsewhere =
        Walk { machine: walk.machine.clone(), sent: walk.sent.clone(), said: vec![], now: walk.now };
    walk.reply(Kind::Reply, |r| r.lease.addresses.clear());
    assert_eq!(walk.machine.state(), "BOUND");
    elsewhere.reply(Kind::Reply, |r| r.status = (Status::NOT_ON_LINK, String::new()));
    assert!(matches!(elsewhere.said[..], [Output::Lost(_)]));
}

#[test]
fn when_the_link_returns_a_lease_with_a_prefix_is_rebound() {
    let mut walk = Walk::bound();
    walk.next();
    walk.reply(Kind::Reply, |r| r.lease.prefixes.push("fd00:7::/56".parse().unwrap()));
    let outputs = walk.machine.link_returned(walk.now);
    walk.take(outputs);
    assert_eq!((walk.machine.state(), walk.last().kind), ("REBINDING", Kind::Rebind));
    assert!(walk.machine.lease().is_some());
}

#[test]
fn an_address_in_use_is_declined_until_the_server_knows() {
    let mut walk = Walk::started();
    walk.reply(Kind::Reply, |r| r.rapid = true);
    assert_eq!(walk.machine.probed(), [ADDRESS]);
    let outputs = walk.machine.conflict(ADDRESS, walk.now);
    walk.take(outputs);
    assert_eq!((walk.last().kind, walk.last().server.as_deref()), (Kind::Decline, Some(&b"server"[..])));
    assert_eq!(walk.machine.lease(), None);
    let declines = |walk: &Walk| walk.sent.iter().filter(|m| m.kind == Kind::Decline).count();
    while walk.last().kind != Kind::Solicit {
        walk.next();
    }
    assert_eq!(declines(&walk), 3, "while it waits, and solicits after that");
    let (decline, solicit) =
        (walk.sent.iter().rposition(|m| m.kind == Kind::Decline).unwrap(), walk.sent.len() - 1);
    walk.sent.swap(decline, solicit);
    walk.reply(Kind::Reply, |r| r.status = (Status::NO_BINDING, String::new()));
    assert!(!walk.machine.says_farewell() && walk.machine.state() == "SOLICITING");
    walk.sent.swap(decline, solicit);
    walk.reply(Kind::Reply, |r| r.rapid = true);
    assert_eq!(walk.machine.state(), "PROBING");
}

#[test]
fn a_lease_is_released_until_its_server_answers() {
    let mut walk = Walk::bound();
    let outputs = walk.machine.release(walk.now);
    walk.take(outputs);
    assert_eq!((walk.last().kind, walk.last().server.as_deref()), (Kind::Release, Some(&b"server"[..])));
    assert_eq!(walk.machine.release(walk.now), vec![], "once is enough");
    let mut answered =
        Walk { machine: walk.machine.clone(), sent: walk.sent.clone(), said: vec![], now: walk.now };
    answered.next();
    assert_eq!((answered.last().kind, answered.last().xid), (Kind::Release, walk.last().xid));
    answered.reply(Kind::Reply, |r| r.client = b"other".to_vec());
    assert!(answered.machine.says_farewell() && answered.machine.listens());
    answered.reply(Kind::Reply, |_| {});
    assert!(!answered.machine.says_farewell() && !answered.machine.listens());
    assert_eq!(answered.machine.wake(), NEVER);

    let waits: Vec<Millis> = (0..4).map(|_| walk.next()).collect();
    for (wait, nominal) in waits.iter().zip([1000u64, 2000, 4000, 8000]) {
        assert!(wait.abs_diff(nominal) <= nominal / 3, "{waits:?}");
    }
    assert_eq!(walk.sent.iter().filter(|m| m.kind == Kind::Release).count(), 4);
    assert!(!walk.machine.says_farewell() && walk.machine.wake() == NEVER);
}

#[test]
fn what_was_asked_for_is_released_and_asked_for_no_more() {
    let mut walk = Walk::started();
    walk.reply(Kind::Advertise, |r| r.preference = 255);
    let asked = walk.last().clone();
    assert_eq!(asked.kind, Kind::Request);
    let outputs = walk.machine.release_of(asked.lease.unwrap(), walk.now);
    walk.take(outputs);
    for _ in 0..4 {
        walk.next();
    }
    let sent: Vec<Kind> = walk.sent[2..].iter().map(|message| message.kind).collect();
    assert_eq!((sent, walk.machine.wake(), walk.machine.listens()), (vec![Kind::Release; 4], NEVER, false));
}

#[test]
fn addresses_that_the_server_withdraws_are_given_up() {
    let mut walk = Walk::bound();
    walk.next();
    walk.reply(Kind::Reply, |r| {
        r.lease.addresses.clear();
        r.withdrawn.push(ADDRESS);
    });
    assert!(matches!(walk.said[..], [Output::Lost(_)]));
    assert_eq!((walk.machine.lease(), walk.last().kind), (None, Kind::Solicit));
}

#[test]
fn a_server_may_make_the_waits_between_solicitations_shorter() {
    let mut walk = Walk::started();
    walk.reply(Kind::Advertise, |r| {
        r.status = (Status::NO_ADDRS_AVAIL, String::new());
        r.solicit_longest = Some(60_000);
    });
    let waits: Vec<Millis> = (0..12).map(|_| walk.next()).collect();
    assert!(waits.iter().all(|wait| *wait <= 66_000) && waits[11] >= 54_000, "{waits:?}");
}

#[test]
fn information_is_asked_for_until_it_is_told_and_again_when_it_is_old() {
    let mut client = Information::new(b"client".to_vec(), Random::from_seed(1));
    assert_eq!((client.wake(), client.timer(5)), (NEVER, None));
    client.start(1000);
    let mut now = 1000;
    let mut xid = 0;
    for nominal in [1000u64, 2000, 4000] {
        let message = client.timer(now).unwrap();
        assert_eq!((message.kind, message.elapsed), (Kind::InformationRequest, now - 1000));
        assert!(xid == 0 || xid == message.xid);
        xid = message.xid;
        assert!((client.wake() - now).abs_diff(nominal) <= nominal / 3);
        now = client.wake();
    }
    let option = |code: u16, value: &[u8]| {
        [&code.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
    };
    let [_, xid @ ..] = xid.to_be_bytes();
    let answer = |who: &[u8]| {
        let bytes = [
            [&[7][..], &xid].concat(),
            option(1, who),
            option(2, b"server"),
            option(23, &ADDRESS.octets()),
            option(24, &[1, b'a', 0]),
            option(32, &[0, 0, 0, 9]),
            option(83, &[0, 0, 0, 60]),
        ];
        decode(&bytes.concat(), 7).unwrap()
    };
    assert!(!client.received(&answer(b"other"), now));
    assert!(client.received(&answer(b"client"), now) && !client.received(&answer(b"client"), now));
    let known = client.known().unwrap().clone();
    assert_eq!((&known.dns[..], &known.search[..]), (&[ADDRESS][..], &["a".to_owned()][..]));
    assert_eq!(client.wake(), now + 600_000, "not sooner than RFC 8415 allows");
    client.start(now);
    assert_eq!(client.wake(), now + 600_000, "known already");

    let mut next = Information::new(b"client".to_vec(), Random::from_seed(2));
    next.resume(known);
    assert_eq!(next.wake(), now + 600_000);
    let message = next.timer(now + 600_000).unwrap();
    let bytes = encode(&message, &identity());
    assert_eq!(bytes[0], 11);
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(has(&[0, 6, 0, 10, 0, 23, 0, 24, 0, 32, 0, 56, 0, 83]) && !has(&[0, 3, 0, 12]));
}

#[test]
fn a_message_names_its_client_and_what_it_is_about() {
    let lease = Lease { addresses: vec![ADDRESS], ..Lease::default() };
    let (server, xid) = (Some(b"server".to_vec()), 0x01_0203);
    let message = Outgoing { kind: Kind::Request, xid, elapsed: 1500, server, lease: Some(lease) };
    let bytes = encode(&message, &identity());
    assert_eq!(bytes[..4], [3, 1, 2, 3]);
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(has(b"\0\x01\0\x06client") && has(b"\0\x02\0\x06server") && has(&[0, 8, 0, 2, 0, 150]));
    assert!(
        has(&[0, 6, 0, 8, 0, 23, 0, 24, 0, 56, 0, 82])
            && has(&[0, 3, 0, 40, 0, 0, 0, 7])
            && has(&[0, 25, 0, 12])
    );
    assert!(decode(&bytes, 7).is_err(), "a client's message");
    assert!(decode(&[7, 0, 0, 1, 0, 13, 0, 1, 0], 7).is_err(), "a status too short");
}
