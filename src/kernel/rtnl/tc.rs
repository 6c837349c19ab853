//! Traffic control: queueing disciplines, classes and filters (linux/pkt_sched.h, linux/pkt_cls.h), and the `ifb` links
//! that what arrives is queued on.
//!
//! Rates are bytes per second, in 64 bit; the kernel counts whole Ethernet frames. `tc` also sends rate tables
//! (`TCA_TBF_RTAB`, `TCA_HTB_CTAB`), at which kernels since 3.8 do not look.

use neli::consts::{
    nl::NlmF,
    rtnl::{Ifla, IflaInfo, Rtm, Tca},
};
use nix::libc;

use super::{
    Dev, Handle,
    link::check_name,
    uapi::*,
    wire::{Attributes, Attrs, Batch, ifinfomsg, text_of, u8_at, u32_at},
};
use crate::cni::{Error, Result, ResultExt};

/// A qdisc, class or filter by its number `MAJOR:MINOR`, as hexadecimal digits in `tc`; MINOR 0 is a qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcHandle(pub u32);

impl TcHandle {
    /// As a parent: what leaves the link (`TC_H_ROOT`).
    pub const ROOT: TcHandle = TcHandle(0xffff_ffff);
    /// As a parent: what arrives at the link (`TC_H_INGRESS`).
    pub const INGRESS: TcHandle = TcHandle(0xffff_fff1);
    /// `ffff:`, the qdisc for what arrives.
    pub const ARRIVING: TcHandle = TcHandle(0xffff_0000);
    /// `ffff:fff2`, the arriving half of a `clsact` qdisc (`TC_H_MIN_INGRESS`).
    pub const CLSACT_ARRIVING: TcHandle = TcHandle(0xffff_fff2);

    /// `MAJOR:MINOR`.
    pub const fn new(major: u16, minor: u16) -> TcHandle {
        TcHandle((major as u32) << 16 | minor as u32)
    }
}

/// One change; prints as the `tc` command an operator would type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcChange {
    /// `tc qdisc add dev DEV …`; EEXIST when there is one.
    AddQdisc {
        /// The link; its index must be known.
        dev: Dev,
        /// [`TcHandle::ROOT`], [`TcHandle::INGRESS`], or a class.
        parent: TcHandle,
        /// Its own number.
        handle: TcHandle,
        /// What it does.
        kind: QdiscKind,
    },
    /// `tc qdisc replace dev DEV root …`: in the place of the one there, which only gets other parameters when it is of that
    /// kind and number; what waits in it stays then.
    ReplaceRoot {
        /// The link; its index must be known.
        dev: Dev,
        /// Its own number.
        handle: TcHandle,
        /// What it does.
        kind: QdiscKind,
    },
    /// `tc qdisc del dev DEV PARENT`, with the classes and filters in it; ENOENT or EINVAL when there is none.
    DelQdisc {
        /// The link; its index must be known.
        dev: Dev,
        /// [`TcHandle::ROOT`] or [`TcHandle::INGRESS`].
        parent: TcHandle,
    },
    /// `tc class add dev DEV parent 1: classid CLASSID htb …`; EEXIST when there is one.
    AddClass {
        /// The link; its index must be known.
        dev: Dev,
        /// Its own number; the parent is the qdisc of the same major number.
        class: TcHandle,
        /// Bytes per second, never exceeded (the `ceil` is the same).
        rate: u64,
        /// Bytes that may be sent at once after silence.
        burst: u32,
        /// Bytes at a turn, when several classes want to send.
        quantum: u32,
    },
    /// `tc filter add dev DEV … u32 …`: several with the same priority follow each other.
    AddFilter(AddFilter),
    /// `tc filter del dev DEV … handle HANDLE u32`.
    DelFilter {
        /// The link; its index must be known.
        dev: Dev,
        /// As the kernel listed it; with handle 0 all of its priority and protocol, and their tables.
        filter: Filter,
    },
}

/// What a queueing discipline does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QdiscKind {
    /// Lets packets out at a rate.
    Tbf(TokenBucket),
    /// Classes with rates; what no filter catches goes to the class of this minor number.
    Htb {
        /// Minor number of a class.
        default: u16,
    },
    /// A queue of at most so many bytes.
    Bfifo {
        /// Bytes.
        limit: u32,
    },
    /// A place for filters on what arrives.
    Ingress,
}

/// The numbers of a token bucket filter, tc-tbf(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may be sent at once after silence; larger packets are dropped.
    pub burst: u32,
    /// Bytes that may wait; what comes then is dropped.
    pub limit: u32,
}

/// A new u32 filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddFilter {
    /// The link; its index must be known.
    pub dev: Dev,
    /// The qdisc it belongs to, or a half of one.
    pub parent: TcHandle,
    /// `pref`: lower ones are asked first; 0 for the kernel's choice. All filters of one are for one protocol.
    pub priority: u16,
    /// `ETH_P_*`, linux/if_ether.h.
    pub protocol: u16,
    /// What a packet must have; all of them. None: every packet.
    pub keys: Vec<U32Key>,
    /// `flowid`: the class that it goes to.
    pub class: Option<TcHandle>,
    /// `action mirred egress redirect`: the link that it leaves by instead; its index must be known.
    pub redirect: Option<Dev>,
}

/// Four bytes of a packet, behind its link-layer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct U32Key {
    /// What they must be where `mask` has ones.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
    /// Where they stand.
    pub offset: i32,
}

/// A queueing discipline that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// Its number; 0 for the kernel's own choice of queue.
    pub handle: TcHandle,
    /// `tbf`, `ingress`, ….
    pub kind: String,
    /// What a `tbf` lets through.
    pub tbf: Option<ShownBucket>,
    /// Default class of an `htb`, its minor number.
    pub htb_default: Option<u32>,
}

/// A class of an `htb` that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its number.
    pub handle: TcHandle,
    /// Bytes per second.
    pub rate: u64,
    /// As [`ShownBucket::buffer`].
    pub buffer: u32,
}

/// The numbers of a token bucket filter as the kernel tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownBucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may wait.
    pub limit: u32,
    /// How long the burst takes at the rate, in units of 64 ns: see [`ticks`].
    pub buffer: u32,
}

/// A filter that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// `u32`, …; of other kinds nothing below `protocol` is read.
    pub kind: String,
    /// Where it belongs.
    pub parent: TcHandle,
    /// Its number.
    pub handle: TcHandle,
    /// `pref`.
    pub priority: u16,
    /// `ETH_P_*`.
    pub protocol: u16,
    /// `flowid`, 0 when it has none.
    pub class: TcHandle,
    /// What a packet must have.
    pub keys: Vec<U32Key>,
    /// Index of the link that its first `mirred` action sends packets to.
    pub redirect: Option<u32>,
}

/// How long `bytes` take at `rate` bytes per second in the kernel's units of 64 ns (`PSCHED_SHIFT`, net/pkt_sched.h),
/// which is what tc(8) and the Go plugins calculate from /proc/net/psched.
pub fn ticks(bytes: u32, rate: u64) -> u64 {
    let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    u64::try_from(nanoseconds / 64).unwrap_or(u64::MAX)
}

fn saturated(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

impl TcChange {
    pub(super) fn encode(&self, batch: &mut Batch) -> Result<()> {
        let add = NlmF::CREATE | NlmF::EXCL;
        match self {
            TcChange::AddQdisc { dev, parent, handle, kind } => {
                let header = tcmsg(dev.need_index(self)?, *handle, *parent, 0);
                batch.message(Rtm::Newqdisc, add, &header, |a| kind.encode(a));
            }
            TcChange::ReplaceRoot { dev, handle, kind } => {
                let header = tcmsg(dev.need_index(self)?, *handle, TcHandle::ROOT, 0);
                batch.message(Rtm::Newqdisc, NlmF::CREATE | NlmF::REPLACE, &header, |a| kind.encode(a));
            }
            TcChange::DelQdisc { dev, parent } => {
                let arriving = *parent == TcHandle::INGRESS;
                let handle = if arriving { TcHandle::ARRIVING } else { TcHandle(0) };
                let header = tcmsg(dev.need_index(self)?, handle, *parent, 0);
                batch.message(Rtm::Delqdisc, NlmF::empty(), &header, |a| {
                    if arriving {
                        QdiscKind::Ingress.encode(a);
                    }
                });
            }
            TcChange::AddClass { dev, class, rate, burst, quantum } => {
                let parent = TcHandle(class.0 & 0xffff_0000);
                let header = tcmsg(dev.need_index(self)?, *class, parent, 0);
                batch.message(Rtm::Newtclass, add, &header, |a| {
                    a.text(Tca::Kind, "htb");
                    a.nest(Tca::Options, |a| encode_htb_class(a, *rate, *burst, *quantum));
                });
            }
            TcChange::AddFilter(filter) => {
                let redirect = filter.redirect.as_ref().map(|dev| dev.need_index(self)).transpose()?;
                let info = info(filter.priority, filter.protocol);
                let header = tcmsg(filter.dev.need_index(self)?, TcHandle(0), filter.parent, info);
                batch.message(Rtm::Newtfilter, add, &header, |a| {
                    a.text(Tca::Kind, "u32");
                    a.nest(Tca::Options, |a| encode_u32(a, filter, redirect));
                });
            }
            TcChange::DelFilter { dev, filter } => {
                let info = info(filter.priority, filter.protocol);
                let header = tcmsg(dev.need_index(self)?, filter.handle, filter.parent, info);
                batch.message(Rtm::Deltfilter, NlmF::empty(), &header, |a| a.text(Tca::Kind, &filter.kind));
            }
        }
        Ok(())
    }
}

impl QdiscKind {
    fn encode(&self, a: &mut Attributes<'_>) {
        match self {
            QdiscKind::Tbf(bucket) => {
                a.text(Tca::Kind, "tbf");
                a.nest(Tca::Options, |a| encode_tbf(a, *bucket));
            }
            QdiscKind::Htb { default } => {
                a.text(Tca::Kind, "htb");
                a.nest(Tca::Options, |a| {
                    // struct tc_htb_glob: version 3, rate2quantum 10, default class, debug, direct packets.
                    let words = [3, 10, u32::from(*default), 0, 0];
                    a.bytes(TCA_HTB_INIT, &words.map(u32::to_ne_bytes).concat());
                });
            }
            QdiscKind::Bfifo { limit } => {
                a.text(Tca::Kind, "bfifo");
                a.u32(Tca::Options, *limit);
            }
            QdiscKind::Ingress => {
                a.text(Tca::Kind, "ingress");
            }
        }
    }
}

/// `struct tcmsg`.
fn tcmsg(index: u32, handle: TcHandle, parent: TcHandle, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.0.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.0.to_ne_bytes());
    header[16..20].copy_from_slice(&info.to_ne_bytes());
    header
}

/// `tcm_info` of a filter: priority, and protocol in network order.
fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

/// `struct tc_ratespec` as tc(8) fills it: Ethernet, and the cell size of a rate table.
fn ratespec(rate: u64) -> [u8; 12] {
    let mut spec = [3, TC_LINKLAYER_ETHERNET, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
    spec[8..12].copy_from_slice(&saturated(rate).to_ne_bytes());
    spec
}

fn encode_tbf(a: &mut Attributes<'_>, bucket: TokenBucket) {
    // struct tc_tbf_qopt: rate, peakrate, limit, buffer, mtu. The burst in bytes below goes before the buffer, which is
    // in 32 bit.
    let buffer = saturated(ticks(bucket.burst, saturated(bucket.rate).into()));
    let mut parms = Vec::with_capacity(36);
    parms.extend_from_slice(&ratespec(bucket.rate));
    parms.extend_from_slice(&[0; 12]);
    for word in [bucket.limit, buffer, 0] {
        parms.extend_from_slice(&word.to_ne_bytes());
    }
    a.bytes(TCA_TBF_PARMS, &parms);
    a.u32(TCA_TBF_BURST, bucket.burst);
    if bucket.rate >= u32::MAX.into() {
        a.bytes(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
    }
}

fn encode_htb_class(a: &mut Attributes<'_>, rate: u64, burst: u32, quantum: u32) {
    if rate >= u32::MAX.into() {
        a.bytes(TCA_HTB_RATE64, &rate.to_ne_bytes());
        a.bytes(TCA_HTB_CEIL64, &rate.to_ne_bytes());
    }
    // struct tc_htb_opt: rate, ceil, buffer, cbuffer, quantum, level, prio.
    let buffer = saturated(ticks(burst, rate));
    let mut parms = Vec::with_capacity(44);
    parms.extend_from_slice(&ratespec(rate));
    parms.extend_from_slice(&ratespec(rate));
    for word in [buffer, buffer, quantum, 0, 0] {
        parms.extend_from_slice(&word.to_ne_bytes());
    }
    a.bytes(TCA_HTB_PARMS, &parms);
}

fn encode_u32(a: &mut Attributes<'_>, filter: &AddFilter, redirect: Option<u32>) {
    if let Some(class) = filter.class {
        a.u32(TCA_U32_CLASSID, class.0);
    }
    if let Some(index) = redirect {
        a.nest(TCA_U32_ACT, |a| {
            // The first action of the list.
            a.nest(1u16, |a| {
                a.text(TCA_ACT_KIND, "mirred");
                a.nest(TCA_ACT_OPTIONS | NLA_F_NESTED, |a| {
                    // struct tc_mirred: index, capabilities, action, reference and binding count, what to do, link.
                    let words = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, index];
                    a.bytes(TCA_MIRRED_PARMS, &words.map(u32::to_ne_bytes).concat());
                });
            });
        });
    }
    let every = [U32Key { value: 0, mask: 0, offset: 0 }];
    let keys = if filter.keys.is_empty() { &every[..] } else { &filter.keys };
    // struct tc_u32_sel: flags, offset shift, number of keys, and what only linked filters need; then the keys.
    let mut selector = vec![TC_U32_TERMINAL, 0, keys.len() as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for key in keys {
        selector.extend_from_slice(&key.mask.to_be_bytes());
        selector.extend_from_slice(&key.value.to_be_bytes());
        selector.extend_from_slice(&key.offset.to_ne_bytes());
        selector.extend_from_slice(&[0; 4]);
    }
    a.bytes(TCA_U32_SEL, &selector);
}

fn u64_at(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b))
}

impl Qdisc {
    fn decode(payload: &[u8]) -> Qdisc {
        let attrs = Attrs::after(payload, 20);
        let kind = attrs.find(Tca::Kind).map(text_of).unwrap_or_default();
        let options = Attrs(attrs.find(Tca::Options).unwrap_or_default());
        let tbf = options.find(TCA_TBF_PARMS).filter(|_| kind == "tbf").map(|parms| ShownBucket {
            rate: options.find(TCA_TBF_RATE64).map_or(u32_at(parms, 8).into(), u64_at),
            limit: u32_at(parms, 24),
            buffer: u32_at(parms, 28),
        });
        let htb_default = options.find(TCA_HTB_INIT).filter(|_| kind == "htb").map(|init| u32_at(init, 8));
        Qdisc { handle: TcHandle(u32_at(payload, 8)), kind, tbf, htb_default }
    }
}

impl Class {
    fn decode(payload: &[u8]) -> Option<Class> {
        let attrs = Attrs::after(payload, 20);
        let options = Attrs(attrs.find(Tca::Options)?);
        let parms = options.find(TCA_HTB_PARMS)?;
        let rate = options.find(TCA_HTB_RATE64).map_or(u32_at(parms, 8).into(), u64_at);
        Some(Class { handle: TcHandle(u32_at(payload, 8)), rate, buffer: u32_at(parms, 24) })
    }
}

impl Filter {
    /// `None` for the headings and tables that the kernel lists beside the filters.
    fn decode(payload: &[u8]) -> Option<Filter> {
        let attrs = Attrs::after(payload, 20);
        let kind = attrs.find(Tca::Kind).map(text_of)?;
        let options = Attrs(attrs.find(Tca::Options)?);
        let info = u32_at(payload, 16);
        let filter = Filter {
            kind,
            parent: TcHandle(u32_at(payload, 12)),
            handle: TcHandle(u32_at(payload, 8)),
            priority: (info >> 16) as u16,
            protocol: u16::from_be(info as u16),
            class: TcHandle(0),
            keys: Vec::new(),
            redirect: None,
        };
        if filter.kind != "u32" {
            return Some(filter);
        }
        let selector = options.find(TCA_U32_SEL)?;
        let keys = selector.get(16..)?.chunks_exact(16).map(|key| U32Key {
            mask: u32::from_be(u32_at(key, 0)),
            value: u32::from_be(u32_at(key, 4)),
            offset: u32_at(key, 8) as i32,
        });
        let mut actions = Attrs(options.find(TCA_U32_ACT).unwrap_or_default());
        let redirect = actions.find_map(|(_, action)| {
            let action = Attrs(action);
            let mirred = action.find(TCA_ACT_KIND).map(text_of)? == "mirred";
            let parms = Attrs(action.find(TCA_ACT_OPTIONS)?).find(TCA_MIRRED_PARMS)?;
            (mirred && u32_at(parms, 20) == TCA_EGRESS_REDIR).then(|| u32_at(parms, 24))
        });
        let class = TcHandle(options.find(TCA_U32_CLASSID).map_or(0, |b| u32_at(b, 0)));
        Some(Filter { class, keys: keys.take(u8_at(selector, 2).into()).collect(), redirect, ..filter })
    }
}

impl Handle {
    /// The qdisc at [`TcHandle::ROOT`] or [`TcHandle::INGRESS`] of a link; `None` when there is none, or only the queue
    /// that no link is without.
    ///
    /// # Errors
    /// The kernel has no traffic control.
    pub fn qdisc(&mut self, index: u32, parent: TcHandle) -> Result<Option<Qdisc>> {
        let header = tcmsg(index, TcHandle(0), parent, 0);
        let found = self.dump(
            &format!("tc qdisc show dev if{index} {parent}"),
            |batch| batch.message(Rtm::Getqdisc, NlmF::ECHO | NlmF::ACK, &header, |_| {}),
            |message, found| {
                if message.kind == u16::from(Rtm::Newqdisc) && u32_at(message.payload, 4) == index {
                    found.push(Qdisc::decode(message.payload));
                }
            },
        );
        match found {
            Err(e) if is_no_qdisc(&e) => Ok(None),
            found => Ok(found?.pop().filter(|qdisc| qdisc.handle != TcHandle(0))),
        }
    }

    /// The classes of a link that belong to an `htb`.
    ///
    /// # Errors
    /// As for [`Handle::qdisc`].
    pub fn classes(&mut self, index: u32) -> Result<Vec<Class>> {
        let header = tcmsg(index, TcHandle(0), TcHandle(0), 0);
        self.dump(
            &format!("tc class show dev if{index}"),
            |batch| batch.message(Rtm::Gettclass, NlmF::DUMP, &header, |_| {}),
            |message, found| found.extend(Class::decode(message.payload)),
        )
    }

    /// The filters at a qdisc of a link; none when there is no such qdisc.
    ///
    /// # Errors
    /// As for [`Handle::qdisc`].
    pub fn filters(&mut self, index: u32, parent: TcHandle) -> Result<Vec<Filter>> {
        let header = tcmsg(index, TcHandle(0), parent, 0);
        let found = self.dump(
            &format!("tc filter show dev if{index} parent {parent}"),
            |batch| batch.message(Rtm::Gettfilter, NlmF::DUMP, &header, |_| {}),
            |message, found| found.extend(Filter::decode(message.payload)),
        );
        match found {
            Err(e) if is_no_qdisc(&e) => Ok(Vec::new()),
            found => found,
        }
    }
}

/// Whether the kernel's answer to a question or deletion says that there is no such qdisc (or link).
pub fn is_no_qdisc(err: &Error) -> bool {
    err.is_gone() || err.errno() == Some(nix::errno::Errno::EINVAL)
}

/// A new link that sends what it is given back to where it came from, after its qdisc let it pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddIfb {
    /// Name.
    pub name: String,
    /// Bytes; larger packets are dropped.
    pub mtu: u32,
    /// Packets that its own queue holds when it has no qdisc of ours; 0 for none.
    pub queue: u32,
}

impl AddIfb {
    pub(super) fn encode(&self, what: &dyn std::fmt::Display, batch: &mut Batch) -> Result<()> {
        check_name(&self.name, what).context("ifb")?;
        batch.message(Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, &ifinfomsg(0, 0, 0, 0), |a| {
            a.u32(Ifla::Mtu, self.mtu);
            a.u32(Ifla::Txqlen, self.queue);
            a.text(Ifla::Ifname, &self.name);
            a.nest(Ifla::Linkinfo, |a| a.bytes(IflaInfo::Kind, b"ifb"));
        });
        Ok(())
    }
}

/// `ETH_P_ALL`, linux/if_ether.h.
pub const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;
/// `ETH_P_IP`, linux/if_ether.h.
pub const ETH_P_IP: u16 = libc::ETH_P_IP as u16;
/// `ETH_P_IPV6`, linux/if_ether.h.
pub const ETH_P_IPV6: u16 = libc::ETH_P_IPV6 as u16;
