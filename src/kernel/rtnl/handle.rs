//! Requests and their answers.

use std::{
    net::IpAddr,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use neli::consts::{
    nl::{NlmF, Nlmsg},
    rtnl::Rtm,
    socket::Msg,
};
use nix::errno::Errno;

use super::{
    Address, AddressWatch, Change, Dev, Event, Link, LinkWatch, PortVlan, Route, Socket, address, link,
    needs::lacking,
    netconf, port_vlan, route,
    uapi::*,
    wire::{Batch, Message, Messages},
};
use crate::{
    cni::{Error, Result},
    kernel::{
        dry_run::{self, Place},
        netns::Netns,
    },
    log::phase,
};

/// Room for one answer that is not a list. Memory that is not touched costs nothing, so it is made when it is needed.
const RECEIVE: usize = 8 * 1024;

/// Room for one datagram of a dump: the most the kernel fills into one.
const RECEIVE_DUMP: usize = 32 * 1024;

/// How often a dump is asked for again when the kernel says that it changed under its hands (NLM_F_DUMP_INTR).
const DUMP_ATTEMPTS: u32 = 5;

/// rtnetlink of one namespace: the one the calling thread was in when the handle was opened, wherever it is used.
pub struct Handle {
    socket: Socket,
    batch: Batch,
    receive: Vec<u8>,
    /// Where it is, when changes are recorded and not made, and what commands for it begin with.
    dry_run: Option<(Place, String)>,
}

/// One step of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Change something.
    Change(Change),
    /// Read a link, as it is after the steps before.
    Link(Dev),
}

impl Handle {
    /// Opens the calling thread's namespace.
    pub fn open() -> Result<Handle> {
        let (socket, batch) = (Socket::open()?, Batch::default());
        let dry_run = match dry_run::is_on() {
            true => Some((Netns::current()?.identity(), dry_run::prefix())),
            false => None,
        };
        Ok(Handle { socket, batch, receive: Vec::new(), dry_run })
    }

    /// Whether changes are recorded and not made.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run.is_some()
    }

    /// Sends all steps in one datagram and returns the outcome of each, in order.
    ///
    /// A change gives `Ok(None)`, or an error with the printed change. A read gives the link, or `Ok(None)` when there is
    /// none. The kernel goes on after a change that failed: only independent changes, or changes that cannot succeed
    /// without the ones before, belong into one exchange. A step that netlink cannot express (a name too long, an index not
    /// known) fails alone; the others are sent.
    ///
    /// The outer error is a failure of the socket: some steps may have been carried out.
    pub fn exchange(&mut self, steps: &[Step]) -> Result<Vec<Result<Option<Link>>>> {
        match self.dry_run.clone() {
            None => phase("rtnetlink", || self.exchange_real(steps)),
            Some((place, prefix)) => Ok(self.exchange_dry(place, &prefix, steps)),
        }
    }

    pub(super) fn exchange_real(&mut self, steps: &[Step]) -> Result<Vec<Result<Option<Link>>>> {
        self.batch.clear();
        let first = self.batch.sequence().wrapping_add(1);
        let mut outcomes = Vec::with_capacity(steps.len());
        // Number of the messages up to and including each step.
        let mut ends = Vec::with_capacity(steps.len());
        for step in steps {
            let outcome = match step {
                Step::Change(change) => change.encode(&mut self.batch),
                // No link has a name that long, or none at all.
                Step::Link(dev) if dev.index == 0 && link::check_name(&dev.name, &"").is_err() => Ok(()),
                Step::Link(dev) => link::encode_get(dev, &mut self.batch),
            };
            outcomes.push(outcome.map(|()| None));
            ends.push(self.batch.sequence().wrapping_sub(first).wrapping_add(1));
        }
        if self.batch.bytes().is_empty() {
            return Ok(outcomes);
        }
        self.batch.acknowledge_last();
        let last = self.batch.sequence().wrapping_sub(first);
        let lost = |errno| Error::system("rtnetlink exchange", errno);
        self.socket.send(self.batch.bytes()).map_err(lost)?;
        self.make_room(RECEIVE);
        // Messages are answered in order, so the answer to the last one ends it.
        let mut answered = false;
        while !answered {
            let length = self.socket.receive(&mut self.receive, Msg::empty()).map_err(lost)?;
            for message in Messages(&self.receive[..length]) {
                let number = message.sequence.wrapping_sub(first);
                if number > last {
                    continue;
                }
                let at = ends.partition_point(|end| *end <= number);
                if let (Some(step), Some(outcome)) = (steps.get(at), outcomes.get_mut(at)) {
                    take_answer(step, &message, outcome);
                }
                answered |= number == last;
            }
        }
        Ok(outcomes)
    }

    /// Sends all changes in one datagram; the first failure is returned, the others were still tried (see
    /// [`Handle::exchange`]).
    pub fn apply(&mut self, changes: &[Change]) -> Result<()> {
        let steps: Vec<Step> = changes.iter().cloned().map(Step::Change).collect();
        self.exchange(&steps)?.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    /// The link of this name; `None` when there is none.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        self.one_link(Dev::named(name))
    }

    /// The link of this index; `None` when there is none.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.one_link(Dev::indexed(index))
    }

    fn one_link(&mut self, dev: Dev) -> Result<Option<Link>> {
        self.exchange(&[Step::Link(dev)])?.pop().unwrap_or(Ok(None))
    }

    /// All links, or those of one kind (`bridge`, `veth`, …).
    pub fn links(&mut self, kind: Option<&str>) -> Result<Vec<Link>> {
        let what = kind.map_or("ip link show".to_owned(), |kind| format!("ip link show type {kind}"));
        let listed = self.dump(
            &what,
            |batch| link::encode_dump(kind, batch),
            |message, links| {
                let link = Link::decode(message.payload);
                if kind.is_none_or(|kind| link.kind == kind) {
                    links.push(link);
                }
            },
        )?;
        Ok(match self.dry_run {
            None => listed,
            Some((place, _)) => {
                let mut links = self.links_dry(place, listed);
                links.retain(|link| kind.is_none_or(|kind| link.kind == kind));
                links
            }
        })
    }

    /// The addresses of one interface, both families, in the kernel's order. ENODEV when there is no such interface.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<Address>> {
        let listed = self.dump(
            &format!("ip addr show dev if{index}"),
            |batch| address::encode_dump(index, batch),
            |message, found| found.extend(Address::decode(message.payload).filter(|a| a.index == index)),
        )?;
        Ok(match self.dry_run {
            None => listed,
            Some((place, _)) => self.addresses_dry(place, index, listed),
        })
    }

    /// The routes out of one interface: every table (255 holds the local addresses), both families.
    pub fn routes(&mut self, index: u32) -> Result<Vec<Route>> {
        let listed = self.dump(
            &format!("ip route show table all dev if{index}"),
            |batch| route::encode_dump(index, batch),
            |message, found| found.extend(Route::decode(message.payload).filter(|r| r.leaves_by(index))),
        )?;
        Ok(match self.dry_run {
            None => listed,
            Some((place, _)) => self.routes_dry(place, index, listed),
        })
    }

    /// Whether the namespace forwards packets of a family (`net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`).
    /// EOPNOTSUPP when the kernel does not have the family.
    pub fn is_forwarding(&mut self, v4: bool) -> Result<bool> {
        let what = format!("ip {} netconf show dev all", if v4 { "-4" } else { "-6" });
        let answers = self.dump(
            &what,
            |batch| netconf::encode_get(v4, batch),
            |message, found| found.extend(netconf::forwarding(message.payload)),
        )?;
        Ok(answers.contains(&true))
    }

    /// The route that a packet to this address takes; ENETUNREACH and the like when there is none.
    pub fn route_to(&mut self, to: IpAddr) -> Result<Option<Route>> {
        if let Some(route) = self.dry_run.as_ref().and_then(|(place, _)| self.route_dry(*place, to)) {
            return Ok(Some(route));
        }
        let found = self.dump(
            &format!("ip route get {to}"),
            |batch| route::encode_get(to, batch),
            |message, found| found.extend(Route::decode(message.payload)),
        )?;
        Ok(found.into_iter().next())
    }

    /// All routes: every table, both families.
    pub fn all_routes(&mut self) -> Result<Vec<Route>> {
        self.dump("ip route show table all", route::encode_dump_all, |message, found| {
            found.extend(Route::decode(message.payload));
        })
    }

    /// The VLANs of one bridge port; none when the kernel has no bridge VLAN filtering.
    ///
    /// The kernel lists the ports of all bridges for this: the cost grows with their number.
    pub fn port_vlans(&mut self, index: u32) -> Result<Vec<PortVlan>> {
        self.dump("bridge vlan show", port_vlan::encode_dump, |message, found| {
            found.extend(port_vlan::decode(message.payload, index));
        })
    }

    /// Asks for a list. Interrupted lists are asked for again, [`DUMP_ATTEMPTS`] times in all; the last one is taken as it
    /// is.
    pub(super) fn dump<T>(
        &mut self,
        what: &str,
        encode: impl Fn(&mut Batch),
        decode: impl Fn(&Message<'_>, &mut Vec<T>),
    ) -> Result<Vec<T>> {
        let failed = |errno| Error::system(what, errno);
        let mut found = Vec::new();
        self.make_room(RECEIVE_DUMP);
        for _ in 0..DUMP_ATTEMPTS {
            found.clear();
            self.batch.clear();
            encode(&mut self.batch);
            self.socket.send(self.batch.bytes()).map_err(failed)?;
            let mut interrupted = false;
            let mut done = false;
            while !done {
                let length = self.socket.receive(&mut self.receive, Msg::empty()).map_err(failed)?;
                for message in Messages(&self.receive[..length]) {
                    if message.sequence != self.batch.sequence() {
                        continue;
                    }
                    interrupted |= message.flags.contains(NlmF::DUMP_INTR);
                    match message.outcome() {
                        Some((0, _)) => done = true,
                        // A link that would be made has nothing yet.
                        Some(_) if self.dry_run.is_some() => return Ok(Vec::new()),
                        Some((errno, text)) => {
                            return Err(failed(Errno::from_raw(errno)).with_details(text));
                        }
                        None if message.kind == u16::from(Nlmsg::Noop) => {}
                        None => decode(&message, &mut found),
                    }
                }
            }
            if !interrupted {
                break;
            }
        }
        Ok(found)
    }

    fn make_room(&mut self, size: usize) {
        if self.receive.len() < size {
            self.receive = vec![0; size];
        }
    }

    /// A second socket in this handle's namespace.
    fn beside<T>(&self, open: impl FnOnce() -> Result<T>) -> Result<T> {
        let netns = Netns::from_fd(self.socket.netns()?)?;
        if netns.is_current()? { open() } else { netns.enter(open) }
    }

    /// Notifications about IPv6 addresses of this handle's namespace.
    pub fn watch_addresses(&self) -> Result<AddressWatch> {
        self.beside(AddressWatch::open)
    }

    /// What [`crate::kernel::detach`] needs in this handle's namespace: notifications, and sockets for other processes.
    pub(in crate::kernel) fn watch_and_sockets(&self, count: usize) -> Result<(LinkWatch, Vec<Socket>)> {
        self.beside(|| {
            let sockets = (0..count).map(|_| Socket::open()).collect::<Result<_>>()?;
            Ok((LinkWatch::open()?, sockets))
        })
    }

    /// Waits until a link is operationally up and, when it is a bridge's port, not disabled there.
    ///
    /// ENODEV when the link goes away; after `budget` the error names the state it is in. Notifications are asked for only
    /// when it is not up yet, which it mostly is.
    pub fn wait_port_up(&mut self, index: u32, budget: Duration) -> Result<Link> {
        phase("wait until links are up", || self.wait_port(index, budget))
    }

    fn wait_port(&mut self, index: u32, budget: Duration) -> Result<Link> {
        let ready =
            |link: &Link| link.is_oper_up() && link.port.is_none_or(|port| port.state != BR_STATE_DISABLED);
        let gone = || Error::system(format_args!("wait until if{index} is up"), Errno::ENODEV);
        let deadline = Instant::now() + budget;
        let mut opened: Option<LinkWatch> = None;
        loop {
            let link = self.link_by_index(index)?.ok_or_else(gone)?;
            if ready(&link) || self.is_dry_run() {
                return Ok(link);
            }
            let Some(watch) = &mut opened else {
                // What changes from here on is seen; look once more for what changed before.
                opened = Some(self.beside(LinkWatch::open)?);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let event = watch.wait(left, |event| match event {
                Event::New(link) if link.index == index => Some(()),
                Event::Gone { index: i } if i == index => Some(()),
                Event::Lost => Some(()),
                Event::New(_) | Event::Gone { .. } => None,
            })?;
            if event.is_none() {
                return Err(Error::internal(format!(
                    "{} is not up after {} ms: operational state {}{}",
                    link.name,
                    budget.as_millis(),
                    oper_state_name(link.oper_state),
                    link.port.map_or(String::new(), |port| format!(", bridge port state {}", port.state)),
                )));
            }
        }
    }

    /// Waits until no IPv6 address of a link is tentative any more.
    ///
    /// An address that failed duplicate address detection is an error that names it. After `budget`, a link without
    /// carrier is fine (detection has not started, and cannot), any other is an error.
    pub fn wait_addresses_settled(
        &mut self,
        watch: &mut AddressWatch,
        index: u32,
        budget: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + budget;
        while !self.is_dry_run() {
            let addresses = self.addresses(index)?;
            if let Some(failed) = addresses.iter().find(|a| a.is_dad_failed()) {
                let net = failed.net;
                return Err(Error::internal(format!("{net}: another host on the link has this address")));
            }
            let Some(tentative) = addresses.iter().find(|a| a.is_tentative()) else {
                return Ok(());
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !watch.wait(index, left)? {
                if self.link_by_index(index)?.is_none_or(|link| !link.is_oper_up()) {
                    return Ok(());
                }
                let (net, ms) = (tentative.net, budget.as_millis());
                return Err(Error::internal(format!("{net} is still tentative after {ms} ms")));
            }
        }
        Ok(())
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Enters one reply into its step's outcome; of several the first failure stays.
fn take_answer(step: &Step, message: &Message<'_>, outcome: &mut Result<Option<Link>>) {
    match (step, message.outcome()) {
        (Step::Link(_), None) if message.kind == u16::from(Rtm::Newlink) => {
            *outcome = Ok(Some(Link::decode(message.payload)));
        }
        (_, None | Some((0, _))) => {}
        (Step::Link(_), Some((errno, _))) if Errno::from_raw(errno) == Errno::ENODEV => *outcome = Ok(None),
        (step, Some((errno, text))) if outcome.is_ok() => {
            let errno = Errno::from_raw(errno);
            let (err, lacking) = match step {
                Step::Change(change) => (Error::system(change, errno), lacking(change, errno)),
                Step::Link(dev) => (Error::system(format_args!("ip link show dev {dev}"), errno), None),
            };
            let text = [text, lacking.unwrap_or_default()].into_iter().filter(|part| !part.is_empty());
            *outcome = Err(err.with_details(text.collect::<Vec<_>>().join("; ")));
        }
        (_, Some(_)) => {}
    }
}

/// `IF_OPER_*` as `ip link` prints it.
fn oper_state_name(state: u8) -> &'static str {
    match state {
        1 => "NOTPRESENT",
        2 => "DOWN",
        3 => "LOWERLAYERDOWN",
        4 => "TESTING",
        5 => "DORMANT",
        IF_OPER_UP => "UP",
        _ => "UNKNOWN",
    }
}
