//! The client of RFC 8415 (section 18.2) as a pure state machine, as [`crate::plugins::dhcp::v4::machine`] is for IPv4.

use std::net::Ipv6Addr;

use super::lease::Lease;
use super::packet::{Identity, Kind, Outgoing, Reply, Status};
use crate::plugins::dhcp::clock::{Millis, NEVER, Random};

/// How an exchange is sent again (RFC 8415 sections 7.6 and 15).
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// IRT: first wait.
    pub first: Millis,
    /// MRT: longest wait.
    pub longest: Millis,
    /// MRC: how often; 0 for ever.
    pub count: u32,
}

impl Retry {
    /// The wait after one of `before`, 0 at first; `longest`: what a server has made of MRT.
    pub fn next(self, before: Millis, longest: Millis, random: &mut Random) -> Millis {
        let nominal = if before == 0 { self.first } else { before.saturating_mul(2) }.min(longest);
        random.around(nominal, nominal / 10).max(1)
    }
}

const SOLICIT: Retry = Retry { first: 1_000, longest: 3_600_000, count: 0 };
const REQUEST: Retry = Retry { first: 1_000, longest: 30_000, count: 10 };
const CONFIRM: Retry = Retry { first: 1_000, longest: 4_000, count: 4 };
const RENEW: Retry = Retry { first: 10_000, longest: 600_000, count: 0 };
/// RELEASE and DECLINE.
const FAREWELL: Retry = Retry { first: 1_000, longest: NEVER, count: 4 };

/// Advertisements are collected so long; RFC 8415 says a second, in which no container wants to wait. A server of
/// preference 255 is taken at once.
const COLLECT: Millis = 100;

/// Probes of an address, and their distance: as for IPv4.
const PROBES: u32 = 2;
const PROBE_GAP: Millis = 60;

/// Wait after a refusal.
const REFUSED_WAIT: Millis = 4_000;

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message to all servers and relays (ff02::1:2).
    Send(Box<Outgoing>),
    /// Ask the link whether somebody has this address; [`Machine::conflict`] if so.
    Probe(Ipv6Addr),
    /// From here on a server may have reserved these for us.
    Requesting(Box<Lease>),
    /// The lease (new, changed or renewed) is [`Machine::lease`].
    Leased,
    /// The addresses must not be used any more, and why.
    Lost(String),
    /// Something for the log.
    Note(String),
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Stopped,
    Waiting,
    /// SOLICIT was sent; the best advertisement so far.
    Soliciting {
        best: Option<Box<Reply>>,
    },
    /// REQUEST was sent for this.
    Requesting {
        offer: Box<Lease>,
    },
    Probing {
        sent: u32,
    },
    Bound,
    Renewing,
    Rebinding,
    /// CONFIRM was sent: the lease stays in use meanwhile.
    Confirming,
}

/// A RELEASE or DECLINE, sent again until a server answers, whatever else goes on meanwhile.
#[derive(Clone, Debug)]
struct Farewell {
    kind: Kind,
    lease: Lease,
    xid: u32,
    began: Millis,
    tries: u32,
    wait: Millis,
    wake: Millis,
}

/// One client.
#[derive(Clone, Debug)]
pub struct Machine {
    identity: Identity,
    random: Random,
    state: State,
    farewell: Option<Farewell>,
    /// SOL_MAX_RT.
    solicit_longest: Millis,
    xid: u32,
    began: Millis,
    tries: u32,
    wait: Millis,
    wake: Millis,
    lease: Option<Lease>,
    problem: Option<String>,
    /// In this exchange a server was asked again for what it did not know.
    asked_again: bool,
}

impl Machine {
    /// A client that does nothing yet.
    pub fn new(identity: Identity, random: Random) -> Machine {
        Machine {
            identity,
            random,
            state: State::Stopped,
            farewell: None,
            solicit_longest: SOLICIT.longest,
            xid: 0,
            began: 0,
            tries: 0,
            wait: 0,
            wake: NEVER,
            lease: None,
            problem: None,
            asked_again: false,
        }
    }

    /// Begins with SOLICIT.
    pub fn start(&mut self, now: Millis) -> Vec<Output> {
        self.lease = None;
        self.begin(State::Soliciting { best: None }, now);
        self.send(now)
    }

    /// Goes on with a lease that was never given up.
    pub fn resume(&mut self, lease: Lease, now: Millis) -> Vec<Output> {
        self.wake = lease.renew_at;
        self.lease = Some(lease);
        self.state = State::Bound;
        self.timer(now)
    }

    /// When [`Machine::timer`] is to be called.
    pub fn wake(&self) -> Millis {
        self.wake.min(self.farewell.as_ref().map_or(NEVER, |farewell| farewell.wake))
    }

    /// The lease in use.
    pub fn lease(&self) -> Option<&Lease> {
        match self.state {
            State::Bound | State::Renewing | State::Rebinding | State::Confirming => self.lease.as_ref(),
            _ => None,
        }
    }

    /// The state, in the words of the messages that are sent in it.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Stopped => "STOPPED",
            State::Waiting => "WAITING",
            State::Soliciting { .. } => "SOLICITING",
            State::Requesting { .. } => "REQUESTING",
            State::Probing { .. } => "PROBING",
            State::Bound => "BOUND",
            State::Renewing => "RENEWING",
            State::Rebinding => "REBINDING",
            State::Confirming => "CONFIRMING",
        }
    }

    /// What happens at [`Machine::wake`], for people.
    pub fn next_action(&self) -> &'static str {
        match self.state {
            _ if self.wake == NEVER => "nothing",
            State::Stopped => "nothing",
            State::Waiting => "solicit",
            State::Probing { .. } => "probe",
            State::Bound => "renew",
            State::Renewing | State::Rebinding => "send again or go on",
            _ => "send again",
        }
    }

    /// Whether an answer is awaited.
    pub fn listens(&self) -> bool {
        self.says_farewell() || !matches!(self.state, State::Stopped | State::Waiting | State::Bound)
    }

    /// Whether a RELEASE or DECLINE was sent that no server has answered yet.
    pub fn says_farewell(&self) -> bool {
        self.farewell.is_some()
    }

    /// What went wrong last.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The time has come.
    pub fn timer(&mut self, now: Millis) -> Vec<Output> {
        let mut outputs = self.farewell_again(now);
        if now >= self.wake {
            outputs.extend(self.next_step(now));
        }
        outputs
    }

    fn next_step(&mut self, now: Millis) -> Vec<Output> {
        if self.lease().is_some_and(|lease| lease.expires_at <= now) {
            return self.lost(
                "the DHCPv6 lease has expired, and no server has renewed it".to_owned(),
                0,
                now,
            );
        }
        let rebind = self.lease.as_ref().is_some_and(|lease| lease.rebind_at <= now);
        match self.state.clone() {
            State::Stopped => {
                self.wake = NEVER;
                Vec::new()
            }
            State::Waiting => self.start(now),
            State::Soliciting { best: Some(best) } => self.request(best.lease, now),
            State::Requesting { .. } if self.tries >= REQUEST.count => {
                self.problem =
                    Some("the DHCPv6 server that offered an address did not confirm it".to_owned());
                self.start(now)
            }
            State::Probing { sent } if sent < PROBES => self.probe(sent, now),
            State::Probing { .. } => self.bound(),
            State::Confirming if self.tries >= CONFIRM.count => {
                self.state = State::Bound;
                self.wake = self.lease.as_ref().map_or(NEVER, |lease| lease.renew_at);
                vec![Output::Note("no DHCPv6 server answers; the lease stays in use".to_owned())]
            }
            State::Bound | State::Renewing if rebind => {
                self.begin(State::Rebinding, now);
                self.send(now)
            }
            State::Bound => {
                self.begin(State::Renewing, now);
                self.send(now)
            }
            _ => self.send(now),
        }
    }

    /// A server's message came in.
    pub fn received(&mut self, reply: &Reply, now: Millis) -> Vec<Output> {
        if reply.client != self.identity.duid {
            return Vec::new();
        }
        // Whatever it says: there is nothing left to be done about it (sections 18.2.10.2 and 18.2.10.3).
        if reply.kind == Kind::Reply && self.farewell.take_if(|f| f.xid == reply.xid).is_some() {
            return Vec::new();
        }
        if reply.xid != self.xid {
            return Vec::new();
        }
        self.solicit_longest = reply.solicit_longest.unwrap_or(self.solicit_longest);
        match (&self.state, reply.kind) {
            (State::Soliciting { .. }, Kind::Advertise) => self.advertised(reply, now),
            (State::Soliciting { .. }, Kind::Reply) if reply.rapid => self.granted(reply, now),
            (State::Requesting { offer }, Kind::Reply) if offer.server == reply.lease.server => {
                self.granted(reply, now)
            }
            (State::Renewing, Kind::Reply)
                if self.lease.as_ref().map(|l| &l.server) == Some(&reply.lease.server) =>
            {
                self.renewed(reply, now)
            }
            (State::Rebinding, Kind::Reply) => self.renewed(reply, now),
            (State::Confirming, Kind::Reply) => self.confirmed(reply, now),
            _ => Vec::new(),
        }
    }

    /// The addresses that are being probed.
    pub fn probed(&self) -> Vec<Ipv6Addr> {
        match (&self.state, &self.lease) {
            (State::Probing { .. }, Some(lease)) => lease.addresses.clone(),
            _ => Vec::new(),
        }
    }

    /// Somebody on the link uses this address.
    pub fn conflict(&mut self, address: Ipv6Addr, now: Millis) -> Vec<Output> {
        let probing = matches!(self.state, State::Probing { .. });
        let Some(lease) = self.lease.take_if(|lease| probing && lease.addresses.contains(&address)) else {
            return Vec::new();
        };
        let text = format!("somebody else uses {address}; declined");
        self.problem = Some(text.clone());
        let decline = Lease { addresses: vec![address], prefixes: Vec::new(), ..lease };
        let mut outputs = vec![Output::Lost(text)];
        outputs.extend(self.farewell(Kind::Decline, decline, now));
        outputs.extend(self.wait(REFUSED_WAIT, now));
        outputs
    }

    /// The link has come back: do the addresses still fit it (RFC 8415 section 18.2.3)?
    pub fn link_returned(&mut self, now: Millis) -> Vec<Output> {
        match self.state {
            State::Bound | State::Renewing | State::Rebinding => {
                // A server does not confirm prefixes (section 18.2.12).
                let prefixes = self.lease.as_ref().is_some_and(|lease| !lease.prefixes.is_empty());
                self.begin(if prefixes { State::Rebinding } else { State::Confirming }, now);
                self.send(now)
            }
            State::Waiting | State::Soliciting { .. } => self.start(now),
            _ => Vec::new(),
        }
    }

    /// Gives up the lease, or what may have become one.
    pub fn release(&mut self, now: Millis) -> Vec<Output> {
        let (state, lease) = (std::mem::replace(&mut self.state, State::Stopped), self.lease.take());
        self.wake = NEVER;
        let held = match state {
            State::Requesting { offer } => Some(*offer),
            State::Stopped | State::Waiting | State::Soliciting { .. } => None,
            _ => lease,
        };
        held.map_or(Vec::new(), |lease| self.release_of(lease, now))
    }

    /// A RELEASE, also for what an earlier process was given. Nothing is asked for any more.
    pub fn release_of(&mut self, lease: Lease, now: Millis) -> Vec<Output> {
        (self.state, self.wake) = (State::Stopped, NEVER);
        self.farewell(Kind::Release, lease, now)
    }

    fn farewell(&mut self, kind: Kind, lease: Lease, now: Millis) -> Vec<Output> {
        let xid = self.random.next_u32() >> 8;
        self.farewell = Some(Farewell { kind, lease, xid, began: now, tries: 0, wait: 0, wake: now });
        self.farewell_again(now)
    }

    /// Sends it again when it is time for that, and gives up at last (sections 18.2.7 and 18.2.8).
    fn farewell_again(&mut self, now: Millis) -> Vec<Output> {
        let Some(farewell) = self.farewell.as_mut().filter(|farewell| farewell.wake <= now) else {
            return Vec::new();
        };
        if farewell.tries >= FAREWELL.count {
            let text = format!("no DHCPv6 server answers to {:?}", farewell.kind);
            self.farewell = None;
            return vec![Output::Note(text)];
        }
        farewell.tries += 1;
        farewell.wait = FAREWELL.next(farewell.wait, FAREWELL.longest, &mut self.random);
        farewell.wake = now + farewell.wait;
        vec![Output::Send(Box::new(Outgoing {
            kind: farewell.kind,
            xid: farewell.xid,
            elapsed: now - farewell.began,
            server: Some(farewell.lease.server.clone()),
            lease: Some(farewell.lease.clone()),
        }))]
    }

    fn begin(&mut self, state: State, now: Millis) {
        self.state = state;
        self.xid = self.random.next_u32() >> 8;
        (self.began, self.tries, self.wait, self.asked_again) = (now, 0, 0, false);
    }

    fn advertised(&mut self, offer: &Reply, now: Millis) -> Vec<Output> {
        if let Some(problem) = unusable(offer) {
            self.problem = Some(problem.clone());
            return vec![Output::Note(format!("advertisement ignored: {problem}"))];
        }
        if offer.preference == u8::MAX || self.tries > 1 {
            return self.request(offer.lease.clone(), now);
        }
        let State::Soliciting { best } = &mut self.state else { return Vec::new() };
        if best.as_ref().is_none_or(|best| best.preference < offer.preference) {
            *best = Some(Box::new(offer.clone()));
            self.wake = self.wake.min(self.began + COLLECT).max(now);
        }
        Vec::new()
    }

    fn request(&mut self, offer: Lease, now: Millis) -> Vec<Output> {
        self.begin(State::Requesting { offer: Box::new(offer.clone()) }, now);
        let mut outputs = vec![Output::Requesting(Box::new(offer))];
        outputs.extend(self.send(now));
        outputs
    }

    fn granted(&mut self, reply: &Reply, now: Millis) -> Vec<Output> {
        if let Some(problem) = unusable(reply) {
            self.problem = Some(problem.clone());
            let mut outputs = vec![Output::Note(problem)];
            outputs.extend(self.wait(REFUSED_WAIT, now));
            return outputs;
        }
        self.lease = Some(self.lease_of(reply));
        self.probe(0, now)
    }

    fn renewed(&mut self, reply: &Reply, now: Millis) -> Vec<Output> {
        match (reply.association.0, reply.status.0) {
            (Status::NO_BINDING, _) | (_, Status::NO_BINDING) if self.asked_again => Vec::new(),
            (Status::NO_BINDING, _) | (_, Status::NO_BINDING) => {
                self.asked_again = true;
                // The server knows nothing of it (any more), but would give it (section 18.2.10.1).
                let lease =
                    Lease { server: reply.lease.server.clone(), ..self.lease.clone().unwrap_or_default() };
                let mut outputs = vec![Output::Note("the DHCPv6 server does not know the lease".to_owned())];
                outputs.extend(self.renew_by_request(lease, now));
                outputs
            }
            _ if unusable(reply).is_some() => match &self.lease {
                Some(lease) if lease.addresses.iter().all(|ip| reply.withdrawn.contains(ip)) => {
                    self.lost("the DHCPv6 server has withdrawn the addresses".to_owned(), 0, now)
                }
                _ => Vec::new(),
            },
            _ => {
                let lease = self.lease_of(reply);
                let known = self.lease.replace(lease).unwrap_or_default().addresses;
                match reply.lease.addresses.iter().all(|ip| known.contains(ip)) {
                    true => self.bound(),
                    false => self.probe(0, now),
                }
            }
        }
    }

    /// A REQUEST for what is in use: the lease stays until the answer.
    fn renew_by_request(&mut self, lease: Lease, now: Millis) -> Vec<Output> {
        self.xid = self.random.next_u32() >> 8;
        let message = self.message(Kind::Request, Some(lease), now);
        vec![Output::Send(Box::new(message))]
    }

    fn confirmed(&mut self, reply: &Reply, now: Millis) -> Vec<Output> {
        match reply.status.0 {
            Status::SUCCESS => {
                self.state = State::Bound;
                self.wake = self.lease.as_ref().map_or(NEVER, |lease| lease.renew_at);
                Vec::new()
            }
            _ => self.lost("the link is another one: its DHCPv6 addresses do not fit".to_owned(), 0, now),
        }
    }

    fn lease_of(&self, reply: &Reply) -> Lease {
        let mut lease = reply.lease.clone();
        lease.set_times(reply.times, self.began);
        lease
    }

    fn probe(&mut self, sent: u32, now: Millis) -> Vec<Output> {
        self.state = State::Probing { sent: sent + 1 };
        self.wake = now + PROBE_GAP;
        let addresses = self.lease.as_ref().map(|l| l.addresses.clone()).unwrap_or_default();
        addresses.into_iter().map(Output::Probe).collect()
    }

    fn bound(&mut self) -> Vec<Output> {
        self.state = State::Bound;
        self.problem = None;
        self.wake = self.lease.as_ref().map_or(NEVER, |lease| lease.renew_at);
        vec![Output::Leased]
    }

    fn lost(&mut self, why: String, wait: Millis, now: Millis) -> Vec<Output> {
        self.problem = Some(why.clone());
        let mut outputs = vec![Output::Lost(why)];
        outputs.extend(self.wait(wait, now));
        outputs
    }

    fn wait(&mut self, wait: Millis, now: Millis) -> Vec<Output> {
        if wait == 0 {
            return self.start(now);
        }
        self.lease = None;
        self.state = State::Waiting;
        self.wake = now + wait;
        Vec::new()
    }

    /// Sends this state's message, and sets the time for the next (RFC 8415 section 15).
    fn send(&mut self, now: Millis) -> Vec<Output> {
        let (kind, retry, until) = match &self.state {
            State::Soliciting { .. } => (Kind::Solicit, SOLICIT, NEVER),
            State::Requesting { .. } => (Kind::Request, REQUEST, NEVER),
            State::Confirming => {
                (Kind::Confirm, CONFIRM, self.lease.as_ref().map_or(NEVER, |l| l.expires_at))
            }
            State::Renewing => (Kind::Renew, RENEW, self.lease.as_ref().map_or(NEVER, |l| l.rebind_at)),
            State::Rebinding => (Kind::Rebind, RENEW, self.lease.as_ref().map_or(NEVER, |l| l.expires_at)),
            _ => return Vec::new(),
        };
        let longest = if kind == Kind::Solicit { self.solicit_longest } else { retry.longest };
        self.wait = retry.next(self.wait, longest, &mut self.random);
        self.wake = (now + self.wait).min(until);
        self.tries += 1;
        let lease = match &self.state {
            State::Requesting { offer } => Some((**offer).clone()),
            State::Soliciting { .. } => None,
            _ => self.lease.clone(),
        };
        vec![Output::Send(Box::new(self.message(kind, lease, now)))]
    }

    fn message(&self, kind: Kind, lease: Option<Lease>, now: Millis) -> Outgoing {
        let to_one = matches!(kind, Kind::Request | Kind::Renew);
        let server = lease.as_ref().filter(|_| to_one).map(|lease| lease.server.clone());
        Outgoing { kind, xid: self.xid, elapsed: now.saturating_sub(self.began), server, lease }
    }
}

/// Why an answer gives nothing.
fn unusable(reply: &Reply) -> Option<String> {
    let said = [&reply.status, &reply.association].into_iter().find(|(status, _)| *status != Status::SUCCESS);
    match said {
        Some((status, text)) if text.is_empty() => Some(format!("the DHCPv6 server says {status}")),
        Some((status, text)) => Some(format!("the DHCPv6 server says {status}: {text}")),
        None if reply.lease.addresses.is_empty() => Some("the DHCPv6 server gives no address".to_owned()),
        None => None,
    }
}
