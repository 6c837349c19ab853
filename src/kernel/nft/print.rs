//! Changes as the line an operator would type: for errors, `--dry-run`, logs and tests.

use std::fmt::{self, Display, Formatter, Write};

use nftnl::nftnl_sys::libc;

use super::{
    Base, Chain, Change, Dialect, Element, Family, Hook, Kind, Map, Rule, Side, Statement, Table, Type,
    Value, Verdict,
};

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        })
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Filter => "filter",
            Kind::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
            Hook::Forward => "forward",
            Hook::Postrouting => "postrouting",
        };
        write!(f, "type {kind} hook {hook} priority {}; policy accept;", self.priority)
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)?;
        match &self.base {
            Some(base) => write!(f, " {{ {base} }}"),
            None => Ok(()),
        }
    }
}

/// The name of a type in a map of this family.
fn type_name(ty: Type, family: Family) -> String {
    match ty {
        Type::Address if family == Family::Ip6 => "ipv6_addr".into(),
        Type::Address => "ipv4_addr".into(),
        Type::Name => "ifname".into(),
        Type::Protocol => "inet_proto".into(),
        Type::Port => "inet_service".into(),
        Type::Joined(parts) => joined(parts.iter().map(|part| type_name(*part, family))),
        Type::Verdict => "verdict".into(),
        Type::Nothing => String::new(),
    }
}

/// Parts as nft writes a concatenation.
pub(super) fn joined<T: Display>(parts: impl Iterator<Item = T>) -> String {
    parts.map(|part| part.to_string()).collect::<Vec<_>>().join(" . ")
}

impl Display for Map {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Value::Address(address) => address.fmt(f),
            Value::Name(name) => write!(f, "\"{name}\""),
            Value::Protocol(number) => Protocol(*number).fmt(f),
            Value::Port(port) => port.fmt(f),
            Value::Joined(parts) => f.write_str(&joined(parts.iter())),
            Value::Verdict(verdict) => verdict.fmt(f),
            Value::Nothing => Ok(()),
        }
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} comment \"{}\"", self.key, self.comment)?;
        if self.data == Value::Nothing { Ok(()) } else { write!(f, " : {}", self.data) }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.dialect {
            Dialect::Nft => self.fmt_nft(f),
            Dialect::Iptables => self.fmt_iptables(f, "-A"),
        }
    }
}

impl Rule {
    fn fmt_nft(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.chain)?;
        for statement in &self.statements {
            f.write_char(' ')?;
            match statement {
                Statement::Within { side, net, inside } => {
                    let family = Family::of(net.addr());
                    let not = if *inside { "" } else { "!= " };
                    write!(f, "{family} {} {not}", side_name(*side))?;
                    if net.prefix_len() == net.max_prefix_len() {
                        net.addr().fmt(f)?;
                    } else {
                        net.trunc().fmt(f)?;
                    }
                }
                Statement::Lookup(side, map) => {
                    write!(f, "{} {} vmap @{}", self.table.family, side_name(*side), map.name)?;
                }
                Statement::LookupAll(fields, map) => {
                    let key = joined(fields.iter().map(|field| field.shown(self.table.family)));
                    write!(f, "{key} vmap @{}", map.name)?;
                }
                Statement::Only(condition) => condition.fmt_nft(false, f)?,
                Statement::Unless(condition) => condition.fmt_nft(true, f)?,
                Statement::InputLink(link) => write!(f, "iifname \"{link}\"")?,
                Statement::OutputLink { name, is: true } => write!(f, "oifname \"{name}\"")?,
                Statement::OutputLink { name, is: false } => write!(f, "oifname != \"{name}\"")?,
                Statement::Established => f.write_str("ct state related,established")?,
                Statement::InputBridge(bridge) => write!(f, "meta ibrname \"{bridge}\"")?,
                Statement::Carries(family) => write!(f, "meta protocol {family}")?,
                Statement::EtherSource(mac) => write!(f, "ether saddr {}", Mac(mac))?,
                Statement::Masquerade => f.write_str("masquerade")?,
                Statement::Dnat(to) => write!(f, "dnat to {to}")?,
                Statement::DnatBy(fields, map) => {
                    let family = self.table.family;
                    let key = joined(fields.iter().map(|field| field.shown(family)));
                    write!(f, "dnat {family} to {key} map @{}", map.name)?;
                }
                Statement::SetMark(bits) => write!(f, "meta mark set meta mark | {bits:#x}")?,
                Statement::Verdict(verdict) => verdict.fmt(f)?,
            }
        }
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }

    /// What is never written in this dialect prints as nft would write it; `lower.rs` refuses it.
    fn fmt_iptables(&self, f: &mut Formatter<'_>, command: &str) -> fmt::Result {
        let tool = if self.table.family == Family::Ip6 { "ip6tables" } else { "iptables" };
        write!(f, "{tool} -t {} {command} {}", self.table.name, self.chain)?;
        for statement in &self.statements {
            match statement {
                Statement::Within { side, net, inside } => {
                    let not = if *inside { "" } else { "! " };
                    let option = if *side == Side::Source { "-s" } else { "-d" };
                    write!(f, " {not}{option} {}", net.trunc())?;
                }
                Statement::InputLink(link) => write!(f, " -i {link}")?,
                Statement::OutputLink { name, is } => write!(f, " {}-o {name}", if *is { "" } else { "! " })?,
                Statement::Established => f.write_str(" -m conntrack --ctstate RELATED,ESTABLISHED")?,
                _ => {}
            }
        }
        for statement in self.statements.iter().filter(|statement| !statement.is_xt_match()) {
            match statement {
                Statement::Only(condition) => condition.fmt_iptables(false, f)?,
                Statement::Unless(condition) => condition.fmt_iptables(true, f)?,
                _ => {}
            }
        }
        if let Some(comment) = &self.comment {
            write!(f, " -m comment --comment {comment:?}")?;
        }
        for statement in &self.statements {
            match statement {
                Statement::Only(condition) if statement.is_xt_match() => condition.fmt_iptables(false, f)?,
                Statement::Unless(condition) if statement.is_xt_match() => condition.fmt_iptables(true, f)?,
                Statement::Within { .. }
                | Statement::Only(_)
                | Statement::Unless(_)
                | Statement::InputLink(_)
                | Statement::OutputLink { .. }
                | Statement::Established => {}
                Statement::Dnat(to) => write!(f, " -j DNAT --to-destination {to}")?,
                Statement::SetMark(bits) => write!(f, " -j MARK --set-xmark {bits:#x}/{bits:#x}")?,
                Statement::Verdict(Verdict::Jump(chain)) => write!(f, " -j {chain}")?,
                Statement::Verdict(Verdict::Goto(chain)) => write!(f, " -g {chain}")?,
                Statement::Verdict(verdict) => write!(f, " -j {}", verdict.to_string().to_ascii_uppercase())?,
                Statement::Masquerade => f.write_str(" -j MASQUERADE")?,
                Statement::Lookup(..)
                | Statement::LookupAll(..)
                | Statement::DnatBy(..)
                | Statement::EtherSource(_)
                | Statement::InputBridge(_)
                | Statement::Carries(_) => {
                    write!(f, " {statement:?}")?;
                }
            }
        }
        Ok(())
    }
}

pub(super) fn side_name(side: Side) -> &'static str {
    match side {
        Side::Source => "saddr",
        Side::Destination => "daddr",
    }
}

/// A transport protocol, printed by its name.
pub(super) struct Protocol(pub u8);

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match i32::from(self.0) {
            libc::IPPROTO_TCP => f.write_str("tcp"),
            libc::IPPROTO_UDP => f.write_str("udp"),
            libc::IPPROTO_SCTP => f.write_str("sctp"),
            _ => self.0.fmt(f),
        }
    }
}

/// A MAC address, printed with colons.
struct Mac<'a>(&'a [u8; 6]);

impl Display for Mac<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Change::AddTable(table) => write!(f, "nft add table {table}"),
            Change::CreateTable(table) => write!(f, "nft create table {table}"),
            Change::AddChain(chain) => write!(f, "nft add chain {chain}"),
            Change::CreateChain(chain) => write!(f, "nft create chain {chain}"),
            Change::AddMap(set) if set.data == Type::Nothing => {
                write!(f, "nft add set {set} {{ type {}; }}", type_name(set.key, set.table.family))
            }
            Change::AddMap(map) => {
                let family = map.table.family;
                let (key, data) = (type_name(map.key, family), type_name(map.data, family));
                write!(f, "nft add map {map} {{ type {key} : {data}; }}")
            }
            Change::CreateElement(map, element) => write!(f, "nft create element {map} {{ {element} }}"),
            Change::DestroyElement(map, key) => write!(f, "nft destroy element {map} {{ {key} }}"),
            Change::AddRule(rule) if rule.dialect == Dialect::Iptables => rule.fmt(f),
            Change::AddRule(rule) => write!(f, "nft add rule {rule}"),
            Change::InsertRule(rule) | Change::InsertBefore(rule, _) if rule.dialect == Dialect::Iptables => {
                rule.fmt_iptables(f, "-I")
            }
            Change::InsertRule(rule) | Change::InsertBefore(rule, _) => write!(f, "nft insert rule {rule}"),
            Change::DeleteRule { table, chain, handle } => {
                write!(f, "nft delete rule {table} {chain} handle {handle}")
            }
            Change::FlushChain { table, chain } => write!(f, "nft flush chain {table} {chain}"),
            Change::DeleteChain { table, chain } => write!(f, "nft delete chain {table} {chain}"),
        }
    }
}
