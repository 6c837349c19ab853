//! The sockets of IPv6: a DHCPv6 client, and what listens to routers.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::super::clock::{Millis, NEVER, Random, now};
use super::super::packet_socket::{PacketSocket, Protocol};
use super::super::v6::advert;
use super::super::v6::information::Information;
use super::super::v6::machine::{Machine, Output};
use super::super::v6::packet::{self, Identity, Outgoing};
use super::super::v6::slaac::Slaac;
use super::super::wanted::{Ipv6, Wanted};
use super::Tools;
use super::identity;
use super::link::Link;
use super::side4::{open, retire};
use super::token::{NEIGHBOURS, ROUTERS, UDP6};
use crate::cni::{Error, Result};

/// `ff02::1:2`, all DHCPv6 servers and relays, and the ports (RFC 8415 section 7).
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;

/// So many packets are read before others get their turn.
const BURST: usize = 64;

/// How often it is looked for the link-local address of a link that was up before, and may be checking it.
const LOOK: Millis = 50;
/// When it does not come, the link has no carrier, of whose return there is news.
const LOOK_LONGEST: Millis = 5_000;

/// A DHCPv6 lease comes without routes: a router may take so long to tell of itself (RFC 4861: half a second).
const ROUTER_BUDGET: Millis = 1_000;

/// An address from a router is worth having without what a DHCPv6 server might add to it.
const INFORMATION_BUDGET: Millis = 1_000;

/// IPv6 of one attachment.
pub struct Side6 {
    identity: Identity,
    /// The DHCPv6 client, if one is wanted.
    pub machine: Option<Machine>,
    /// What routers tell.
    pub slaac: Slaac,
    /// What servers tell without giving addresses: asked when routers say that there are such servers.
    pub information: Information,
    /// Addresses are made from it.
    pub autonomous: bool,
    local: Option<Ipv6Addr>,
    udp: Option<UdpSocket>,
    neighbours: Option<PacketSocket>,
    routers: Option<PacketSocket>,
    /// When to look for the link-local address, and how long the wait for that is.
    look: Millis,
    look_wait: Millis,
    began: Millis,
}

impl Side6 {
    /// IPv6 as it is wanted; `None` when it is not.
    pub fn new(wanted: &Wanted, tools: &Tools<'_>) -> Option<Side6> {
        let (dhcp, autonomous) = match wanted.ipv6 {
            Ipv6::None => return None,
            Ipv6::Slaac => (false, true),
            Ipv6::Dhcpv6 => (true, false),
            Ipv6::Both => (true, true),
        };
        let identity = Identity {
            duid: tools.duid.clone(),
            iaid: identity::iaid(&wanted.key),
            prefix: wanted.prefix_delegation,
        };
        Some(Side6 {
            machine: dhcp.then(|| Machine::new(identity.clone(), Random::from_system())),
            identity,
            slaac: Slaac::new(Random::from_system()),
            information: Information::new(tools.duid.clone(), Random::from_system()),
            autonomous,
            local: None,
            udp: None,
            neighbours: None,
            routers: None,
            look: NEVER,
            look_wait: LOOK,
            began: NEVER,
        })
    }

    /// Begins as soon as there is an address to speak from; `fresh`: also with the DHCPv6 client.
    pub fn start(&mut self, fresh: bool, link: &Link, id: u64, tools: &Tools<'_>) -> Result<Vec<Output>> {
        let Some(local) = link.link_local() else {
            self.look = now() + self.look_wait;
            self.look_wait = (self.look_wait * 3 / 2).min(LOOK_LONGEST);
            return Ok(Vec::new());
        };
        (self.local, self.look, self.look_wait, self.began) = (Some(local), NEVER, LOOK, now());
        if self.routers.is_none() {
            self.routers = Some(open(Protocol::Routers, link, id | ROUTERS, tools)?);
        }
        self.slaac.start(local, now());
        let outputs = match &mut self.machine {
            Some(machine) if fresh => machine.start(now()),
            _ => Vec::new(),
        };
        Ok(outputs)
    }

    /// Whether everything is there that is wanted.
    pub fn is_complete(&self) -> bool {
        let leased = self.machine.as_ref().is_none_or(|machine| machine.lease().is_some());
        let addressed = !self.autonomous || !self.slaac.addresses().is_empty();
        let routed = self.slaac.heard() || self.autonomous || now() >= self.router_deadline();
        leased && addressed && routed && now() >= self.information_deadline()
    }

    /// Until when an answer to the question for information is waited for; the past when there is none to wait for.
    fn information_deadline(&self) -> Millis {
        match self.information.known() {
            None if self.information.listens() => self.information.began() + INFORMATION_BUDGET,
            None if self.information.wake() != NEVER => NEVER,
            _ => 0,
        }
    }

    /// Asks for information if routers say that somebody has it, and no lease brings it along.
    fn inform(&mut self) {
        if self.machine.is_none() && self.slaac.is_stateless() {
            self.information.start(now());
        }
    }

    fn router_deadline(&self) -> Millis {
        self.began.saturating_add(ROUTER_BUDGET)
    }

    /// What is missing, for whoever waited in vain.
    pub fn missing(&self) -> Option<String> {
        if self.local.is_none() {
            return Some("no IPv6: the interface has no link-local address".to_owned());
        }
        match &self.machine {
            Some(machine) if machine.lease().is_none() => {
                let problem = machine.problem().unwrap_or("no DHCPv6 server answers");
                Some(format!("no DHCPv6 lease: {problem}"))
            }
            _ if self.autonomous && self.slaac.addresses().is_empty() => {
                Some("no IPv6 address: no router advertises a prefix for addresses".to_owned())
            }
            _ => None,
        }
    }

    /// The next moment something happens by itself.
    pub fn wake(&self) -> Millis {
        let machine = self.machine.as_ref().map_or(NEVER, Machine::wake);
        let grace = if self.slaac.heard() || self.router_deadline() <= now() {
            NEVER
        } else {
            self.router_deadline()
        };
        let answer = match self.information_deadline() {
            past if past <= now() => NEVER,
            deadline => deadline,
        };
        let information = self.information.wake().min(answer);
        machine.min(self.slaac.wake()).min(information).min(self.look).min(grace)
    }

    /// Whether the link-local address is to be looked for now.
    pub fn is_to_look(&self) -> bool {
        self.look <= now()
    }

    /// Solicits routers when it is time for it.
    ///
    /// # Errors
    /// The kernel does not send.
    pub fn solicit(&mut self, link: &Link) -> Result<()> {
        if self.slaac.wake() > now() || !self.slaac.timer(now()) {
            return Ok(());
        }
        let (Some(local), Some(socket)) = (self.local, &self.routers) else { return Ok(()) };
        let packet = advert::router_solicitation(local, link.mac);
        socket
            .send(&packet, advert::multicast_mac(advert::all_routers()))
            .map_err(|e| Error::system(format_args!("send a router solicitation on {}", link.name), e))
    }

    /// Asks for information when it is time for it.
    ///
    /// # Errors
    /// There is nothing to send from, or the kernel does not send.
    pub fn ask(&mut self, link: &Link, id: u64, tools: &Tools<'_>) -> Result<()> {
        match self.information.timer(now()) {
            Some(message) => self.send(&message, link, id, tools),
            None => Ok(()),
        }
    }

    /// Sends one DHCPv6 message.
    ///
    /// # Errors
    /// There is nothing to send from, or the kernel does not send.
    pub fn send(&mut self, message: &Outgoing, link: &Link, id: u64, tools: &Tools<'_>) -> Result<()> {
        let bytes = packet::encode(message, &self.identity);
        let failed =
            |e: &std::io::Error| Error::io(format_args!("send {:?} on {}", message.kind, link.name), e);
        let local = self.local.or_else(|| link.link_local());
        let local =
            local.ok_or_else(|| Error::internal(format!("{} has no link-local address", link.name)))?;
        let udp = match self.udp.take() {
            Some(udp) => udp,
            None => {
                let from = SocketAddrV6::new(local, CLIENT_PORT, 0, link.index);
                let udp = link.inside(|| UdpSocket::bind(from).map_err(|e| failed(&e)))?;
                udp.set_nonblocking(true).map_err(|e| failed(&e))?;
                tools
                    .epoll
                    .add(&udp, EpollEvent::new(EpollFlags::EPOLLIN, id | UDP6))
                    .map_err(|e| Error::system("epoll_ctl", e))?;
                udp
            }
        };
        let sent = udp.send_to(&bytes, SocketAddrV6::new(SERVERS, SERVER_PORT, 0, link.index));
        self.udp = Some(udp);
        sent.map(drop).map_err(|e| failed(&e))
    }

    /// Asks who has an address.
    ///
    /// # Errors
    /// The socket cannot be opened, or the kernel does not send.
    pub fn probe(&mut self, address: Ipv6Addr, link: &Link, id: u64, tools: &Tools<'_>) -> Result<()> {
        let socket = match self.neighbours.take() {
            Some(socket) => socket,
            None => open(Protocol::Neighbours, link, id | NEIGHBOURS, tools)?,
        };
        let group = advert::solicited_node(address);
        let sent = socket.send(&advert::probe(address), advert::multicast_mac(group));
        self.neighbours = Some(socket);
        sent.map_err(|e| Error::system(format_args!("send a neighbour solicitation on {}", link.name), e))
    }

    /// Reads what came in. True: what is known without a lease is to be written down.
    pub fn readable(&mut self, kind: u64) -> (Vec<Output>, bool) {
        match kind {
            ROUTERS => (Vec::new(), self.read_advertisements()),
            NEIGHBOURS => (self.read_neighbours(), false),
            _ => self.read_messages(),
        }
    }

    fn read_advertisements(&mut self) -> bool {
        let Some(socket) = &self.routers else { return false };
        let mut news = false;
        for _ in 0..BURST {
            let Ok(Some(received)) = socket.receive() else { break };
            if let Some((router, advert)) = advert::advertisement(&received.bytes, received.unfinished) {
                news |= self.slaac.heard_from(router, &advert, now());
            }
        }
        self.inform();
        news
    }

    fn read_neighbours(&mut self) -> Vec<Output> {
        let (Some(socket), Some(machine)) = (&self.neighbours, &mut self.machine) else { return Vec::new() };
        let mut outputs = Vec::new();
        let addresses = machine.probed();
        for _ in 0..BURST {
            let Ok(Some(received)) = socket.receive() else { break };
            for address in &addresses {
                if advert::is_conflict(&received.bytes, received.unfinished, *address) {
                    outputs.extend(machine.conflict(*address, now()));
                }
            }
        }
        outputs
    }

    fn read_messages(&mut self) -> (Vec<Output>, bool) {
        let (mut outputs, mut news) = (Vec::new(), false);
        let Some(udp) = &self.udp else { return (outputs, news) };
        let mut buffer = [0; packet::MAX_SIZE + 1];
        for _ in 0..BURST {
            // An error is one of an earlier message that could not be delivered.
            let Ok((length, _)) = udp.recv_from(&mut buffer) else { break };
            let Ok(reply) = packet::decode(&buffer[..length], self.identity.iaid) else { continue };
            match &mut self.machine {
                Some(machine) => outputs.extend(machine.received(&reply, now())),
                None => news |= self.information.received(&reply, now()),
            }
        }
        (outputs, news)
    }

    /// Closes what is not needed in the client's state.
    pub fn tidy(&mut self, tools: &Tools<'_>) {
        if self.machine.as_ref().is_none_or(|machine| machine.state() != "PROBING")
            && let Some(socket) = self.neighbours.take()
        {
            retire(socket, tools);
        }
        if !self.machine.as_ref().is_some_and(Machine::listens) && !self.information.listens() {
            self.udp = None;
        }
    }

    /// Closes everything but what a RELEASE needs that no server has answered yet. False: there is none.
    pub fn leave(&mut self, tools: &Tools<'_>) -> bool {
        [self.neighbours.take(), self.routers.take()].into_iter().flatten().for_each(|s| retire(s, tools));
        self.slaac = Slaac::new(Random::from_system());
        (self.look, self.began) = (NEVER, 0);
        self.machine.as_ref().is_some_and(Machine::says_farewell)
    }

    /// Closes everything.
    pub fn close(mut self, tools: &Tools<'_>) {
        [self.neighbours.take(), self.routers.take()].into_iter().flatten().for_each(|s| retire(s, tools));
    }
}
