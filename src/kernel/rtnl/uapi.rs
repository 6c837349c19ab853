//! Kernel constants that neli does not name (or names for glibc only), with their headers.

/// `VETH_INFO_PEER`, linux/veth.h: `ifinfomsg` and attributes of the other end.
pub const VETH_INFO_PEER: u16 = 1;
/// `IFLA_BR_STP_STATE`, linux/if_link.h (u32).
pub const IFLA_BR_STP_STATE: u16 = 5;
/// `IFLA_BR_VLAN_FILTERING`, linux/if_link.h (u8).
pub const IFLA_BR_VLAN_FILTERING: u16 = 7;
/// `IFLA_BR_VLAN_DEFAULT_PVID`, linux/if_link.h (u16).
pub const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
/// `IFLA_BRPORT_STATE`, linux/if_link.h (u8, `BR_STATE_*`).
pub const IFLA_BRPORT_STATE: u16 = 1;
/// `IFLA_BRPORT_MODE`, linux/if_link.h (u8): hairpin.
pub const IFLA_BRPORT_MODE: u16 = 4;
/// `IFLA_BRPORT_ISOLATED`, linux/if_link.h (u8), Linux 4.18.
pub const IFLA_BRPORT_ISOLATED: u16 = 33;
/// `IFLA_TUN_OWNER`, linux/if_link.h (u32).
pub const IFLA_TUN_OWNER: u16 = 1;
/// `IFLA_TUN_GROUP`, linux/if_link.h (u32).
pub const IFLA_TUN_GROUP: u16 = 2;
/// `IFLA_TUN_TYPE`, linux/if_link.h (u8, `IFF_TUN` or `IFF_TAP`).
pub const IFLA_TUN_TYPE: u16 = 3;
/// `IFLA_TUN_MULTI_QUEUE`, linux/if_link.h (u8).
pub const IFLA_TUN_MULTI_QUEUE: u16 = 7;
/// `IFLA_BRIDGE_VLAN_INFO`, linux/if_bridge.h: `struct bridge_vlan_info { u16 flags; u16 vid; }`.
pub const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
/// `BRIDGE_VLAN_INFO_PVID`, linux/if_bridge.h.
pub const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
/// `BRIDGE_VLAN_INFO_UNTAGGED`, linux/if_bridge.h.
pub const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;
/// `BRIDGE_VLAN_INFO_RANGE_BEGIN`, linux/if_bridge.h.
pub const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 1 << 3;
/// `BRIDGE_VLAN_INFO_RANGE_END`, linux/if_bridge.h.
pub const BRIDGE_VLAN_INFO_RANGE_END: u16 = 1 << 4;

/// `IFLA_VLAN_ID`, linux/if_link.h (u16).
pub const IFLA_VLAN_ID: u16 = 1;
/// `IFLA_MACVLAN_MODE`, linux/if_link.h (u32).
pub const IFLA_MACVLAN_MODE: u16 = 1;
/// `IFLA_MACVLAN_BC_QUEUE_LEN`, linux/if_link.h (u32), Linux 5.11.
pub const IFLA_MACVLAN_BC_QUEUE_LEN: u16 = 7;
/// `IFLA_IPVLAN_MODE`, linux/if_link.h (u16).
pub const IFLA_IPVLAN_MODE: u16 = 1;
/// `IFLA_IPVLAN_FLAGS`, linux/if_link.h (u16): 0 bridge, 1 private, 2 vepa.
pub const IFLA_IPVLAN_FLAGS: u16 = 2;

/// `NUD_PERMANENT`, linux/neighbour.h.
pub const NUD_PERMANENT: u16 = 0x80;

/// `NETNSA_NSID`, linux/net_namespace.h (s32): number of a namespace in another one.
pub const NETNSA_NSID: u16 = 1;
/// `NETNSA_FD`, linux/net_namespace.h: descriptor of a namespace.
pub const NETNSA_FD: u16 = 3;

/// `BR_STATE_DISABLED`, linux/if_bridge.h.
pub const BR_STATE_DISABLED: u8 = 0;

/// `IFF_LOWER_UP`, linux/if.h: the link has a carrier.
pub const IFF_LOWER_UP: u32 = 1 << 16;
/// `IF_OPER_UNKNOWN`, linux/if.h (RFC 2863).
pub const IF_OPER_UNKNOWN: u8 = 0;
/// `IF_OPER_UP`, linux/if.h (RFC 2863).
pub const IF_OPER_UP: u8 = 6;

/// `RTEXT_FILTER_BRVLAN_COMPRESSED`, linux/rtnetlink.h.
pub const RTEXT_FILTER_BRVLAN_COMPRESSED: u32 = 1 << 2;
/// `RTEXT_FILTER_SKIP_STATS`, linux/rtnetlink.h.
pub const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// `RTA_VIA`, linux/rtnetlink.h: `struct rtvia { u16 family; u8 addr[]; }`, a gateway of the other family.
pub const RTA_VIA: u16 = 18;
/// `RTAX_MTU`, linux/rtnetlink.h.
pub const RTAX_MTU: u16 = 2;
/// `RTAX_ADVMSS`, linux/rtnetlink.h.
pub const RTAX_ADVMSS: u16 = 8;
/// `RTNH_F_ONLINK`, linux/rtnetlink.h.
pub const RTNH_F_ONLINK: u32 = 4;

/// `RTNLGRP_LINK`, linux/rtnetlink.h.
pub const RTNLGRP_LINK: u32 = 1;
/// `RTNLGRP_IPV6_IFADDR`, linux/rtnetlink.h.
pub const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// `RT_TABLE_MAIN`, linux/rtnetlink.h.
pub const RT_TABLE_MAIN: u32 = 254;
/// `RTPROT_KERNEL`, linux/rtnetlink.h.
pub const RTPROT_KERNEL: u8 = 2;
/// `RTPROT_BOOT`, linux/rtnetlink.h.
pub const RTPROT_BOOT: u8 = 3;
/// `RTN_UNICAST`, linux/rtnetlink.h.
pub const RTN_UNICAST: u8 = 1;
/// `RT_SCOPE_UNIVERSE`, linux/rtnetlink.h.
pub const RT_SCOPE_UNIVERSE: u8 = 0;
/// `RT_SCOPE_LINK`, linux/rtnetlink.h.
pub const RT_SCOPE_LINK: u8 = 253;
/// `RT_SCOPE_HOST`, linux/rtnetlink.h.
pub const RT_SCOPE_HOST: u8 = 254;
/// `RT_SCOPE_NOWHERE`, linux/rtnetlink.h; in a deletion: any scope.
pub const RT_SCOPE_NOWHERE: u8 = 255;

/// `IFNAMSIZ`, linux/if.h: bytes of an interface name with its terminating NUL.
pub const IFNAMSIZ: usize = 16;
/// `IFALIASZ`, linux/if.h: bytes of an interface alias with its terminating NUL.
pub const IFALIASZ: usize = 256;

/// `AF_INET`, `AF_INET6`, `AF_BRIDGE` as the one-byte families of rtnetlink headers.
pub const AF_INET: u8 = 2;
/// See [`AF_INET`].
pub const AF_INET6: u8 = 10;
/// See [`AF_INET`].
pub const AF_BRIDGE: u8 = 7;

/// `IFLA_INET_CONF`, linux/if_link.h, in `IFLA_AF_SPEC` of `AF_INET`: settings by their `IPV4_DEVCONF_*` number (u32 each).
pub const IFLA_INET_CONF: u16 = 1;
/// `IPV4_DEVCONF_ARP_NOTIFY`, linux/ip.h: the file `arp_notify` under /proc/sys/net/ipv4/conf.
pub const IPV4_DEVCONF_ARP_NOTIFY: u16 = 22;

/// `NETCONFA_IFINDEX`, linux/netconf.h (s32).
pub const NETCONFA_IFINDEX: u16 = 1;
/// `NETCONFA_IFINDEX_ALL`, linux/netconf.h: -1.
pub const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;
/// `NETCONFA_FORWARDING`, linux/netconf.h (s32).
pub const NETCONFA_FORWARDING: u16 = 2;

/// `FRA_SRC`, linux/fib_rules.h.
pub const FRA_SRC: u16 = 2;
/// `FRA_PRIORITY`, linux/fib_rules.h (u32).
pub const FRA_PRIORITY: u16 = 6;
/// `FRA_SUPPRESS_IFGROUP`, linux/fib_rules.h (u32).
pub const FRA_SUPPRESS_IFGROUP: u16 = 13;
/// `FRA_SUPPRESS_PREFIXLEN`, linux/fib_rules.h (u32).
pub const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
/// `FRA_TABLE`, linux/fib_rules.h (u32).
pub const FRA_TABLE: u16 = 15;
/// `FRA_PAD`, linux/fib_rules.h.
pub const FRA_PAD: u16 = 18;
/// `FRA_PROTOCOL`, linux/fib_rules.h (u8), Linux 4.17.
pub const FRA_PROTOCOL: u16 = 21;
/// `FR_ACT_TO_TBL`, linux/fib_rules.h.
pub const FR_ACT_TO_TBL: u8 = 1;
/// `FIB_RULE_INVERT`, linux/fib_rules.h.
pub const FIB_RULE_INVERT: u32 = 2;
/// `IFLA_VRF_TABLE`, linux/if_link.h (u32).
pub const IFLA_VRF_TABLE: u16 = 1;

/// `TCA_TBF_PARMS`, linux/pkt_sched.h: `struct tc_tbf_qopt`.
pub const TCA_TBF_PARMS: u16 = 1;
/// `TCA_TBF_RATE64`, linux/pkt_sched.h (u64, bytes per second).
pub const TCA_TBF_RATE64: u16 = 4;
/// `TCA_TBF_BURST`, linux/pkt_sched.h (u32, bytes), Linux 3.13.
pub const TCA_TBF_BURST: u16 = 6;
/// `TCA_HTB_PARMS`, linux/pkt_sched.h: `struct tc_htb_opt`.
pub const TCA_HTB_PARMS: u16 = 1;
/// `TCA_HTB_INIT`, linux/pkt_sched.h: `struct tc_htb_glob`.
pub const TCA_HTB_INIT: u16 = 2;
/// `TCA_HTB_RATE64`, linux/pkt_sched.h (u64, bytes per second).
pub const TCA_HTB_RATE64: u16 = 6;
/// `TCA_HTB_CEIL64`, linux/pkt_sched.h (u64, bytes per second).
pub const TCA_HTB_CEIL64: u16 = 7;
/// `TC_LINKLAYER_ETHERNET`, linux/pkt_sched.h.
pub const TC_LINKLAYER_ETHERNET: u8 = 1;
/// `TCA_U32_CLASSID`, linux/pkt_cls.h (u32).
pub const TCA_U32_CLASSID: u16 = 1;
/// `TCA_U32_SEL`, linux/pkt_cls.h: `struct tc_u32_sel`.
pub const TCA_U32_SEL: u16 = 5;
/// `TCA_U32_ACT`, linux/pkt_cls.h: a list of actions.
pub const TCA_U32_ACT: u16 = 7;
/// `TC_U32_TERMINAL`, linux/pkt_cls.h.
pub const TC_U32_TERMINAL: u8 = 1;
/// `TCA_ACT_KIND`, linux/pkt_cls.h.
pub const TCA_ACT_KIND: u16 = 1;
/// `TCA_ACT_OPTIONS`, linux/pkt_cls.h.
pub const TCA_ACT_OPTIONS: u16 = 2;
/// `TCA_MIRRED_PARMS`, linux/tc_act/tc_mirred.h: `struct tc_mirred`.
pub const TCA_MIRRED_PARMS: u16 = 2;
/// `TCA_EGRESS_REDIR`, linux/tc_act/tc_mirred.h.
pub const TCA_EGRESS_REDIR: u32 = 1;
/// `TC_ACT_STOLEN`, linux/pkt_cls.h.
pub const TC_ACT_STOLEN: u32 = 4;
/// `NLA_F_NESTED`, linux/netlink.h.
pub const NLA_F_NESTED: u16 = 1 << 15;
