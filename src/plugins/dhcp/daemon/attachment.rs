//! One attachment: its interface, its clients, and who waits for them.

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::super::clock::{Millis, NEVER, now};
use super::super::outcome::Outcome;
use super::super::v4::lease::Lease;
use super::super::v4::machine::Output;
use super::super::v6;
use super::super::wanted::{ClientId, Wanted};
use super::Tools;
use super::link::Link;
use super::shown::Shown;
use super::side4::Side4;
use super::side6::Side6;
use super::store::Record;
use super::token::{ARP, LINKS, PACKET};
use crate::cni::{Code, Error, Result};

/// How long an interface that was just set up may take until frames get through; then it is tried all the same.
const UP_BUDGET: Millis = 2_500;

/// One attachment.
pub struct Attachment {
    id: u64,
    /// What it wants.
    pub wanted: Wanted,
    link: Link,
    v4: Option<Side4>,
    v6: Option<Side6>,
    /// Asked of a server, and not known whether granted.
    requesting: Option<(std::net::Ipv4Addr, std::net::Ipv4Addr)>,
    requesting6: Option<v6::lease::Lease>,
    /// The interface is not up yet: begin then, or at this moment at the latest, with this lease of before.
    starting: Option<(Millis, Option<Lease>)>,
    /// What the caller was told, and the interface has.
    given: Option<Outcome>,
    /// Connections that wait for the answer.
    pub waiting: Vec<u64>,
    /// When they are told that it failed.
    deadline: Millis,
    /// The moment the daemon's timer is set to.
    pub armed: Millis,
    gone: Option<String>,
}

impl Attachment {
    /// Begins to get leases. `earlier`: a lease of this attachment in another namespace, which is asked for first.
    ///
    /// # Errors
    /// There is no such namespace or interface.
    pub fn open(id: u64, wanted: Wanted, earlier: Option<Lease>, tools: &Tools<'_>) -> Result<Attachment> {
        let mut attachment = Attachment::attach(id, wanted, tools)?;
        attachment.starting = Some((now() + UP_BUDGET, earlier));
        attachment.start_if_up(tools);
        Ok(attachment)
    }

    /// Goes on with what an earlier daemon remembered.
    ///
    /// # Errors
    /// The namespace or the interface is not the same any more.
    pub fn resume(id: u64, record: Record, tools: &Tools<'_>) -> Result<Attachment> {
        let mut attachment = Attachment::attach(id, record.wanted, tools)?;
        let link = &attachment.link;
        if (link.namespace(), link.index, link.mac) != (record.namespace, record.index, record.mac) {
            return Err(Error::internal("its interface was replaced by another"));
        }
        (attachment.requesting, attachment.requesting6) = (record.requesting, record.requesting6);
        let is_given = record.given.is_some();
        let (mut outputs, mut outputs6) = (Vec::new(), Vec::new());
        if let Some(side) = &mut attachment.v4 {
            side.server_mac = record.server_mac;
            outputs = match record.v4 {
                Some(lease) => side.machine.resume(lease, now()),
                None if is_given => side.machine.start(now()),
                None => Vec::new(),
            };
        }
        if let Some(side) = &mut attachment.v6 {
            record.slaac.into_iter().for_each(|told| side.slaac.resume(told));
            record.known.into_iter().for_each(|known| side.information.resume(known));
            let fresh = record.v6.is_none() && is_given;
            outputs6 = side.start(fresh, &attachment.link, id, tools)?;
            if let (Some(lease), Some(machine)) = (record.v6, &mut side.machine) {
                outputs6.extend(machine.resume(lease, now()));
            }
        }
        // The earlier daemon may have ended after a lease changed and before the interface did.
        attachment.given = record.given;
        attachment.carry_out(outputs, tools);
        attachment.carry_out6(outputs6, tools);
        attachment.follow(tools);
        Ok(attachment)
    }

    fn attach(id: u64, wanted: Wanted, tools: &Tools<'_>) -> Result<Attachment> {
        let path = format!("{}{}", tools.flags.host_prefix, wanted.netns);
        let link = Link::open(&path, &wanted.key.ifname, wanted.wants_ipv6())?;
        if wanted.ipv4 && wanted.client_id == ClientId::Mac && link.kind == "ipvlan" {
            let msg = "ipam.clientID: \"mac\": all ipvlan interfaces of a link have the same one";
            return Err(Error::config(msg));
        }
        tools
            .epoll
            .add(link.watch(), EpollEvent::new(EpollFlags::EPOLLIN, id | LINKS))
            .map_err(|e| Error::system("epoll_ctl", e))?;
        let v4 = wanted.ipv4.then(|| Side4::new(&wanted, &link, tools));
        let v6 = Side6::new(&wanted, tools);
        Ok(Attachment {
            id,
            wanted,
            link,
            v4,
            v6,
            requesting: None,
            requesting6: None,
            starting: None,
            given: None,
            waiting: Vec::new(),
            deadline: NEVER,
            armed: NEVER,
            gone: None,
        })
    }

    /// A connection waits for the answer, no longer than a caller may have to.
    pub fn wait_for(&mut self, caller: u64, tools: &Tools<'_>) {
        if self.waiting.is_empty() {
            self.deadline = now() + tools.flags.resend_timeout;
        }
        self.waiting.push(caller);
    }

    /// Whether the namespace that this is about is still at its path.
    pub fn is_there(&self, tools: &Tools<'_>) -> bool {
        self.link.is_at(&format!("{}{}", tools.flags.host_prefix, self.wanted.netns))
    }

    /// Whether another request means the same interface.
    pub fn is_same_place(&self, wanted: &Wanted, tools: &Tools<'_>) -> bool {
        self.gone.is_none() && self.link.is_at(&format!("{}{}", tools.flags.host_prefix, wanted.netns))
    }

    /// The IPv4 lease in use.
    pub fn lease(&self) -> Option<&Lease> {
        self.v4.as_ref().and_then(|side| side.machine.lease())
    }

    /// What there is, when everything is there that is wanted.
    pub fn complete(&self) -> Option<Outcome> {
        let v4 = self.v4.as_ref().is_none_or(|side| side.machine.lease().is_some());
        let v6 = self.v6.as_ref().is_none_or(Side6::is_complete);
        (v4 && v6 && self.starting.is_none()).then(|| self.outcome())
    }

    fn outcome(&self) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(lease) = self.lease() {
            outcome.add_v4(lease);
        }
        if let Some(side) = &self.v6 {
            let lease = side.machine.as_ref().and_then(|machine| machine.lease());
            outcome.add_v6(lease, side.information.known(), &side.slaac, side.autonomous);
        }
        outcome.set_priority(self.wanted.priority);
        outcome
    }

    /// The caller is told this: from here on the interface follows the leases.
    pub fn give(&mut self, outcome: &Outcome, tools: &Tools<'_>) {
        if self.given.is_none()
            && let Some(mtu) = outcome.mtu
            && let Err(e) = self.link.lower_mtu(mtu)
        {
            tools.log(&self.wanted.key, &e.to_string());
        }
        let first = self.given.replace(outcome.clone()).is_none();
        if first {
            self.save(tools);
        }
    }

    /// Whether a caller has been told what there is.
    pub fn is_given(&self) -> bool {
        self.given.is_some()
    }

    /// Why it is over; `None` while it is not.
    pub fn gone(&self) -> Option<&str> {
        self.gone.as_deref()
    }

    /// The next moment something happens by itself.
    pub fn wake(&self) -> Millis {
        let starting = self.starting.as_ref().map_or(NEVER, |(at, _)| *at);
        let v4 = self.v4.as_ref().map_or(NEVER, |side| side.machine.wake());
        let v6 = self.v6.as_ref().map_or(NEVER, Side6::wake);
        let deadline = if self.waiting.is_empty() { NEVER } else { self.deadline };
        starting.min(v4).min(v6).min(deadline)
    }

    /// Why those who wait shall not wait any longer.
    pub fn overdue(&self) -> Option<Error> {
        if self.waiting.is_empty() || now() < self.deadline {
            return None;
        }
        let mut missing = Vec::new();
        if let Some(side) = self.v4.as_ref().filter(|side| side.machine.lease().is_none()) {
            let problem = side.machine.problem().unwrap_or("no DHCP server answers");
            missing.push(format!("no IPv4 lease: {problem}"));
        }
        missing.extend(self.v6.as_ref().and_then(Side6::missing));
        if self.starting.is_some() {
            missing.push("the interface does not come up".to_owned());
        }
        let msg = format!("{}: {} (no more tries)", self.link.name, missing.join("; "));
        Some(Error::new(Code::TRY_AGAIN, msg))
    }

    fn start_if_up(&mut self, tools: &Tools<'_>) {
        let Some((latest, _)) = &self.starting else { return };
        if !self.link.is_up() && now() < *latest {
            return;
        }
        let earlier = self.starting.take().and_then(|(_, earlier)| earlier);
        if let Some(side) = &mut self.v4 {
            let outputs = match earlier {
                Some(lease) => side.machine.reboot(lease, false, now()),
                None => side.machine.start(now()),
            };
            self.carry_out(outputs, tools);
        }
        self.start_v6(true, tools);
    }

    fn start_v6(&mut self, fresh: bool, tools: &Tools<'_>) {
        let Some(side) = &mut self.v6 else { return };
        match side.start(fresh, &self.link, self.id, tools) {
            Ok(outputs) => self.carry_out6(outputs, tools),
            Err(e) => tools.log(&self.wanted.key, &e.to_string()),
        }
    }

    /// A moment of [`Attachment::wake`] has come.
    pub fn timer(&mut self, tools: &Tools<'_>) {
        self.start_if_up(tools);
        if let Some(side) = &mut self.v4 {
            let outputs = side.machine.timer(now());
            self.carry_out(outputs, tools);
        }
        if self.v6.as_ref().is_some_and(Side6::is_to_look) {
            let fresh =
                self.v6.as_ref().and_then(|s| s.machine.as_ref()).is_some_and(|m| m.state() == "STOPPED");
            self.start_v6(fresh, tools);
        }
        if let Some(side) = &mut self.v6 {
            let asked = [side.solicit(&self.link), side.ask(&self.link, self.id, tools)];
            let outputs = side.machine.as_mut().map(|machine| machine.timer(now())).unwrap_or_default();
            for e in asked.into_iter().filter_map(Result::err) {
                tools.log(&self.wanted.key, &e.to_string());
            }
            self.carry_out6(outputs, tools);
            self.follow(tools);
        }
    }

    /// One of the descriptors has something to say.
    pub fn readable(&mut self, kind: u64, tools: &Tools<'_>) {
        if kind == LINKS {
            return self.link_news(tools);
        }
        if let (Some(side), PACKET | ARP) = (&mut self.v4, kind) {
            let outputs = side.readable(kind, &self.link, now());
            return self.carry_out(outputs, tools);
        }
        if let Some(side) = &mut self.v6 {
            let (outputs, news) = side.readable(kind);
            self.carry_out6(outputs, tools);
            self.follow(tools);
            if news && self.given.is_some() {
                self.save(tools);
            }
        }
    }

    fn link_news(&mut self, tools: &Tools<'_>) {
        let happened = match self.link.happened() {
            Ok(happened) => happened,
            Err(e) => return tools.log(&self.wanted.key, &e.to_string()),
        };
        if happened.gone {
            self.gone = Some("the interface is gone".to_owned());
            return;
        }
        if happened.carrier_lost {
            tools.log(&self.wanted.key, "the link is lost");
        }
        self.start_if_up(tools);
        if happened.carrier_returned && self.starting.is_none() {
            tools.log(&self.wanted.key, "the link is there again");
            if let Some(side) = &mut self.v4 {
                let outputs = side.machine.link_returned(now());
                self.carry_out(outputs, tools);
            }
            if let Some(side) = &mut self.v6 {
                side.slaac.ask(now());
                let outputs = side.machine.as_mut().map(|m| m.link_returned(now())).unwrap_or_default();
                self.carry_out6(outputs, tools);
            }
        }
    }

    /// Does what the client wants, in its order.
    fn carry_out(&mut self, outputs: Vec<Output>, tools: &Tools<'_>) {
        let mut changed = false;
        for output in outputs {
            let Some(side) = &mut self.v4 else { return };
            let done = match output {
                Output::Send(to, message) => side.send(to, &message, (&self.link, self.id), tools),
                Output::Probe(address) => side.probe(address, (&self.link, self.id), tools),
                Output::Requesting { address, server } => {
                    self.requesting = Some((address, server));
                    self.save(tools);
                    Ok(())
                }
                Output::Leased => {
                    self.requesting = None;
                    changed = true;
                    self.save(tools);
                    Ok(())
                }
                Output::Lost(why) => {
                    self.requesting = None;
                    tools.log(&self.wanted.key, &why);
                    self.save(tools);
                    // The interface must be empty before anything else is sent.
                    self.follow(tools);
                    Ok(())
                }
                Output::Note(text) => {
                    tools.log(&self.wanted.key, &text);
                    Ok(())
                }
            };
            if let Err(e) = done {
                tools.log(&self.wanted.key, &e.to_string());
            }
        }
        if changed {
            self.follow(tools);
        }
        if let Some(side) = &mut self.v4 {
            side.tidy(tools);
        }
    }

    /// As [`Attachment::carry_out`], for DHCPv6.
    fn carry_out6(&mut self, outputs: Vec<v6::machine::Output>, tools: &Tools<'_>) {
        use v6::machine::Output;
        let mut changed = false;
        for output in outputs {
            let Some(side) = &mut self.v6 else { return };
            let done = match output {
                Output::Send(message) => side.send(&message, &self.link, self.id, tools),
                Output::Probe(address) if self.wanted.conflict_detection => {
                    side.probe(address, &self.link, self.id, tools)
                }
                Output::Probe(_) => Ok(()),
                Output::Requesting(lease) => {
                    self.requesting6 = Some(*lease);
                    self.save(tools);
                    Ok(())
                }
                Output::Leased => {
                    self.requesting6 = None;
                    changed = true;
                    self.save(tools);
                    Ok(())
                }
                Output::Lost(why) => {
                    self.requesting6 = None;
                    tools.log(&self.wanted.key, &why);
                    self.save(tools);
                    self.follow(tools);
                    Ok(())
                }
                Output::Note(text) => {
                    tools.log(&self.wanted.key, &text);
                    Ok(())
                }
            };
            if let Err(e) = done {
                tools.log(&self.wanted.key, &e.to_string());
            }
        }
        if changed {
            self.follow(tools);
        }
        if let Some(side) = &mut self.v6 {
            side.tidy(tools);
        }
    }

    /// Changes the interface after the leases, when a caller has been told otherwise. What the interface has is written down
    /// when it is so: whoever continues after a crash in between makes the same changes (again).
    fn follow(&mut self, tools: &Tools<'_>) {
        let Some(given) = &self.given else { return };
        let outcome = self.outcome();
        if outcome == *given {
            return;
        }
        match self.link.update(given, &outcome) {
            Ok(changes) => {
                for change in changes {
                    tools.log(&self.wanted.key, &change.to_string());
                }
            }
            Err(e) => tools.log(&self.wanted.key, &e.to_string()),
        }
        self.given = Some(outcome);
        self.save(tools);
    }

    fn save(&mut self, tools: &Tools<'_>) {
        if let Err(e) = tools.store.save(&self.record(tools)) {
            tools.log(&self.wanted.key, &e.to_string());
        }
    }

    fn record(&mut self, tools: &Tools<'_>) -> Record {
        Record {
            boot: tools.store.boot().to_owned(),
            wanted: self.wanted.clone(),
            namespace: self.link.namespace(),
            index: self.link.index,
            mac: self.link.mac,
            v4: self.lease().cloned(),
            requesting: self.requesting,
            server_mac: self.v4.as_ref().and_then(|side| side.server_mac),
            v6: self.v6.as_ref().and_then(|side| side.machine.as_ref()?.lease().cloned()),
            requesting6: self.requesting6.clone(),
            slaac: self.v6.as_mut().map(|side| side.slaac.told(now()).clone()),
            known: self.v6.as_ref().and_then(|side| side.information.known().cloned()),
            given: self.given.clone(),
        }
    }

    /// Gives up everything and forgets it. What is returned beside is to be kept until it [has left](Attachment::has_left):
    /// a RELEASE that no server has answered yet.
    pub fn release(mut self, tools: &Tools<'_>) -> (Option<Attachment>, Result<()>) {
        if self.gone.is_none() {
            let mut outputs = Vec::new();
            if let Some(side) = &mut self.v4 {
                if let (Some((address, server)), None) = (self.requesting, side.machine.lease()) {
                    outputs.push(side.machine.release_of(address, server, now()));
                    let _ = side.machine.release(now());
                } else {
                    outputs = side.machine.release(now());
                }
            }
            self.carry_out_last(outputs, tools);
            self.release_v6(tools);
        }
        let removed = tools.store.remove(&self.wanted.key);
        (self.given, self.starting) = (None, None);
        if let Some(side) = self.v4.take() {
            side.close(tools);
        }
        if self.gone.is_none() && self.v6.as_mut().is_some_and(|side| side.leave(tools)) {
            return (Some(self), removed);
        }
        self.close(tools);
        (None, removed)
    }

    /// Whether nothing is left to be done about a RELEASE, or nothing can be.
    pub fn has_left(&self) -> bool {
        let says_farewell =
            self.v6.as_ref().and_then(|s| s.machine.as_ref()).is_some_and(|m| m.says_farewell());
        self.gone.is_some() || !says_farewell
    }

    /// Forgets it without giving the lease up: it is to be had again elsewhere.
    pub fn abandon(self, tools: &Tools<'_>) -> Result<()> {
        let removed = tools.store.remove(&self.wanted.key);
        self.close(tools);
        removed
    }

    /// Closes everything.
    pub fn close(mut self, tools: &Tools<'_>) {
        let _ = tools.epoll.delete(self.link.watch());
        if let Some(side) = self.v4.take() {
            side.close(tools);
        }
        if let Some(side) = self.v6.take() {
            side.close(tools);
        }
    }

    fn release_v6(&mut self, tools: &Tools<'_>) {
        let Some(side) = &mut self.v6 else { return };
        let Some(machine) = &mut side.machine else { return };
        let outputs = match (self.requesting6.take(), machine.lease()) {
            (Some(asked), None) => machine.release_of(asked, now()),
            _ => machine.release(now()),
        };
        for output in outputs {
            if let v6::machine::Output::Send(message) = output
                && let Err(e) = side.send(&message, &self.link, self.id, tools)
            {
                tools.log(&self.wanted.key, &format!("not released: {e}"));
            }
        }
    }

    fn carry_out_last(&mut self, outputs: Vec<Output>, tools: &Tools<'_>) {
        for output in outputs {
            if let (Output::Send(to, message), Some(side)) = (output, &mut self.v4)
                && let Err(e) = side.send(to, &message, (&self.link, self.id), tools)
            {
                tools.log(&self.wanted.key, &format!("not released: {e}"));
            }
        }
    }

    /// For `cni-all dhcp leases`.
    pub fn show(&self) -> Shown {
        Shown::new(&self.wanted, self.v4.as_ref(), self.v6.as_ref())
    }
}
