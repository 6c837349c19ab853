//! Byte for byte as tc(8) of iproute2 6.1 sends the command in the text (`strace -e write=3`), less the rate tables, at
//! which kernels since 3.8 do not look.

use super::super::{Change, Dev, wire::Batch};
use super::*;
use crate::kernel::rtnl::tc::{Filter, TokenBucket, ticks};

/// Length of a rate table with its attribute header.
const TABLE: u32 = 1028;

fn va() -> Dev {
    Dev { index: 6, name: "va".into() }
}

fn encoded(change: &Change) -> Vec<u8> {
    let mut batch = Batch::default();
    change.encode(&mut batch).unwrap();
    batch.bytes().to_vec()
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The change's text, and its message with the reference's sequence number and ACK flag. The reference has lost `tables`
/// rate tables at its end, which its lengths (of the message, and of the options at byte 44) still count.
#[track_caller]
fn expect(change: Change, text: &str, tables: u32, hex: &str) {
    assert_eq!(change.to_string(), text);
    let mut message = encoded(&change);
    message[6] |= 4;
    let mut reference: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    message[8..12].copy_from_slice(&reference[8..12]);
    if tables > 0 {
        let length = u32::from_le_bytes(reference[..4].try_into().unwrap()) - tables * TABLE;
        reference[..4].copy_from_slice(&length.to_le_bytes());
        let options = u16::from_le_bytes([reference[44], reference[45]]) - (tables * TABLE) as u16;
        reference[44..46].copy_from_slice(&options.to_le_bytes());
    }
    assert_eq!(hex_of(&message), hex_of(&reference), "{text}");
}

fn tbf(dev: Dev, rate: u64, burst: u32, limit: u32) -> Change {
    let kind = QdiscKind::Tbf(TokenBucket { rate, burst, limit });
    Change::Tc(TcChange::AddQdisc { dev, parent: TcHandle::ROOT, handle: TcHandle::new(1, 0), kind })
}

fn filter(protocol: u16, priority: u16, keys: &[(u32, u32, i32)]) -> AddFilter {
    let key = |&(value, mask, offset): &(u32, u32, i32)| U32Key { value, mask, offset };
    AddFilter {
        dev: va(),
        parent: TcHandle::new(1, 0),
        priority,
        protocol,
        keys: keys.iter().map(key).collect(),
        class: Some(TcHandle::new(1, 1)),
        redirect: None,
    }
}

#[test]
#[cfg(target_endian = "little")]
fn token_buckets_are_sent_as_tc_sends_them() {
    expect(
        tbf(Dev { index: 3, name: "va".into() }, 1_000_000, 10_000, 35_000),
        "tc qdisc add dev va root handle 1: tbf rate 8000000bit burst 10000 limit 35000",
        1,
        "64040000240005060a49016b00000000000000000300000000000100ffffffff000000000800010074626600380402002800010003010000\
         ffff000040420f00000000000000000000000000b88800005a620200000000000800060010270000",
    );
    expect(
        tbf(Dev { index: 7, name: "bwp0".into() }, 10_000_000_000, 640_000, 250_640_000),
        "tc qdisc add dev bwp0 root handle 1: tbf rate 80000000000bit burst 640000 limit 250640000",
        1,
        "70040000240005067049016b00000000000000000700000000000100ffffffff000000000800010074626600440402002800010003010000\
         ffff0000ffffffff0000000000000000000000008076f00e18090000000000000800060000c409000c00040000e40b5402000000",
    );
}

#[test]
#[cfg(target_endian = "little")]
fn other_parameters_are_sent_as_tc_sends_them() {
    let kind = QdiscKind::Tbf(TokenBucket { rate: 1_000_000, burst: 10_000, limit: 35_000 });
    let dev = Dev { index: 3, name: "va".into() };
    expect(
        Change::Tc(TcChange::ReplaceRoot { dev, handle: TcHandle::new(1, 0), kind }),
        "tc qdisc replace dev va root handle 1: tbf rate 8000000bit burst 10000 limit 35000",
        1,
        "64040000240005053e7d016b00000000000000000300000000000100ffffffff000000000800010074626600380402002800010003010000\
         ffff000040420f00000000000000000000000000b88800005a620200000000000800060010270000",
    );
}

#[test]
#[cfg(target_endian = "little")]
fn redirection_of_what_arrives_is_sent_as_tc_sends_it() {
    let va = Dev { index: 3, name: "va".into() };
    let kind = QdiscKind::Ingress;
    expect(
        Change::Tc(TcChange::AddQdisc {
            dev: va.clone(),
            parent: TcHandle::INGRESS,
            handle: TcHandle::ARRIVING,
            kind,
        }),
        "tc qdisc add dev va ingress",
        0,
        "30000000240005060a49016b0000000000000000030000000000fffff1ffffff000000000c000100696e677265737300",
    );
    expect(
        Change::Tc(TcChange::AddFilter(AddFilter {
            dev: va.clone(),
            parent: TcHandle::ARRIVING,
            redirect: Some(Dev { index: 4, name: "bwp0".into() }),
            ..filter(ETH_P_ALL, 1, &[])
        })),
        "tc filter add dev va parent ffff: protocol all pref 1 u32 match u32 0 0 flowid 1:1 \
         action mirred egress redirect dev bwp0",
        0,
        "940000002c0005060a49016b000000000000000003000000000000000000ffff00030100080001007533320068000200080001000100010038\
         000700340001000b0001006d69727265640000240002802000020000000000000000000400000000000000000000000100000004000000240005\
         000100010000000000000000000000000000000000000000000000000000000000",
    );
    expect(
        Change::Tc(TcChange::DelQdisc { dev: va.clone(), parent: TcHandle::INGRESS }),
        "tc qdisc del dev va ingress",
        0,
        "30000000250005000a49016b0000000000000000030000000000fffff1ffffff000000000c000100696e677265737300",
    );
    expect(
        Change::Tc(TcChange::DelQdisc { dev: va, parent: TcHandle::ROOT }),
        "tc qdisc del dev va root",
        0,
        "24000000250005000a49016b00000000000000000300000000000000ffffffff00000000",
    );
    expect(
        Change::AddIfb(AddIfb { name: "bwp9".into(), mtu: 1400, queue: 0 }),
        "ip link add bwp9 mtu 1400 txqueuelen 0 type ifb",
        0,
        "4800000010000506324a016b0000000000000000000000000000000000000000080004007805000008000d0000000000090003006277703900\
         0000000c0012000700010069666200",
    );
}

#[test]
#[cfg(target_endian = "little")]
fn classes_and_their_filters_are_sent_as_tc_sends_them() {
    let qdisc = |parent, handle, kind| Change::Tc(TcChange::AddQdisc { dev: va(), parent, handle, kind });
    let class = |minor, rate, burst, quantum| {
        let class = TcHandle::new(1, minor);
        Change::Tc(TcChange::AddClass { dev: va(), class, rate, burst, quantum })
    };
    expect(
        qdisc(TcHandle::ROOT, TcHandle::new(1, 0), QdiscKind::Htb { default: 0x30 }),
        "tc qdisc add dev va root handle 1: htb default 30",
        0,
        "48000000240005067049016b00000000000000000600000000000100ffffffff0000000008000100687462001c00020018000200030000000a00\
         0000300000000000000000000000",
    );
    expect(
        class(1, 100_000_000_000, 1_000_000, 200_000),
        "tc class add dev va parent 1: classid 1:1 htb rate 800000000000bit ceil 800000000000bit burst 1000000 \
         cburst 1000000 quantum 200000",
        2,
        "80080000280005067049016b0000000000000000060000000100010000000100000000000800010068746200540802000c00060000e876481700\
         00000c00070000e87648170000003000010003010000ffff0000ffffffff03010000ffff0000ffffffff9c0000009c000000400d030000000000\
         00000000",
    );
    expect(
        class(0x30, 1_000_000, 10_000, 100_000),
        "tc class add dev va parent 1: classid 1:30 htb rate 8000000bit ceil 8000000bit burst 10000 cburst 10000 \
         quantum 100000",
        2,
        "68080000280005067049016b00000000000000000600000030000100000001000000000008000100687462003c0802003000010003010000ffff\
         000040420f0003010000ffff000040420f005a6202005a620200a08601000000000000000000",
    );
    expect(
        qdisc(TcHandle::new(1, 0x30), TcHandle::new(0x30, 0), QdiscKind::Bfifo { limit: 35_000 }),
        "tc qdisc add dev va parent 1:30 handle 30: bfifo limit 35000",
        0,
        "38000000240005067049016b0000000000000000060000000000300030000100000000000a000100626669666f00000008000200b8880000",
    );
    expect(
        Change::Tc(TcChange::AddFilter(filter(ETH_P_IP, 16, &[(0x0a01_0000, 0xffff_0000, 16)]))),
        "tc filter add dev va parent 1: protocol ip pref 16 u32 match u32 0xa010000 0xffff0000 at 16 flowid 1:1",
        0,
        "5c0000002c0005067049016b000000000000000006000000000000000000010008001000080001007533320030000200080001000100010024\
         00050001000100000000000000000000000000ffff00000a0100001000000000000000",
    );
    expect(
        Change::Tc(TcChange::AddFilter(filter(
            ETH_P_IPV6,
            15,
            &[(0xfd00_0001, u32::MAX, 8), (0, 0xffff_0000, 12)],
        ))),
        "tc filter add dev va parent 1: protocol ipv6 pref 15 u32 match u32 0xfd000001 0xffffffff at 8 \
         match u32 0x0 0xffff0000 at 12 flowid 1:1",
        0,
        "6c0000002c0005067049016b000000000000000006000000000000000000010086dd0f0008000100753332004000020008000100010001003400\
         050001000200000000000000000000000000fffffffffd0000010800000000000000ffff0000000000000c00000000000000",
    );
    let filter = Filter {
        kind: "u32".into(),
        parent: TcHandle::new(1, 0),
        handle: TcHandle(0x8000_0800),
        priority: 16,
        protocol: ETH_P_IP,
        class: TcHandle::new(1, 1),
        keys: Vec::new(),
        redirect: None,
    };
    let all = Filter {
        parent: TcHandle::ARRIVING,
        handle: TcHandle(0),
        priority: 1,
        protocol: ETH_P_ALL,
        ..filter.clone()
    };
    expect(
        Change::Tc(TcChange::DelFilter { dev: Dev { index: 3, name: "va".into() }, filter: all }),
        "tc filter del dev va parent ffff: protocol all pref 1 u32",
        0,
        "2c0000002d0005000a49016b000000000000000003000000000000000000ffff000301000800010075333200",
    );
    expect(
        Change::Tc(TcChange::DelFilter { dev: va(), filter }),
        "tc filter del dev va parent 1: protocol ip pref 16 handle 800::800 u32",
        0,
        "2c0000002d0005007049016b0000000000000000060000000008008000000100080010000800010075333200",
    );
}

#[test]
fn the_time_of_a_burst_is_what_the_go_plugins_calculate() {
    // Burst in microseconds at the rate, times 15.625.
    assert_eq!(ticks(10, 1000), 156_250);
    assert_eq!(ticks(1, 1), 15_625_000);
    assert_eq!(ticks(u32::MAX, 1), u64::from(u32::MAX) * 15_625_000);
}

#[test]
fn what_netlink_cannot_say_is_refused_by_name() {
    let unknown = Change::Tc(TcChange::DelQdisc { dev: Dev::named("va"), parent: TcHandle::ROOT });
    let mut batch = Batch::default();
    let err = unknown.encode(&mut batch).unwrap_err();
    assert_eq!(err.msg(), "tc qdisc del dev va root: the index of va is not known");
    assert!(batch.bytes().is_empty());
}
