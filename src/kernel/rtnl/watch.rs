//! Notifications, so that nothing has to be polled.

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use neli::consts::{rtnl::Rtm, socket::Msg};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    Address, Link, Socket,
    uapi::*,
    wire::{Messages, u8_at, u32_at},
};
use crate::cni::{Error, Result};
use crate::kernel::dry_run;
use crate::log::phase;

/// Room for one notification.
const RECEIVE: usize = 16 * 1024;

/// What happened to a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is new, or something about it changed.
    New(Link),
    /// It is no longer in this namespace; its name is free.
    Gone {
        /// Its index.
        index: u32,
    },
    /// Notifications were lost (ENOBUFS): read again what matters.
    Lost,
}

/// Notifications about the links of one namespace, from the moment it was opened.
pub struct LinkWatch(Watch);

impl LinkWatch {
    /// For the calling thread's namespace.
    pub fn open() -> Result<LinkWatch> {
        Watch::open(RTNLGRP_LINK).map(LinkWatch)
    }

    /// Hands over events until `pick` returns something; `None` when `budget` is used up.
    pub fn wait<T>(
        &mut self,
        budget: Duration,
        mut pick: impl FnMut(Event) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + budget;
        loop {
            if let Some(picked) = self.drain(&mut pick)? {
                return Ok(Some(picked));
            }
            if !self.0.readable_before(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Hands over the events that are there, without waiting, until `pick` returns something.
    pub fn drain<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> Result<Option<T>> {
        self.0.drain(|message| match message {
            None => pick(Event::Lost),
            Some((kind, payload)) if kind == u16::from(Rtm::Newlink) => {
                pick(Event::New(Link::decode(payload)))
            }
            // An AF_BRIDGE deletion only says that the link is no longer a bridge's port.
            Some((kind, payload)) if kind == u16::from(Rtm::Dellink) && u8_at(payload, 0) != AF_BRIDGE => {
                pick(Event::Gone { index: u32_at(payload, 4) })
            }
            Some(_) => None,
        })
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// Notifications about the IPv6 addresses of one namespace, from the moment it was opened.
pub struct AddressWatch(Watch);

impl AddressWatch {
    /// For the calling thread's namespace; [`super::Handle::watch_addresses`] is for the handle's.
    pub fn open() -> Result<AddressWatch> {
        Watch::open(RTNLGRP_IPV6_IFADDR).map(AddressWatch)
    }

    /// Waits until an address of this interface changed, or until notifications were lost; false when `budget` is used up.
    pub fn wait(&mut self, index: u32, budget: Duration) -> Result<bool> {
        let deadline = Instant::now() + budget;
        loop {
            let changed = self.0.drain(|message| match message {
                None => Some(()),
                Some((_, payload)) => (u32_at(payload, 4) == index).then_some(()),
            })?;
            if changed.is_some() {
                return Ok(true);
            }
            if !self.0.readable_before(deadline)? {
                return Ok(false);
            }
        }
    }

    /// Waits until each of these addresses works, for addresses that were added without duplicate address detection after
    /// this was opened; false when `budget` is used up or notifications were lost.
    ///
    /// The kernel answers the request before it has joined the address's solicited-node group and added its local route
    /// (`addrconf_dad_work` in net/ipv6/addrconf.c); it says so by RTM_NEWADDR. What is sent to the address before is lost.
    pub fn wait_usable(&mut self, index: u32, wanted: Vec<IpAddr>, budget: Duration) -> Result<bool> {
        match dry_run::is_on() {
            true => Ok(true),
            false => phase("wait until addresses work", || self.wait_addresses(index, wanted, budget)),
        }
    }

    fn wait_addresses(&mut self, index: u32, mut wanted: Vec<IpAddr>, budget: Duration) -> Result<bool> {
        let deadline = Instant::now() + budget;
        while !wanted.is_empty() {
            let lost = self.0.drain(|message| {
                let address = message.map(|(_, payload)| Address::decode(payload));
                if let Some(Some(address)) = &address {
                    wanted.retain(|w| {
                        address.index != index || address.is_tentative() || *w != address.net.addr()
                    });
                }
                address.is_none().then_some(())
            })?;
            if lost.is_some() || (!wanted.is_empty() && !self.0.readable_before(deadline)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A subscribed socket.
struct Watch {
    socket: Socket,
}

impl Watch {
    fn open(group: u32) -> Result<Watch> {
        Ok(Watch { socket: Socket::subscribe(group)? })
    }

    /// Hands type and payload of each queued notification to `pick` until it returns something; `None` stands for lost
    /// ones.
    fn drain<T>(&mut self, mut pick: impl FnMut(Option<(u16, &[u8])>) -> Option<T>) -> Result<Option<T>> {
        // Not kept: a daemon has a thousand watches, and reads one at a time.
        let mut receive = vec![0; RECEIVE];
        loop {
            let picked = match self.socket.receive(&mut receive, Msg::DONTWAIT) {
                Ok(length) => Messages(&receive[..length]).find_map(|m| pick(Some((m.kind, m.payload)))),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => pick(None),
                Err(errno) => return Err(Error::system("receive rtnetlink notifications", errno)),
            };
            if picked.is_some() {
                return Ok(picked);
            }
        }
    }

    /// Waits for a notification; false when the deadline passes first.
    fn readable_before(&self, deadline: Instant) -> Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a rest below one millisecond must not become a busy loop.
            let left = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, left) {
                Ok(0) if Instant::now() >= deadline => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(Error::system("wait for rtnetlink notifications", errno)),
            }
        }
    }
}
