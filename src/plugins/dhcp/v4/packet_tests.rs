//! Messages as bytes: what is sent, what is read, and what must not be believed.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::packet::{Kind, Options, Outgoing, Reply, code, decode, encode};
use crate::plugins::dhcp::clock::Random;
use crate::plugins::dhcp::outcome::Outcome;
use crate::plugins::dhcp::v4::lease::Lease;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A message from a server, with these options as they stand.
fn message(options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..8].copy_from_slice(&[2, 1, 6, 0, 1, 2, 3, 4]);
    bytes[16..20].copy_from_slice(&[10, 0, 0, 9]);
    bytes[28..34].copy_from_slice(&MAC);
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend_from_slice(options);
    bytes
}

fn ack(options: &[u8]) -> Reply {
    decode(&message(&[&[53, 1, 5][..], options, &[255]].concat())).unwrap()
}

#[test]
fn a_message_has_its_options_in_order_and_three_hundred_bytes() {
    let options = Options([(61, vec![0, b'c']), (55, vec![1, 3]), (12, vec![b'x'; 300])].into());
    let outgoing = Outgoing {
        kind: Kind::Discover,
        xid: 0x0102_0304,
        secs: 7,
        broadcast: true,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        mac: MAC,
        options,
    };
    let bytes = encode(&outgoing);
    assert_eq!(bytes[..12], [1, 1, 6, 0, 1, 2, 3, 4, 0, 7, 0x80, 0]);
    assert_eq!(bytes[28..34], MAC);
    let x = vec![b'x'; 255];
    let long = [&[12, 255][..], &x, &[12, 45], &x[..45]].concat();
    let expected = [&[99, 130, 83, 99][..], &long, &[53, 1, 1, 55, 2, 1, 3, 61, 2, 0, b'c', 255]].concat();
    assert_eq!(bytes[236..], expected);
    let short = Outgoing { options: Options::default(), broadcast: false, ..outgoing };
    assert_eq!((encode(&short).len(), encode(&short)[10]), (300, 0));
}

#[test]
fn a_reply_is_read() {
    let reply = ack(&[54, 4, 10, 0, 0, 1, 1, 4, 255, 255, 255, 0, 51, 4, 0, 0, 0, 60]);
    assert_eq!((reply.kind, reply.xid, reply.mac), (Kind::Ack, 0x0102_0304, MAC));
    assert_eq!(reply.yiaddr, Ipv4Addr::new(10, 0, 0, 9));
    assert_eq!(reply.options.ip(code::SERVER), Some(Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!(reply.options.u32(code::LEASE_TIME), Some(60));
}

#[test]
fn what_is_no_answer_for_an_ethernet_client_is_refused() {
    let good = message(&[53, 1, 2, 255]);
    assert!(decode(&good).is_ok());
    for (at, value) in [(0, 1), (1, 6), (2, 16), (2, 17), (2, 255), (236, 0), (242, 1), (242, 8), (242, 0)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(decode(&bad).is_err(), "byte {at} = {value}");
    }
    for length in 0..243 {
        assert!(decode(&good[..length]).is_err(), "{length} bytes");
    }
    assert!(decode(&message(&[53, 2, 2, 2, 255])).is_err(), "a type of two bytes");
}

#[test]
fn parts_of_a_long_option_are_joined_wherever_they_stand() {
    let reply = ack(&[12, 2, b'a', b'b', 0, 0, 15, 1, b'd', 12, 1, b'c']);
    assert_eq!(reply.options.get(12), Some(&b"abc"[..]));
    assert_eq!(reply.options.domain().as_deref(), Some("d"));
}

#[test]
fn file_and_sname_hold_options_when_option_52_says_so() {
    for (overload, host, domain) in
        [(0, None, None), (1, Some("fa"), None), (2, None, Some("s")), (3, Some("fa"), Some("s"))]
    {
        let mut bytes = message(&[53, 1, 5, 52, 1, overload, 255]);
        bytes[108..113].copy_from_slice(&[12, 2, b'f', b'a', 255]);
        bytes[44..48].copy_from_slice(&[15, 1, b's', 255]);
        let options = decode(&bytes).unwrap().options;
        assert_eq!(options.text(12).as_deref(), host, "{overload}");
        assert_eq!(options.domain().as_deref(), domain, "{overload}");
    }
    let mut bytes = message(&[53, 1, 5, 52, 1, 1, 255]);
    bytes[108..112].copy_from_slice(&[52, 1, 2, 255]);
    bytes[44..48].copy_from_slice(&[15, 1, b's', 255]);
    assert_eq!(decode(&bytes).unwrap().options.domain(), None, "an overloaded field overloads nothing");
}

#[test]
fn one_malformed_option_hides_no_other() {
    let reply =
        ack(&[3, 3, 10, 0, 0, 1, 4, 255, 255, 255, 0, 15, 2, 0xff, 0xfe, 51, 2, 0, 1, 6, 4, 10, 0, 0, 2]);
    let options = &reply.options;
    assert!(options.ips(code::ROUTERS).is_empty() && options.domain().is_none());
    assert_eq!(options.u32(code::LEASE_TIME), None);
    assert_eq!(options.ips(code::DNS), [Ipv4Addr::new(10, 0, 0, 2)]);
}

#[test]
fn names_are_passed_on_only_when_they_are_names() {
    for (domain, expected) in [
        ("example.org", Some("example.org")),
        ("a.b\0", Some("a.b")),
        ("x\nnameserver 6.6.6.6", None),
        ("", None),
    ] {
        let mut option = vec![15, domain.len() as u8];
        option.extend_from_slice(domain.as_bytes());
        assert_eq!(ack(&option).options.domain().as_deref(), expected, "{domain:?}");
    }
    let search = [119, 14, 1, b'a', 1, b'b', 0, 1, b'c', 0xc0, 2, 3, b'x', b'\n', b'y', 0];
    assert_eq!(ack(&search).options.search(), ["a.b", "c.b"]);
    let loops = [119, 4, 0xc0, 0, 0xc0, 2];
    assert!(ack(&loops).options.search().is_empty());
}

#[test]
fn classless_routes_are_read_whole_or_not_at_all() {
    let routes = |value: &[u8]| {
        let option = [&[121, value.len() as u8][..], value].concat();
        let routes = ack(&option).options.classless_routes()?;
        Some(routes.iter().map(|(net, router)| format!("{net} via {router}")).collect::<Vec<_>>())
    };
    let good =
        [0, 10, 0, 0, 1, 8, 10, 0, 0, 0, 0, 25, 192, 168, 1, 128, 10, 0, 0, 2, 32, 1, 2, 3, 4, 10, 0, 0, 3];
    assert_eq!(
        routes(&good).unwrap(),
        [
            "0.0.0.0/0 via 10.0.0.1",
            "10.0.0.0/8 via 0.0.0.0",
            "192.168.1.128/25 via 10.0.0.2",
            "1.2.3.4/32 via 10.0.0.3"
        ]
    );
    for length in 0..good.len() {
        let whole = [5, 11, 20].contains(&length);
        assert_eq!(routes(&good[..length]).is_some(), whole, "{length} bytes");
    }
    assert_eq!(routes(&[33, 1, 2, 3, 4, 5, 10, 0, 0, 1]), None);
    assert_eq!(routes(&[0, 127, 0, 0, 1]), None);
}

fn outcome(options: &[u8]) -> Outcome {
    let always = [54, 4, 10, 0, 0, 1, 1, 4, 255, 255, 255, 0];
    let lease = Lease::new(&ack(&[&always[..], options].concat()), 0, &mut Random::from_seed(1)).unwrap();
    let mut outcome = Outcome::default();
    outcome.add_v4(&lease);
    outcome
}

#[test]
fn option_121_goes_before_33_and_3_but_the_gateway_stays() {
    let show = |outcome: &Outcome| -> Vec<String> {
        let routes = outcome.result.routes.iter();
        routes.map(|r| format!("{} {} {:?}", r.dst, r.gw.unwrap(), r.scope)).collect()
    };
    let old = [3, 4, 10, 0, 0, 1, 33, 16, 10, 5, 0, 0, 10, 0, 0, 2, 192, 168, 5, 0, 10, 0, 0, 3];
    let without = outcome(&old);
    assert_eq!(
        show(&without),
        ["10.5.0.0/8 10.0.0.2 None", "192.168.5.0/24 10.0.0.3 None", "0.0.0.0/0 10.0.0.1 None"]
    );
    let with = outcome(&[&old[..], &[121, 6, 8, 20, 0, 0, 0, 0]].concat());
    assert_eq!(show(&with), ["20.0.0.0/8 0.0.0.0 Some(253)"]);
    assert_eq!(with.result.ips[0].gateway, Some(Ipv4Addr::new(10, 0, 0, 1).into()));
    assert_eq!(with.result.ips[0].address.to_string(), "10.0.0.9/24");
}

#[test]
fn mtus_that_ipv4_cannot_work_with_are_passed_over() {
    assert_eq!(outcome(&[26, 2, 5, 120]).mtu, Some(1400));
    assert_eq!(outcome(&[26, 2, 0, 67]).mtu, None);
    assert_eq!(outcome(&[26, 1, 9]).mtu, None);
}

/// Random changes to good messages and plain noise. Seconds by default; `CNI_ALL_FUZZ_SECONDS=600` for longer.
#[test]
fn no_bytes_make_the_parser_panic_or_an_address_that_cannot_be() {
    let seconds = std::env::var("CNI_ALL_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let until = Instant::now() + Duration::from_secs(seconds);
    let rich = [
        53, 1, 5, 54, 4, 10, 0, 0, 1, 1, 4, 255, 255, 255, 0, 51, 4, 0, 0, 1, 0, 3, 8, 10, 0, 0, 1, 10, 0, 0,
        2, 6, 4, 10, 0, 0, 3, 15, 3, b'a', b'.', b'b', 26, 2, 5, 120, 33, 8, 10, 5, 0, 0, 10, 0, 0, 2, 52, 1,
        3, 119, 9, 1, b'a', 1, b'b', 0, 1, b'c', 0xc0, 2, 121, 9, 8, 10, 10, 0, 0, 1, 0, 0, 0, 80, 0, 81, 3,
        0, 0, 0, 82, 2, 1, 0, 255,
    ];
    let good = message(&rich);
    let mut random = Random::from_seed(seconds);
    let (mut rounds, mut leases) = (0u64, 0u64);
    while rounds % 256 != 0 || Instant::now() < until {
        rounds += 1;
        let mut bytes = good.clone();
        for _ in 0..random.next() % 12 {
            let at = (random.next() as usize) % bytes.len();
            match random.next() % 6 {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << (random.next() % 8),
                2 => bytes[at] = [0, 1, 4, 127, 128, 254, 255][(random.next() % 7) as usize],
                3 => bytes.truncate(at.max(1)),
                4 => {
                    let piece: Vec<u8> = bytes[at..(at + 9).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => bytes.extend((0..random.next() % 40).map(|n| (n * 37) as u8)),
            }
        }
        let Ok(reply) = decode(&bytes) else { continue };
        let options = &reply.options;
        let _ = (options.shown(), options.text(code::MESSAGE), options.search(), options.classful_routes());
        let Ok(lease) = Lease::new(&reply, 1000, &mut random) else { continue };
        leases += 1;
        assert!(lease.renew_at <= lease.rebind_at && lease.rebind_at <= lease.expires_at);
        assert!(
            !lease.address.is_loopback() && !lease.address.is_multicast() && !lease.address.is_unspecified()
        );
        let mut outcome = Outcome::default();
        outcome.add_v4(&lease);
        let dns = outcome.result.dns;
        let words = dns.search.iter().chain([&dns.domain]).chain(&dns.nameservers);
        words.for_each(|word| assert!(!word.contains(|c: char| c.is_control() || c == ' '), "{word:?}"));
    }
    assert!(rounds > 1000 && leases > 100, "{rounds} rounds, {leases} leases");
}
