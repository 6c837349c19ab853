//! The netlink socket itself.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use neli::{
    consts::socket::{Msg, NlFamily},
    socket::NlSocket,
    utils::Groups,
};
use nix::{errno::Errno, libc};

use crate::cni::{Error, Result};

/// `SIOCGSKNS`, linux/sockios.h (Linux 4.10): a descriptor of the namespace a socket belongs to.
const SIOCGSKNS: u32 = 0x894c;

/// A blocking NETLINK_ROUTE socket, closed on exec. It stays in the namespace it was opened in.
pub struct Socket(NlSocket);

impl Socket {
    /// A socket for requests, in the calling thread's namespace: extended ACK, and dumps filtered by the kernel.
    pub fn open() -> Result<Socket> {
        let socket = NlSocket::new(NlFamily::Route).map_err(|e| Error::io("socket(NETLINK_ROUTE)", &e))?;
        // Older kernels have neither (4.12, 4.20): errors come without text, dumps without filter.
        let _ = socket.enable_ext_ack(true);
        let _ = socket.enable_strict_checking(true);
        Ok(Socket(socket))
    }

    /// A socket for requests to netfilter, in the calling thread's namespace: extended ACK.
    pub fn netfilter() -> Result<Socket> {
        let failed = |e| Error::io("socket(NETLINK_NETFILTER)", &e);
        let socket = NlSocket::connect(NlFamily::Netfilter, None, Groups::empty()).map_err(failed)?;
        let _ = socket.enable_ext_ack(true);
        Ok(Socket(socket))
    }

    /// A socket that only receives the notifications of one group (`RTNLGRP_*`).
    pub fn subscribe(group: u32) -> Result<Socket> {
        NlSocket::connect(NlFamily::Route, None, Groups::new_groups(&[group]))
            .map(Socket)
            .map_err(|e| Error::io("socket(NETLINK_ROUTE) with notifications", &e))
    }

    /// Sends one datagram.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        self.0.send(bytes, Msg::empty()).map(drop).map_err(|e| errno_of(&e))
    }

    /// Receives one datagram into `buffer` and returns its length; EMSGSIZE when it did not fit.
    pub fn receive(&self, buffer: &mut [u8], flags: Msg) -> Result<usize, Errno> {
        loop {
            match self.0.recv(&mut *buffer, flags | Msg::TRUNC) {
                Ok((length, _)) if length > buffer.len() => return Err(Errno::EMSGSIZE),
                Ok((length, _)) => return Ok(length),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(errno_of(&e)),
            }
        }
    }

    /// The namespace this socket is in, which need not be the caller's.
    pub fn netns(&self) -> Result<OwnedFd> {
        // SAFETY: the descriptor is open for the life of `self`; SIOCGSKNS takes no argument.
        let fd = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCGSKNS as _) };
        let fd = Errno::result(fd).map_err(|e| Error::system("namespace of a netlink socket", e))?;
        // SAFETY: SIOCGSKNS returned a new descriptor that nothing else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: NlSocket closes its descriptor when dropped, which the borrow of `self` rules out.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

fn errno_of(err: &io::Error) -> Errno {
    match err.raw_os_error() {
        Some(code) => Errno::from_raw(code),
        None if err.kind() == io::ErrorKind::WouldBlock => Errno::EAGAIN,
        None => Errno::EIO,
    }
}
