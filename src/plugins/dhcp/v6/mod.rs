//! IPv6: DHCPv6 (RFC 8415) and router advertisements (RFC 4861, 4862), each as a state machine without sockets.

pub mod advert;
pub mod information;
pub mod lease;
pub mod machine;
pub mod packet;
pub mod slaac;

#[cfg(test)]
mod advert_tests;
#[cfg(test)]
mod machine_tests;
