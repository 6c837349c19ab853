//! What is done with bytes from the network, from reading them to the last state of a client, as functions of bytes:
//! `tests/fuzz` calls them with bytes that find new ways through the code, the tests below with those that were found.
//!
//! The bytes are a script: one that says what happens (time passes, the link returns, a message comes, …), then what that
//! needs. Each function asserts what must hold whatever happens.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::clock::{Millis, NEVER, Random};
use super::v4::packet::is_host;
use super::{frame, names, v4, v6};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// So often a client may say "now" to the question when it wants to be called, before it is a busy loop.
const AT_ONCE: usize = 4;

/// What is left of the script.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    /// As many as the next two bytes say, or what is there.
    fn piece(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_be_bytes(self.bytes()?)) % 1600;
        let (piece, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        Some(piece)
    }

    /// Up to 18 hours, more often short than long.
    fn time(&mut self) -> Option<Millis> {
        let [scale, value] = self.bytes()?;
        Some(u64::from(value) << (scale % 19))
    }
}

/// Lets what the script says happen to a client of either protocol: what it does then; `None` when it is that a message
/// comes.
macro_rules! event {
    ($kind:ident, $script:ident, $machine:ident, $now:ident, $probed:ident) => {
        match $kind {
            0 => {
                $now += $script.time()?;
                Some(pass_time($now, |now| ($machine.timer(now), $machine.wake())))
            }
            1 if $machine.wake() == NEVER => Some(Vec::new()),
            1 => {
                $now = $now.max($machine.wake());
                Some(pass_time($now, |now| ($machine.timer(now), $machine.wake())))
            }
            2 => Some($machine.link_returned($now)),
            3 => Some($machine.conflict($probed, $now)),
            4 => {
                let mut outputs = $machine.release($now);
                assert!($machine.lease().is_none());
                outputs.extend($machine.start($now));
                Some(outputs)
            }
            _ => None,
        }
    };
}

/// A DHCPv4 client and whatever comes.
pub fn dhcpv4(data: &[u8]) {
    let _ = conversation4(&mut Script(data));
}

fn conversation4(script: &mut Script<'_>) -> Option<()> {
    use v4::machine::{Machine, Output, Params};
    use v4::packet::{Options, code, decode, encode};

    let params = Params {
        mac: MAC,
        options: Options([(code::CLIENT_ID, b"\0client".to_vec())].into()),
        broadcast: false,
        first_wait: 4_000,
        longest_wait: 62_000,
        probe: script.byte()? % 2 == 0,
    };
    let mut machine = Machine::new(params, Random::from_seed(1));
    let (mut now, mut xid, mut probed) = (1_000, 0, Ipv4Addr::UNSPECIFIED);
    let mut outputs = machine.start(now);
    loop {
        for output in std::mem::take(&mut outputs) {
            match output {
                Output::Send(_, message) => {
                    assert!(encode(&message).len() >= 300);
                    xid = message.xid;
                }
                Output::Probe(address) => probed = address,
                _ => {}
            }
        }
        if let Some(lease) = machine.lease() {
            assert!(is_host(lease.address) && is_host(lease.server) && lease.net().is_some());
            assert!(lease.renew_at <= lease.rebind_at && lease.rebind_at <= lease.expires_at);
            assert!(machine.wake() <= lease.expires_at, "nobody notices the end of the lease");
            are_plain(lease.options.search().iter().chain(&lease.options.domain()));
            let _ =
                (lease.options.shown(), lease.options.classless_routes(), lease.options.classful_routes());
        }
        let kind = script.byte()? % 8;
        if let Some(done) = event!(kind, script, machine, now, probed) {
            outputs = done;
            continue;
        }
        let reply = match kind {
            5 => decode(script.piece()?),
            kind => {
                let mut bytes = vec![0; 240];
                bytes[..3].copy_from_slice(&[2, 1, 6]);
                bytes[28..34].copy_from_slice(&MAC);
                bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
                if kind == 6 {
                    // Options alone are wild.
                    bytes[16..20].copy_from_slice(&script.bytes::<4>()?);
                } else {
                    // What a server says that knows what it does, and more than that.
                    let [kind, host, server] = script.bytes()?;
                    bytes[16..20].copy_from_slice(&[10, 0, 0, host]);
                    bytes.extend_from_slice(&[53, 1, [2, 5, 6][usize::from(kind % 3)]]);
                    bytes.extend_from_slice(&[54, 4, 10, 0, 0, server % 4, 1, 4, 255, 255, 255, 0]);
                    bytes.extend_from_slice(&[51, 4, 0, 0]);
                    bytes.extend_from_slice(&script.bytes::<2>()?);
                }
                bytes.extend_from_slice(script.piece()?);
                decode(&bytes)
            }
        };
        if let Ok(mut reply) = reply {
            (reply.xid, reply.mac) = (xid, MAC);
            outputs = machine.received(&reply, now);
        }
    }
}

/// Calls a client's timer until it wants to wait.
fn pass_time<T>(now: Millis, mut timer: impl FnMut(Millis) -> (Vec<T>, Millis)) -> Vec<T> {
    let mut outputs = Vec::new();
    for _ in 0..AT_ONCE {
        let (more, wake) = timer(now);
        outputs.extend(more);
        if wake > now {
            return outputs;
        }
    }
    unreachable!("a busy loop");
}

/// What is safe in a resolv.conf.
fn are_plain<'a>(names: impl Iterator<Item = &'a String>) {
    names.for_each(|name| assert!(!name.contains(|c: char| c.is_control() || c == ' '), "{name:?}"));
}

/// A DHCPv6 client, one that asks for information alone, and whatever comes.
pub fn dhcpv6(data: &[u8]) {
    let _ = conversation6(&mut Script(data));
}

fn conversation6(script: &mut Script<'_>) -> Option<()> {
    use v6::information::Information;
    use v6::machine::{Machine, Output};
    use v6::packet::{Identity, MAX_SIZE, decode, encode};

    let identity = Identity { duid: b"client".to_vec(), iaid: 7, prefix: script.byte()? % 2 == 0 };
    let mut machine = Machine::new(identity.clone(), Random::from_seed(1));
    let mut information = Information::new(identity.duid.clone(), Random::from_seed(2));
    let (mut now, mut xid, mut probed) = (1_000, 0, Ipv6Addr::UNSPECIFIED);
    information.start(now);
    let asked = information.timer(now)?;
    let mut outputs = machine.start(now);
    loop {
        for output in std::mem::take(&mut outputs) {
            match output {
                Output::Send(message) => {
                    assert!(encode(&message, &identity).len() < 4 * MAX_SIZE);
                    xid = message.xid;
                }
                Output::Probe(address) => probed = address,
                _ => {}
            }
        }
        if let Some(lease) = machine.lease() {
            assert!(!lease.addresses.is_empty() && lease.addresses.iter().all(|ip| v6::lease::is_host(*ip)));
            assert!(lease.renew_at <= lease.rebind_at && lease.rebind_at <= lease.expires_at);
            assert!(machine.wake() <= lease.expires_at, "nobody notices the end of the lease");
            are_plain(lease.search.iter().chain(&lease.ntp));
        }
        let kind = script.byte()? % 8;
        if let Some(done) = event!(kind, script, machine, now, probed) {
            outputs = done;
            continue;
        }
        let mut message = match kind {
            5 => script.piece()?.to_vec(),
            kind => {
                // An ADVERTISE or REPLY to us, with nothing else that is certain, or with an address or a prefix.
                let [what, server] = script.bytes()?;
                let mut bytes = vec![if what % 2 == 0 { 2 } else { 7 }, 0, 0, 0];
                bytes.extend_from_slice(b"\0\x01\0\x06client\0\x02\0\x01");
                bytes.push(server % 2);
                if kind == 7 {
                    bytes.extend_from_slice(&[
                        0,
                        if what & 2 == 0 { 3 } else { 25 },
                        0,
                        40,
                        0,
                        0,
                        0,
                        7,
                        0,
                        0,
                    ]);
                    let [times @ .., host] = script.bytes::<9>()?;
                    bytes.extend_from_slice(&[times[0], times[1], 0, 0, times[2], times[3], 0, 5, 0, 24]);
                    bytes.extend_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).octets());
                    bytes.extend_from_slice(&[0, 0, times[4], times[5], 0, 0, times[6], times[7]]);
                }
                bytes.extend_from_slice(script.piece()?);
                bytes
            }
        };
        for xid in [xid, asked.xid] {
            if let Some(place) = message.get_mut(1..4) {
                place.copy_from_slice(&xid.to_be_bytes()[1..]);
            }
            let Ok(reply) = decode(&message, identity.iaid) else { continue };
            outputs.extend(machine.received(&reply, now));
            if information.received(&reply, now) {
                assert!(information.wake() >= now + 600_000);
                are_plain(
                    information.known().into_iter().flat_map(|known| known.search.iter().chain(&known.ntp)),
                );
            }
        }
    }
}

/// What routers tell.
pub fn advert(data: &[u8]) {
    let _ = advertisements(&mut Script(data));
}

fn advertisements(script: &mut Script<'_>) -> Option<()> {
    let mut slaac = v6::slaac::Slaac::new(Random::from_seed(1));
    let mut now = 1_000;
    slaac.start(Ipv6Addr::LOCALHOST, now);
    loop {
        let packet = match script.byte()? % 4 {
            0 => {
                now += script.time()?;
                slaac.timer(now);
                assert!(slaac.wake() > now, "a busy loop");
                continue;
            }
            1 => script.piece()?.to_vec(),
            _ => {
                let (router, header) = (script.byte()?, script.bytes::<16>()?);
                let options = script.piece()?;
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend_from_slice(&u16::try_from(header.len() + options.len()).ok()?.to_be_bytes());
                packet.extend_from_slice(&[58, 255]);
                packet.extend_from_slice(&Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, router.into()).octets());
                packet.extend_from_slice(&Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets());
                packet.extend_from_slice(&[134, 0]);
                packet.extend_from_slice(&header[2..]);
                packet.extend_from_slice(options);
                packet
            }
        };
        let _ = v6::advert::is_conflict(&packet, true, Ipv6Addr::LOCALHOST);
        let Some((router, advert)) = v6::advert::advertisement(&packet, true) else { continue };
        slaac.heard_from(router, &advert, now);
        if slaac.wake() <= now {
            slaac.timer(now);
        }
        assert!(slaac.addresses().len() <= 16 && slaac.routes().count() <= 16 && slaac.dns().count() <= 16);
        assert!(slaac.mtu().is_none_or(|mtu| (1280..=65_535).contains(&mtu)));
        let search: Vec<String> = slaac.search().map(str::to_owned).collect();
        are_plain(search.iter());
    }
}

/// Frames, and names in them.
pub fn frames(data: &[u8]) {
    for unfinished in [false, true] {
        if let Some(payload) = frame::to_client(data, unfinished) {
            assert!(payload.len() + 28 <= data.len());
            let _ = v4::packet::decode(payload);
        }
        let _ = v6::advert::advertisement(data, unfinished);
        let _ = v6::advert::is_conflict(data, unfinished, Ipv6Addr::LOCALHOST);
    }
    let _ = frame::is_conflict(data, MAC, Ipv4Addr::new(10, 0, 0, 9));
    let names = names::domains(data);
    assert!(names.len() <= 64);
    are_plain(names.iter());
}

#[cfg(test)]
mod tests {
    /// Lines of hexadecimal digits, each an input: `tests/fuzz/run` writes and reads them.
    fn replay(corpus: &str, target: fn(&[u8])) {
        let mut inputs = 0;
        for line in corpus.lines() {
            let digits = |at: usize| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
            let input: Vec<u8> = (0..line.len()).step_by(2).map(digits).collect();
            target(&input);
            inputs += 1;
        }
        assert!(inputs > 20, "{inputs} inputs");
    }

    #[test]
    fn inputs_that_fuzzing_has_found_are_replayed() {
        replay(include_str!("../../../tests/fuzz/corpus/dhcpv4"), super::dhcpv4);
        replay(include_str!("../../../tests/fuzz/corpus/dhcpv6"), super::dhcpv6);
        replay(include_str!("../../../tests/fuzz/corpus/advert"), super::advert);
        replay(include_str!("../../../tests/fuzz/corpus/frames"), super::frames);
    }
}
