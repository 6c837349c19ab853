//! DHCP for IPv4 (RFC 2131): packets, and the client as a state machine without sockets, timers and files.

pub mod lease;
pub mod machine;
pub mod packet;

#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod packet_tests;
