//! The `firewalld` backend: the container's addresses are sources of a zone that lets them pass, `trusted` by default.
//!
//! firewalld does not know whose a source is. A map in our own nftables table does, so that DEL and GC need no prevResult,
//! and an address that was given to another container meanwhile stays a source. Like a source at run time, its elements
//! end with the host's uptime; firewalld's own reload drops the sources only (CHECK finds that, ADD mends it).
//!
//! D-Bus interface: firewalld.dbus(5), `org.fedoraproject.FirewallD1.zone`.

use std::net::IpAddr;

use super::dbus::{Answer, Bus, Method};
use crate::attach::Attachment;
use crate::attach::masquerade::maps::{self, FAMILIES};
use crate::attach::masquerade::names;
use crate::cni::{Error, Result};
use crate::kernel::nft::{Change, Element, Family, Map, Socket, Type, Value};
use crate::kernel::{Kernel, dry_run};

/// The name that firewalld has on the bus.
const NAME: &str = "org.fedoraproject.FirewallD1";

/// Which attachment a source was added for: n-th address of an attachment to address, with the attachment as comment.
fn map(family: Family) -> Map {
    Map { table: maps::table(family), name: "firewalld", key: Type::Name, data: Type::Address }
}

/// firewalld, which runs.
pub struct Firewalld {
    bus: Bus,
}

impl Firewalld {
    /// firewalld on the system bus; `None` when it does not run, or there is no bus.
    pub fn running(kernel: &Kernel) -> Option<Firewalld> {
        Firewalld::connect(kernel).ok()
    }

    /// As [`Firewalld::running`].
    ///
    /// # Errors
    /// Why there is none.
    pub fn connect(kernel: &Kernel) -> Result<Firewalld> {
        let mut bus = Bus::system(kernel.system_bus())?;
        match bus.has_owner(NAME)? {
            true => Ok(Firewalld { bus }),
            false => {
                Err(Error::internal(format!("firewalld is not running: nobody is {NAME} on the system bus")))
            }
        }
    }

    fn call(&mut self, member: &str, zone: &str, address: IpAddr) -> Result<Answer> {
        if dry_run::is_on() && member != "querySource" {
            let option = if member == "removeSource" { "remove-source" } else { "add-source" };
            dry_run::note(format_args!("firewall-cmd --zone={zone} --{option}={}", source(address)));
            return Ok(Answer::Other);
        }
        let interface = "org.fedoraproject.FirewallD1.zone";
        let method = Method { destination: NAME, path: "/org/fedoraproject/FirewallD1", interface, member };
        self.bus.call(&method, &[zone, &source(address)])
    }

    /// Adds an address to a zone. That it is in it already is fine. `move_it`: it may be in another zone, and is moved.
    fn add(&mut self, zone: &str, address: IpAddr, move_it: bool) -> Result<()> {
        match self.call("addSource", zone, address)? {
            Answer::Error(_, text) if text.starts_with("ZONE_ALREADY_SET") => Ok(()),
            Answer::Error(_, text) if text.starts_with("ZONE_CONFLICT") && move_it => {
                match self.call("changeZoneOfSource", zone, address)? {
                    Answer::Error(_, text) => Err(refused("change-source", zone, address, &text)),
                    _ => Ok(()),
                }
            }
            Answer::Error(_, text) => Err(refused("add-source", zone, address, &text)),
            _ => Ok(()),
        }
    }

    /// Removes an address from a zone; from whichever it is in when none is named. That it is in none is fine.
    fn remove(&mut self, zone: &str, address: IpAddr) -> Result<()> {
        match self.call("removeSource", zone, address)? {
            Answer::Error(_, text) if text.starts_with("UNKNOWN_SOURCE") => Ok(()),
            Answer::Error(_, text) => Err(refused("remove-source", zone, address, &text)),
            _ => Ok(()),
        }
    }

    /// The first address that is not in the zone, as a difference.
    ///
    /// # Errors
    /// firewalld cannot be asked, or does not know the zone.
    pub fn check(&mut self, zone: &str, addresses: &[IpAddr]) -> Result<Option<String>> {
        for address in addresses {
            match self.call("querySource", zone, *address)? {
                Answer::Bool(true) => {}
                Answer::Error(_, text) => return Err(refused("query-source", zone, *address, &text)),
                _ => {
                    let source = source(*address);
                    return Ok(Some(format!("missing: firewall-cmd --zone={zone} --add-source={source}")));
                }
            }
        }
        Ok(None)
    }
}

/// An address as firewalld has it: as a network of one.
fn source(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn refused(option: &str, zone: &str, address: IpAddr, text: &str) -> Error {
    let zone = if zone.is_empty() { String::new() } else { format!(" --zone={zone}") };
    Error::internal(format!("firewall-cmd{zone} --{option}={}: {text}", source(address)))
}

/// All sources that were added for attachments.
#[derive(Debug, Default)]
pub struct Records(Vec<(Family, Element)>);

impl Records {
    /// Reads them.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn read(nft: &mut Socket) -> Result<Records> {
        let mut all = Vec::new();
        for family in FAMILIES {
            all.extend(nft.elements(&map(family))?.into_iter().map(|element| (family, element)));
        }
        Ok(Records(all))
    }

    /// Whose they are, as tags.
    pub fn tags(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(_, element)| &element.comment)
    }

    /// The addresses of those whose tag is, or is not, wanted.
    fn addresses<'a>(&'a self, wanted: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = IpAddr> + 'a {
        self.0.iter().filter(move |(_, element)| wanted(&element.comment)).filter_map(|(_, element)| {
            match element.data {
                Value::Address(address) => Some(address),
                _ => None,
            }
        })
    }

    fn has(&self, address: IpAddr) -> bool {
        self.addresses(|_| true).any(|other| other == address)
    }
}

/// What makes the map name these addresses, and no others, as the attachment's.
fn plan_record(nft: &mut Socket, tag: &str, addresses: &[IpAddr]) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for family in FAMILIES {
        let own: Vec<IpAddr> =
            addresses.iter().copied().filter(|address| Family::of(*address) == family).collect();
        let map = map(family);
        let mut position = 0;
        loop {
            let key = Value::Name(names::index_key(tag, position));
            let found = nft.element(&map, &key)?;
            let wanted = own.get(position);
            if found.is_none() && wanted.is_none() {
                break;
            }
            position += 1;
            if found.as_ref().map(|element| &element.data) == wanted.map(|a| Value::Address(*a)).as_ref() {
                continue;
            }
            if found.is_some() {
                changes.push(Change::DestroyElement(map, key.clone()));
            }
            if let Some(address) = wanted {
                let element = Element { key, data: Value::Address(*address), comment: tag.to_owned() };
                changes.push(Change::CreateElement(map, element));
            }
        }
        if changes.iter().any(|change| matches!(change, Change::CreateElement(of, _) if *of == map)) {
            let mut first = if nft.has_table(map.table)? { Vec::new() } else { maps::skeleton(family) };
            first.push(Change::AddMap(map));
            changes.splice(0..0, first);
        }
    }
    Ok(changes)
}

/// What an ADD added, to be taken back when it does not finish.
pub struct Added {
    tag: String,
    sources: Vec<IpAddr>,
    former: Vec<IpAddr>,
}

impl Added {
    /// Takes it back: the attachment's sources are what they were before.
    ///
    /// # Errors
    /// What could not be taken back.
    pub fn take_back(&self, nft: &mut Socket, firewalld: &mut Firewalld) -> Result<()> {
        let errors = self.sources.iter().filter_map(|address| firewalld.remove("", *address).err());
        let mut errors: Vec<Error> = errors.collect();
        errors.extend(nft.commit(|nft| plan_record(nft, &self.tag, &self.former)).err());
        Error::all(errors).map_or(Ok(()), Err)
    }
}

/// Makes the attachment's addresses sources of the zone, and its former ones not. On failure nothing new was added.
///
/// # Errors
/// firewalld refuses: the zone does not exist, or an address is bound to another zone by someone else.
pub fn add(
    nft: &mut Socket,
    firewalld: &mut Firewalld,
    at: &Attachment,
    zone: &str,
    addresses: &[IpAddr],
) -> Result<Added> {
    let tag = names::element_comment(at);
    let before = Records::read(nft)?;
    let former: Vec<IpAddr> = before.addresses(|text| text == tag).collect();
    let others: Vec<IpAddr> = before.addresses(|text| text != tag).collect();
    let mut added = Added { tag, sources: Vec::new(), former };
    // First the record: an ADD that is killed in between leaves nothing that DEL does not know of.
    nft.commit(|nft| plan_record(nft, &added.tag, addresses))?;
    for address in addresses {
        if let Err(err) = firewalld.add(zone, *address, before.has(*address)) {
            return Err(match added.take_back(nft, firewalld) {
                Ok(()) => err,
                Err(left) => err.with_left(&left),
            });
        }
        if !before.has(*address) {
            added.sources.push(*address);
        }
    }
    let gone =
        added.former.iter().filter(|address| !addresses.contains(address) && !others.contains(address));
    for address in gone {
        firewalld.remove("", *address)?;
    }
    Ok(added)
}

/// Removes the sources of attachments that are `stale` by tag, and what is recorded of them. Addresses that another
/// attachment has by now stay.
///
/// # Errors
/// firewalld runs and refuses; the record stays then.
pub fn remove(
    nft: &mut Socket,
    firewalld: Option<&mut Firewalld>,
    records: &Records,
    stale: impl Fn(&str) -> bool,
) -> Result<()> {
    if !records.tags().any(|tag| stale(tag)) {
        return Ok(());
    }
    if let Some(firewalld) = firewalld {
        let kept: Vec<IpAddr> = records.addresses(|tag| !stale(tag)).collect();
        let removed = records.addresses(&stale).filter(|address| !kept.contains(address));
        let errors: Vec<Error> = removed.filter_map(|address| firewalld.remove("", address).err()).collect();
        if let Some(err) = Error::all(errors) {
            return Err(err);
        }
    }
    nft.commit(|nft| {
        let now = Records::read(nft)?;
        let gone = now.0.into_iter().filter(|(_, element)| stale(&element.comment));
        Ok(gone.map(|(family, element)| Change::DestroyElement(map(family), element.key)).collect())
    })
}

/// Removes what a Go plugin added for an attachment with these addresses; the caller's only, unless recorded for another.
/// Failures are of no account: nothing says that there is anything.
pub fn remove_former(firewalld: &mut Firewalld, records: &Records, zone: &str, addresses: &[IpAddr]) {
    for address in addresses.iter().filter(|address| !records.has(**address)) {
        let _ = firewalld.remove(zone, *address);
    }
}
