//! The daemon's loop: connections, descriptors, timers, signals.

use std::collections::{BTreeSet, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::value::RawValue;

use super::super::clock::{Millis, NEVER, now};
use super::super::rpc::{Answer, Call, MAX_REQUEST, Op, PROTOCOL};
use super::super::wanted::{Key, Wanted};
use super::Tools;
use super::attachment::Attachment;
use super::listener::Listener;
use super::shown::Shown;
use super::token::{CONNECTION, LINKS, LISTENER, SIGNALS, split};
use crate::cni::{Code, Error, Result};

/// How often it is looked whether namespaces still exist.
const SWEEP: Millis = 5_000;

/// Longest wait for acquisitions before the executable is started anew.
const RELOAD_BUDGET: Millis = 10_000;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 4096;

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A signal, or nothing to do.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Keeps the signals that the loop reads from doing what they do by default. To be called before there is another thread,
/// which would get them.
///
/// # Errors
/// The kernel's.
pub fn block_signals() -> Result<()> {
    signals().thread_block().map_err(|e| Error::system("sigprocmask", e))
}

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// A plugin's connection.
struct Connection {
    stream: UnixStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// The request was read and is being served.
    asked: bool,
}

/// Everything the daemon holds.
pub struct Server<'a> {
    tools: &'a Tools<'a>,
    listener: &'a Listener,
    signals: SignalFd,
    connections: HashMap<u64, Connection>,
    attachments: HashMap<u64, Attachment>,
    by_key: HashMap<Key, u64>,
    /// Released, but no server has said that it knows.
    leaving: HashMap<u64, Attachment>,
    /// When to call whose timer: one entry for each attachment at most, as [`Attachment::armed`] says.
    timers: BTreeSet<(Millis, u64)>,
    next_id: u64,
    next_sweep: Millis,
    idle_since: Millis,
    reload_by: Option<Millis>,
}

impl<'a> Server<'a> {
    /// A daemon that holds nothing yet.
    ///
    /// # Errors
    /// Signals or the listener cannot be waited for.
    pub fn new(tools: &'a Tools<'a>, listener: &'a Listener) -> Result<Server<'a>> {
        let signals = SignalFd::with_flags(&signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|e| Error::system("signalfd", e))?;
        let wait = |e| Error::system("epoll_ctl", e);
        tools.epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS)).map_err(wait)?;
        tools.epoll.add(&listener.socket, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).map_err(wait)?;
        Ok(Server {
            tools,
            listener,
            signals,
            connections: HashMap::new(),
            attachments: HashMap::new(),
            by_key: HashMap::new(),
            leaving: HashMap::new(),
            timers: BTreeSet::new(),
            next_id: 0,
            next_sweep: now() + SWEEP,
            idle_since: now(),
            reload_by: None,
        })
    }

    /// Goes on with what an earlier daemon remembered.
    pub fn resume(&mut self) {
        for record in self.tools.store.load() {
            let key = record.wanted.key.clone();
            let (leased, id) = (record.is_leased(), self.new_id());
            match Attachment::resume(id, record, self.tools) {
                Ok(attachment) if leased => {
                    self.tools.log(&key, "resumed");
                    self.insert(id, attachment);
                }
                // It was about to be got, for a caller that is gone with the earlier daemon.
                Ok(attachment) => {
                    self.tools.log(&key, "not finished by an earlier daemon");
                    let released = self.let_go(id, attachment);
                    self.report(released);
                }
                Err(e) => {
                    self.tools.log(&key, &format!("forgotten: {e}"));
                    self.report(self.tools.store.remove(&key));
                }
            }
        }
    }

    /// Serves until something ends it.
    ///
    /// # Errors
    /// epoll fails.
    pub fn serve(&mut self) -> Result<End> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let wait = self.next_moment().saturating_sub(now()).min(SWEEP);
            let timeout = EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::ZERO);
            let count = match self.tools.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(Error::system("epoll_wait", errno)),
            };
            for event in events.iter().take(count) {
                if let Some(end) = self.dispatch(*event) {
                    return Ok(end);
                }
            }
            self.run_timers();
            self.sweep();
            if let Some(end) = self.end() {
                return Ok(end);
            }
        }
    }

    fn next_moment(&self) -> Millis {
        let timer = self.timers.first().map_or(NEVER, |(at, _)| *at);
        timer.min(self.next_sweep)
    }

    fn dispatch(&mut self, event: EpollEvent) -> Option<End> {
        match split(event.data()) {
            (_, LISTENER) => self.accept(),
            (_, SIGNALS) => {
                while let Ok(Some(signal)) = self.signals.read_signal() {
                    match Signal::try_from(signal.ssi_signo as i32) {
                        Ok(Signal::SIGHUP) => self.prepare_reload(),
                        _ => return Some(End::Stop),
                    }
                }
            }
            (id, CONNECTION) => self.talk(id, event.events()),
            (id, kind) => {
                if let Some(attachment) = self.attachments.get_mut(&id) {
                    attachment.readable(kind, self.tools);
                    self.follow_up(id);
                } else if let Some(leaving) = self.leaving.get_mut(&id) {
                    leaving.readable(kind, self.tools);
                    self.see_off(id);
                }
            }
        }
        None
    }

    /// No more callers from here on; those that wait are served first.
    fn prepare_reload(&mut self) {
        if self.reload_by.is_none() {
            let _ = self.tools.epoll.delete(&self.listener.socket);
            self.reload_by = Some(now() + RELOAD_BUDGET);
        }
    }

    fn end(&mut self) -> Option<End> {
        if let Some(latest) = self.reload_by
            && (self.connections.is_empty() || now() >= latest)
        {
            return Some(End::Reload);
        }
        if !self.attachments.is_empty() || !self.connections.is_empty() {
            self.idle_since = now();
        }
        let idle = self.tools.flags.exit_when_idle?;
        (now() >= self.idle_since + idle).then_some(End::Stop)
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.socket.accept() {
            let id = self.new_id();
            let interest = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, id | CONNECTION);
            let ready = self.connections.len() < MAX_CONNECTIONS
                && stream.set_nonblocking(true).is_ok()
                && self.tools.epoll.add(&stream, interest).is_ok();
            if ready {
                let connection = Connection { stream, request: Vec::new(), answer: Vec::new(), asked: false };
                self.connections.insert(id, connection);
            }
        }
    }

    /// Reads a request, or writes an answer, or notices that the caller is gone.
    fn talk(&mut self, id: u64, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.asked && connection.answer.is_empty() {
            // The caller says nothing more: this is the end of it.
            return self.hang_up(id);
        }
        if !connection.answer.is_empty() {
            return self.write(id, events);
        }
        match read_request(connection) {
            Ok(None) => {}
            Ok(Some(call)) => {
                connection.asked = true;
                match call {
                    Ok(op) => self.serve_call(id, op),
                    Err(e) => self.answer(id, &Answer::failed(&e)),
                }
            }
            Err(()) => self.hang_up(id),
        }
    }

    fn serve_call(&mut self, id: u64, op: Op) {
        let answer = match op {
            Op::Add(wanted) => match self.add(id, *wanted) {
                Ok(()) => return,
                Err(e) => Answer::failed(&e),
            },
            Op::Check(key) => self.check(&key),
            Op::Del(key) => match self.by_key.get(&key).copied() {
                Some(attachment) => self.release(attachment, "released"),
                None => Answer::done(),
            },
            Op::Gc { network, valid } => {
                let stale: Vec<u64> = self
                    .by_key
                    .iter()
                    .filter(|(k, _)| k.is_stale(&network, &valid))
                    .map(|(_, id)| *id)
                    .collect();
                let answers = stale.into_iter().map(|id| self.release(id, "collected")).collect::<Vec<_>>();
                answers.into_iter().find(|a| a.error.is_some()).unwrap_or_default()
            }
            Op::Status => Answer::done(),
            Op::Leases => self.leases(),
        };
        self.answer(id, &answer);
    }

    /// ADD: answered when there are leases.
    fn add(&mut self, caller: u64, wanted: Wanted) -> Result<()> {
        let mut earlier = None;
        if let Some(id) = self.by_key.get(&wanted.key).copied()
            && let Some(known) = self.attachments.get_mut(&id)
        {
            // Its interface may have gone a moment ago.
            known.readable(LINKS, self.tools);
            if known.is_same_place(&wanted, self.tools) {
                known.wait_for(caller, self.tools);
                self.follow_up(id);
                return Ok(());
            }
            // The same name for another namespace: that one is over, its address may be had again.
            earlier = known.lease().cloned();
            if let Some(attachment) = self.remove(id) {
                self.tools.log(&wanted.key, "is attached anew");
                self.report(attachment.abandon(self.tools));
            }
        }
        let id = self.new_id();
        let mut attachment = Attachment::open(id, wanted, earlier, self.tools)?;
        attachment.wait_for(caller, self.tools);
        self.insert(id, attachment);
        Ok(())
    }

    fn check(&self, key: &Key) -> Answer {
        let attachment = self.by_key.get(key).and_then(|id| self.attachments.get(id));
        match attachment.and_then(Attachment::complete) {
            Some(outcome) => Answer::of(&outcome),
            None => {
                let problem = match attachment {
                    Some(_) => "its lease was lost and there is no new one yet",
                    None => "the dhcp daemon has no lease for it",
                };
                Answer::failed(&Error::new(Code::CHECK_FAILED, format!("{key}: {problem}")))
            }
        }
    }

    fn leases(&self) -> Answer {
        let mut shown: Vec<(&Key, Shown)> =
            self.attachments.values().map(|a| (&a.wanted.key, a.show())).collect();
        shown.sort_unstable_by(|a, b| a.0.cmp(b.0));
        let shown: Vec<Shown> = shown.into_iter().map(|(_, shown)| shown).collect();
        let raw = serde_json::to_string(&shown).and_then(RawValue::from_string);
        match raw {
            Ok(raw) => Answer { leases: Some(raw), ..Answer::default() },
            Err(e) => Answer::failed(&Error::internal(format!("encode the leases: {e}"))),
        }
    }

    /// Answers whoever waits when there is an answer, forgets what is over, and sets the timer.
    fn follow_up(&mut self, id: u64) {
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        if let Some(why) = attachment.gone() {
            let (why, waiting) = (why.to_owned(), std::mem::take(&mut attachment.waiting));
            let e = Error::internal(format!("{}: {why}", attachment.wanted.key));
            waiting.into_iter().for_each(|caller| self.answer(caller, &Answer::failed(&e)));
            self.release(id, &why);
            return;
        }
        if !attachment.waiting.is_empty()
            && let Some(outcome) = attachment.complete()
        {
            attachment.give(&outcome, self.tools);
            let answer = Answer::of(&outcome);
            let waiting = std::mem::take(&mut attachment.waiting);
            waiting.into_iter().for_each(|caller| self.answer(caller, &answer));
        } else if let Some(e) = attachment.overdue() {
            let (waiting, given) = (std::mem::take(&mut attachment.waiting), attachment.is_given());
            waiting.into_iter().for_each(|caller| self.answer(caller, &Answer::failed(&e)));
            if !given {
                self.release(id, e.msg());
                return;
            }
        }
        self.arm(id);
    }

    fn arm(&mut self, id: u64) {
        let known = self.attachments.get_mut(&id).or_else(|| self.leaving.get_mut(&id));
        if let Some(attachment) = known {
            let wake = attachment.wake();
            if wake != attachment.armed {
                self.timers.remove(&(attachment.armed, id));
                attachment.armed = wake;
                if wake != NEVER {
                    self.timers.insert((wake, id));
                }
            }
        }
    }

    fn run_timers(&mut self) {
        while let Some((at, id)) = self.timers.first().copied() {
            if at > now() {
                return;
            }
            self.timers.pop_first();
            if let Some(attachment) = self.attachments.get_mut(&id) {
                attachment.armed = NEVER;
                attachment.timer(self.tools);
                self.follow_up(id);
            } else if let Some(leaving) = self.leaving.get_mut(&id) {
                leaving.armed = NEVER;
                leaving.timer(self.tools);
                self.see_off(id);
            }
        }
    }

    /// Releases what belongs to namespaces that are not there any more.
    fn sweep(&mut self) {
        if now() < self.next_sweep {
            return;
        }
        self.next_sweep = now() + SWEEP;
        let vanished: Vec<u64> =
            self.attachments.iter().filter(|(_, a)| !a.is_there(self.tools)).map(|(id, _)| *id).collect();
        for id in vanished {
            self.release(id, "its namespace is gone");
        }
        // It would keep the namespace alive.
        let tools = self.tools;
        for (id, attachment) in self.leaving.extract_if(|_, a| !a.is_there(tools)) {
            self.timers.remove(&(attachment.armed, id));
            attachment.close(tools);
        }
    }

    /// Goes on with what was released, until there is nothing left to do.
    fn see_off(&mut self, id: u64) {
        if self.leaving.get(&id).is_some_and(Attachment::has_left)
            && let Some(attachment) = self.leaving.remove(&id)
        {
            self.timers.remove(&(attachment.armed, id));
            return attachment.close(self.tools);
        }
        self.arm(id);
    }

    /// Gives up the leases of an attachment and forgets it.
    fn release(&mut self, id: u64, why: &str) -> Answer {
        let Some(mut attachment) = self.remove(id) else { return Answer::done() };
        let e = Error::new(Code::TRY_AGAIN, format!("{}: {why}", attachment.wanted.key));
        let waiting = std::mem::take(&mut attachment.waiting);
        waiting.into_iter().for_each(|caller| self.answer(caller, &Answer::failed(&e)));
        self.tools.log(&attachment.wanted.key, why);
        match self.let_go(id, attachment) {
            Ok(()) => Answer::done(),
            Err(e) => Answer::failed(&e),
        }
    }

    fn let_go(&mut self, id: u64, attachment: Attachment) -> Result<()> {
        let (leaving, released) = attachment.release(self.tools);
        if let Some(attachment) = leaving {
            self.leaving.insert(id, attachment);
            self.see_off(id);
        }
        released
    }

    fn report(&self, outcome: Result<()>) {
        if let Err(e) = outcome {
            self.tools.say(e);
        }
    }

    fn insert(&mut self, id: u64, attachment: Attachment) {
        self.by_key.insert(attachment.wanted.key.clone(), id);
        self.attachments.insert(id, attachment);
        self.follow_up(id);
    }

    fn remove(&mut self, id: u64) -> Option<Attachment> {
        let mut attachment = self.attachments.remove(&id)?;
        self.by_key.remove(&attachment.wanted.key);
        self.timers.remove(&(std::mem::replace(&mut attachment.armed, NEVER), id));
        Some(attachment)
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1 << 8;
        self.next_id
    }

    fn answer(&mut self, id: u64, answer: &Answer) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.answer = serde_json::to_vec(answer).unwrap_or_default();
        self.write(id, EpollFlags::EPOLLOUT);
    }

    fn write(&mut self, id: u64, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return self.close(id);
        }
        match connection.stream.write(&connection.answer) {
            Ok(written) if written < connection.answer.len() => {
                connection.answer.drain(..written);
                let mut interest = EpollEvent::new(EpollFlags::EPOLLOUT, id | CONNECTION);
                let _ = self.tools.epoll.modify(&connection.stream, &mut interest);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                let mut interest = EpollEvent::new(EpollFlags::EPOLLOUT, id | CONNECTION);
                let _ = self.tools.epoll.modify(&connection.stream, &mut interest);
            }
            _ => self.close(id),
        }
    }

    /// The caller went away: what only it waited for is given up.
    fn hang_up(&mut self, id: u64) {
        self.close(id);
        let waited = self.attachments.iter_mut().find(|(_, a)| a.waiting.contains(&id));
        let Some((attachment, a)) = waited else { return };
        a.waiting.retain(|caller| *caller != id);
        let (attachment, over) = (*attachment, a.waiting.is_empty() && !a.is_given());
        if over {
            self.release(attachment, "the caller went away");
        }
    }

    fn close(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            let _ = self.tools.epoll.delete(&connection.stream);
        }
    }
}

/// Reads on; `Some` when the line is complete. An error: the caller is gone, or asks too much.
fn read_request(connection: &mut Connection) -> std::result::Result<Option<Result<Op>>, ()> {
    let mut buffer = [0; 8192];
    loop {
        match connection.stream.read(&mut buffer) {
            Ok(0) => return Err(()),
            Ok(length) => connection.request.extend_from_slice(&buffer[..length]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return Err(()),
        }
        if connection.request.ends_with(b"\n") {
            return Ok(Some(parse(&connection.request)));
        }
        if connection.request.len() > MAX_REQUEST {
            return Err(());
        }
    }
}

fn parse(request: &[u8]) -> Result<Op> {
    #[derive(serde::Deserialize)]
    struct Protocol {
        protocol: u32,
    }
    let invalid = |e: serde_json::Error| {
        Error::new(Code::DECODING, format!("dhcp daemon: request not understood: {e}"))
    };
    let Protocol { protocol } = serde_json::from_slice(request).map_err(invalid)?;
    if protocol != PROTOCOL {
        return Err(Error::internal(format!(
            "dhcp daemon: it speaks protocol {PROTOCOL}, the plugin {protocol}: they are of different releases, restart \
             the daemon"
        )));
    }
    serde_json::from_slice::<Call>(request).map(|call| call.op).map_err(invalid)
}
