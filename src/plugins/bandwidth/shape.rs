//! Limits as traffic control: what to add, and whether it is there.
//!
//! A link's root queue limits what leaves by it. Towards the container that is the host's end of the veth pair; from the
//! container, frames arrive there, are redirected to an `ifb` link, leave by that, and go on where they arrived.

use ipnet::IpNet;

use super::conf::{Limit, Subnets};
use crate::attach::verify::difference;
use crate::cni::Result;
use crate::kernel::rtnl::tc::{
    AddFilter, Class, ETH_P_IP, ETH_P_IPV6, Filter, Qdisc, QdiscKind, ShownBucket, TcChange, TcHandle,
    TokenBucket, U32Key, ticks,
};
use crate::kernel::rtnl::{Change, Dev, Handle, Link};

/// The root queue, `1:` as the Go plugin has it.
pub const ROOT: TcHandle = TcHandle::new(1, 0);
/// The class of what is limited (the Go plugin 1.5's number).
const SHAPED: TcHandle = TcHandle::new(1, 0x30);
/// That of what is not; also the `flowid` of the redirection, where it means nothing.
pub const UNSHAPED: TcHandle = TcHandle::new(1, 1);
/// Bytes per second that no link reaches.
const UNLIMITED: u64 = 100_000_000_000;
/// What passes at once without limit; also the largest share of a class at a turn.
const UNLIMITED_BURST: u32 = 1_000_000;
const QUANTUM_MAX: u64 = 200_000;

/// Which address of a packet is the other side's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// Packets to the container.
    Source,
    /// Packets from the container.
    Destination,
}

/// What may wait, in bytes: 25 ms of the rate and the burst, as the Go plugin has it.
fn queue(limit: Limit) -> u32 {
    u32::try_from((limit.rate / 40).saturating_add(limit.burst.into())).unwrap_or(u32::MAX)
}

/// Limits what leaves by `dev`, which has no root queue of its own yet.
pub fn limit(dev: &Dev, limit: Limit, subnets: &Subnets, remote: Remote) -> Vec<Change> {
    let qdisc = |parent, handle, kind| TcChange::AddQdisc { dev: dev.clone(), parent, handle, kind };
    let (nets, default, listed) = match subnets {
        Subnets::All => {
            let bucket = TokenBucket { rate: limit.rate, burst: limit.burst, limit: queue(limit) };
            return vec![Change::Tc(qdisc(TcHandle::ROOT, ROOT, QdiscKind::Tbf(bucket)))];
        }
        Subnets::Only(nets) => (nets, UNSHAPED, SHAPED),
        Subnets::Except(nets) => (nets, SHAPED, UNSHAPED),
    };
    let class = |class, rate: u64, burst| TcChange::AddClass {
        dev: dev.clone(),
        class,
        rate,
        burst,
        quantum: (rate / 10).clamp(1000, QUANTUM_MAX) as u32,
    };
    let mut changes = vec![
        qdisc(TcHandle::ROOT, ROOT, QdiscKind::Htb { default: default.0 as u16 }),
        class(SHAPED, limit.rate, limit.burst),
        class(UNSHAPED, UNLIMITED, UNLIMITED_BURST),
        qdisc(SHAPED, TcHandle::new(0x30, 0), QdiscKind::Bfifo { limit: queue(limit) }),
    ];
    changes.extend(nets.iter().map(|net| TcChange::AddFilter(to_class(dev, *net, remote, listed))));
    changes.into_iter().map(Change::Tc).collect()
}

/// Limits what leaves by `dev` in another way than its root queue `present` does, which this plugin made. What waits there
/// stays when both limit everything.
pub fn change(dev: &Dev, present: &Qdisc, limit: Limit, subnets: &Subnets, remote: Remote) -> Vec<Change> {
    let changes = self::limit(dev, limit, subnets, remote);
    match changes.as_slice() {
        [Change::Tc(TcChange::AddQdisc { dev, handle, kind: kind @ QdiscKind::Tbf(_), .. })]
            if present.kind == "tbf" =>
        {
            let (dev, handle, kind) = (dev.clone(), *handle, kind.clone());
            vec![Change::Tc(TcChange::ReplaceRoot { dev, handle, kind })]
        }
        _ => [vec![stop(dev)], changes].concat(),
    }
}

/// Takes the limit of what leaves by `dev` away.
pub fn stop(dev: &Dev) -> Change {
    Change::Tc(TcChange::DelQdisc { dev: dev.clone(), parent: TcHandle::ROOT })
}

/// Sends packets with `net` to a class.
fn to_class(dev: &Dev, net: IpNet, remote: Remote, class: TcHandle) -> AddFilter {
    let (priority, protocol) = match net {
        // One priority has room for one protocol.
        IpNet::V4(_) => (16, ETH_P_IP),
        IpNet::V6(_) => (15, ETH_P_IPV6),
    };
    AddFilter {
        dev: dev.clone(),
        parent: ROOT,
        priority,
        protocol,
        keys: keys(net, remote),
        class: Some(class),
        redirect: None,
    }
}

/// What the addresses of a network have in common, where IPv4 (RFC 791) and IPv6 (RFC 8200) headers have it.
fn keys(net: IpNet, remote: Remote) -> Vec<U32Key> {
    let source = remote == Remote::Source;
    let (address, mask, start) = match net {
        IpNet::V4(v4) => {
            (v4.network().octets().to_vec(), v4.netmask().octets().to_vec(), if source { 12 } else { 16 })
        }
        IpNet::V6(v6) => {
            (v6.network().octets().to_vec(), v6.netmask().octets().to_vec(), if source { 8 } else { 24 })
        }
    };
    let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b));
    let words = address.chunks(4).zip(mask.chunks(4)).zip((start..).step_by(4));
    words
        .map(|((value, mask), offset)| U32Key { value: word(value), mask: word(mask), offset })
        .filter(|key| key.mask != 0)
        .collect()
}

/// Whether a root queue is one that this plugin, or the Go plugin, makes.
pub fn is_ours(qdisc: &Qdisc) -> bool {
    qdisc.handle == ROOT && matches!(qdisc.kind.as_str(), "tbf" | "htb")
}

/// Compares the limit of what leaves by a link with the one that ADD set.
///
/// # Errors
/// The first difference.
pub fn check(rtnl: &mut Handle, link: &Link, limit: Limit, subnets: &Subnets, remote: Remote) -> Result<()> {
    let (name, index) = (&link.name, link.index);
    let Some(qdisc) = rtnl.qdisc(index, TcHandle::ROOT)? else {
        return Err(difference(format!("{name} has no root queue: its traffic is not limited")));
    };
    match subnets {
        Subnets::All => match qdisc.tbf {
            Some(bucket) => bucket_is(name, bucket, limit),
            None => Err(difference(format!("the root queue of {name} is {}, expected tbf", qdisc.kind))),
        },
        Subnets::Only(nets) | Subnets::Except(nets) => {
            let only = matches!(subnets, Subnets::Only(_));
            let (default, listed) = if only { (UNSHAPED, SHAPED) } else { (SHAPED, UNSHAPED) };
            if qdisc.htb_default != Some(default.0 & 0xffff) {
                return Err(difference(format!(
                    "the root queue of {name} is {}, expected htb default {:x}",
                    qdisc.kind,
                    default.0 & 0xffff
                )));
            }
            let classes = rtnl.classes(index)?;
            class_is(name, &classes, limit)?;
            let filters = rtnl.filters(index, ROOT)?;
            nets.iter().try_for_each(|net| net_is_listed(name, &filters, *net, remote, listed))
        }
    }
}

fn bucket_is(name: &str, found: ShownBucket, limit: Limit) -> Result<()> {
    same(name, "rate", found.rate, limit.rate)?;
    same(name, "limit", found.limit.into(), queue(limit).into())?;
    is_burst(name, found.buffer, limit)
}

fn class_is(name: &str, classes: &[Class], limit: Limit) -> Result<()> {
    let Some(class) = classes.iter().find(|class| class.handle == SHAPED) else {
        return Err(difference(format!("{name} has no class {SHAPED}")));
    };
    same(name, "rate", class.rate, limit.rate)?;
    let expected = ticks(limit.burst, limit.rate);
    // A class has no more room than 32 bit.
    if expected > u32::MAX.into() && class.buffer == u32::MAX {
        return Ok(());
    }
    is_burst(name, class.buffer, limit)
}

fn same(name: &str, what: &str, found: u64, expected: u64) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(difference(format!("the {what} of {name} is {found} bytes, expected {expected}"))),
    }
}

/// The kernel tells a burst as the time it takes, in the lower 32 bit of a larger number, rounded in its own way; the Go
/// plugins round to microseconds (15.625 ticks).
fn is_burst(name: &str, found: u32, limit: Limit) -> Result<()> {
    let expected = ticks(limit.burst, limit.rate);
    let off = u64::from(found.wrapping_sub(expected as u32).cast_signed().unsigned_abs());
    match off <= expected / 1000 + 17 {
        true => Ok(()),
        false => {
            let expected = limit.burst;
            Err(difference(format!("the burst of {name} takes {found} ticks, not those of {expected} bytes")))
        }
    }
}

fn net_is_listed(name: &str, filters: &[Filter], net: IpNet, remote: Remote, class: TcHandle) -> Result<()> {
    let mut wanted = keys(net, remote);
    if wanted.is_empty() {
        wanted.push(U32Key { value: 0, mask: 0, offset: 0 });
    }
    let protocol = if net.addr().is_ipv4() { ETH_P_IP } else { ETH_P_IPV6 };
    match filters.iter().any(|f| f.protocol == protocol && f.class == class && f.keys == wanted) {
        true => Ok(()),
        false => Err(difference(format!("{name} has no filter that sends {net} to class {class}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { rate: 1000, burst: 10 };

    fn printed(subnets: &Subnets, remote: Remote) -> Vec<String> {
        limit(&Dev::named("v"), LIMIT, subnets, remote).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_goes_through_one_bucket() {
        assert_eq!(
            printed(&Subnets::All, Remote::Source),
            ["tc qdisc add dev v root handle 1: tbf rate 8000bit burst 10 limit 35"]
        );
        assert_eq!(queue(Limit { rate: 1, burst: 1 }), 1);
        assert_eq!(queue(Limit { rate: u64::MAX, burst: 1 }), u32::MAX);
    }

    #[test]
    fn listed_networks_are_told_apart_by_the_other_sides_address() {
        let nets = vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()];
        assert_eq!(
            printed(&Subnets::Except(nets.clone()), Remote::Destination),
            [
                "tc qdisc add dev v root handle 1: htb default 30",
                "tc class add dev v parent 1: classid 1:30 htb rate 8000bit ceil 8000bit burst 10 cburst 10 quantum 1000",
                "tc class add dev v parent 1: classid 1:1 htb rate 800000000000bit ceil 800000000000bit \
                 burst 1000000 cburst 1000000 quantum 200000",
                "tc qdisc add dev v parent 1:30 handle 30: bfifo limit 35",
                "tc filter add dev v parent 1: protocol ip pref 16 u32 match u32 0xa010000 0xffff0000 at 16 flowid 1:1",
                "tc filter add dev v parent 1: protocol ipv6 pref 15 u32 match u32 0xfd000001 0xffffffff at 24 \
                 match u32 0x0 0xffff0000 at 28 flowid 1:1",
            ]
        );
        let only = printed(&Subnets::Only(nets), Remote::Source);
        assert_eq!(only[0], "tc qdisc add dev v root handle 1: htb default 1");
        assert!(only[4].ends_with("at 12 flowid 1:30") && only[5].ends_with("at 12 flowid 1:30"), "{only:?}");
    }

    #[test]
    fn a_burst_is_compared_as_the_kernel_and_the_go_plugin_round_it() {
        assert!(is_burst("v", 156_250, LIMIT).is_ok() && is_burst("v", 156_235, LIMIT).is_ok());
        assert!(is_burst("v", 150_000, LIMIT).is_err());
        let long = Limit { rate: 1, burst: u32::MAX - 1 };
        assert!(is_burst("v", ticks(long.burst, long.rate) as u32, long).is_ok());
    }
}
