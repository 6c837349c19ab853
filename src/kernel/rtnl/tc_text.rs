//! Traffic control as the `tc` and `ip` commands an operator would type.

use std::fmt::{self, Display, Formatter};

use super::tc::{AddFilter, AddIfb, ETH_P_ALL, ETH_P_IP, ETH_P_IPV6, QdiscKind, TcChange, TcHandle, U32Key};

impl Display for TcHandle {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (*self, self.0 >> 16, self.0 & 0xffff) {
            (TcHandle::ROOT, ..) => f.write_str("root"),
            (TcHandle::INGRESS, ..) => f.write_str("ingress"),
            (_, major, 0) => write!(f, "{major:x}:"),
            (_, major, minor) => write!(f, "{major:x}:{minor:x}"),
        }
    }
}

impl Display for TcChange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            TcChange::AddQdisc { dev, parent, handle, kind } => {
                write!(f, "tc qdisc add dev {dev} ")?;
                match *parent {
                    TcHandle::INGRESS => return write!(f, "{kind}"),
                    TcHandle::ROOT => f.write_str("root")?,
                    parent => write!(f, "parent {parent}")?,
                }
                write!(f, " handle {handle} {kind}")
            }
            TcChange::ReplaceRoot { dev, handle, kind } => {
                write!(f, "tc qdisc replace dev {dev} root handle {handle} {kind}")
            }
            TcChange::DelQdisc { dev, parent } => write!(f, "tc qdisc del dev {dev} {parent}"),
            TcChange::AddClass { dev, class, rate, burst, quantum } => {
                let (parent, rate) = (TcHandle(class.0 & 0xffff_0000), Bits(*rate));
                write!(f, "tc class add dev {dev} parent {parent} classid {class} htb ")?;
                write!(f, "rate {rate} ceil {rate} burst {burst} cburst {burst} quantum {quantum}")
            }
            TcChange::AddFilter(filter) => write_filter(f, filter),
            TcChange::DelFilter { dev, filter } => {
                write!(f, "tc filter del dev {dev} parent {} ", filter.parent)?;
                write!(f, "protocol {} pref {}", Protocol(filter.protocol), filter.priority)?;
                if filter.handle != TcHandle(0) {
                    write!(f, " handle {:x}::{:x}", filter.handle.0 >> 20, filter.handle.0 & 0xfff)?;
                }
                write!(f, " {}", filter.kind)
            }
        }
    }
}

impl Display for QdiscKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            QdiscKind::Tbf(bucket) => {
                write!(f, "tbf rate {} burst {} limit {}", Bits(bucket.rate), bucket.burst, bucket.limit)
            }
            QdiscKind::Htb { default } => write!(f, "htb default {default:x}"),
            QdiscKind::Bfifo { limit } => write!(f, "bfifo limit {limit}"),
            QdiscKind::Ingress => f.write_str("ingress"),
        }
    }
}

/// Bytes per second, printed as bits.
struct Bits(u64);

impl Display for Bits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}bit", u128::from(self.0) * 8)
    }
}

/// `ETH_P_*` by the names that `tc` knows.
struct Protocol(u16);

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            ETH_P_ALL => f.write_str("all"),
            ETH_P_IP => f.write_str("ip"),
            ETH_P_IPV6 => f.write_str("ipv6"),
            other => write!(f, "0x{other:x}"),
        }
    }
}

fn write_filter(f: &mut Formatter<'_>, filter: &AddFilter) -> fmt::Result {
    write!(f, "tc filter add dev {} parent {} ", filter.dev, filter.parent)?;
    write!(f, "protocol {}", Protocol(filter.protocol))?;
    if filter.priority != 0 {
        write!(f, " pref {}", filter.priority)?;
    }
    f.write_str(" u32")?;
    if filter.keys.is_empty() {
        f.write_str(" match u32 0 0")?;
    }
    for U32Key { value, mask, offset } in &filter.keys {
        write!(f, " match u32 0x{value:x} 0x{mask:x} at {offset}")?;
    }
    if let Some(class) = filter.class {
        write!(f, " flowid {class}")?;
    }
    match &filter.redirect {
        Some(dev) => write!(f, " action mirred egress redirect dev {dev}"),
        None => Ok(()),
    }
}

impl Display for AddIfb {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let AddIfb { name, mtu, queue } = self;
        write!(f, "ip link add {name} mtu {mtu} txqueuelen {queue} type ifb")
    }
}

#[cfg(test)]
#[path = "tc_tests.rs"]
mod tests;
