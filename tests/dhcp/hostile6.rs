//! DHCPv6 servers and routers that mean harm.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::site::Site;
use crate::support::require_netns;

const ADVERTISE: u8 = 2;
const REPLY: u8 = 7;

const GOOD: &str = "fd07::50";
const EVIL: &str = "fd07::66";

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// The value of an option of a client's message.
fn value(message: &[u8], wanted: u16) -> Vec<u8> {
    let mut rest = &message[4..];
    while let [a, b, c, d, tail @ ..] = rest {
        let (value, tail) = tail.split_at(usize::from(u16::from_be_bytes([*c, *d])));
        if u16::from_be_bytes([*a, *b]) == wanted {
            return value.to_vec();
        }
        rest = tail;
    }
    Vec::new()
}

/// A server's message about an address.
fn grant(heard: &[u8], kind: u8, server: &[u8], address: &str, valid: u32) -> Vec<u8> {
    let address: Ipv6Addr = address.parse().unwrap();
    let lifetimes = [valid.to_be_bytes(), valid.to_be_bytes()].concat();
    let inside = option(5, &[&address.octets()[..], &lifetimes].concat());
    let iaid = value(heard, 3)[..4].to_vec();
    let association = [&iaid[..], &[0, 0, 0, 1, 0, 0, 0, 20], &inside].concat();
    let client = value(heard, 1);
    [&[kind][..], &heard[1..4], &option(1, &client), &option(2, server), &option(3, &association)].concat()
}

/// Every kind of bad answer.
fn bad(heard: &[u8], kind: u8) -> Vec<Vec<u8>> {
    let good = grant(heard, kind, b"server", EVIL, 100);
    let mut answers: Vec<Vec<u8>> =
        [0, 1, 3, 4, 7, 9, 20, 40, good.len() - 1].map(|n| good[..n].to_vec()).into();
    let mut with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        answers.push(bytes);
    };
    // Another transaction, another client, a client's message, a relay's, a length that leads nowhere.
    with(&|b| b[2] ^= 1);
    with(&|b| b[9] ^= 1);
    with(&|b| b[0] = 3);
    with(&|b| b[0] = 13);
    with(&|b| b[6] = 255);
    // Oversized, and full of options.
    with(&|b| b.extend(option(17, &[7; 1800])));
    with(&|b| b.extend([0, 13, 0, 1].repeat(300)));
    answers.push(grant(heard, kind, b"", EVIL, 100));
    if kind == ADVERTISE {
        // As a REPLY it would be a refusal of the client's own server.
        answers.push(grant(heard, kind, b"server", "ff02::1", 100));
        answers.push(grant(heard, kind, b"server", "::1", 100));
        answers.push(grant(heard, kind, b"server", EVIL, 0));
    }
    answers
}

#[test]
fn malformed_and_foreign_dhcpv6_answers_change_nothing() {
    require_netns!();
    let site = Site::new();
    let index = site.node.link("cni0")["ifindex"].as_u64().unwrap().try_into().unwrap();
    let socket = site.node.enter(|| UdpSocket::bind("[::]:547").unwrap());
    socket.join_multicast_v6(&Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2), index).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let end = stop.clone();
    let server = std::thread::spawn(move || {
        let (mut kinds, mut buffer) = (Vec::new(), [0; 2048]);
        while !end.load(Ordering::Relaxed) {
            let Ok((length, std::net::SocketAddr::V6(from))) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let heard = &buffer[..length];
            kinds.push(heard[0]);
            let mut answers = match heard[0] {
                1 => bad(heard, ADVERTISE),
                3 | 5 | 6 => bad(heard, REPLY),
                _ => Vec::new(),
            };
            // Who did not give the lease renews, and refuses, in vain.
            answers.extend((heard[0] == 5).then(|| grant(heard, REPLY, b"other", EVIL, 100)));
            answers.extend(match heard[0] {
                1 => Some(grant(heard, ADVERTISE, b"server", GOOD, 30)),
                3 | 5 | 6 | 8 => Some(grant(heard, REPLY, b"server", GOOD, 30)),
                _ => None,
            });
            for answer in answers {
                let _ = socket.send_to(&answer, SocketAddrV6::new(*from.ip(), 546, 0, index));
            }
        }
        kinds
    });
    site.start_daemon("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({"ipv4": false, "ipv6": "dhcpv6"}));
    assert_eq!(attachment.ip(0), GOOD);
    let renewed = |site: &Site| site.leases()[0]["ipv6"]["expiresIn"].as_u64();
    std::thread::sleep(Duration::from_secs(3));
    assert!(renewed(&site) >= Some(28), "renewed every second: {:?}", renewed(&site));
    assert_eq!(container.addresses("eth0"), [format!("{GOOD}/128")]);
    attachment.check();
    attachment.del();
    stop.store(true, Ordering::Relaxed);
    let kinds = server.join().unwrap();
    let count = |kind: u8| kinds.iter().filter(|k| **k == kind).count();
    assert_eq!((count(1), count(3), count(8)), (1, 1, 1), "SOLICIT, REQUEST, RELEASE of {kinds:?}");
    assert!(count(5) >= 2, "RENEW of {kinds:?}");
}
