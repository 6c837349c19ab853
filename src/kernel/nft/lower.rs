//! Changes → netlink messages, through libnftnl's objects.

use std::ffi::{CStr, CString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nftnl::expr::{Bitwise, Cmp, CmpOp, Conntrack, Counter, Masquerade, Meta, States};
use nftnl::nftnl_sys::{self as sys, libc};
use nftnl::set::{Set, SetKey};
use nftnl::{ChainType, MsgType, NlMsg, Policy, ProtoFamily};

use super::condition::{dnat_target, load_all, mark_target};
use super::ffi::{Encoder, RawData, RawExpression};
use super::listed::{ListedRule, Step, UDATA_COMMENT, UDATA_TAG, address_field};
use super::{
    COMMENT_MAX, Chain, Change, Condition, Dialect, Element, Family, Hook, Kind, Map, Rule, Side, Statement,
    Table, Type, Value, Verdict, XT_COMMENT_MAX, ffi,
};
use crate::cni::{Error, Result};

/// `NFT_MSG_DESTROYSETELEM` (Linux 6.3): as DELSETELEM, but a missing element is no error.
const NFT_MSG_DESTROYSETELEM: u16 = 30;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_ELEM_LIST_TABLE`: the table's name.
pub(super) const NFTA_TABLE: u16 = 1;
/// `NFTA_RULE_CHAIN`, `NFTA_SET_ELEM_LIST_SET`: what in the table.
pub(super) const NFTA_WITHIN: u16 = 2;
/// `NFTA_CHAIN_NAME`
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
/// `NFTA_RULE_COMPAT`: says that the rule has xtables expressions, for which protocol.
const NFTA_RULE_COMPAT: u16 = 5;
/// `NFTA_RULE_POSITION`: the handle of the rule in front of which the new one is.
const NFTA_RULE_POSITION: u16 = 6;
/// `NFTA_RULE_USERDATA`
pub(super) const NFTA_RULE_USERDATA: u16 = 7;
/// `NFTA_SET_USERDATA`
const NFTA_SET_USERDATA: u16 = 13;
/// Longest user data of a rule (`NFT_USERDATA_MAXLEN`).
const USER_DATA_MAX: usize = 256;

/// A netlink message, header first. Attributes are appended by [`Message::put`].
#[derive(Clone, Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A message of the nf_tables subsystem without attributes.
    pub(super) fn new(kind: i32, family: Family, flags: i32) -> Message {
        let mut bytes = vec![0; 20];
        bytes[16] = proto_family(family) as u8;
        let mut message = Message(bytes);
        message.finish();
        message.set_kind(kind as u16);
        message.set_flags(flags);
        message
    }

    /// A batch's first or last message (`NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`).
    pub(super) fn batch(kind: i32) -> Message {
        let mut bytes = vec![0; 20];
        bytes[4..6].copy_from_slice(&(kind as u16).to_ne_bytes());
        // nfgenmsg.res_id: the subsystem that the batch is for.
        bytes[18..20].copy_from_slice(&(libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes());
        let mut message = Message(bytes);
        message.finish();
        message.set_flags(0);
        message
    }

    fn encoded(encoder: &mut Encoder, object: &impl NlMsg, kind: MsgType) -> Message {
        Message(encoder.encode(object, kind).to_vec())
    }

    fn finish(&mut self) {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
    }

    fn set_kind(&mut self, kind: u16) {
        self.0[4..6].copy_from_slice(&(((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | kind).to_ne_bytes());
    }

    /// Replaces the flags; NLM_F_REQUEST is always among them.
    pub(super) fn set_flags(&mut self, flags: i32) {
        self.0[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    }

    /// Asks for an answer even when all is well.
    pub(super) fn acknowledge(&mut self) {
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]);
        self.set_flags(i32::from(flags) | libc::NLM_F_ACK);
    }

    pub(super) fn set_sequence(&mut self, sequence: u32) {
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }

    /// Appends one attribute.
    pub(super) fn put(&mut self, attribute: u16, data: &[u8]) {
        let length = (data.len() + 4) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&attribute.to_ne_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.finish();
    }

    /// Appends one attribute that is a string.
    pub(super) fn put_string(&mut self, attribute: u16, text: &str) {
        self.put(attribute, &[text.as_bytes(), &[0]].concat());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn proto_family(family: Family) -> ProtoFamily {
    match family {
        Family::Ip => ProtoFamily::Ipv4,
        Family::Ip6 => ProtoFamily::Ipv6,
        Family::Inet => ProtoFamily::Inet,
        Family::Bridge => ProtoFamily::Bridge,
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::internal(format!("nft: zero byte in name {text:?}")))
}

fn table_object(table: Table) -> Result<nftnl::Table> {
    Ok(nftnl::Table::new(c_string(table.name)?, proto_family(table.family)))
}

/// One change as a message. `destroy`: the kernel knows NFT_MSG_DESTROYSETELEM.
pub(super) fn message(encoder: &mut Encoder, change: &Change, destroy: bool) -> Result<Message> {
    let create = libc::NLM_F_CREATE;
    let made = match change {
        Change::AddTable(table) | Change::CreateTable(table) => {
            let mut made = Message::encoded(encoder, &table_object(*table)?, MsgType::Add);
            let exclusive = matches!(change, Change::CreateTable(_));
            made.set_flags(if exclusive { create | libc::NLM_F_EXCL } else { create });
            made
        }
        Change::AddChain(chain) | Change::CreateChain(chain) => {
            let mut made = chain_message(encoder, chain)?;
            let exclusive = matches!(change, Change::CreateChain(_));
            made.set_flags(if exclusive { create | libc::NLM_F_EXCL } else { create });
            made
        }
        Change::AddMap(map) => with_set(map, |set| {
            let mut made = set.encode(encoder, MsgType::Add);
            made.set_flags(create);
            made.put(NFTA_SET_USERDATA, &byte_orders(map));
            Ok(made)
        })?,
        Change::CreateElement(map, element) => create_element(encoder, map, element)?,
        Change::DestroyElement(map, key) => {
            let mut made = key_message(encoder, map, key)?;
            if destroy {
                made.set_kind(NFT_MSG_DESTROYSETELEM);
            }
            made
        }
        Change::AddRule(rule) => rule_message(encoder, rule)?,
        Change::InsertRule(rule) => {
            let mut made = rule_message(encoder, rule)?;
            made.set_flags(create);
            made
        }
        Change::InsertBefore(rule, before) => {
            let mut made = rule_message(encoder, rule)?;
            made.set_flags(create);
            made.put(NFTA_RULE_POSITION, &before.to_be_bytes());
            made
        }
        Change::DeleteRule { table, chain, handle } => {
            let table = table_object(*table)?;
            let chain = nftnl::Chain::new(c_string(chain)?, &table);
            let mut rule = nftnl::Rule::new(&chain);
            rule.set_handle(*handle);
            let mut made = Message::encoded(encoder, &rule, MsgType::Del);
            made.set_flags(0);
            made
        }
        Change::FlushChain { table, chain } => {
            let table = table_object(*table)?;
            let chain = nftnl::Chain::new(c_string(chain)?, &table);
            // A rule to delete that has no handle stands for all rules of its chain.
            let mut made = Message::encoded(encoder, &nftnl::Rule::new(&chain), MsgType::Del);
            made.set_flags(0);
            made
        }
        Change::DeleteChain { table, chain } => {
            let table = table_object(*table)?;
            let chain = nftnl::Chain::new(c_string(chain)?, &table);
            let mut made = Message::encoded(encoder, &chain, MsgType::Del);
            made.set_flags(0);
            made
        }
    };
    Ok(made)
}

/// A request for the element of a key.
pub(super) fn get_element(encoder: &mut Encoder, map: &Map, key: &Value) -> Result<Message> {
    let mut made = key_message(encoder, map, key)?;
    made.set_kind(libc::NFT_MSG_GETSETELEM as u16);
    Ok(made)
}

fn chain_message(encoder: &mut Encoder, chain: &Chain) -> Result<Message> {
    let table = table_object(chain.table)?;
    let mut object = nftnl::Chain::new(c_string(&chain.name)?, &table);
    if let Some(base) = chain.base {
        object.set_type(match base.kind {
            Kind::Filter => ChainType::Filter,
            Kind::Nat => ChainType::Nat,
        });
        let hook = match base.hook {
            Hook::Prerouting => nftnl::Hook::PreRouting,
            Hook::Output => nftnl::Hook::Out,
            Hook::Forward => nftnl::Hook::Forward,
            Hook::Postrouting => nftnl::Hook::PostRouting,
        };
        object.set_hook(hook, base.priority);
        object.set_policy(Policy::Accept);
    }
    Ok(Message::encoded(encoder, &object, MsgType::Add))
}

/// Keys of a type that [`ffi::make_map`] sets.
struct AnyKey;

impl SetKey for AnyKey {
    const TYPE: u32 = 0;
    const LEN: u32 = 0;

    fn data(&self) -> Box<[u8]> {
        Box::new([])
    }
}

/// Length of the type `ifname`, with a final zero.
const NAME_LENGTH: usize = 16;

/// A set object of whichever key type, to put elements into and to encode.
trait SetObject {
    fn push(&self, key: &[u8], data: Option<(&RawData, &[u8])>);
    fn encode(&self, encoder: &mut Encoder, kind: MsgType) -> Message;
    fn encode_elements(&self, encoder: &mut Encoder, kind: MsgType) -> Result<Message>;
}

impl<K> SetObject for Set<'_, K> {
    fn push(&self, key: &[u8], data: Option<(&RawData, &[u8])>) {
        ffi::push_element(self, key, data);
    }

    fn encode(&self, encoder: &mut Encoder, kind: MsgType) -> Message {
        Message::encoded(encoder, self, kind)
    }

    fn encode_elements(&self, encoder: &mut Encoder, kind: MsgType) -> Result<Message> {
        // A message points into the iterator that it comes from.
        let mut messages = self.elems_iter();
        let first = messages.next().ok_or_else(|| Error::internal("nft: no element to send"))?;
        Ok(Message::encoded(encoder, &first, kind))
    }
}

/// Type number of nft (`enum datatypes` in its datatype.h) and length in bytes.
pub(super) fn type_of(ty: Type, family: Family) -> (u32, u32) {
    match ty {
        Type::Address if family == Family::Ip6 => (<Ipv6Addr as SetKey>::TYPE, <Ipv6Addr as SetKey>::LEN),
        Type::Address => (<Ipv4Addr as SetKey>::TYPE, <Ipv4Addr as SetKey>::LEN),
        Type::Name => (41, NAME_LENGTH as u32),
        Type::Protocol => (12, 1),
        Type::Port => (13, 2),
        // Six bits for the type of each part; each part fills whole registers of 4 bytes.
        Type::Joined(parts) => parts.iter().fold((0, 0), |(number, length), part| {
            let (part, bytes) = type_of(*part, family);
            ((number << 6) | part, length + bytes.next_multiple_of(4))
        }),
        // NFT_DATA_VERDICT; the length is that of the kernel's struct nft_verdict.
        Type::Verdict => (0xffff_ff00, 16),
        Type::Nothing => (0, 0),
    }
}

/// User data of a map that tells the `nft` tool how to show its elements: `NFTNL_UDATA_SET_KEYBYTEORDER` and
/// `…_DATABYTEORDER`, each 1 for strings (as the machine has it), 2 for addresses (network order), 0 for several parts.
fn byte_orders(map: &Map) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, ty) in [(0, map.key), (1, map.data)] {
        let order: u32 = match ty {
            Type::Address | Type::Port => 2,
            Type::Name | Type::Protocol => 1,
            Type::Joined(_) => 0,
            Type::Verdict | Type::Nothing => continue,
        };
        bytes.extend_from_slice(&[kind, 4]);
        bytes.extend_from_slice(&order.to_ne_bytes());
    }
    bytes
}

fn with_set<T>(map: &Map, run: impl FnOnce(&dyn SetObject) -> Result<T>) -> Result<T> {
    let table = table_object(map.table)?;
    let (name, family) = (c_string(map.name)?, proto_family(map.table.family));
    // Sets made in one batch are told apart by number; names decide everywhere else.
    let id = map.name.bytes().fold(1, |id: u32, byte| id.wrapping_mul(31).wrapping_add(byte.into())).max(1);
    if matches!(map.key, Type::Verdict | Type::Nothing) {
        return Err(Error::internal(format!("nft: map {map} cannot have such keys")));
    }
    let data = (map.data != Type::Nothing).then(|| type_of(map.data, map.table.family));
    let set = Set::<AnyKey>::new_named(&name, id, &table, family);
    ffi::make_map(&set, type_of(map.key, map.table.family), data);
    run(&set)
}

/// The bytes of a key or datum that is not a verdict.
fn value_bytes(value: &Value) -> Result<Vec<u8>> {
    match value {
        Value::Address(address) => Ok(octets(*address)),
        Value::Name(name) if name.len() < NAME_LENGTH => {
            let mut bytes = name.clone().into_bytes();
            bytes.resize(NAME_LENGTH, 0);
            Ok(bytes)
        }
        Value::Protocol(number) => Ok(vec![*number]),
        Value::Port(port) => Ok(port.to_be_bytes().to_vec()),
        Value::Joined(parts) => {
            let mut bytes = Vec::new();
            for part in parts {
                bytes.extend(value_bytes(part)?);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            Ok(bytes)
        }
        Value::Name(_) | Value::Verdict(_) | Value::Nothing => {
            Err(Error::internal(format!("nft: {value} is not an element's key")))
        }
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn create_element(encoder: &mut Encoder, map: &Map, element: &Element) -> Result<Message> {
    let data = match &element.data {
        Value::Verdict(verdict) => {
            let (code, chain) = verdict_code(verdict);
            RawData::Verdict(code, chain.map(c_string).transpose()?)
        }
        Value::Nothing => RawData::Nothing,
        other => RawData::Bytes(value_bytes(other)?),
    };
    let comment = user_data(&[(UDATA_COMMENT, Some(&element.comment))], COMMENT_MAX)?;
    with_set(map, |set| {
        set.push(&value_bytes(&element.key)?, Some((&data, &comment)));
        let mut made = set.encode_elements(encoder, MsgType::Add)?;
        made.set_flags(libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        Ok(made)
    })
}

/// A DELSETELEM message of one key.
fn key_message(encoder: &mut Encoder, map: &Map, key: &Value) -> Result<Message> {
    with_set(map, |set| {
        set.push(&value_bytes(key)?, None);
        let mut made = set.encode_elements(encoder, MsgType::Del)?;
        made.set_flags(0);
        Ok(made)
    })
}

/// User data: type, length with final zero, bytes and zero, for each text that is there.
fn user_data(texts: &[(u8, Option<&String>)], longest: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (kind, text) in texts {
        let Some(text) = text else { continue };
        if text.len() > longest {
            return Err(Error::internal(format!("nft: comment {text:?} has more than {longest} bytes")));
        }
        bytes.extend_from_slice(&[*kind, text.len() as u8 + 1]);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
    }
    Ok(bytes)
}

fn verdict_code(verdict: &Verdict) -> (i32, Option<&str>) {
    match verdict {
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Return => (libc::NFT_RETURN, None),
        Verdict::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
    }
}

fn rule_message(encoder: &mut Encoder, rule: &Rule) -> Result<Message> {
    let table = table_object(rule.table)?;
    let chain = nftnl::Chain::new(c_string(&rule.chain)?, &table);
    let mut object = nftnl::Rule::new(&chain);
    let (last, conditions) = match rule.statements.split_last() {
        Some((last, rest)) if last.ends_a_rule() => (Some(last), rest),
        _ => (None, rule.statements.as_slice()),
    };
    let mut compat = false;
    // In the iptables dialect conditions that are matches come after the comment.
    let late = |statement: &&Statement| rule.dialect == Dialect::Iptables && statement.is_xt_match();
    for statement in conditions.iter().filter(|statement| !late(statement)) {
        compat |= condition(&mut object, rule, statement)?;
    }
    if rule.dialect == Dialect::Iptables {
        if let Some(comment) = &rule.comment {
            let mut info = comment.clone().into_bytes();
            if info.len() > XT_COMMENT_MAX {
                return Err(Error::internal(format!(
                    "iptables: comment of more than {XT_COMMENT_MAX} bytes: {rule}"
                )));
            }
            info.resize(XT_COMMENT_MAX + 1, 0);
            object.add_expr(&xtables(c"match", "comment", 0, info));
            compat = true;
        }
        for statement in conditions.iter().filter(late) {
            compat |= condition(&mut object, rule, statement)?;
        }
        object.add_expr(&Counter);
    }
    match last {
        Some(Statement::Verdict(verdict)) => add_verdict(&mut object, verdict)?,
        Some(Statement::Masquerade) if rule.dialect == Dialect::Iptables => {
            // struct nf_nat_ipv4_multi_range_compat with one empty range; for IPv6 struct nf_nat_range.
            let info = match rule.table.family {
                Family::Ip6 => vec![0; 40],
                _ => [&1_u32.to_ne_bytes()[..], &[0; 20]].concat(),
            };
            object.add_expr(&xtables(c"target", "MASQUERADE", 0, info));
            compat = true;
        }
        Some(Statement::Masquerade) => object.add_expr(&Masquerade),
        Some(Statement::Dnat(to)) if rule.dialect == Dialect::Iptables => {
            object.add_expr(&dnat_target(to.ip(), to.port()));
            compat = true;
        }
        Some(Statement::Dnat(to)) => {
            let registers = (libc::NFT_REG_1 as u32, libc::NFT_REG_2 as u32);
            object.add_expr(&immediate(registers.0, octets(to.ip())));
            object.add_expr(&immediate(registers.1, to.port().to_be_bytes().to_vec()));
            // NF_NAT_RANGE_PROTO_SPECIFIED, as nft says it.
            object.add_expr(&dnat(rule.table.family, registers, Some(2)));
        }
        Some(Statement::DnatBy(fields, map)) if rule.dialect == Dialect::Nft => {
            load_all(&mut object, rule, fields)?;
            object.add_expr(&lookup(map, libc::NFT_REG_1 as u32)?);
            // What is found starts in the first register; the port comes after the address.
            let port = match rule.table.family {
                Family::Ip6 => libc::NFT_REG_2 as u32,
                _ => libc::NFT_REG32_00 as u32 + 1,
            };
            object.add_expr(&dnat(rule.table.family, (libc::NFT_REG_1 as u32, port), None));
        }
        Some(Statement::SetMark(bits)) if rule.dialect == Dialect::Iptables => {
            object.add_expr(&mark_target(*bits));
            compat = true;
        }
        Some(Statement::DnatBy(..) | Statement::SetMark(_)) => {
            return Err(Error::internal(format!("nft: a rule that its dialect does not have: {rule}")));
        }
        _ => {}
    }
    let mut made = Message::encoded(encoder, &object, MsgType::Add);
    made.set_flags(libc::NLM_F_CREATE | libc::NLM_F_APPEND);
    if compat {
        // NFTA_RULE_COMPAT_PROTO, which some matches insist on (0: any), and NFTA_RULE_COMPAT_FLAGS: two nested numbers.
        let protocol = rule.statements.iter().find_map(|statement| match statement {
            Statement::Only(Condition::Protocol(number)) => Some(u32::from(*number)),
            _ => None,
        });
        let number = |attribute: u16, value: u32| {
            [&8_u16.to_ne_bytes()[..], &attribute.to_ne_bytes(), &value.to_be_bytes()].concat()
        };
        made.put(
            NFTA_RULE_COMPAT | libc::NLA_F_NESTED as u16,
            &[number(1, protocol.unwrap_or(0)), number(2, 0)].concat(),
        );
    }
    let comment = rule.comment.as_ref().filter(|_| rule.dialect == Dialect::Nft);
    let data = user_data(&[(UDATA_COMMENT, comment), (UDATA_TAG, rule.tag.as_ref())], COMMENT_MAX)?;
    if data.len() > USER_DATA_MAX {
        return Err(Error::internal(format!(
            "nft: comment and tag have more than {USER_DATA_MAX} bytes: {rule}"
        )));
    }
    if !data.is_empty() {
        made.put(NFTA_RULE_USERDATA, &data);
    }
    Ok(made)
}

impl Statement {
    /// Whether it decides what becomes of the packet: nothing follows it in a rule.
    fn ends_a_rule(&self) -> bool {
        matches!(
            self,
            Statement::Verdict(_)
                | Statement::Masquerade
                | Statement::Dnat(_)
                | Statement::DnatBy(..)
                | Statement::SetMark(_)
        )
    }
}

/// Adds what the kernel needs for a condition; true when that is an xtables match.
fn condition(object: &mut nftnl::Rule, rule: &Rule, statement: &Statement) -> Result<bool> {
    match statement {
        Statement::Within { side, net, inside } => within(object, rule, *side, *net, *inside)?,
        Statement::Lookup(side, map) => {
            let (offset, length) = field(rule, *side)?;
            let first = libc::NFT_REG_1 as u32;
            object.add_expr(&payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length, first));
            object.add_expr(&lookup(map, libc::NFT_REG_VERDICT as u32)?);
        }
        Statement::LookupAll(fields, map) => {
            load_all(object, rule, fields)?;
            object.add_expr(&lookup(map, libc::NFT_REG_VERDICT as u32)?);
        }
        Statement::Only(condition) => return condition.lower(object, rule, false),
        Statement::Unless(condition) => return condition.lower(object, rule, true),
        Statement::InputLink(link) => {
            object.add_expr(&Meta::IifName);
            object.add_expr(&Cmp::new(CmpOp::Eq, link_name(rule, link)?.as_slice()));
        }
        Statement::OutputLink { name, is } => {
            object.add_expr(&Meta::OifName);
            let op = if *is { CmpOp::Eq } else { CmpOp::Neq };
            object.add_expr(&Cmp::new(op, link_name(rule, name)?.as_slice()));
        }
        Statement::Established if rule.dialect == Dialect::Iptables => {
            object.add_expr(&xtables(c"match", "conntrack", 3, conntrack_state()));
            return Ok(true);
        }
        Statement::Established => {
            let states = (States::ESTABLISHED | States::RELATED).bits();
            object.add_expr(&Conntrack::State);
            object.add_expr(&Bitwise::new(states, 0_u32));
            object.add_expr(&Cmp::new(CmpOp::Neq, 0_u32));
        }
        Statement::InputBridge(bridge) => {
            object.add_expr(&RawExpression {
                name: c"meta",
                numbers: vec![
                    (sys::NFTNL_EXPR_META_KEY, libc::NFT_META_BRI_IIFNAME as u32),
                    (sys::NFTNL_EXPR_META_DREG, libc::NFT_REG_1 as u32),
                ],
                small: Vec::new(),
                bytes: Vec::new(),
            });
            object.add_expr(&Cmp::new(CmpOp::Eq, link_name(rule, bridge)?.as_slice()));
        }
        Statement::Carries(family) => {
            let protocol = match family {
                Family::Ip => libc::ETH_P_IP,
                Family::Ip6 => libc::ETH_P_IPV6,
                _ => return Err(Error::internal(format!("nft: no protocol of this family: {rule}"))),
            };
            object.add_expr(&Meta::Protocol);
            object.add_expr(&Cmp::new(CmpOp::Eq, (protocol as u16).to_be_bytes().as_slice()));
        }
        Statement::EtherSource(mac) => {
            object.add_expr(&payload(libc::NFT_PAYLOAD_LL_HEADER, 6, 6, libc::NFT_REG_1 as u32));
            object.add_expr(&Cmp::new(CmpOp::Eq, mac.as_slice()));
        }
        Statement::Masquerade
        | Statement::Dnat(_)
        | Statement::DnatBy(..)
        | Statement::SetMark(_)
        | Statement::Verdict(_) => {
            return Err(Error::internal(format!("nft: a rule goes on after its end: {rule}")));
        }
    }
    Ok(false)
}

/// A look-up of what the first registers have; `into` is where what is found goes.
fn lookup(map: &Map, into: u32) -> Result<RawExpression> {
    let mut found = is_in(map, false)?;
    found.numbers.push((sys::NFTNL_EXPR_LOOKUP_DREG, into));
    Ok(found)
}

/// Whether what the first registers have is, or is not, in a set.
pub(super) fn is_in(set: &Map, not: bool) -> Result<RawExpression> {
    let mut numbers = vec![(sys::NFTNL_EXPR_LOOKUP_SREG, libc::NFT_REG_1 as u32)];
    if not {
        // NFT_LOOKUP_F_INV
        numbers.push((sys::NFTNL_EXPR_LOOKUP_FLAGS, 1));
    }
    Ok(RawExpression {
        name: c"lookup",
        numbers,
        small: Vec::new(),
        bytes: vec![(sys::NFTNL_EXPR_LOOKUP_SET, c_string(set.name)?.into_bytes_with_nul())],
    })
}

fn immediate(register: u32, data: Vec<u8>) -> RawExpression {
    RawExpression {
        name: c"immediate",
        numbers: vec![(sys::NFTNL_EXPR_IMM_DREG, register)],
        small: Vec::new(),
        bytes: vec![(sys::NFTNL_EXPR_IMM_DATA, data)],
    }
}

/// Translation of the destination to the address and port in these registers.
fn dnat(family: Family, (address, port): (u32, u32), flags: Option<u32>) -> RawExpression {
    let mut numbers = vec![
        (sys::NFTNL_EXPR_NAT_TYPE, libc::NFT_NAT_DNAT as u32),
        (sys::NFTNL_EXPR_NAT_FAMILY, proto_family(family) as u32),
        (sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, address),
        (sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, port),
    ];
    numbers.extend(flags.map(|flags| (sys::NFTNL_EXPR_NAT_FLAGS, flags)));
    RawExpression { name: c"nat", numbers, small: Vec::new(), bytes: Vec::new() }
}

pub(super) fn field(rule: &Rule, side: Side) -> Result<(u32, u32)> {
    address_field(side, rule.table.family)
        .ok_or_else(|| Error::internal(format!("nft: addresses have no fixed place in this family: {rule}")))
}

/// As both tools do, a prefix of whole bytes loads only those; any other loads all and masks.
fn within(object: &mut nftnl::Rule, rule: &Rule, side: Side, net: IpNet, inside: bool) -> Result<()> {
    if rule.table.family != Family::of(net.addr()) {
        return Err(Error::internal(format!("nft: {net} is not of the table's family: {rule}")));
    }
    if net.prefix_len() == 0 && inside {
        return Ok(());
    }
    let (offset, full) = field(rule, side)?;
    let whole = net.prefix_len() > 0 && net.prefix_len().is_multiple_of(8);
    let length = if whole { u32::from(net.prefix_len() / 8) } else { full };
    object.add_expr(&payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length, libc::NFT_REG_1 as u32));
    if !whole {
        let zero = vec![0_u8; full as usize];
        object.add_expr(&Bitwise::new(octets(net.netmask()).as_slice(), zero.as_slice()));
    }
    let mut network = octets(net.network());
    network.truncate(length as usize);
    object.add_expr(&Cmp::new(if inside { CmpOp::Eq } else { CmpOp::Neq }, network.as_slice()));
    Ok(())
}

pub(super) fn payload(base: i32, offset: u32, length: u32, register: u32) -> RawExpression {
    let numbers = vec![
        (sys::NFTNL_EXPR_PAYLOAD_DREG, register),
        (sys::NFTNL_EXPR_PAYLOAD_BASE, base as u32),
        (sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset),
        (sys::NFTNL_EXPR_PAYLOAD_LEN, length),
    ];
    RawExpression { name: c"payload", numbers, small: Vec::new(), bytes: Vec::new() }
}

/// A link's name as what is compared with it: nft fills it up, iptables-nft compares up to the final zero.
fn link_name(rule: &Rule, name: &str) -> Result<Vec<u8>> {
    let mut bytes = value_bytes(&Value::Name(name.to_owned()))?;
    if rule.dialect == Dialect::Iptables {
        bytes.truncate(name.len() + 1);
    }
    Ok(bytes)
}

/// `struct xt_conntrack_mtinfo3` (`linux/netfilter/xt_conntrack.h`) of `--ctstate RELATED,ESTABLISHED`: `match_flags`
/// after eight addresses, two times and five 16-bit numbers, then `invert_flags` and `state_mask`.
fn conntrack_state() -> Vec<u8> {
    /// `XT_CONNTRACK_STATE`
    const STATE: u16 = 1;
    /// `XT_CONNTRACK_STATE_BIT` of `IP_CT_ESTABLISHED` (0) and `IP_CT_RELATED` (1).
    const ESTABLISHED_RELATED: u16 = 1 << 1 | 1 << 2;
    let mut info = vec![0; 168];
    info[146..148].copy_from_slice(&STATE.to_ne_bytes());
    info[150..152].copy_from_slice(&ESTABLISHED_RELATED.to_ne_bytes());
    info
}

/// An xtables match or target; the attributes of both kinds have the same numbers. The kernel keeps the structure in
/// whole words of 8 bytes (`XT_ALIGN`).
pub(super) fn xtables(kind: &'static CStr, name: &str, revision: u32, mut info: Vec<u8>) -> RawExpression {
    info.resize(info.len().next_multiple_of(8), 0);
    let name = [name.as_bytes(), &[0]].concat();
    RawExpression {
        name: kind,
        numbers: vec![(sys::NFTNL_EXPR_MT_REV, revision)],
        small: Vec::new(),
        bytes: vec![(sys::NFTNL_EXPR_MT_NAME, name), (sys::NFTNL_EXPR_MT_INFO, info)],
    }
}

fn add_verdict(object: &mut nftnl::Rule, verdict: &Verdict) -> Result<()> {
    use nftnl::expr::Verdict as To;
    object.add_expr(&match verdict {
        Verdict::Accept => To::Accept,
        Verdict::Drop => To::Drop,
        Verdict::Return => To::Return,
        Verdict::Jump(chain) => To::Jump { chain: c_string(chain)? },
        Verdict::Goto(chain) => To::Goto { chain: c_string(chain)? },
    });
    Ok(())
}

/// What the kernel will list as the steps of this rule: to compare a wanted rule with a listed one.
pub fn program(rule: &Rule) -> Result<Vec<Step>> {
    let made = rule_message(&mut Encoder::new(), rule)?;
    let parsed = ffi::parse_rule(made.bytes()).map(ListedRule::from);
    parsed.map(|listed| listed.steps).ok_or_else(|| Error::internal(format!("nft: cannot encode {rule}")))
}
