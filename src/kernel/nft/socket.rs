//! The nftables socket: one batch per operation, look-ups of single objects, and dumps.

use std::io;

use nftnl::nftnl_sys::libc;
use nix::errno::Errno;

use super::dry_run::Planned;
use super::ffi::{self, Encoder, RawSocket};
use super::listed;
use super::lower::{self, Message};
use super::needs;
use super::{Change, Element, Family, Hook, ListedChain, ListedRule, Map, Table, Value};
use crate::cni::error::ResultExt;
use crate::cni::{Error, Result};
use crate::kernel::dry_run;
use crate::log::phase;

/// Bytes of a reply: the kernel fills at most 32 KiB per datagram of a dump.
const BUFFER: usize = 32 * 1024;
/// `NLMSGERR_ATTR_MSG` (`linux/netlink.h`): the extended acknowledgement's text.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// An operation starts over this many times when others change the same things at the same moment.
const ATTEMPTS: usize = 10;
/// As [`ATTEMPTS`], for operations that start over whenever anything at all changed meanwhile.
const EXCLUSIVE_ATTEMPTS: usize = 500;
/// `NFNL_BATCH_GENID`: the batch is refused (ERESTART) unless the ruleset is of this generation.
const NFNL_BATCH_GENID: u16 = 1;
/// `NFTA_GEN_ID`
const NFTA_GEN_ID: u16 = 1;
/// A dump that the ruleset's changes interrupt is started again this many times.
const DUMP_ATTEMPTS: usize = 20;

/// A connection to nftables of one network namespace.
///
/// Closing it (dropping it) right after something was deleted waits about 13 ms for the kernel's RCU grace period: keep
/// it open until everything else is done.
pub struct Socket {
    raw: RawSocket,
    sequence: u32,
    buffer: Vec<u32>,
    encoder: Encoder,
    destroy: bool,
    /// What would have been changed; see `dry_run.rs`.
    pub(super) planned: Planned,
}

impl Socket {
    /// Opens one in the calling thread's network namespace; it keeps working on that namespace.
    pub fn open() -> Result<Socket> {
        let raw = RawSocket::open().map_err(|err| {
            let failed = Error::io("socket(AF_NETLINK, NETLINK_NETFILTER)", &err);
            if err.raw_os_error() == Some(libc::EPROTONOSUPPORT) {
                failed.with_details(needs::NF_TABLES)
            } else {
                failed
            }
        })?;
        Ok(Socket {
            raw,
            sequence: 0,
            buffer: vec![0; BUFFER / 4],
            encoder: Encoder::new(),
            destroy: ffi::kernel_version() >= (6, 3),
            planned: Planned::default(),
        })
    }

    /// Makes all changes, or none. The error names the first change that the kernel refused.
    ///
    /// A refused batch costs about 8 ms (the kernel waits for a grace period before it frees what it had prepared), so
    /// look before. An empty list does nothing.
    pub fn apply(&mut self, changes: &[Change]) -> Result<()> {
        self.apply_to(changes, None)
    }

    /// As [`Socket::apply`]; with a generation only when the ruleset is still of it, ERESTART otherwise.
    fn apply_to(&mut self, changes: &[Change], generation: Option<[u8; 4]>) -> Result<()> {
        let Some(last) = changes.len().checked_sub(1) else { return Ok(()) };
        if dry_run::is_on() {
            return self.plan(changes);
        }
        let first_sequence = self.sequence.wrapping_add(2);
        let mut bytes = Vec::new();
        let mut begin = Message::batch(libc::NFNL_MSG_BATCH_BEGIN);
        if let Some(generation) = generation {
            begin.put(NFNL_BATCH_GENID, &generation);
        }
        self.push(&mut bytes, begin);
        for (index, change) in changes.iter().enumerate() {
            let mut message = lower::message(&mut self.encoder, change, self.destroy)?;
            if index == last {
                message.acknowledge();
            }
            self.push(&mut bytes, message);
        }
        let last_sequence = self.sequence;
        self.push(&mut bytes, Message::batch(libc::NFNL_MSG_BATCH_END));
        let printed = |sequence: u32| match changes.get(sequence.wrapping_sub(first_sequence) as usize) {
            Some(change) => change.to_string(),
            None => changes.iter().map(Change::to_string).collect::<Vec<_>>().join("; "),
        };
        self.send(&bytes).map_err(|errno| Error::system(printed(u32::MAX), errno))?;
        let mut failure = None;
        loop {
            let replies = self.receive().map_err(|errno| Error::system(printed(u32::MAX), errno))?;
            for reply in replies {
                // Answers to something older, that was given up on.
                if reply.sequence.wrapping_sub(first_sequence.wrapping_sub(1)) > changes.len() as u32 {
                    continue;
                }
                let Body::Error(errno, text) = reply.body else { continue };
                if errno != Errno::UnknownErrno && failure.is_none() {
                    let lacking = match changes.get(reply.sequence.wrapping_sub(first_sequence) as usize) {
                        Some(change) => needs::lacking(change, errno),
                        // nfnetlink's answer to the batch as a whole: nobody is there to read it.
                        None => (errno == Errno::EOPNOTSUPP).then(|| needs::NF_TABLES.to_owned()),
                    };
                    let lacking = lacking.unwrap_or_default();
                    failure = Some(reported(&printed(reply.sequence), errno, &text).with_details(lacking));
                }
                // An error of the batch as a whole is reported for its first message, and nothing follows.
                if reply.sequence == last_sequence || reply.sequence == first_sequence.wrapping_sub(1) {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Looks, and makes the changes that follow from what there is, in one batch.
    ///
    /// Starts over when the kernel refuses it because objects appeared, went or got users since they were looked at:
    /// what another process did in between, or must not happen twice.
    pub fn commit(&mut self, plan: impl Fn(&mut Socket) -> Result<Vec<Change>>) -> Result<()> {
        self.plan_and_apply(&plan)
    }

    fn plan_and_apply(&mut self, plan: &dyn Fn(&mut Socket) -> Result<Vec<Change>>) -> Result<()> {
        phase("nftables", || {
            let mut left = ATTEMPTS;
            loop {
                left -= 1;
                let changes = plan(self)?;
                match self.apply(&changes) {
                    Err(err) if left > 0 && raced(&err) => {}
                    other => return other,
                }
            }
        })
    }

    /// As [`Socket::commit`], and starts over as well when anything else of the ruleset changed since it was looked at:
    /// for decisions that depend on what is *not* there. (Before Linux 4.13 the kernel does not see to that.)
    pub fn commit_exclusive(&mut self, plan: impl Fn(&mut Socket) -> Result<Vec<Change>>) -> Result<()> {
        self.plan_and_apply_alone(&plan)
    }

    fn plan_and_apply_alone(&mut self, plan: &dyn Fn(&mut Socket) -> Result<Vec<Change>>) -> Result<()> {
        phase("nftables", || {
            let mut left = EXCLUSIVE_ATTEMPTS;
            loop {
                left -= 1;
                let generation = self.generation()?;
                let changes = plan(self)?;
                match self.apply_to(&changes, generation) {
                    Err(err) if left > 0 && raced(&err) => {
                        // Refusals for another reason may come from a real fault.
                        if err.errno() != Some(Errno::ERESTART) {
                            left = left.min(ATTEMPTS);
                        }
                    }
                    other => return other,
                }
            }
        })
    }

    /// The ruleset's generation, as the kernel writes it: another one after every change.
    fn generation(&mut self) -> Result<Option<[u8; 4]>> {
        let message = Message::new(libc::NFT_MSG_GETGEN, Family::Ip, 0);
        let found = self.get(message, || "nft: read the ruleset's generation".to_owned())?;
        let id = found.and_then(|bytes| bytes_of(bytes.get(20..)?, NFTA_GEN_ID).map(<[u8]>::to_vec));
        Ok(id.and_then(|id| id.try_into().ok()))
    }

    /// Whether a table is there.
    pub fn has_table(&mut self, table: Table) -> Result<bool> {
        let mut message = Message::new(libc::NFT_MSG_GETTABLE, table.family, 0);
        message.put_string(lower::NFTA_TABLE, table.name);
        let what = || format!("nft list table {table}");
        let found = self.get(message, what)?.is_some();
        Ok(self.planned_table(table, found))
    }

    /// A chain, if it and its table are there.
    pub fn chain(&mut self, table: Table, name: &str) -> Result<Option<ListedChain>> {
        let mut message = Message::new(libc::NFT_MSG_GETCHAIN, table.family, 0);
        message.put_string(lower::NFTA_TABLE, table.name);
        message.put_string(lower::NFTA_CHAIN_NAME, name);
        let what = || format!("nft list chain {table} {name}");
        let found = self.get(message, what)?;
        let found = found.and_then(|bytes| ffi::parse_chain(&bytes)).map(ListedChain::from);
        Ok(self.planned_chain(table, name, found))
    }

    /// All chains of a table; none when it is not there.
    pub fn chains(&mut self, table: Table) -> Result<Vec<ListedChain>> {
        let message = Message::new(libc::NFT_MSG_GETCHAIN, table.family, libc::NLM_F_DUMP);
        let what = || format!("nft list chains {}", table.family);
        let listed = self.dump(&message, what, |bytes| ffi::parse_chain(bytes).map(ListedChain::from))?;
        let listed = listed.into_iter().filter(|chain| chain.table == table.name).collect();
        Ok(self.planned_chains(table, listed))
    }

    /// The base chains of all tables of a family that are called from a hook.
    pub fn chains_at(&mut self, family: Family, hook: Hook) -> Result<Vec<ListedChain>> {
        let message = Message::new(libc::NFT_MSG_GETCHAIN, family, libc::NLM_F_DUMP);
        let what = || format!("nft list chains {family}");
        let listed = self.dump(&message, what, |bytes| ffi::parse_chain(bytes).map(ListedChain::from))?;
        Ok(listed.into_iter().filter(|chain| chain.base.is_some_and(|base| base.hook == hook)).collect())
    }

    /// The rules of a table, or of one chain of it, in order; none when it is not there.
    pub fn rules(&mut self, table: Table, chain: Option<&str>) -> Result<Vec<ListedRule>> {
        let mut message = Message::new(libc::NFT_MSG_GETRULE, table.family, libc::NLM_F_DUMP);
        message.put_string(lower::NFTA_TABLE, table.name);
        if let Some(chain) = chain {
            message.put_string(lower::NFTA_WITHIN, chain);
        }
        let what = || format!("nft list table {table}");
        let listed = self.dump(&message, what, |bytes| ffi::parse_rule(bytes).map(ListedRule::from))?;
        let wanted =
            |rule: &ListedRule| rule.table == table.name && chain.is_none_or(|name| rule.chain == name);
        Ok(self.planned_rules(table, listed.into_iter().filter(wanted).collect()))
    }

    /// The rules of a chain whose [`super::Rule::tag`] is wanted, in order. The others cost next to nothing: for chains that
    /// have rules of every attachment.
    pub fn rules_by_tag(
        &mut self,
        table: Table,
        chain: &str,
        wanted: impl Fn(Option<&str>) -> bool,
    ) -> Result<Vec<ListedRule>> {
        let mut message = Message::new(libc::NFT_MSG_GETRULE, table.family, libc::NLM_F_DUMP);
        message.put_string(lower::NFTA_TABLE, table.name);
        message.put_string(lower::NFTA_WITHIN, chain);
        let what = || format!("nft list chain {table} {chain}");
        let of_chain = |bytes: &[u8]| {
            let attributes = bytes.get(20..)?;
            let is = |kind: u16, name: &str| attribute(attributes, kind).is_some_and(|found| found == name);
            let tag = bytes_of(attributes, lower::NFTA_RULE_USERDATA).and_then(listed::tag);
            // Before Linux 4.12 the kernel lists all chains.
            let matches =
                wanted(tag.as_deref()) && is(lower::NFTA_TABLE, table.name) && is(lower::NFTA_WITHIN, chain);
            matches.then(|| ffi::parse_rule(bytes).map(ListedRule::from)).flatten()
        };
        self.dump(&message, what, of_chain)
    }

    /// The element of a key, if it, its map and its table are there.
    pub fn element(&mut self, map: &Map, key: &Value) -> Result<Option<Element>> {
        let message = lower::get_element(&mut self.encoder, map, key)?;
        let what = || format!("nft get element {map} {{ {key} }}");
        let found = match self.get(message, what) {
            // Before Linux 4.15 single elements cannot be asked for.
            Err(err) if err.errno() == Some(Errno::EOPNOTSUPP) => {
                return Ok(self.elements(map)?.into_iter().find(|element| element.key == *key));
            }
            other => other?,
        };
        let parsed = found.and_then(|bytes| ffi::parse_elements(&bytes)).unwrap_or_default();
        let found = parsed.into_iter().find_map(|raw| raw.typed(map));
        Ok(self.planned_element(map, key, found))
    }

    /// All elements of a map; none when it is not there.
    pub fn elements(&mut self, map: &Map) -> Result<Vec<Element>> {
        let mut message = Message::new(libc::NFT_MSG_GETSETELEM, map.table.family, libc::NLM_F_DUMP);
        message.put_string(lower::NFTA_TABLE, map.table.name);
        message.put_string(lower::NFTA_WITHIN, map.name);
        let parts = self.dump(&message, || format!("nft list map {map}"), ffi::parse_elements)?;
        let listed = parts.into_iter().flatten().filter_map(|raw| raw.typed(map)).collect();
        Ok(self.planned_elements(map, listed))
    }

    /// Whether the kernel has nf_tables at all, and this process may use it.
    ///
    /// # Errors
    /// EOPNOTSUPP when it has not.
    pub fn probe(&mut self) -> Result<()> {
        if self.has_nf_tables()? {
            return Ok(());
        }
        Err(Error::system("nft list ruleset", Errno::EOPNOTSUPP).with_details(needs::NF_TABLES))
    }

    /// A kernel with nfnetlink (for conntrack, say) but without nf_tables answers all its questions with EINVAL
    /// (`nfnetlink_rcv_msg`), the simplest too.
    fn has_nf_tables(&mut self) -> Result<bool> {
        match self.ask(Message::new(libc::NFT_MSG_GETGEN, Family::Ip, 0)) {
            Ok(_) => Ok(true),
            Err((Errno::EINVAL, _)) => Ok(false),
            Err((errno, text)) => Err(reported("nft: read the ruleset's generation", errno, &text)),
        }
    }

    fn push(&mut self, bytes: &mut Vec<u8>, mut message: Message) {
        self.sequence = self.sequence.wrapping_add(1);
        message.set_sequence(self.sequence);
        bytes.extend_from_slice(message.bytes());
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.raw.send(bytes).map_err(|err| errno_of(&err))
    }

    /// One datagram's messages.
    fn receive(&mut self) -> Result<Vec<Reply>, Errno> {
        let bytes = loop {
            match self.raw.receive(&mut self.buffer) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|err| errno_of(&err))?,
            }
        };
        mnl::NlMessages::new(bytes)
            .map(|message| message.ok().and_then(Reply::parse).ok_or(Errno::EBADMSG))
            .collect()
    }

    /// Asks for one object: its message, or `None` when it is not there, as nothing is without nf_tables.
    fn get(&mut self, message: Message, what: impl Fn() -> String) -> Result<Option<Vec<u8>>> {
        match self.ask(message) {
            Ok(found) => Ok(found),
            Err((Errno::EINVAL, _)) if !self.has_nf_tables()? => Ok(None),
            Err((errno, text)) => Err(reported(&what(), errno, &text)).unless_gone(),
        }
    }

    /// Sends a question about one object, and takes the answer.
    fn ask(&mut self, mut message: Message) -> Result<Option<Vec<u8>>, (Errno, String)> {
        let plain = |errno: Errno| (errno, String::new());
        message.acknowledge();
        let mut bytes = Vec::new();
        self.push(&mut bytes, message);
        self.send(&bytes).map_err(plain)?;
        let mut found = None;
        loop {
            for reply in self.receive().map_err(plain)? {
                if reply.sequence != self.sequence {
                    continue;
                }
                match reply.body {
                    Body::Error(Errno::UnknownErrno, _) | Body::Done => return Ok(found),
                    Body::Error(errno, text) => return Err((errno, text)),
                    Body::Object(bytes) => found = Some(bytes),
                }
            }
        }
    }

    /// Asks for all objects of a kind, again when changes interrupted it. None when what they are in is not there.
    fn dump<T>(
        &mut self,
        message: &Message,
        what: impl Fn() -> String,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.dump_once(message, &parse) {
                Ok(Some(listed)) => return Ok(listed),
                Ok(None) => {}
                Err((Errno::EINVAL, _)) if !self.has_nf_tables()? => return Ok(Vec::new()),
                Err((errno, text)) => {
                    return Ok(Err(reported(&what(), errno, &text)).unless_gone()?.unwrap_or_default());
                }
            }
        }
        Err(Error::system(what(), Errno::EINTR))
    }

    fn dump_once<T>(
        &mut self,
        message: &Message,
        parse: &impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, (Errno, String)> {
        let plain = |errno: Errno| (errno, String::new());
        let mut bytes = Vec::new();
        self.push(&mut bytes, message.clone());
        self.send(&bytes).map_err(plain)?;
        let (mut listed, mut interrupted) = (Vec::new(), false);
        loop {
            for reply in self.receive().map_err(plain)? {
                if reply.sequence != self.sequence {
                    continue;
                }
                interrupted |= reply.interrupted;
                match reply.body {
                    Body::Done | Body::Error(Errno::UnknownErrno, _) => {
                        return Ok((!interrupted).then_some(listed));
                    }
                    Body::Error(Errno::EINTR, _) => return Ok(None),
                    Body::Error(errno, text) => return Err((errno, text)),
                    Body::Object(bytes) => listed.extend(parse(&bytes)),
                }
            }
        }
    }
}

/// What the kernel answers when a change does not fit what there is.
fn raced(err: &Error) -> bool {
    matches!(err.errno(), Some(Errno::EEXIST | Errno::ENOENT | Errno::EBUSY | Errno::ERESTART))
}

/// A refusal as an error: what was tried, the errno's text, and what the kernel adds to it.
fn reported(what: &str, errno: Errno, text: &str) -> Error {
    if text.is_empty() { Error::system(what, errno) } else { Error::system(format!("{what}: {text}"), errno) }
}

fn errno_of(err: &io::Error) -> Errno {
    err.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// One message from the kernel.
struct Reply {
    sequence: u32,
    interrupted: bool,
    body: Body,
}

enum Body {
    /// NLMSG_ERROR: the error, [`Errno::UnknownErrno`] (0) for an acknowledgement, and the extended text.
    Error(Errno, String),
    /// The end of a dump.
    Done,
    /// A whole message.
    Object(Vec<u8>),
}

impl Reply {
    /// `None` when it is cut off.
    fn parse(message: &[u8]) -> Option<Reply> {
        let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(message.get(6..8)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(message.get(8..12)?.try_into().ok()?);
        let body = match i32::from(kind) {
            libc::NLMSG_ERROR => {
                let code = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
                // After the error: the header of the message it is about, alone since NETLINK_CAP_ACK is on.
                let text = attribute(message.get(36..)?, NLMSGERR_ATTR_MSG).unwrap_or_default();
                Body::Error(Errno::from_raw(-code), text)
            }
            libc::NLMSG_DONE => Body::Done,
            _ => Body::Object(message.to_vec()),
        };
        let interrupted = i32::from(flags) & libc::NLM_F_DUMP_INTR != 0;
        Some(Reply { sequence, interrupted, body })
    }
}

/// The string of one attribute.
fn attribute(bytes: &[u8], wanted: u16) -> Option<String> {
    let content = bytes_of(bytes, wanted)?;
    Some(String::from_utf8_lossy(content.strip_suffix(&[0]).unwrap_or(content)).into_owned())
}

/// The content of one attribute.
fn bytes_of(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = bytes {
        let (length, kind) = (usize::from(u16::from_ne_bytes([*a, *b])), u16::from_ne_bytes([*c, *d]));
        let content = bytes.get(4..length)?;
        if kind == wanted {
            return Some(content);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}
