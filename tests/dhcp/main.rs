//! The dhcp plugin and its daemon against real servers, in namespaces.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod daemon;
mod dnsmasq;
mod hostile;
mod hostile6;
mod ipv6;
mod links;
mod lossy;
mod renewal;
mod scripted;
mod servers;

mod site;
