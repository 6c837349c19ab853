//! Netlink messages put together byte by byte, and a socket to send them: as little as the kernel can be asked with.

use std::io;

use nix::errno::Errno;
use nix::libc;

/// `NLM_F_*` flags of requests.
pub const ACK: u16 = libc::NLM_F_ACK as u16;
/// Make what is not there.
pub const CREATE: u16 = libc::NLM_F_CREATE as u16;
/// Fail when it is there.
pub const EXCL: u16 = libc::NLM_F_EXCL as u16;

/// Messages for one send.
#[derive(Default)]
pub struct Messages {
    bytes: Vec<u8>,
    /// Where the last message starts.
    last: usize,
    count: u32,
    answers: usize,
}

impl Messages {
    /// Starts a message. `header` is what follows the netlink header (`ifinfomsg`, `nfgenmsg` …).
    pub fn message(&mut self, kind: u16, flags: u16, header: &[u8]) -> &mut Messages {
        self.last = self.bytes.len();
        self.count += 1;
        self.answers += usize::from(flags & ACK != 0);
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(header);
        self.pad();
        self
    }

    /// Adds an attribute to the last message.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Messages {
        self.bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds a string with its final zero.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Messages {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Adds a number in the machine's byte order (rtnetlink).
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Messages {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network byte order (nftables).
    pub fn big_endian(&mut self, kind: u16, value: u32) -> &mut Messages {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Adds an attribute that holds `header` and then the attributes that `inner` adds.
    pub fn nest(&mut self, kind: u16, header: &[u8], inner: impl FnOnce(&mut Messages)) -> &mut Messages {
        let start = self.bytes.len();
        self.attr(kind, header);
        inner(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
        self
    }

    /// Aligns, and writes the last message's length.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let length = (self.bytes.len() - self.last) as u32;
        self.bytes[self.last..self.last + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// A netlink socket of the network namespace that the thread was in when it was opened.
pub struct Socket(libc::c_int);

impl Socket {
    /// Opens one; `groups` are the multicast groups (a bit mask) to listen to.
    pub fn open(protocol: libc::c_int, groups: u32) -> io::Result<Socket> {
        // SAFETY: a system call without memory of ours.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = Socket(fd);
        if groups != 0 {
            // SAFETY: all zeros is a valid sockaddr_nl.
            let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
            address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
            address.nl_groups = groups;
            let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            // SAFETY: `address` is a sockaddr_nl of this length.
            if unsafe { libc::bind(fd, (&raw const address).cast(), length) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(socket)
    }

    /// Sends all messages at once and reads the answers to those with [`ACK`]; the first error, if any.
    pub fn exchange(&self, messages: &Messages) -> io::Result<()> {
        self.send(messages)?;
        let mut first = Ok(());
        let mut answered = 0;
        while answered < messages.answers {
            self.receive(|kind, payload| {
                if kind == libc::NLMSG_ERROR as u16 {
                    answered += 1;
                    let code = i32::from_ne_bytes([payload[0], payload[1], payload[2], payload[3]]);
                    if code != 0 && first.is_ok() {
                        first = Err(Errno::from_raw(-code).into());
                    }
                }
            })?;
        }
        first
    }

    /// Sends all messages at once.
    pub fn send(&self, messages: &Messages) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe { libc::send(self.0, messages.bytes.as_ptr().cast(), messages.bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Receives one datagram and shows each message in it: type and what follows the netlink header.
    pub fn receive(&self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = [0u8; 32768];
        // SAFETY: the buffer is valid for its length.
        let received = unsafe { libc::recv(self.0, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut rest = &buffer[..received as usize];
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < 16 || length > rest.len() {
                break;
            }
            each(u16::from_ne_bytes([rest[4], rest[5]]), &rest[16..length]);
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(())
    }

    /// The index of a link; `None` when there is none of this name.
    pub fn link_index(&self, name: &str) -> io::Result<Option<u32>> {
        let mut request = Messages::default();
        request.message(libc::RTM_GETLINK, 0, &link_header(0, false)).text(libc::IFLA_IFNAME, name);
        self.send(&request)?;
        let mut index = Ok(None);
        self.receive(|kind, payload| {
            if kind == libc::RTM_NEWLINK {
                index = Ok(Some(u32::from_ne_bytes([payload[4], payload[5], payload[6], payload[7]])));
            }
        })?;
        index
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's own.
        unsafe { libc::close(self.0) };
    }
}

/// `struct ifinfomsg` (linux/rtnetlink.h), with IFF_UP set or untouched.
pub fn link_header(index: u32, up: bool) -> Vec<u8> {
    let flags = u32::from(up) * libc::IFF_UP as u32;
    let mut header = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    for field in [index, flags, flags] {
        header.extend_from_slice(&field.to_ne_bytes());
    }
    header
}
