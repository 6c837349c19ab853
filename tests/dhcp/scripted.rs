//! A DHCP server that does what a test tells it, in the node's namespace.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::site::Site;

pub const OFFER: u8 = 2;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;

/// A client's message.
#[derive(Clone, Debug)]
pub struct Heard {
    pub kind: u8,
    pub xid: [u8; 4],
    pub broadcast: bool,
    pub ciaddr: Ipv4Addr,
    pub mac: [u8; 6],
    /// From where it came.
    pub from: Ipv4Addr,
    pub options: BTreeMap<u8, Vec<u8>>,
}

impl Heard {
    fn read(bytes: &[u8], from: Ipv4Addr) -> Heard {
        let mut options = BTreeMap::new();
        let mut rest = &bytes[240..];
        while let [code, tail @ ..] = rest {
            match code {
                0 => rest = tail,
                255 => break,
                _ => {
                    let length = usize::from(tail[0]);
                    options.entry(*code).or_insert_with(Vec::new).extend_from_slice(&tail[1..=length]);
                    rest = &tail[length + 1..];
                }
            }
        }
        Heard {
            kind: options[&53][0],
            xid: bytes[4..8].try_into().unwrap(),
            broadcast: bytes[10] & 0x80 != 0,
            ciaddr: Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]),
            mac: bytes[28..34].try_into().unwrap(),
            from,
            options,
        }
    }

    /// What kind of message it is.
    pub fn name(&self) -> &'static str {
        match (self.kind, self.ciaddr.is_unspecified(), self.options.contains_key(&54)) {
            (1, ..) => "DISCOVER",
            (3, true, true) => "REQUEST",
            (3, true, false) => "REBOOT",
            (3, false, _) => "RENEW",
            (4, ..) => "DECLINE",
            (7, ..) => "RELEASE",
            _ => "?",
        }
    }

    /// A reply with these options.
    pub fn reply(&self, kind: u8, address: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[..3].copy_from_slice(&[2, 1, 6]);
        bytes[4..8].copy_from_slice(&self.xid);
        bytes[16..20].copy_from_slice(&address.octets());
        bytes[28..34].copy_from_slice(&self.mac);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend_from_slice(&[53, 1, kind]);
        for (code, value) in options {
            bytes.extend_from_slice(&[*code, value.len() as u8]);
            bytes.extend_from_slice(value);
        }
        bytes.push(255);
        bytes
    }

    /// The usual reply of 10.7.0.1: a lease of so many seconds.
    pub fn grant(&self, kind: u8, address: Ipv4Addr, times: [u32; 3]) -> Vec<u8> {
        let [t1, t2, lease] = times.map(u32::to_be_bytes);
        let options: [(u8, &[u8]); 6] = [
            (54, &[10, 7, 0, 1]),
            (1, &[255, 255, 255, 0]),
            (3, &[10, 7, 0, 1]),
            (51, &lease),
            (58, &t1),
            (59, &t2),
        ];
        self.reply(kind, address, &options)
    }

    /// What answers DISCOVER and REQUEST with a lease of this address and these times, and nothing else.
    pub fn usual(&self, address: Ipv4Addr, times: [u32; 3]) -> Vec<Vec<u8>> {
        match self.name() {
            "DISCOVER" => vec![self.grant(OFFER, address, times)],
            "REQUEST" => vec![self.grant(ACK, address, times)],
            _ => vec![],
        }
    }
}

/// The server: a thread that hands every message to a closure, and broadcasts what it answers.
pub struct Scripted {
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    /// Serves until it is dropped.
    pub fn start(site: &Site, mut answer: impl FnMut(&Heard) -> Vec<Vec<u8>> + Send + 'static) -> Scripted {
        let socket = site.node.enter(|| UdpSocket::bind("0.0.0.0:67").unwrap());
        socket.set_broadcast(true).unwrap();
        // Not on `port1`, which is in the same namespace.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &"cni0".into())
            .unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, end) = (heard.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let std::net::IpAddr::V4(from) = from.ip() else { continue };
                let message = Heard::read(&buffer[..length], from);
                log.lock().unwrap().push(message.clone());
                for reply in answer(&message) {
                    let _ = socket.send_to(&reply, "10.7.0.255:68");
                }
            }
        });
        Scripted { heard, stop, thread: Some(thread) }
    }

    /// Every message so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// Their kinds.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.heard().iter().map(Heard::name).collect()
    }

    /// How many there were of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.kinds().iter().filter(|k| **k == kind).count()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
