//! Router advertisements: read, remembered, forgotten; and bytes that mean harm.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::advert::{self, Advertisement, advertisement, is_conflict};
use super::slaac::Slaac;
use crate::plugins::dhcp::clock::{NEVER, Random};
use crate::plugins::dhcp::frame::{add, fold};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The client's address on the link.
const LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A packet of a router with these options.
fn packet(from: Ipv6Addr, lifetime: u16, options: &[u8]) -> Vec<u8> {
    let mut body = vec![134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    body[6..8].copy_from_slice(&lifetime.to_be_bytes());
    body.extend_from_slice(options);
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let sum = add(add(0, &from.octets()), &to.octets());
    let sum = fold(add(add(add(sum, &(body.len() as u32).to_be_bytes()), &[0, 58]), &body));
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(body.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[58, 255]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&body);
    packet
}

fn prefix(flags: u8, valid: u32, preferred: u32) -> Vec<u8> {
    let mut option = vec![3, 4, 64, flags];
    option.extend_from_slice(&valid.to_be_bytes());
    option.extend_from_slice(&preferred.to_be_bytes());
    option.extend_from_slice(&[0; 4]);
    option.extend_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0).octets());
    option
}

fn rich() -> Vec<u8> {
    let dns = [&[25, 3, 0, 0, 0, 0, 0, 60][..], &Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53).octets()]
        .concat();
    let search = [31, 3, 0, 0, 0, 0, 0, 60, 1, b'a', 1, b'b', 0, 2, b'c', b'\n', 0, 1, b'd', 0, 0, 0, 0, 0];
    let route = [24, 2, 48, 0, 0, 0, 0, 60, 0x20, 1, 0xd, 0xb8, 0, 9, 0, 0];
    let mtu = [5, 1, 0, 0, 0, 0, 5, 120];
    [&prefix(0xc0, 3600, 1800)[..], &dns, &search, &route, &mtu].concat()
}

fn heard(packet: &[u8]) -> Slaac {
    let mut slaac = Slaac::new(Random::from_seed(1));
    slaac.start(LOCAL, 0);
    assert!(slaac.timer(0));
    let (router, advert) = advertisement(packet, false).unwrap();
    slaac.heard_from(router, &advert, 0);
    slaac
}

#[test]
fn a_router_gives_addresses_routes_and_name_servers() {
    let slaac = heard(&packet(ROUTER, 1800, &rich()));
    assert_eq!(slaac.addresses()[0].to_string(), "2001:db8:0:1:0:ff:fe00:1/64");
    assert_eq!((slaac.gateway(), slaac.mtu()), (Some(ROUTER), Some(1400)));
    let routes: Vec<String> = slaac.routes().map(|(net, router)| format!("{net} {router}")).collect();
    assert_eq!(routes, ["2001:db8:9::/48 fe80::1"]);
    assert_eq!(slaac.dns().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["2001:db8::53"]);
    assert_eq!(slaac.search().collect::<Vec<_>>(), ["a.b", "d"], "what is no name is left out");
    assert_eq!(slaac.wake(), 60_000);
}

#[test]
fn what_ends_is_forgotten_at_its_time() {
    let mut slaac = heard(&packet(ROUTER, 1800, &rich()));
    assert!(!slaac.timer(60_000));
    assert_eq!((slaac.dns().count(), slaac.routes().count()), (0, 0));
    assert_eq!(slaac.wake(), 1_800_000);
    slaac.timer(1_800_000);
    assert_eq!((slaac.gateway(), slaac.addresses().len()), (None, 1));
    slaac.timer(3_600_000);
    assert_eq!((slaac.addresses().len(), slaac.wake()), (0, NEVER));
}

#[test]
fn a_short_lifetime_cannot_end_an_address_at_once() {
    let mut slaac = heard(&packet(ROUTER, 1800, &prefix(0xc0, 86_400, 86_400)));
    let (_, advert) = advertisement(&packet(ROUTER, 0, &prefix(0xc0, 1, 1)), false).unwrap();
    slaac.heard_from(ROUTER, &advert, 1000);
    assert_eq!((slaac.gateway(), slaac.wake()), (None, 7_201_000), "two hours are left");
    slaac.heard_from(ROUTER, &advert, 2000);
    assert_eq!(slaac.wake(), 7_201_000, "and stay so");
}

#[test]
fn without_a_router_it_is_solicited_ever_more_rarely() {
    let mut slaac = Slaac::new(Random::from_seed(1));
    slaac.start(LOCAL, 0);
    let mut now = 0;
    for nominal in [4000u64, 8000, 16_000, 32_000] {
        assert!(slaac.timer(now) && !slaac.timer(now));
        assert!((slaac.wake() - now).abs_diff(nominal) <= nominal / 4, "{}", slaac.wake() - now);
        now = slaac.wake();
    }
}

#[test]
fn the_next_daemon_knows_what_the_first_was_told() {
    let advert = packet(ROUTER, 1800, &rich());
    let mut slaac = heard(&advert);
    assert!(!slaac.is_stateless());
    let told = serde_json::to_string(slaac.told(0)).unwrap();
    let mut next = Slaac::new(Random::from_seed(2));
    next.resume(serde_json::from_str(&told).unwrap());
    assert_eq!((next.addresses(), next.gateway()), (slaac.addresses(), slaac.gateway()));
    assert_eq!((next.wake(), next.heard()), (60_000, true));
    next.timer(3_600_000);
    assert!(next.addresses().is_empty());
}

#[test]
fn what_is_told_again_is_written_down_rarely() {
    let mut slaac = heard(&packet(ROUTER, 1800, &rich()));
    let (_, mut advert) = advertisement(&packet(ROUTER, 1800, &rich()), false).unwrap();
    slaac.told(0);
    assert!(!slaac.heard_from(ROUTER, &advert, 14_000), "a quarter of a minute has not passed");
    assert!(slaac.heard_from(ROUTER, &advert, 15_000));
    slaac.told(15_000);
    advert.stateless = true;
    assert!(slaac.heard_from(ROUTER, &advert, 15_001) && slaac.is_stateless(), "something else");
}

#[test]
fn flags_of_a_router_tell_of_dhcpv6_servers() {
    for (flags, stateless) in [(0, false), (0x40, true), (0x80, true), (0x20, false)] {
        let mut bytes = packet(ROUTER, 1800, &[]);
        bytes[45] = flags;
        assert_eq!(advertisement(&bytes, true).unwrap().1.stateless, stateless);
    }
}

#[test]
fn packets_that_no_router_on_the_link_can_have_sent_are_refused() {
    let good = packet(ROUTER, 1800, &rich());
    assert!(advertisement(&good, false).is_some());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x81;
        // The first bytes are traffic class and flow label, which nothing depends on.
        assert!((1..4).contains(&at) || at == 0 || advertisement(&bad, false).is_none(), "byte {at}");
    }
    for length in 0..good.len() {
        assert!(advertisement(&good[..length], false).is_none(), "{length} bytes");
    }
    let far: Ipv6Addr = "2001:db8::1".parse().unwrap();
    assert!(advertisement(&packet(far, 1800, &rich()), false).is_none());
    let mut routed = good.clone();
    routed[7] = 254;
    assert!(advertisement(&routed, true).is_none());
    assert!(
        advertisement(&packet(ROUTER, 1800, &[1, 0, 0, 0, 0, 0, 0, 0]), false).is_none(),
        "an option of no length"
    );
}

#[test]
fn a_flood_of_prefixes_is_bounded() {
    let mut slaac = Slaac::new(Random::from_seed(1));
    for n in 0..1000u32 {
        let mut option = prefix(0xc0, 3600, 1800);
        option[20..24].copy_from_slice(&n.to_be_bytes());
        let (router, advert) = advertisement(&packet(ROUTER, 1800, &option), false).unwrap();
        slaac.heard_from(router, &advert, 0);
    }
    assert_eq!(slaac.addresses().len(), 16);
}

#[test]
fn a_probe_meets_its_owner_and_other_probes() {
    let address: Ipv6Addr = "2001:db8::5".parse().unwrap();
    let probe = advert::probe(address);
    assert!(is_conflict(&probe, false, address) && !is_conflict(&probe, false, ROUTER));
    assert_eq!(advert::multicast_mac(advert::solicited_node(address)), [0x33, 0x33, 0xff, 0, 0, 5]);
    assert!(!is_conflict(&advert::router_solicitation(ROUTER, MAC), false, address));
}

/// As the IPv4 test of that name.
#[test]
fn no_bytes_make_the_parsers_panic() {
    let seconds = std::env::var("CNI_ALL_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let until = Instant::now() + Duration::from_secs(seconds);
    let advert = packet(ROUTER, 1800, &rich());
    let reply = reply_bytes();
    assert!(super::packet::decode(&reply, 7).is_ok());
    let mut random = Random::from_seed(seconds);
    let (mut rounds, mut read) = (0u64, 0u64);
    while rounds % 256 != 0 || Instant::now() < until {
        rounds += 1;
        let mut bytes = if rounds % 2 == 0 { advert.clone() } else { reply.clone() };
        for _ in 0..random.next() % 8 {
            let at = (random.next() as usize) % bytes.len();
            match random.next() % 5 {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << (random.next() % 8),
                2 => bytes[at] = [0, 1, 3, 4, 25, 26, 255][(random.next() % 7) as usize],
                3 => bytes.truncate(at.max(1)),
                _ => {
                    let piece: Vec<u8> = bytes[at..(at + 17).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        let told: Option<(Ipv6Addr, Advertisement)> = advertisement(&bytes, true);
        if let Some((router, advert)) = told {
            let mut slaac = Slaac::new(Random::from_seed(1));
            slaac.heard_from(router, &advert, 0);
            read += 1;
        }
        let _ = is_conflict(&bytes, true, ROUTER);
        if let Ok(reply) = super::packet::decode(&bytes, 7) {
            assert!(reply.lease.addresses.iter().all(|ip| !ip.is_multicast() && !ip.is_loopback()));
            read += 1;
        }
    }
    assert!(rounds > 1000 && read > 100, "{rounds} rounds, {read} read");
}

/// A REPLY with addresses, a prefix, a status, names and times.
fn reply_bytes() -> Vec<u8> {
    let option = |code: u16, value: &[u8]| {
        [&code.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
    };
    let address =
        [&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5).octets()[..], &[0, 0, 1, 0, 0, 0, 2, 0]].concat();
    let prefix =
        [&[0, 0, 1, 0, 0, 0, 2, 0, 56][..], &Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 0).octets()]
            .concat();
    let ia = |inner: Vec<u8>| [&[0, 0, 0, 7, 0, 0, 0, 50, 0, 0, 0, 80][..], &inner].concat();
    [
        vec![7, 1, 2, 3],
        option(1, b"client"),
        option(2, b"server"),
        option(3, &ia([option(5, &address), option(13, &[0, 0, b'o', b'k'])].concat())),
        option(25, &ia(option(26, &prefix))),
        option(23, &Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53).octets()),
        option(24, &[1, b'a', 1, b'b', 0]),
        option(56, &[0, 3, 0, 3, 1, b'n', 0]),
    ]
    .concat()
}
