//! The client of RFC 2131 (state diagram: figure 5) as a pure state machine: messages, timers and news from the link go in
//! with the moment they happen, messages to send and news about the lease come out.

use std::net::Ipv4Addr;

use super::lease::Lease;
use super::packet::{Kind, MAX_SIZE, Options, Outgoing, Reply, code};
use crate::plugins::dhcp::clock::{Millis, NEVER, Random};

/// So often a REQUEST for an offer is sent before the client begins anew.
const REQUEST_TRIES: u32 = 4;

/// So often a client asks whether it may use an address that it had before.
const REBOOT_TRIES: u32 = 3;

/// Shortest wait between renewals (RFC 2131 section 4.4.5) of leases that are long enough for it.
const RENEW_MIN: Millis = 60_000;

/// Probes for a conflict (RFC 5227 section 2.1), far closer together than for a person's laptop: who is in the same
/// network segment answers within milliseconds, and a container waits.
const PROBES: u32 = 3;
/// Longest distance of two probes.
const PROBE_GAP: Millis = 60;

/// Wait after the second conflict in a row (RFC 2131 section 3.1 point 5); the first is followed up at once.
const CONFLICT_WAIT: Millis = 10_000;

/// How the client behaves and who it is; does not change while it lives.
#[derive(Clone, Debug)]
pub struct Params {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Options of every message but DECLINE and RELEASE, which carry the client identifier only: client identifier,
    /// parameter request list, what the configuration provides.
    pub options: Options,
    /// Ask servers to answer by broadcast (RFC 2131 section 4.1).
    pub broadcast: bool,
    /// First wait for an answer.
    pub first_wait: Millis,
    /// Longest wait for an answer.
    pub longest_wait: Millis,
    /// Probe a new address before it is used.
    pub probe: bool,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Broadcast, from nobody (0.0.0.0): there is no address yet.
    Everybody,
    /// Broadcast, from the leased address.
    EverybodyFrom(Ipv4Addr),
    /// To the server, from the leased address.
    Server {
        /// The leased address.
        from: Ipv4Addr,
        /// The server's.
        to: Ipv4Addr,
    },
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message.
    Send(To, Box<Outgoing>),
    /// Ask the link whether somebody has this address; [`Machine::conflict`] if so.
    Probe(Ipv4Addr),
    /// From here on the server may have reserved this address for us: to be remembered, so that it can be given back.
    Requesting {
        /// The address.
        address: Ipv4Addr,
        /// The server.
        server: Ipv4Addr,
    },
    /// The lease (new, changed or renewed) is [`Machine::lease`].
    Leased,
    /// The address must not be used any more, and why.
    Lost(String),
    /// Something for the log.
    Note(String),
}

/// The states of RFC 2131 that last.
#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Nothing is wanted.
    Stopped,
    /// INIT, after something went wrong.
    Waiting { until: Millis },
    /// DISCOVER was sent.
    Selecting,
    /// REQUEST for an offer was sent.
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    /// The server has agreed; is somebody else using the address?
    Probing { sent: u32 },
    /// REQUEST for an earlier address was sent; `in_use`: it stays in use when nobody answers.
    Rebooting { in_use: bool },
    /// Nothing to do until T1.
    Bound,
    /// REQUEST to the server that gave the lease was sent.
    Renewing,
    /// REQUEST to any server was sent.
    Rebinding,
}

/// One client.
#[derive(Clone, Debug)]
pub struct Machine {
    params: Params,
    random: Random,
    state: State,
    xid: u32,
    /// When the acquisition or renewal began: for `secs`.
    began: Millis,
    /// When the last DISCOVER was sent: the REQUEST that follows has its `secs` (RFC 2131 section 3.1 point 3), so that
    /// relays pass it on to the same servers.
    discovered: Millis,
    /// When the first message of this exchange was sent: a lease runs from there.
    asked: Millis,
    /// How often this exchange's message was sent.
    tries: u32,
    /// The next time something happens by itself.
    wake: Millis,
    lease: Option<Lease>,
    /// Conflicts and refusals in a row.
    failures: u32,
    /// What went wrong last, for whoever waits.
    problem: Option<String>,
}

impl Machine {
    /// A client that does nothing yet.
    pub fn new(params: Params, random: Random) -> Machine {
        Machine {
            params,
            random,
            state: State::Stopped,
            xid: 0,
            began: 0,
            discovered: 0,
            asked: 0,
            tries: 0,
            wake: NEVER,
            lease: None,
            failures: 0,
            problem: None,
        }
    }

    /// Begins at INIT: any address from any server.
    pub fn start(&mut self, now: Millis) -> Vec<Output> {
        self.began = now;
        self.failures = 0;
        self.discover(now)
    }

    /// Begins at INIT-REBOOT: may this lease, of before, be used (again)? `in_use`: it is, and stays so when nobody
    /// answers.
    pub fn reboot(&mut self, lease: Lease, in_use: bool, now: Millis) -> Vec<Output> {
        if lease.expires_at <= now {
            return self.start(now);
        }
        self.began = now;
        self.lease = Some(lease);
        self.begin(State::Rebooting { in_use }, now);
        self.request(now)
    }

    /// Goes on with a lease that was never given up, as after a restart of the program: no message, no wait.
    pub fn resume(&mut self, lease: Lease, now: Millis) -> Vec<Output> {
        self.lease = Some(lease);
        self.state = State::Bound;
        self.set_bound_wake();
        self.timer(now)
    }

    /// When [`Machine::timer`] is to be called; [`NEVER`] is possible.
    pub fn wake(&self) -> Millis {
        self.wake
    }

    /// The lease in use, if there is one.
    pub fn lease(&self) -> Option<&Lease> {
        match self.state {
            State::Bound | State::Renewing | State::Rebinding | State::Rebooting { in_use: true } => {
                self.lease.as_ref()
            }
            _ => None,
        }
    }

    /// The state's name as RFC 2131 writes it.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Stopped => "STOPPED",
            State::Waiting { .. } => "INIT",
            State::Selecting => "SELECTING",
            State::Requesting { .. } => "REQUESTING",
            State::Probing { .. } => "PROBING",
            State::Rebooting { .. } => "REBOOTING",
            State::Bound => "BOUND",
            State::Renewing => "RENEWING",
            State::Rebinding => "REBINDING",
        }
    }

    /// What happens at [`Machine::wake`], for people.
    pub fn next_action(&self) -> &'static str {
        match self.state {
            State::Stopped => "nothing",
            State::Waiting { .. } => "discover",
            State::Selecting | State::Requesting { .. } | State::Rebooting { .. } => "send again",
            State::Probing { .. } => "probe",
            State::Bound if self.wake == NEVER => "nothing",
            State::Bound => "renew",
            State::Renewing | State::Rebinding => "send again or go on",
        }
    }

    /// Whether an answer is awaited: then the link must be listened to.
    pub fn listens(&self) -> bool {
        !matches!(self.state, State::Stopped | State::Waiting { .. } | State::Bound)
    }

    /// What went wrong last.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The time has come.
    pub fn timer(&mut self, now: Millis) -> Vec<Output> {
        if now < self.wake {
            return Vec::new();
        }
        if self.lease().is_some_and(|lease| lease.expires_at <= now) {
            return self.lost("the lease has expired, and no server has renewed it".to_owned(), 0, now);
        }
        match self.state.clone() {
            State::Stopped => {
                self.wake = NEVER;
                Vec::new()
            }
            State::Waiting { .. } => self.discover(now),
            State::Selecting => self.send_again(now),
            State::Requesting { .. } if self.tries >= REQUEST_TRIES => {
                self.problem = Some("the server that offered an address did not confirm it".to_owned());
                self.discover(now)
            }
            State::Requesting { .. } => self.send_again(now),
            State::Probing { sent } if sent < PROBES => self.probe(sent, now),
            State::Probing { .. } => self.bound(),
            State::Rebooting { in_use } if self.tries >= REBOOT_TRIES => match in_use {
                true => {
                    let mut outputs =
                        vec![Output::Note("no server answers; the lease stays in use".to_owned())];
                    self.state = State::Bound;
                    self.set_bound_wake();
                    outputs.extend(self.timer(now));
                    outputs
                }
                false => self.discover(now),
            },
            State::Rebooting { .. } => self.send_again(now),
            State::Bound => {
                self.began = now;
                let rebinding = self.lease.as_ref().is_some_and(|l| l.rebind_at <= now);
                self.begin(if rebinding { State::Rebinding } else { State::Renewing }, now);
                self.request(now)
            }
            State::Renewing if self.lease.as_ref().is_some_and(|l| l.rebind_at <= now) => {
                self.begin(State::Rebinding, now);
                let mut outputs =
                    vec![Output::Note("the server does not renew; asking any server".to_owned())];
                outputs.extend(self.request(now));
                outputs
            }
            State::Renewing | State::Rebinding => self.request(now),
        }
    }

    /// A server's message came in.
    pub fn received(&mut self, reply: &Reply, now: Millis) -> Vec<Output> {
        if reply.xid != self.xid || reply.mac != self.params.mac {
            return Vec::new();
        }
        match (&self.state, reply.kind) {
            (State::Selecting, Kind::Offer) => self.offered(reply, now),
            (State::Requesting { server, .. }, Kind::Ack | Kind::Nak)
                if reply.options.ip(code::SERVER) != Some(*server) =>
            {
                Vec::new()
            }
            (State::Renewing, Kind::Ack | Kind::Nak) if !self.is_from_own_server(reply) => Vec::new(),
            (
                State::Requesting { .. } | State::Rebooting { .. } | State::Renewing | State::Rebinding,
                kind,
            ) => match kind {
                Kind::Ack => self.acknowledged(reply, now),
                Kind::Nak => self.refused(reply, now),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Somebody on the link uses this address: it is declined before it is used, or was lost if it is in use.
    pub fn conflict(&mut self, address: Ipv4Addr, now: Millis) -> Vec<Output> {
        let probing = matches!(self.state, State::Probing { .. });
        let Some(lease) = self.lease.take_if(|lease| probing && lease.address == address) else {
            return Vec::new();
        };
        let mut options = self.identity();
        options.0.insert(code::REQUESTED, lease.address.octets().to_vec());
        options.0.insert(code::SERVER, lease.server.octets().to_vec());
        let text = format!("somebody else uses {address}, which {} gave; declined", lease.server);
        self.problem = Some(text.clone());
        let mut outputs = vec![
            Output::Lost(text),
            Output::Send(
                To::Everybody,
                Box::new(self.message(Kind::Decline, Ipv4Addr::UNSPECIFIED, options, now)),
            ),
        ];
        self.failures += 1;
        let wait = if self.failures > 1 { CONFLICT_WAIT } else { 0 };
        outputs.extend(self.wait(wait, now));
        outputs
    }

    /// The link has come back: is this still the network that the lease is for (RFC 2131 section 3.7, RFC 4436)?
    pub fn link_returned(&mut self, now: Millis) -> Vec<Output> {
        match (&self.state, self.lease.clone()) {
            (State::Bound | State::Renewing | State::Rebinding, Some(lease)) => self.reboot(lease, true, now),
            (State::Waiting { .. } | State::Selecting, _) => self.start(now),
            _ => Vec::new(),
        }
    }

    /// Gives up the lease, or what may have become one.
    pub fn release(&mut self, now: Millis) -> Vec<Output> {
        let (state, lease) = (std::mem::replace(&mut self.state, State::Stopped), self.lease.take());
        self.wake = NEVER;
        let held = match (state, lease) {
            (State::Requesting { address, server }, _) => Some((address, server)),
            (State::Stopped | State::Waiting { .. } | State::Selecting, _) | (_, None) => None,
            (_, Some(lease)) => Some((lease.address, lease.server)),
        };
        held.map_or(Vec::new(), |(address, server)| vec![self.release_of(address, server, now)])
    }

    /// A RELEASE (RFC 2131 section 4.4.6), also for what an earlier process was given.
    pub fn release_of(&mut self, address: Ipv4Addr, server: Ipv4Addr, now: Millis) -> Output {
        self.xid = self.random.next_u32();
        let mut options = self.identity();
        options.0.insert(code::SERVER, server.octets().to_vec());
        let message = self.message(Kind::Release, address, options, now);
        Output::Send(To::Server { from: address, to: server }, Box::new(message))
    }

    fn is_from_own_server(&self, reply: &Reply) -> bool {
        self.lease.as_ref().map(|l| l.server) == reply.options.ip(code::SERVER)
    }

    fn discover(&mut self, now: Millis) -> Vec<Output> {
        self.lease = None;
        self.begin(State::Selecting, now);
        self.send_again(now)
    }

    /// A new exchange.
    fn begin(&mut self, state: State, now: Millis) {
        self.state = state;
        self.xid = self.random.next_u32();
        self.tries = 0;
        self.asked = now;
    }

    fn offered(&mut self, offer: &Reply, now: Millis) -> Vec<Output> {
        // What an offer lacks, its ACK will lack as well: another server may do better.
        let lease = Lease::new(offer, now, &mut self.random).and_then(|lease| match lease.net() {
            Some(_) => Ok(lease),
            None => {
                Err(format!("{} offers {} without a subnet mask (option 1)", lease.server, lease.address))
            }
        });
        match lease {
            Ok(lease) => {
                let (address, server) = (lease.address, lease.server);
                self.state = State::Requesting { address, server };
                self.tries = 0;
                self.asked = now;
                let mut outputs = vec![Output::Requesting { address, server }];
                outputs.extend(self.send_again(now));
                outputs
            }
            Err(problem) => {
                self.problem = Some(problem.clone());
                vec![Output::Note(format!("offer ignored: {problem}"))]
            }
        }
    }

    fn acknowledged(&mut self, ack: &Reply, now: Millis) -> Vec<Output> {
        let lease = Lease::new(ack, self.asked, &mut self.random).and_then(|lease| match lease.net() {
            Some(_) => Ok(lease),
            None => Err(format!("{} gave {} without a subnet mask (option 1)", lease.server, lease.address)),
        });
        let lease = match lease {
            Ok(lease) => lease,
            Err(problem) => {
                self.problem = Some(problem.clone());
                return vec![Output::Note(format!("ACK ignored: {problem}"))];
            }
        };
        if let State::Requesting { address, .. } = self.state
            && address != lease.address
        {
            let text = format!("{} was asked for {address} and gave {}", lease.server, lease.address);
            self.problem = Some(text.clone());
            return vec![Output::Note(format!("ACK ignored: {text}"))];
        }
        let known = self.lease.as_ref().is_some_and(|l| l.address == lease.address);
        let in_use = !matches!(self.state, State::Requesting { .. } | State::Rebooting { in_use: false });
        self.lease = Some(lease);
        if self.params.probe && !(known && in_use) {
            self.state = State::Probing { sent: 0 };
            return self.probe(0, now);
        }
        self.bound()
    }

    fn probe(&mut self, sent: u32, now: Millis) -> Vec<Output> {
        let Some(lease) = &self.lease else { return Vec::new() };
        let address = lease.address;
        self.state = State::Probing { sent: sent + 1 };
        self.wake = now + self.random.around(PROBE_GAP * 3 / 4, PROBE_GAP / 4);
        vec![Output::Probe(address)]
    }

    fn bound(&mut self) -> Vec<Output> {
        self.state = State::Bound;
        self.failures = 0;
        self.problem = None;
        self.set_bound_wake();
        vec![Output::Leased]
    }

    fn set_bound_wake(&mut self) {
        self.wake = self.lease.as_ref().map_or(NEVER, |l| l.renew_at);
    }

    fn refused(&mut self, nak: &Reply, now: Millis) -> Vec<Output> {
        let who = nak.options.ip(code::SERVER).map_or("a server".to_owned(), |ip| ip.to_string());
        let why = nak.options.text(code::MESSAGE).map_or(String::new(), |text| format!(": {text}"));
        self.failures += 1;
        // One refusal is normal (another network, another lease); many in a row must not flood the link.
        let wait = match self.failures {
            1 => 0,
            n => self
                .params
                .first_wait
                .saturating_mul(1 << n.min(8).saturating_sub(2))
                .min(self.params.longest_wait),
        };
        let in_use = self.lease().is_some();
        let text = format!("{who} refuses the address (NAK){why}");
        self.problem = Some(text.clone());
        match in_use {
            true => self.lost(text, wait, now),
            false => {
                let mut outputs = vec![Output::Note(text)];
                outputs.extend(self.wait(wait, now));
                outputs
            }
        }
    }

    fn lost(&mut self, why: String, wait: Millis, now: Millis) -> Vec<Output> {
        self.problem = Some(why.clone());
        let mut outputs = vec![Output::Lost(why)];
        outputs.extend(self.wait(wait, now));
        outputs
    }

    /// INIT after `wait`.
    fn wait(&mut self, wait: Millis, now: Millis) -> Vec<Output> {
        self.began = now;
        if wait == 0 {
            return self.discover(now);
        }
        self.lease = None;
        self.state = State::Waiting { until: now + wait };
        self.wake = now + wait;
        Vec::new()
    }

    /// Sends this exchange's message, and sets the time for the next: 4, 8, 16 … 64 s, each ± 1 s (RFC 2131 section 4.1).
    fn send_again(&mut self, now: Millis) -> Vec<Output> {
        let nominal = self.params.first_wait.saturating_mul(1 << self.tries.min(16));
        let nominal = nominal.min(self.params.longest_wait).max(1);
        self.wake = now + self.random.around(nominal, (self.params.first_wait / 4).min(1000));
        if let Some(lease) = self.lease() {
            self.wake = self.wake.min(lease.expires_at);
        }
        self.tries += 1;
        let mut options = self.params.options.clone();
        let kind = match self.state {
            State::Requesting { address, server } => {
                options.0.insert(code::REQUESTED, address.octets().to_vec());
                options.0.insert(code::SERVER, server.octets().to_vec());
                Kind::Request
            }
            State::Rebooting { .. } => {
                let address = self.lease.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |l| l.address);
                options.0.insert(code::REQUESTED, address.octets().to_vec());
                Kind::Request
            }
            _ => Kind::Discover,
        };
        if kind == Kind::Discover {
            self.discovered = now;
            if self.tries == 1 {
                self.asked = now;
            }
        }
        let message = self.message(kind, Ipv4Addr::UNSPECIFIED, options, now);
        vec![Output::Send(To::Everybody, Box::new(message))]
    }

    /// Asks for more time (RENEWING, REBINDING), or for an earlier address (REBOOTING).
    fn request(&mut self, now: Millis) -> Vec<Output> {
        let Some(lease) = self.lease.clone() else { return self.discover(now) };
        let (to, until) = match self.state {
            State::Renewing => (To::Server { from: lease.address, to: lease.server }, lease.rebind_at),
            State::Rebinding => (To::EverybodyFrom(lease.address), lease.expires_at),
            _ => return self.send_again(now),
        };
        // A granted lease runs from the first request that could have been granted.
        if self.tries == 0 {
            self.asked = now;
        }
        self.tries += 1;
        // Half of what is left, but not more often than once a minute, or eight times in short leases.
        let left = until.saturating_sub(now);
        let least = RENEW_MIN.min((until.saturating_sub(self.asked) / 8).max(500));
        self.wake = (now + (left / 2).max(least)).min(until);
        let message = self.message(Kind::Request, lease.address, self.params.options.clone(), now);
        vec![Output::Send(to, Box::new(message))]
    }

    /// The client identifier alone.
    fn identity(&self) -> Options {
        let id = self.params.options.0.get(&code::CLIENT_ID);
        Options(id.map(|id| (code::CLIENT_ID, id.clone())).into_iter().collect())
    }

    fn message(&self, kind: Kind, ciaddr: Ipv4Addr, mut options: Options, now: Millis) -> Outgoing {
        if matches!(kind, Kind::Discover | Kind::Request) {
            options.0.entry(code::MAX_SIZE).or_insert_with(|| MAX_SIZE.to_be_bytes().to_vec());
        }
        let since = match (kind, &self.state) {
            // RFC 2131 table 5.
            (Kind::Decline | Kind::Release, _) => self.began,
            (_, State::Requesting { .. }) => self.discovered,
            _ => now,
        };
        let secs = u16::try_from(since.saturating_sub(self.began) / 1000).unwrap_or(u16::MAX);
        let answered = matches!(kind, Kind::Discover | Kind::Request);
        Outgoing {
            kind,
            xid: self.xid,
            secs,
            broadcast: self.params.broadcast && ciaddr.is_unspecified() && answered,
            ciaddr,
            mac: self.params.mac,
            options,
        }
    }
}
