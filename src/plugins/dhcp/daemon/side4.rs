//! The sockets of an IPv4 client.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::super::clock::{Millis, Random};
use super::super::frame;
use super::super::packet_socket::{BROADCAST, PacketSocket, Pair, Protocol, UnicastSocket};
use super::super::v4::machine::{Machine, Output, Params, To};
use super::super::v4::packet::{self, Kind, Options, Outgoing, code};
use super::super::wanted::{ClientId, Wanted};
use super::Tools;
use super::link::Link;
use super::token::{ARP, PACKET};
use crate::cni::Result;

/// So many packets are read before others get their turn.
const BURST: usize = 64;

/// Longest client identifier that is made from names, with its leading zero: as in the Go plugin.
const MAX_NAME: usize = 254;

/// A client and its sockets.
pub struct Side4 {
    /// The client.
    pub machine: Machine,
    /// Who the server's messages come from on the link.
    pub server_mac: Option<[u8; 6]>,
    listen: Option<PacketSocket>,
    arp: Option<(PacketSocket, Ipv4Addr)>,
    unicast: Option<(UnicastSocket, Ipv4Addr)>,
}

impl Side4 {
    /// A client that does nothing yet.
    pub fn new(wanted: &Wanted, link: &Link, tools: &Tools<'_>) -> Side4 {
        let params = Params {
            mac: link.mac,
            options: options(wanted, link.mac, tools),
            // Ports of ipvlan have one hardware address between them: what is sent to it, without a known IP address,
            // reaches nobody.
            broadcast: tools.flags.broadcast || link.kind == "ipvlan",
            first_wait: tools.flags.timeout,
            longest_wait: tools.flags.resend_max,
            probe: wanted.conflict_detection,
        };
        let machine = Machine::new(params, Random::from_system());
        Side4 { machine, server_mac: None, listen: None, arp: None, unicast: None }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The socket cannot be opened, or the kernel does not send.
    pub fn send(&mut self, to: To, message: &Outgoing, at: (&Link, u64), tools: &Tools<'_>) -> Result<()> {
        let (link, id) = at;
        let bytes = packet::encode(message);
        let socket = self.listening(link, id, tools)?;
        let failed = |errno| {
            crate::cni::Error::system(format_args!("send {:?} on {}", message.kind, link.name), errno)
        };
        match to {
            To::Everybody => {
                let packet = frame::to_server(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &bytes);
                socket.send(&packet, BROADCAST).map_err(failed)
            }
            To::EverybodyFrom(from) => {
                let packet = frame::to_server(from, Ipv4Addr::BROADCAST, &bytes);
                socket.send(&packet, BROADCAST).map_err(failed)
            }
            To::Server { from, to } => {
                // A RELEASE goes out at once, to whom the server's messages came from: when the kernel would have asked
                // who has the server's address, the link may be gone.
                if message.kind != Kind::Release && self.send_unicast(Pair { from, to }, &bytes, link).is_ok()
                {
                    return Ok(());
                }
                let mac = self.server_mac.unwrap_or(BROADCAST);
                let packet = frame::to_server(from, to, &bytes);
                self.listening(link, id, tools)?.send(&packet, mac).map_err(failed)
            }
        }
    }

    fn send_unicast(&mut self, pair: Pair, bytes: &[u8], link: &Link) -> Result<()> {
        if self.unicast.as_ref().is_none_or(|(_, from)| *from != pair.from) {
            let failed = |e| crate::cni::Error::system("UDP socket", e);
            let socket = link.inside(|| UnicastSocket::open(&link.name, pair).map_err(failed))?;
            self.unicast = Some((socket, pair.from));
        }
        match &self.unicast {
            Some((socket, _)) => socket.send(bytes).map_err(|e| crate::cni::Error::system("send", e)),
            None => Ok(()),
        }
    }

    /// Asks who has an address.
    ///
    /// # Errors
    /// The socket cannot be opened, or the kernel does not send.
    pub fn probe(&mut self, address: Ipv4Addr, at: (&Link, u64), tools: &Tools<'_>) -> Result<()> {
        let (link, id) = at;
        let socket = match self.arp.take() {
            Some((socket, _)) => socket,
            None => open(Protocol::Arp, link, id | ARP, tools)?,
        };
        let sent = socket.send(&frame::arp_probe(link.mac, address), BROADCAST);
        self.arp = Some((socket, address));
        sent.map_err(|e| crate::cni::Error::system(format_args!("send an ARP probe on {}", link.name), e))
    }

    fn listening(&mut self, link: &Link, id: u64, tools: &Tools<'_>) -> Result<&PacketSocket> {
        let socket = match self.listen.take() {
            Some(socket) => socket,
            None => open(Protocol::Dhcp, link, id | PACKET, tools)?,
        };
        Ok(self.listen.insert(socket))
    }

    /// Reads what came in, and feeds it to the client.
    pub fn readable(&mut self, kind: u64, link: &Link, now: Millis) -> Vec<Output> {
        match kind {
            PACKET => self.read_messages(now),
            _ => self.read_arp(link, now),
        }
    }

    fn read_messages(&mut self, now: Millis) -> Vec<Output> {
        let Some(socket) = &self.listen else { return Vec::new() };
        let mut outputs = Vec::new();
        for _ in 0..BURST {
            // ENETDOWN is told once; that the link is down is known from elsewhere.
            let Ok(Some(received)) = socket.receive() else { break };
            let Some(payload) = frame::to_client(&received.bytes, received.unfinished) else { continue };
            let Ok(reply) = packet::decode(payload) else { continue };
            let more = self.machine.received(&reply, now);
            if !more.is_empty() {
                self.server_mac = Some(received.from);
            }
            outputs.extend(more);
        }
        outputs
    }

    fn read_arp(&mut self, link: &Link, now: Millis) -> Vec<Output> {
        let Some((socket, address)) = &self.arp else { return Vec::new() };
        let mut conflict = false;
        for _ in 0..BURST {
            let Ok(Some(received)) = socket.receive() else { break };
            conflict |= frame::is_conflict(&received.bytes, link.mac, *address);
        }
        if conflict { self.machine.conflict(*address, now) } else { Vec::new() }
    }

    /// Closes what is not needed in the client's state.
    pub fn tidy(&mut self, tools: &Tools<'_>) {
        if self.machine.state() != "PROBING"
            && let Some((socket, _)) = self.arp.take()
        {
            retire(socket, tools);
        }
        if !self.machine.listens() {
            self.unicast = None;
            if let Some(socket) = self.listen.take() {
                retire(socket, tools);
            }
        }
    }

    /// Closes everything.
    pub fn close(mut self, tools: &Tools<'_>) {
        let sockets = [self.listen.take(), self.arp.take().map(|(socket, _)| socket)];
        sockets.into_iter().flatten().for_each(|socket| retire(socket, tools));
    }
}

/// Opens a packet socket on a link, whose events have this token.
///
/// # Errors
/// It cannot be opened or waited for.
pub fn open(protocol: Protocol, link: &Link, token: u64, tools: &Tools<'_>) -> Result<PacketSocket> {
    let socket = link.inside(|| PacketSocket::open(protocol, link.index))?;
    tools
        .epoll
        .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token))
        .map_err(|e| crate::cni::Error::system("epoll_ctl", e))?;
    Ok(socket)
}

/// Closes a packet socket aside.
pub fn retire(socket: PacketSocket, tools: &Tools<'_>) {
    // It stays open a little longer: events of it would find nobody.
    let _ = tools.epoll.delete(socket.as_fd());
    tools.closer.close(OwnedFd::from(socket));
}

/// The options of every message: what is asked for, who asks, and what the configuration provides, which goes first.
fn options(wanted: &Wanted, mac: [u8; 6], tools: &Tools<'_>) -> Options {
    let mut options = Options::default();
    options.0.insert(code::CLIENT_ID, client_id(wanted, mac, tools));
    for (code, value) in &wanted.provide {
        options.0.insert(*code, value.clone());
    }
    options.0.insert(code::REQUEST_LIST, wanted.request.clone());
    options
}

/// Option 61.
fn client_id(wanted: &Wanted, mac: [u8; 6], tools: &Tools<'_>) -> Vec<u8> {
    match wanted.client_id {
        ClientId::Name => {
            let mut id = vec![0];
            id.extend_from_slice(wanted.key.to_string().as_bytes());
            id.truncate(MAX_NAME);
            id
        }
        ClientId::Duid => {
            let mut id = vec![255];
            id.extend_from_slice(&super::identity::iaid(&wanted.key).to_be_bytes());
            id.extend_from_slice(&tools.duid);
            id
        }
        ClientId::Mac => [vec![1], mac.to_vec()].concat(),
    }
}
