//! Routing rules: which table is asked for which packets (linux/fib_rules.h).

use ipnet::IpNet;
use neli::consts::{nl::NlmF, rtnl::Rtm};

use super::{
    Handle,
    uapi::*,
    wire::{Attrs, Batch, ip_of, u8_at, u32_at},
};
use crate::cni::Result;

/// A rule for what comes from an address, to add or remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// Source addresses.
    pub src: IpNet,
    /// The table to ask.
    pub table: u32,
    /// Lower ones are asked first; `None` is the kernel's choice when adding (before all rules there are but the first,
    /// `local`), any when removing.
    pub priority: Option<u32>,
    /// `RTPROT_*`, linux/rtnetlink.h: who made it; 0 for nobody when adding, any when removing.
    pub protocol: u8,
}

/// A rule that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// For IPv6 packets, else IPv4.
    pub v6: bool,
    /// Source addresses; `None` for all.
    pub src: Option<IpNet>,
    /// The table to ask; 0 when it does something else.
    pub table: u32,
    /// Lower ones are asked first.
    pub priority: u32,
    /// `RTPROT_*`, linux/rtnetlink.h: who made it; 0 when nobody said.
    pub protocol: u8,
    /// It asks a table, and nothing but the source address matters.
    pub is_plain: bool,
}

impl Rule {
    /// Reads the payload of an RTM_NEWRULE; `None` for a family other than IPv4 and IPv6.
    fn decode(payload: &[u8]) -> Option<Rule> {
        let v6 = match u8_at(payload, 0) {
            AF_INET => false,
            AF_INET6 => true,
            _ => return None,
        };
        let (source_length, tos, action) = (u8_at(payload, 2), u8_at(payload, 3), u8_at(payload, 7));
        let inverted = u32_at(payload, 8) & FIB_RULE_INVERT != 0;
        let mut rule = Rule {
            v6,
            src: None,
            table: u32::from(u8_at(payload, 4)),
            priority: 0,
            protocol: 0,
            is_plain: action == FR_ACT_TO_TBL && tos == 0 && !inverted,
        };
        for (kind, value) in Attrs::after(payload, 12) {
            match kind {
                FRA_SRC => rule.src = IpNet::new(ip_of(value)?, source_length).ok(),
                FRA_TABLE => rule.table = u32_at(value, 0),
                FRA_PRIORITY => rule.priority = u32_at(value, 0),
                FRA_PROTOCOL => rule.protocol = u8_at(value, 0),
                // Not about which packets.
                FRA_PAD | FRA_SUPPRESS_IFGROUP | FRA_SUPPRESS_PREFIXLEN => {}
                // A selector, told with zeros when it selects nothing.
                _ if value.iter().all(|byte| *byte == 0) => {}
                _ => rule.is_plain = false,
            }
        }
        Some(rule)
    }
}

/// `ip rule add|del from SRC lookup TABLE`.
pub(super) fn encode(kind: Rtm, flags: NlmF, rule: &RuleSpec, batch: &mut Batch) {
    let src = rule.src.trunc();
    let mut header = [0; 12];
    header[0] = if src.addr().is_ipv6() { AF_INET6 } else { AF_INET };
    header[2] = src.prefix_len();
    header[4] = u8::try_from(rule.table).unwrap_or(0);
    header[7] = if kind == Rtm::Newrule { FR_ACT_TO_TBL } else { 0 };
    batch.message(kind, flags, &header, |a| {
        a.ip(FRA_SRC, src.addr());
        if rule.table > u8::MAX.into() {
            a.u32(FRA_TABLE, rule.table);
        }
        if let Some(priority) = rule.priority {
            a.u32(FRA_PRIORITY, priority);
        }
        if rule.protocol != 0 {
            a.u8(FRA_PROTOCOL, rule.protocol);
        }
    });
}

impl Handle {
    /// All rules, both families.
    ///
    /// # Errors
    /// The kernel has only one table, or cannot be asked.
    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        self.dump(
            "ip rule show",
            |batch| batch.message(Rtm::Getrule, NlmF::DUMP, &[0; 12], |_| {}),
            |message, rules| rules.extend(Rule::decode(message.payload)),
        )
    }

    /// Every table that a rule asks, that has a route, or that a VRF has: the others are free to take.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn tables_in_use(&mut self) -> Result<Vec<u32>> {
        let mut tables: Vec<u32> = self.rules()?.into_iter().map(|rule| rule.table).collect();
        tables.extend(self.all_routes()?.into_iter().map(|route| route.table));
        tables.extend(self.links(Some("vrf"))?.into_iter().filter_map(|link| link.vrf_table));
        tables.sort_unstable();
        tables.dedup();
        Ok(tables)
    }
}

/// The first table from `from` on that is neither in use nor the kernel's (253 default, 254 main, 255 local).
pub fn free_table(from: u32, in_use: &[u32]) -> Option<u32> {
    (from..u32::MAX).find(|table| !(253..=255).contains(table) && !in_use.contains(table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::{Change, Dev, RouteSpec, private_netns::private_netns};

    fn rule(src: &str, table: u32) -> RuleSpec {
        RuleSpec { src: src.parse().unwrap(), table, priority: None, protocol: 0 }
    }

    /// As ip(8) of iproute2 6.1 sends the text, but for sequence number and ACK flag.
    #[track_caller]
    fn expect(change: Change, text: &str, hex: &str) {
        assert_eq!(change.to_string(), text);
        let mut batch = Batch::default();
        change.encode(&mut batch).unwrap();
        let mut message = batch.bytes().to_vec();
        message[6] |= 4;
        message[8..12].fill(0);
        let shown: String = message.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(shown, hex, "{text}");
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn rules_and_replaced_routes_are_sent_as_ip_sends_them() {
        expect(
            Change::AddRule(rule("10.1.0.5/32", 100)),
            "ip rule add from 10.1.0.5/32 lookup 100",
            "24000000200005060000000000000000020020006400000100000000080002000a010005",
        );
        expect(
            Change::AddRule(rule("10.1.0.5/32", 1000)),
            "ip rule add from 10.1.0.5/32 lookup 1000",
            "2c000000200005060000000000000000020020000000000100000000080002000a01000508000f00e8030000",
        );
        expect(
            Change::AddRule(RuleSpec { priority: Some(500), ..rule("10.1.0.5/32", 100) }),
            "ip rule add from 10.1.0.5/32 lookup 100 pref 500",
            "2c000000200005060000000000000000020020006400000100000000080002000a01000508000600f4010000",
        );
        expect(
            Change::DelRule(rule("10.1.0.5/32", 100)),
            "ip rule del from 10.1.0.5/32 lookup 100",
            "24000000210005000000000000000000020020006400000000000000080002000a010005",
        );
        expect(
            Change::AddRule(rule("fd00::5/128", 100)),
            "ip -6 rule add from fd00::5/128 lookup 100",
            "300000002000050600000000000000000a008000640000010000000014000200fd000000000000000000000000000005",
        );
        let va = Dev { index: 28, name: "va".into() };
        expect(
            Change::ReplaceRoute(RouteSpec {
                gw: Some("10.1.0.9".parse().unwrap()),
                table: Some(100),
                ..RouteSpec::new("10.9.0.0/16".parse().unwrap(), va)
            }),
            "ip route replace 10.9.0.0/16 via 10.1.0.9 dev va table 100",
            "34000000180005050000000000000000021000006403000100000000080001000a090000080005000a010009080004001c000000",
        );
    }

    #[test]
    fn a_rule_that_was_added_is_listed_and_its_table_is_taken() {
        private_netns("a_rule_that_was_added", || {
            let mut handle = Handle::open().unwrap();
            let ours = RuleSpec { protocol: 67, ..rule("10.1.0.5/32", 100) };
            let theirs = RuleSpec { priority: Some(700), ..rule("fd00::/64", 70_000) };
            handle.apply(&[Change::AddRule(ours.clone()), Change::AddRule(theirs)]).unwrap();
            let rules = handle.rules().unwrap();
            let found = rules.iter().find(|r| r.table == 100).unwrap();
            assert_eq!(
                (found.src, found.protocol, found.is_plain, found.v6),
                (Some(ours.src), 67, true, false)
            );
            let found = rules.iter().find(|r| r.table == 70_000).unwrap();
            assert_eq!((found.priority, found.protocol, found.is_plain, found.v6), (700, 0, true, true));
            let in_use = handle.tables_in_use().unwrap();
            assert_eq!((free_table(99, &in_use), free_table(100, &in_use)), (Some(99), Some(101)));
            assert_eq!(free_table(252, &[252]), Some(256));
            handle.apply(&[Change::DelRule(ours)]).unwrap();
            assert!(handle.rules().unwrap().iter().all(|r| r.table != 100));
        });
    }
}
