//! Which address comes next: ranges, sets of ranges, and the order in which a set is walked. No files here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A run of addresses of one subnet, both ends included. `start` and `end` lie in `subnet`, `start <= end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The network; its prefix length is that of every address handed out.
    pub subnet: IpNet,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
    /// Goes into the result, and is never handed out. Need not lie in `subnet`, nor be of its family.
    pub gateway: IpAddr,
}

impl Range {
    /// Whether `addr` lies between the ends.
    pub(super) fn contains(&self, addr: IpAddr) -> bool {
        // Addresses of one family are neighbours in `IpAddr`'s order, so this holds for no address of the other.
        self.start <= addr && addr <= self.end
    }

    /// Whether some address is in both.
    pub(super) fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// The ranges that one address of an attachment is taken from: at least one, all of one family, without overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// `ranges` as described at [`RangeSet`]; the configuration has been checked for it.
    pub(super) fn new(ranges: Vec<Range>) -> RangeSet {
        RangeSet { ranges }
    }

    /// The ranges, in the order in which they are walked.
    pub(super) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The range that `addr` is in.
    pub(super) fn range_of(&self, addr: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|r| r.contains(addr))
    }

    /// Every address that may be handed out, beginning after the one that was reserved last.
    pub(super) fn candidates(&self, last: Option<IpAddr>) -> Candidates<'_> {
        let range = last.and_then(|last| self.ranges.iter().position(|r| r.contains(last)));
        Candidates {
            ranges: &self.ranges,
            range: range.unwrap_or(0),
            current: last.filter(|_| range.is_some()),
            first: None,
        }
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.ranges.iter().enumerate() {
            write!(f, "{}{range}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A walk over a set: up to a range's end, on with the next range, round to where it began; gateways are left out
/// (reference: ipam-and-meta.md 2.4). The address reserved last comes last.
#[derive(Clone)]
pub(super) struct Candidates<'a> {
    ranges: &'a [Range],
    range: usize,
    current: Option<IpAddr>,
    first: Option<IpAddr>,
}

impl Iterator for Candidates<'_> {
    type Item = IpAddr;

    fn next(&mut self) -> Option<IpAddr> {
        loop {
            let addr = match self.current {
                None => self.ranges.get(self.range)?.start,
                Some(current) if self.ranges.get(self.range)?.end == current => {
                    self.range = (self.range + 1) % self.ranges.len();
                    self.ranges[self.range].start
                }
                Some(current) => successor(current)?,
            };
            if self.first == Some(addr) {
                return None;
            }
            self.first = self.first.or(Some(addr));
            self.current = Some(addr);
            if self.ranges[self.range].gateway != addr {
                return Some(addr);
            }
        }
    }
}

/// The next address of the same family; `None` after the last one.
fn successor(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// `start-end` pairs in one /24 (or /64), gateway first address of the network.
    fn set(ranges: &[(&str, &str, &str)]) -> RangeSet {
        let range = |&(subnet, start, end): &(&str, &str, &str)| {
            let subnet: IpNet = subnet.parse().unwrap();
            let gateway = crate::cni::names::next_after_network(subnet).unwrap();
            Range { subnet, start: ip(start), end: ip(end), gateway }
        };
        RangeSet::new(ranges.iter().map(range).collect())
    }

    fn walk(set: &RangeSet, last: &str) -> Vec<String> {
        set.candidates(last.parse().ok()).map(|a| a.to_string()).collect()
    }

    #[test]
    fn a_walk_begins_after_the_last_address_and_ends_with_it() {
        let set = set(&[("192.168.1.0/29", "192.168.1.1", "192.168.1.6")]);
        assert_eq!(walk(&set, ""), [2, 3, 4, 5, 6].map(|n| format!("192.168.1.{n}")));
        assert_eq!(walk(&set, "192.168.1.5"), [6, 2, 3, 4, 5].map(|n| format!("192.168.1.{n}")));
        assert_eq!(walk(&set, "192.168.1.6"), [2, 3, 4, 5, 6].map(|n| format!("192.168.1.{n}")));
        assert_eq!(walk(&set, "192.168.9.6"), walk(&set, ""), "a last address outside the set says nothing");
        assert_eq!(walk(&set, "fd00::6"), walk(&set, ""));
    }

    #[test]
    fn a_walk_goes_through_every_range_of_the_set() {
        let set = set(&[
            ("192.168.1.0/30", "192.168.1.1", "192.168.1.2"),
            ("192.168.2.0/30", "192.168.2.1", "192.168.2.2"),
            ("192.168.3.0/30", "192.168.3.1", "192.168.3.2"),
        ]);
        assert_eq!(walk(&set, ""), ["192.168.1.2", "192.168.2.2", "192.168.3.2"]);
        assert_eq!(walk(&set, "192.168.1.2"), ["192.168.2.2", "192.168.3.2", "192.168.1.2"]);
        assert_eq!(walk(&set, "192.168.3.2"), ["192.168.1.2", "192.168.2.2", "192.168.3.2"]);
    }

    #[test]
    fn ranges_of_one_address_and_of_nothing_but_the_gateway_end() {
        let one = set(&[("10.0.0.0/24", "10.0.0.9", "10.0.0.9")]);
        assert_eq!(walk(&one, ""), ["10.0.0.9"]);
        assert_eq!(walk(&one, "10.0.0.9"), ["10.0.0.9"]);
        let gateway = set(&[("10.0.0.0/24", "10.0.0.1", "10.0.0.1")]);
        assert!(walk(&gateway, "").is_empty());
        assert!(walk(&gateway, "10.0.0.1").is_empty());
        let top = set(&[("255.255.255.0/24", "255.255.255.254", "255.255.255.255")]);
        assert_eq!(walk(&top, "255.255.255.254"), ["255.255.255.255", "255.255.255.254"]);
    }

    #[test]
    fn a_walk_of_a_large_ipv6_range_is_lazy() {
        let set = set(&[("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff")]);
        assert_eq!(set.candidates(None).next(), Some(ip("fd00::2")));
        assert_eq!(set.candidates(Some(ip("fd00::ff"))).next(), Some(ip("fd00::100")));
    }

    #[test]
    fn overlap_compares_intervals_not_subnets() {
        let split =
            set(&[("10.0.0.0/24", "10.0.0.1", "10.0.0.9"), ("10.0.0.0/24", "10.0.0.10", "10.0.0.20")]);
        assert!(!split.ranges()[0].overlaps(&split.ranges()[1]));
        let nested = set(&[("10.0.0.0/24", "10.0.0.1", "10.0.0.9"), ("10.0.0.0/24", "10.0.0.3", "10.0.0.4")]);
        assert!(
            nested.ranges()[0].overlaps(&nested.ranges()[1])
                && nested.ranges()[1].overlaps(&nested.ranges()[0])
        );
    }
}
