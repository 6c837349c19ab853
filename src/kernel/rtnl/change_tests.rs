//! Changes as text, and byte for byte as iproute2 6.1 sends them for that text (`strace -e write=3`).

use super::*;
use crate::kernel::rtnl::{IpvlanMode, MacvlanMode, NextHop, SubKind, wire::Messages};

fn va() -> Dev {
    Dev { index: 4, name: "va".into() }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn route(dst: &str) -> RouteSpec {
    RouteSpec::new(net(dst), va())
}

fn vlan(first: u16, last: u16, access: bool) -> PortVlan {
    PortVlan { range: VlanRange { first, last }, pvid: access, untagged: access }
}

fn hop(gw: &str, weight: u16) -> NextHop {
    NextHop { gw: Some(gw.parse().unwrap()), dev: va(), weight, onlink: false }
}

fn encoded(change: &Change) -> Vec<u8> {
    let mut batch = Batch::default();
    change.encode(&mut batch).unwrap();
    batch.bytes().to_vec()
}

/// The change's text, and its message in hexadecimal without sequence number and with the ACK flag.
#[track_caller]
fn expect(change: Change, text: &str, hex: &str) {
    assert_eq!(change.to_string(), text);
    let mut message = encoded(&change);
    message[6] |= NlmF::ACK.bits() as u8;
    let reference: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    message[8..12].copy_from_slice(&reference[8..12]);
    assert_eq!(hex_of(&message), hex_of(&reference), "{text}");
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
#[cfg(target_endian = "little")]
fn port_vlans_are_sent_as_bridge_vlan_sends_them() {
    expect(
        Change::AddPortVlan { dev: va(), vlan: vlan(100, 100, false) },
        "bridge vlan add dev va vid 100",
        "2c0000001300050017f8006b00000000070000000400000000000000000000000c001a000800020000006400",
    );
    expect(
        Change::AddPortVlan { dev: va(), vlan: vlan(100, 200, false) },
        "bridge vlan add dev va vid 100-200",
        "340000001300050017f8006b000000000700000004000000000000000000000014001a000800020008006400080002001000c800",
    );
    expect(
        Change::AddPortVlan { dev: va(), vlan: vlan(5, 5, true) },
        "bridge vlan add dev va vid 5 pvid untagged",
        "2c0000001300050017f8006b00000000070000000400000000000000000000000c001a000800020006000500",
    );
    expect(
        Change::DelPortVlan { dev: va(), range: VlanRange { first: 1, last: 4094 } },
        "bridge vlan del dev va vid 1-4094",
        "340000001100050017f8006b000000000700000004000000000000000000000014001a000800020008000100080002001000fe0f",
    );
}

#[test]
#[cfg(target_endian = "little")]
fn links_are_sent_as_ip_link_sends_them() {
    expect(
        Change::AddBridge(AddBridge { name: "cni1".into(), vlan_filtering: true, ..AddBridge::default() }),
        "ip link add cni1 type bridge vlan_filtering 1",
        "480000001000050616f8006b000000000000000000000000000000000000000009000300636e6931000000001c0012000a000100\
         62726964676500000c0002000500070001000000",
    );
    let cni0 = Dev { index: 2, name: "cni0".into() };
    expect(
        Change::SetLink(SetLink { vlan_filtering: Some(true), ..SetLink::of(cni0) }),
        "ip link set dev cni0 type bridge vlan_filtering 1",
        "3c0000001000050016f8006b00000000000000000200000000000000000000001c0012000a000100627269646765000\
         00c0002000500070001000000",
    );
}

#[test]
#[cfg(target_endian = "little")]
fn settings_and_moves_of_a_link_are_sent_as_ip_link_sends_them() {
    expect(
        Change::SetLink(SetLink { allmulti: Some(true), tx_queue: Some(500), ..SetLink::of(va()) }),
        "ip link set dev va allmulticast on txqueuelen 500",
        "28000000100005008949016b0000000000000000040000000002000000020000\
         08000d00f4010000",
    );
    let netns = PeerNetns { fd: 4, path: "x".into() };
    expect(
        Change::SetLink(SetLink { netns: Some(netns), ..SetLink::of(va()) }),
        "ip link set dev va netns x",
        "28000000100005008949016b0000000000000000040000000000000000000000\
         08001c0004000000",
    );
}

#[test]
#[cfg(target_endian = "little")]
fn addresses_and_routes_are_sent_as_ip_sends_them() {
    expect(
        Change::AddAddress(AddAddress { dev: va(), net: net("fd00:2::1/64"), nodad: true }),
        "ip -6 addr add fd00:2::1/64 dev va nodad",
        "400000001400050617f8006b000000000a4002000400000014000200fd000002000000000000000000000001\
         14000100fd000002000000000000000000000001",
    );
    expect(
        Change::AddAddress(AddAddress { dev: va(), net: net("10.2.0.1/16"), nodad: true }),
        "ip addr add 10.2.0.1/16 dev va",
        "300000001400050617f8006b000000000210000004000000080002000a020001080001000a020001080004000a02ffff",
    );
    for (text, sent, hex) in [
        (
            "10.9.9.1 peer 10.9.9.2/32",
            "ip addr add 10.9.9.1 peer 10.9.9.2/32 dev va",
            "280000001400050617f8006b00000000022000000400000008000200\
             0a090901080001000a090902",
        ),
        // ip has IFA_ADDRESS last.
        (
            "10.8.8.1/24 brd 10.8.8.200 scope 253 label va:1 metric 7 noprefixroute",
            "ip addr add 10.8.8.1/24 brd 10.8.8.200 scope 253 label va:1 metric 7 noprefixroute dev va",
            "4c0000001400050617f8006b00000000021800fd04000000080002000a080801080001000a080801080004000a0808c8\
             0900030076613a310000000008000900070000000800080000020000",
        ),
    ] {
        let address: Address = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        expect(Change::RestoreAddress { dev: va(), address }, sent, hex);
    }
    let full = RouteSpec {
        gw: Some("10.1.0.9".parse().unwrap()),
        src: Some("10.1.0.1".parse().unwrap()),
        mtu: 1400,
        advmss: 1300,
        priority: 5,
        table: Some(1000),
        ..route("10.9.0.0/16")
    };
    expect(
        Change::AddRoute(full.clone()),
        "ip route add 10.9.0.0/16 via 10.1.0.9 dev va src 10.1.0.1 mtu 1400 advmss 1300 metric 5 table 1000",
        "600000001800050617f8006b00000000021000000003000100000000080001000a090000080005000a010009080007000a010001\
         080006000500000008000f00e803000008000400040000001400080008000200780500000800080014050000",
    );
    expect(
        Change::PrependRoute(full),
        "ip route prepend 10.9.0.0/16 via 10.1.0.9 dev va src 10.1.0.1 mtu 1400 advmss 1300 metric 5 table 1000",
        "600000001800050417f8006b00000000021000000003000100000000080001000a090000080005000a010009080007000a010001\
         080006000500000008000f00e803000008000400040000001400080008000200780500000800080014050000",
    );
    let multipath = RouteSpec {
        nexthops: vec![hop("10.1.0.8", 1), hop("10.1.0.9", 3)],
        ..RouteSpec::new(net("10.8.0.0/16"), Dev::default())
    };
    expect(
        Change::AddRoute(multipath),
        "ip route add 10.8.0.0/16 nexthop via 10.1.0.8 dev va weight 1 nexthop via 10.1.0.9 dev va weight 3",
        "480000001800050617f8006b0000000002100000fe03000100000000080001000a08000024000900100000000400000008000500\
         0a0100081000000204000000080005000a010009",
    );
}

fn sub_link(kind: SubKind) -> AddSubLink {
    let netns = PeerNetns { fd: 4, path: "subl".into() };
    AddSubLink { name: "eth0".into(), mtu: None, mac: None, lower: Some(va()), netns: Some(netns), kind }
}

#[test]
#[cfg(target_endian = "little")]
fn links_on_links_are_sent_as_ip_link_sends_them() {
    let mac = Some("0a:58:0a:16:00:02".parse().unwrap());
    let bridge = SubKind::Macvlan { mode: MacvlanMode::Bridge, bc_queue_len: Some(200) };
    expect(
        Change::AddSubLink(AddSubLink { mtu: Some(1400), mac, ..sub_link(bridge) }),
        "ip link add link va name eth0 mtu 1400 address 0a:58:0a:16:00:02 netns subl \
         type macvlan mode bridge bcqueuelen 200",
        "74000000100005066349016b000000000000000000000000000000000000000008000400780500000a0001000a580a1600020000\
         08001c00040000000800050004000000090003006574683000000000240012000b0001006d6163766c616e00140002000800\
         0700c80000000800010004000000",
    );
    let passthru = SubKind::Macvlan { mode: MacvlanMode::Passthru, bc_queue_len: None };
    expect(
        Change::AddSubLink(AddSubLink { netns: None, ..sub_link(passthru) }),
        "ip link add link va name eth0 type macvlan mode passthru",
        "50000000100005066349016b000000000000000000000000000000000000000008000500040000000900030065746830000000001c\
         0012000b0001006d6163766c616e000c0002000800010008000000",
    );
    expect(
        Change::AddSubLink(sub_link(SubKind::Vlan { id: 5 })),
        "ip link add link va name eth0 netns subl type vlan id 5",
        "54000000100005066349016b000000000000000000000000000000000000000008001c0004000000080005000400000009000300\
         65746830000000001800120008000100766c616e0c0002000600010005000000",
    );
    expect(
        Change::AddSubLink(AddSubLink {
            mtu: Some(1400),
            ..sub_link(SubKind::Ipvlan { mode: IpvlanMode::L3s })
        }),
        "ip link add link va name eth0 mtu 1400 netns subl type ipvlan mode l3s",
        "68000000100005066349016b0000000000000000000000000000000000000000080004007805000008001c000400000008000500\
         04000000090003006574683000000000240012000a0001006970766c616e00001400020006000100020000000600020000000000",
    );
    expect(
        Change::AddSubLink(AddSubLink { lower: None, netns: None, ..sub_link(SubKind::Dummy) }),
        "ip link add name eth0 type dummy",
        "3c000000100005066349016b0000000000000000000000000000000000000000090003006574683000000000100012000900010064\
         756d6d79000000",
    );
}

#[test]
#[cfg(target_endian = "little")]
fn neighbours_are_sent_as_ip_neigh_sends_them() {
    let mac: Mac = "0a:58:0a:16:00:02".parse().unwrap();
    let set = |ip: &str| Change::SetNeighbour { dev: va(), ip: ip.parse().unwrap(), mac };
    expect(
        set("10.1.0.5"),
        "ip neigh replace 10.1.0.5 lladdr 0a:58:0a:16:00:02 dev va nud permanent",
        "300000001c0005056449016b00000000020000000400000080000000080001000a0100050a0002000a580a1600020000",
    );
    expect(
        set("fd00::5"),
        "ip neigh replace fd00::5 lladdr 0a:58:0a:16:00:02 dev va nud permanent",
        "3c0000001c0005056549016b000000000a000000040000008000000014000100fd0000000000000000000000000000050a000200\
         0a580a1600020000",
    );
    expect(
        Change::DelNeighbour { dev: va(), ip: "10.1.0.5".parse().unwrap() },
        "ip neigh del 10.1.0.5 dev va",
        "240000001d0005006549016b00000000020000000400000080000000080001000a010005",
    );
}

#[test]
fn every_change_prints_as_a_command() {
    let mac: Mac = "0a:58:0a:16:00:02".parse().unwrap();
    let cni0 = Dev { index: 2, name: "cni0".into() };
    let netns = PeerNetns { fd: 5, path: "/run/netns/x".into() };
    let bridge =
        AddBridge { name: "cni0".into(), up: true, mtu: Some(1400), mac: Some(mac), vlan_filtering: true };
    let veth = AddVeth {
        name: "vethab".into(),
        up: true,
        mtu: Some(1400),
        mac: None,
        master: Some(cni0.clone()),
        peer: VethPeer { name: "eth0".into(), mtu: Some(1400), mac: Some(mac), netns: Some(netns) },
    };
    let set = |change: SetLink| Change::SetLink(SetLink { dev: va(), ..change });
    let gw = Some("10.1.0.1".parse().unwrap());
    let cases = [
        (
            Change::AddBridge(bridge),
            "ip link add cni0 up mtu 1400 address 0a:58:0a:16:00:02 type bridge vlan_filtering 1",
        ),
        (
            Change::AddVeth(veth),
            "ip link add vethab up mtu 1400 numtxqueues 1 numrxqueues 1 master cni0 type veth peer name eth0 mtu 1400 \
             address 0a:58:0a:16:00:02 numtxqueues 1 numrxqueues 1 netns /run/netns/x",
        ),
        (Change::DelLink(va()), "ip link del va"),
        (Change::DelLink(Dev::indexed(7)), "ip link del if7"),
        (
            set(SetLink {
                up: Some(true),
                mtu: Some(1400),
                mac: Some(mac),
                master: Some(Some(cni0)),
                alias: Some("net's id".into()),
                promisc: Some(false),
                rename: Some("eth0".into()),
                ..SetLink::default()
            }),
            r"ip link set dev va up mtu 1400 address 0a:58:0a:16:00:02 master cni0 alias 'net'\''s id' promisc off name eth0",
        ),
        (
            set(SetLink {
                up: Some(false),
                master: Some(None),
                alias: Some("a".into()),
                ..SetLink::default()
            }),
            "ip link set dev va down nomaster alias a",
        ),
        (
            set(SetLink {
                promisc: Some(true),
                port: Some(PortFlags { hairpin: Some(true), isolated: Some(false) }),
                vlan_filtering: Some(false),
                ..SetLink::default()
            }),
            "ip link set dev va promisc on && ip link set dev va type bridge vlan_filtering 0 && \
             bridge link set dev va hairpin on isolated off",
        ),
        (Change::DelAddress { dev: va(), net: net("10.1.0.1/16") }, "ip addr del 10.1.0.1/16 dev va"),
        (
            Change::DelRoute(RouteSpec {
                gw,
                onlink: true,
                scope: Some(RT_SCOPE_LINK),
                ..route("10.9.1.1/16")
            }),
            "ip route del 10.9.0.0/16 via 10.1.0.1 dev va scope link onlink",
        ),
        (
            Change::AddRoute(RouteSpec { gw, protocol: Some(4), ..route("fd09::/64") }),
            "ip -6 route add fd09::/64 via inet 10.1.0.1 dev va proto 4",
        ),
    ];
    for (change, text) in cases {
        assert_eq!(change.to_string(), text);
    }
}

#[test]
fn what_netlink_cannot_say_is_refused_and_adds_no_message() {
    let long = "sixteen-letters-";
    let cases = [
        Change::DelLink(Dev::named(long)),
        Change::DelLink(Dev::default()),
        Change::AddBridge(AddBridge { name: long.into(), ..AddBridge::default() }),
        Change::AddVeth(AddVeth { name: "va".into(), ..AddVeth::default() }),
        Change::SetLink(SetLink { rename: Some("vb".into()), ..SetLink::of(Dev::named("va")) }),
        Change::SetLink(SetLink { master: Some(Some(Dev::named("cni0"))), ..SetLink::of(va()) }),
        Change::SetLink(SetLink { alias: Some("x".repeat(256)), ..SetLink::of(va()) }),
        Change::AddRoute(RouteSpec::new(net("10.0.0.0/8"), Dev::named("va"))),
        Change::AddSubLink(AddSubLink { name: long.into(), ..sub_link(SubKind::Dummy) }),
        Change::AddSubLink(AddSubLink { lower: Some(Dev::named("va")), ..sub_link(SubKind::Vlan { id: 5 }) }),
        Change::DelPortVlan { dev: Dev::named("va"), range: VlanRange { first: 1, last: 1 } },
    ];
    for change in cases {
        let mut batch = Batch::default();
        let err = change.encode(&mut batch).unwrap_err();
        assert!(err.msg().starts_with(&change.to_string()), "{err}");
        assert!(batch.bytes().is_empty());
    }
}

#[test]
fn port_flags_of_a_new_master_go_into_a_message_of_their_own() {
    let set = SetLink {
        master: Some(Some(va())),
        port: Some(PortFlags { hairpin: Some(true), isolated: None }),
        ..SetLink::of(Dev::named("vb"))
    };
    assert_eq!(Messages(&encoded(&Change::SetLink(set))).count(), 2);
}
