//! A server that means harm: the daemon lives, and believes nothing of it.

use std::net::Ipv4Addr;

use serde_json::json;

use crate::scripted::{ACK, Heard, NAK, OFFER, Scripted};
use crate::site::Site;
use crate::support::require_netns;

const GOOD: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 50);
const EVIL: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 66);

/// Every kind of bad answer to one message.
fn bad(message: &Heard, kind: u8) -> Vec<Vec<u8>> {
    let good = message.grant(kind, EVIL, [100, 200, 300]);
    let mut answers = Vec::new();
    let mut with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        answers.push(bytes);
    };
    // Another transaction, another client, a request, wrong lengths of the hardware address, no magic cookie.
    with(&|b| b[4] ^= 1);
    with(&|b| b[33] ^= 1);
    with(&|b| b[0] = 1);
    with(&|b| b[1] = 6);
    for length in [0, 5, 7, 16, 17, 255] {
        with(&|b| b[2] = length);
    }
    with(&|b| b[236] = 0);
    // Cut off anywhere.
    for length in [0, 1, 27, 43, 107, 235, 239, 240, 241, 242, 244, 250] {
        with(&|b| b.truncate(length));
    }
    // Addresses that nobody can have.
    for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], [240, 0, 0, 1]] {
        with(&|b| b[16..20].copy_from_slice(&address));
    }
    // Bombs: thousands of options, options that overload each other, endless parts of one option.
    with(&|b| b.extend((0..8000u32).map(|n| n as u8)));
    with(&|b| {
        b.truncate(240);
        b.extend([53, 1, kind, 52, 1, 3, 255]);
        b[44..108].fill(52);
        b[108..236].fill(255);
    });
    with(&|b| {
        b.truncate(243);
        b.extend([12, 255].iter().chain(&[b'x'; 255]).cycle().take(20_000));
    });
    let no_server: [(u8, &[u8]); 2] = [(1, &[255, 255, 255, 0]), (51, &[0, 0, 1, 0])];
    answers.push(message.reply(kind, EVIL, &no_server));
    let no_time: [(u8, &[u8]); 3] = [(54, &[10, 7, 0, 1]), (1, &[255, 255, 255, 0]), (51, &[0, 0, 0, 0])];
    answers.push(message.reply(kind, EVIL, &no_time));
    answers
}

#[test]
fn malformed_and_foreign_answers_change_nothing() {
    require_netns!();
    let site = Site::new();
    let server = Scripted::start(&site, |m| {
        let other = [(54u8, &[10u8, 7, 0, 99][..])];
        match m.name() {
            "DISCOVER" => {
                let mut answers = bad(m, OFFER);
                answers.push(m.grant(ACK, EVIL, [100, 200, 300]));
                answers.push(m.reply(NAK, Ipv4Addr::UNSPECIFIED, &other));
                answers.push(m.grant(OFFER, GOOD, [1, 20, 30]));
                answers
            }
            "REQUEST" => {
                let mut answers = bad(m, ACK);
                // Another server says no, and yes to another address.
                answers.push(m.reply(NAK, Ipv4Addr::UNSPECIFIED, &other));
                answers.push(m.grant(ACK, EVIL, [100, 200, 300]));
                answers.push(m.grant(ACK, GOOD, [1, 20, 30]));
                answers
            }
            "RENEW" => {
                let mut answers = bad(m, ACK);
                answers.push(m.reply(NAK, Ipv4Addr::UNSPECIFIED, &other));
                answers.push(m.grant(ACK, GOOD, [1, 20, 30]));
                answers
            }
            _ => vec![],
        }
    });
    site.start_daemon("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    assert_eq!(attachment.ip(0), GOOD.to_string());
    site.eventually("renewed twice", |_| server.count("RENEW") >= 2);
    assert_eq!(container.addresses("eth0"), ["10.7.0.50/24"]);
    assert_eq!((server.count("DISCOVER"), server.count("REQUEST")), (1, 1), "{:?}", server.kinds());
    attachment.check();
    attachment.del();
}

#[test]
fn lines_cannot_be_smuggled_into_a_result() {
    require_netns!();
    let site = Site::new();
    let _server = Scripted::start(&site, |m| {
        let options: [(u8, &[u8]); 6] = [
            (54, &[10, 7, 0, 1]),
            (1, &[255, 255, 255, 0]),
            (51, &[0, 0, 1, 0]),
            (6, &[127, 0, 0, 1, 10, 7, 0, 1]),
            (15, b"x\nnameserver 6.6.6.6"),
            (119, b"\x03a\nb\x00\x01c\x00"),
        ];
        match m.name() {
            "DISCOVER" => vec![m.reply(OFFER, GOOD, &options)],
            "REQUEST" => vec![m.reply(ACK, GOOD, &options)],
            _ => vec![],
        }
    });
    site.start_daemon("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    assert_eq!(attachment.result["dns"], json!({"nameservers": ["10.7.0.1"], "search": ["c"]}));
}
