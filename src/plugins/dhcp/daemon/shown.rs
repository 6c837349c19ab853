//! Attachments as `cni-all dhcp leases --json` prints them. Times are in seconds from now.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::clock::{Millis, NEVER, now};
use super::super::v4::lease::Lease;
use super::super::wanted::{Key, Wanted};
use super::side4::Side4;
use super::side6::Side6;
use crate::hex::hex;

/// One attachment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    #[serde(flatten)]
    key: Key,
    netns: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<Client>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<Client>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slaac: Option<Client>,
}

/// One way to get addresses.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Client {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    prefixes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    next: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Shown {
    /// As it is now.
    pub fn new(wanted: &Wanted, v4: Option<&Side4>, v6: Option<&Side6>) -> Shown {
        Shown {
            key: wanted.key.clone(),
            netns: wanted.netns.clone(),
            ipv4: v4.map(ipv4),
            ipv6: v6.and_then(ipv6),
            slaac: v6.map(slaac),
        }
    }
}

fn in_seconds(moment: Millis) -> Option<u64> {
    (moment != NEVER).then(|| moment.saturating_sub(now()) / 1000)
}

fn joined<T: ToString>(items: &[T]) -> Option<String> {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| texts.join(","))
}

fn ipv4(side: &Side4) -> Client {
    let lease = side.machine.lease();
    Client {
        state: side.machine.state(),
        address: lease.and_then(Lease::net).map(|net| net.to_string()),
        server: lease.map(|l| l.server.to_string()),
        next: side.machine.next_action(),
        next_in: in_seconds(side.machine.wake()),
        expires_in: lease.and_then(|l| in_seconds(l.expires_at)),
        options: lease.map(|l| l.options.shown()).unwrap_or_default(),
        problem: side.machine.problem().map(str::to_owned),
        ..Client::default()
    }
}

fn ipv6(side: &Side6) -> Option<Client> {
    let machine = side.machine.as_ref()?;
    let lease = machine.lease();
    let options = lease.map(|l| {
        let dns = joined(&l.dns).map(|text| ("dns-servers".to_owned(), text));
        let search = joined(&l.search).map(|text| ("domain-search".to_owned(), text));
        let ntp = joined(&l.ntp).map(|text| ("ntp-servers".to_owned(), text));
        dns.into_iter().chain(search).chain(ntp).collect()
    });
    Some(Client {
        state: machine.state(),
        address: lease.and_then(|l| joined(&l.addresses)),
        prefixes: lease.map(|l| l.prefixes.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        server: lease.map(|l| hex(&l.server)),
        next: machine.next_action(),
        next_in: in_seconds(machine.wake()),
        expires_in: lease.and_then(|l| in_seconds(l.expires_at)),
        options: options.unwrap_or_default(),
        problem: machine.problem().map(str::to_owned),
    })
}

fn slaac(side: &Side6) -> Client {
    let addresses = if side.autonomous { side.slaac.addresses() } else { Vec::new() };
    Client {
        state: if side.slaac.heard() { "ADVERTISED" } else { "SOLICITING" },
        address: joined(&addresses),
        server: side.slaac.gateway().map(|router| router.to_string()),
        next: if side.slaac.heard() { "expire" } else { "solicit" },
        next_in: in_seconds(side.slaac.wake()),
        ..Client::default()
    }
}
