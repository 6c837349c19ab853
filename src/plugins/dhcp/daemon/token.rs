//! What an event of epoll is about: a number of an attachment or a connection, and in the lowest byte which descriptor.

/// The socket that plugins connect to.
pub const LISTENER: u64 = 1;
/// Signals.
pub const SIGNALS: u64 = 2;
/// A connection.
pub const CONNECTION: u64 = 3;
/// DHCPv4 messages.
pub const PACKET: u64 = 4;
/// ARP packets.
pub const ARP: u64 = 5;
/// News about links.
pub const LINKS: u64 = 6;
/// DHCPv6 messages.
pub const UDP6: u64 = 7;
/// Neighbour solicitations and advertisements.
pub const NEIGHBOURS: u64 = 8;
/// Router advertisements.
pub const ROUTERS: u64 = 9;

/// The number and the kind.
pub fn split(token: u64) -> (u64, u64) {
    (token & !0xff, token & 0xff)
}
