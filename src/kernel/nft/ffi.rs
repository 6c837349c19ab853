//! What the safe wrappers of libnftnl and libmnl do not cover: opening a socket close-on-exec, expressions and element
//! data by attribute, and reading replies. All `unsafe` of the nftables layer is in this file; nothing of C leaves it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::io;
use std::ptr::NonNull;

use mnl::mnl_sys;
use nftnl::expr::Expression;
use nftnl::nftnl_sys::{self as sys, libc};
use nftnl::set::Set;
use nftnl::{MsgType, NlMsg};

use super::listed::{RawElement, RawRule, Step};

/// A netfilter netlink socket: close-on-exec, never blocking (the kernel answers before `send` returns), with extended
/// acknowledgements, which do not repeat the message they are about.
pub struct RawSocket(NonNull<mnl_sys::mnl_socket>);

impl RawSocket {
    /// Opens and binds it in the calling thread's network namespace.
    pub fn open() -> io::Result<RawSocket> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers go in; null on failure, checked at once.
        let socket = unsafe { mnl_sys::mnl_socket_open2(libc::NETLINK_NETFILTER, flags) };
        let socket = RawSocket(NonNull::new(socket).ok_or_else(io::Error::last_os_error)?);
        // SAFETY: the socket is open until `socket` is dropped.
        check(unsafe { mnl_sys::mnl_socket_bind(socket.0.as_ptr(), 0, 0) } as isize)?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let mut on: libc::c_int = 1;
            // SAFETY: the option value is an int that outlives the call; it is only read.
            let result = unsafe {
                let value = (&raw mut on).cast::<c_void>();
                mnl_sys::mnl_socket_setsockopt(socket.0.as_ptr(), option, value, size_of_val(&on) as u32)
            };
            match check(result as isize) {
                // Linux before 4.12: errors come without text.
                Err(err) if err.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
                other => {
                    other?;
                }
            }
        }
        Ok(socket)
    }

    /// Sends one datagram. One that is larger than the socket's buffer gets a larger buffer.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and length are of one live slice.
        let send =
            || unsafe { mnl_sys::mnl_socket_sendto(self.0.as_ptr(), bytes.as_ptr().cast(), bytes.len()) };
        match check(send()) {
            Err(err) if err.raw_os_error() == Some(libc::EMSGSIZE) => {
                self.make_room(bytes.len())?;
                check(send()).map(drop)
            }
            other => other.map(drop),
        }
    }

    /// A send buffer for this many bytes; the kernel takes a part of it for itself.
    fn make_room(&self, length: usize) -> io::Result<()> {
        let size = libc::c_int::try_from(length * 2).unwrap_or(libc::c_int::MAX);
        // SAFETY: the option value is an int that outlives the call; it is only read.
        let set = |option: libc::c_int| unsafe {
            let fd = mnl_sys::mnl_socket_get_fd(self.0.as_ptr());
            let length = size_of_val(&size) as libc::socklen_t;
            libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const size).cast(), length)
        };
        // Beyond the system's limit (net.core.wmem_max), which a process with CAP_NET_ADMIN may.
        check(set(libc::SO_SNDBUFFORCE) as isize).or_else(|_| check(set(libc::SO_SNDBUF) as isize)).map(drop)
    }

    /// Receives one datagram into `buffer` and returns the bytes that came. EAGAIN when there is none.
    pub fn receive<'a>(&self, buffer: &'a mut [u32]) -> io::Result<&'a [u8]> {
        let size = size_of_val(buffer);
        // SAFETY: pointer and size are of one live, exclusively borrowed slice.
        let got = unsafe { mnl_sys::mnl_socket_recvfrom(self.0.as_ptr(), buffer.as_mut_ptr().cast(), size) };
        let got = check(got)?.min(size);
        // SAFETY: `got` is at most the size of the buffer, and any bytes are a valid u8.
        Ok(unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), got) })
    }
}

impl Drop for RawSocket {
    fn drop(&mut self) {
        // SAFETY: open since `open`, and not used after this.
        unsafe { mnl_sys::mnl_socket_close(self.0.as_ptr()) };
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Major and minor number of the running kernel.
pub fn kernel_version() -> (u32, u32) {
    // SAFETY: utsname is plain arrays, for which zeros are valid, and uname fills it.
    let release = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut name);
        CStr::from_ptr(name.release.as_ptr()).to_string_lossy().into_owned()
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Room for one message of the largest size that libnftnl writes.
pub struct Encoder(Vec<u64>);

impl Encoder {
    pub fn new() -> Encoder {
        Encoder(vec![0; nftnl::nft_nlmsg_maxsize() as usize / 8 + 1])
    }

    /// The message as libnftnl writes it, header first.
    pub fn encode(&mut self, message: &impl NlMsg, kind: MsgType) -> &[u8] {
        // SAFETY: the buffer has `nft_nlmsg_maxsize` bytes, which is what `write` asks for, and is aligned for the
        // header, whose first four bytes are the message's length, at most that size.
        unsafe {
            message.write(self.0.as_mut_ptr().cast(), 0, kind);
            let length = (*self.0.as_ptr().cast::<libc::nlmsghdr>()).nlmsg_len as usize;
            std::slice::from_raw_parts(self.0.as_ptr().cast(), length)
        }
    }
}

/// An expression by its kernel name and attributes (`NFTNL_EXPR_*`).
pub struct RawExpression {
    pub name: &'static CStr,
    /// Of 4 bytes.
    pub numbers: Vec<(u32, u32)>,
    /// Of 1 byte.
    pub small: Vec<(u32, u8)>,
    pub bytes: Vec<(u32, Vec<u8>)>,
}

impl Expression for RawExpression {
    fn to_expr(&self, _rule: &nftnl::Rule) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string. libnftnl copies what is set; lengths are those of live slices.
        unsafe {
            let expr = allocated(sys::nftnl_expr_alloc(self.name.as_ptr()));
            for (attribute, value) in &self.numbers {
                sys::nftnl_expr_set_u32(expr.as_ptr(), *attribute as u16, *value);
            }
            for (attribute, value) in &self.small {
                sys::nftnl_expr_set_u8(expr.as_ptr(), *attribute as u16, *value);
            }
            for (attribute, value) in &self.bytes {
                let length = value.len() as u32;
                match (self.name.to_bytes(), *attribute) {
                    // libnftnl keeps (and frees) the pointer it is given for these two, instead of a copy.
                    (b"match", sys::NFTNL_EXPR_MT_INFO) | (b"target", sys::NFTNL_EXPR_TG_INFO) => {
                        let copy = libc::calloc(1, value.len()).cast::<u8>();
                        let copy = allocated(copy);
                        copy.as_ptr().copy_from_nonoverlapping(value.as_ptr(), value.len());
                        sys::nftnl_expr_set(expr.as_ptr(), *attribute as u16, copy.as_ptr().cast(), length);
                    }
                    _ => {
                        let data = value.as_ptr().cast::<c_void>();
                        sys::nftnl_expr_set(expr.as_ptr(), *attribute as u16, data, length);
                    }
                }
            }
            expr
        }
    }
}

/// libnftnl's objects are small: no memory for one means that nothing else would work either.
fn allocated<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}

/// Gives a set keys of this type and length, and makes it a map when there are data.
pub fn make_map<K>(set: &Set<'_, K>, (key_type, key_len): (u32, u32), data: Option<(u32, u32)>) {
    let set = set.as_ptr().as_ptr();
    // SAFETY: the set lives as long as the borrow.
    unsafe {
        sys::nftnl_set_set_u32(set, sys::NFTNL_SET_KEY_TYPE as u16, key_type);
        sys::nftnl_set_set_u32(set, sys::NFTNL_SET_KEY_LEN as u16, key_len);
        if let Some((data_type, data_len)) = data {
            sys::nftnl_set_set_u32(set, sys::NFTNL_SET_FLAGS as u16, libc::NFT_SET_MAP as u32);
            sys::nftnl_set_set_u32(set, sys::NFTNL_SET_DATA_TYPE as u16, data_type);
            sys::nftnl_set_set_u32(set, sys::NFTNL_SET_DATA_LEN as u16, data_len);
        } else {
            sys::nftnl_set_set_u32(set, sys::NFTNL_SET_FLAGS as u16, 0);
        }
    }
}

/// Data of an element to be sent.
pub enum RawData {
    /// A verdict (`NFT_JUMP` …) and the chain it goes to.
    Verdict(i32, Option<CString>),
    /// Anything else.
    Bytes(Vec<u8>),
    /// None: the element of a set.
    Nothing,
}

/// Puts an element into a set object: its key, and when it is to be made, data and user data (comment).
pub fn push_element<K>(set: &Set<'_, K>, key: &[u8], data: Option<(&RawData, &[u8])>) {
    // SAFETY: libnftnl copies key, data, chain name and user data; the element then belongs to the set.
    unsafe {
        let element = allocated(sys::nftnl_set_elem_alloc()).as_ptr();
        let put = |attribute: u32, bytes: &[u8]| {
            sys::nftnl_set_elem_set(element, attribute as u16, bytes.as_ptr().cast(), bytes.len() as u32);
        };
        put(sys::NFTNL_SET_ELEM_KEY, key);
        if let Some((data, user_data)) = data {
            put(sys::NFTNL_SET_ELEM_USERDATA, user_data);
            match data {
                RawData::Nothing => {}
                RawData::Bytes(bytes) => put(sys::NFTNL_SET_ELEM_DATA, bytes),
                RawData::Verdict(verdict, chain) => {
                    let attribute = sys::NFTNL_SET_ELEM_VERDICT as u16;
                    sys::nftnl_set_elem_set_u32(element, attribute, verdict.cast_unsigned());
                    if let Some(chain) = chain {
                        let attribute = sys::NFTNL_SET_ELEM_CHAIN as u16;
                        sys::nftnl_set_elem_set_str(element, attribute, chain.as_ptr());
                    }
                }
            }
        }
        sys::nftnl_set_elem_add(set.as_ptr().as_ptr(), element);
    }
}

/// The bytes behind a pointer and length that libnftnl returned; empty for null.
///
/// # Safety
/// Unless null, `length` bytes at `data` must be readable.
unsafe fn copied(data: *const c_void, length: u32) -> Vec<u8> {
    if data.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length as usize).to_vec() }
}

/// The C string behind a pointer that libnftnl returned; `None` for null.
///
/// # Safety
/// Unless null, the pointer must be to a string that ends with zero.
unsafe fn string(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Copies a message to memory aligned for its header, with the header's length made that of the slice.
fn aligned(message: &[u8]) -> Option<Vec<u64>> {
    if message.len() < size_of::<libc::nlmsghdr>() + 4 {
        return None;
    }
    let mut copy = vec![0_u64; message.len().div_ceil(8)];
    for (word, chunk) in copy.iter_mut().zip(message.chunks(8)) {
        let mut bytes = [0; 8];
        if let Some(part) = bytes.get_mut(..chunk.len()) {
            part.copy_from_slice(chunk);
        }
        *word = u64::from_ne_bytes(bytes);
    }
    // SAFETY: the buffer is aligned and larger than the header.
    unsafe { (*copy.as_mut_ptr().cast::<libc::nlmsghdr>()).nlmsg_len = message.len() as u32 };
    Some(copy)
}

/// A rule out of a NFT_MSG_NEWRULE message; `None` when it is not one.
pub fn parse_rule(message: &[u8]) -> Option<RawRule> {
    let message = aligned(message)?;
    // SAFETY: the message is a whole one with the right length, checked by `aligned`; libnftnl checks the attributes.
    // All pointers it returns are into the rule, which is freed last.
    unsafe {
        let rule = allocated(sys::nftnl_rule_alloc()).as_ptr();
        let ok = sys::nftnl_rule_nlmsg_parse(message.as_ptr().cast(), rule) >= 0;
        let parsed = ok.then(|| {
            let mut length = 0;
            let data = sys::nftnl_rule_get_data(rule, sys::NFTNL_RULE_USERDATA as u16, &raw mut length);
            RawRule {
                table: string(sys::nftnl_rule_get_str(rule, sys::NFTNL_RULE_TABLE as u16))
                    .unwrap_or_default(),
                chain: string(sys::nftnl_rule_get_str(rule, sys::NFTNL_RULE_CHAIN as u16))
                    .unwrap_or_default(),
                handle: sys::nftnl_rule_get_u64(rule, sys::NFTNL_RULE_HANDLE as u16),
                user_data: copied(data, length),
                steps: steps(rule),
            }
        });
        sys::nftnl_rule_free(rule);
        parsed
    }
}

/// The expressions of a rule, in order.
///
/// # Safety
/// `rule` must be a live rule.
unsafe fn steps(rule: *const sys::nftnl_rule) -> Vec<Step> {
    let mut steps = Vec::new();
    // SAFETY: the caller's promise; the iterator is freed after its last use.
    unsafe {
        let iter = allocated(sys::nftnl_expr_iter_create(rule)).as_ptr();
        while let Some(expr) = NonNull::new(sys::nftnl_expr_iter_next(iter)) {
            steps.push(step(expr.as_ptr()));
        }
        sys::nftnl_expr_iter_destroy(iter);
    }
    steps
}

/// One expression.
///
/// # Safety
/// `expr` must be a live expression.
unsafe fn step(expr: *const sys::nftnl_expr) -> Step {
    // SAFETY: the caller's promise; attributes are read by the type that libnftnl documents for the expression's name,
    // and numbers only where they are set (libnftnl returns 0 otherwise).
    unsafe {
        let number = |attribute: u32| sys::nftnl_expr_get_u32(expr, attribute as u16);
        let bytes = |attribute: u32| {
            let mut length = 0;
            let data = sys::nftnl_expr_get(expr, attribute as u16, &raw mut length);
            copied(data, length)
        };
        let text = |attribute: u32| string(sys::nftnl_expr_get_str(expr, attribute as u16));
        match text(sys::NFTNL_EXPR_NAME).unwrap_or_default().as_str() {
            "payload" if number(sys::NFTNL_EXPR_PAYLOAD_DREG) != 0 => Step::Payload {
                base: number(sys::NFTNL_EXPR_PAYLOAD_BASE),
                offset: number(sys::NFTNL_EXPR_PAYLOAD_OFFSET),
                length: number(sys::NFTNL_EXPR_PAYLOAD_LEN),
            },
            "bitwise" if bytes(sys::NFTNL_EXPR_BITWISE_XOR).iter().all(|byte| *byte == 0) => {
                Step::Mask(bytes(sys::NFTNL_EXPR_BITWISE_MASK))
            }
            "cmp" if number(sys::NFTNL_EXPR_CMP_OP) <= libc::NFT_CMP_NEQ as u32 => Step::Compare {
                equal: number(sys::NFTNL_EXPR_CMP_OP) == libc::NFT_CMP_EQ as u32,
                data: bytes(sys::NFTNL_EXPR_CMP_DATA),
            },
            "immediate" if number(sys::NFTNL_EXPR_IMM_DREG) == libc::NFT_REG_VERDICT as u32 => {
                Step::Verdict {
                    code: number(sys::NFTNL_EXPR_IMM_VERDICT).cast_signed(),
                    chain: text(sys::NFTNL_EXPR_IMM_CHAIN),
                }
            }
            "immediate" => Step::Constant(bytes(sys::NFTNL_EXPR_IMM_DATA)),
            "meta" if number(sys::NFTNL_EXPR_META_KEY) == libc::NFT_META_L4PROTO as u32 => Step::Protocol,
            "match" => {
                Step::Match(text(sys::NFTNL_EXPR_MT_NAME).unwrap_or_default(), bytes(sys::NFTNL_EXPR_MT_INFO))
            }
            "target" => Step::Target(
                text(sys::NFTNL_EXPR_TG_NAME).unwrap_or_default(),
                bytes(sys::NFTNL_EXPR_TG_INFO),
            ),
            "counter" => Step::Counter,
            // The kernel may add flags, and ends of ranges that are the same as the starts.
            "nat" => Step::Nat {
                kind: number(sys::NFTNL_EXPR_NAT_TYPE),
                address: number(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN),
                port: number(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN),
            },
            "lookup" if number(sys::NFTNL_EXPR_LOOKUP_FLAGS) == 0 => Step::Lookup {
                set: text(sys::NFTNL_EXPR_LOOKUP_SET).unwrap_or_default(),
                mapped: sys::nftnl_expr_is_set(expr, sys::NFTNL_EXPR_LOOKUP_DREG as u16),
            },
            name => {
                let mut buffer = [0_u8; 512];
                let (start, size) = (buffer.as_mut_ptr().cast(), buffer.len());
                sys::nftnl_expr_snprintf(start, size, expr, sys::NFTNL_OUTPUT_DEFAULT, 0);
                let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default().to_string_lossy();
                Step::Other(format!("{name} {}", text.trim()))
            }
        }
    }
}

/// A chain's table, name, references, type, hook and priority, and whether its policy is drop, out of a NFT_MSG_NEWCHAIN message.
pub struct RawChain {
    pub table: String,
    pub name: String,
    pub uses: u32,
    pub base: Option<(String, u32, i32)>,
    pub drops: bool,
}

/// A chain out of a NFT_MSG_NEWCHAIN message; `None` when it is not one.
pub fn parse_chain(message: &[u8]) -> Option<RawChain> {
    let message = aligned(message)?;
    // SAFETY: as in `parse_rule`.
    unsafe {
        let chain = allocated(sys::nftnl_chain_alloc()).as_ptr();
        let ok = sys::nftnl_chain_nlmsg_parse(message.as_ptr().cast(), chain) >= 0;
        let text = |attribute: u32| string(sys::nftnl_chain_get_str(chain, attribute as u16));
        let parsed = ok.then(|| RawChain {
            table: text(sys::NFTNL_CHAIN_TABLE).unwrap_or_default(),
            name: text(sys::NFTNL_CHAIN_NAME).unwrap_or_default(),
            uses: sys::nftnl_chain_get_u32(chain, sys::NFTNL_CHAIN_USE as u16),
            base: text(sys::NFTNL_CHAIN_TYPE).map(|kind| {
                let hook = sys::nftnl_chain_get_u32(chain, sys::NFTNL_CHAIN_HOOKNUM as u16);
                (kind, hook, sys::nftnl_chain_get_s32(chain, sys::NFTNL_CHAIN_PRIO as u16))
            }),
            drops: sys::nftnl_chain_is_set(chain, sys::NFTNL_CHAIN_POLICY as u16)
                && sys::nftnl_chain_get_u32(chain, sys::NFTNL_CHAIN_POLICY as u16) == libc::NF_DROP as u32,
        });
        sys::nftnl_chain_free(chain);
        parsed
    }
}

/// The elements of a NFT_MSG_NEWSETELEM message; `None` when it is not one.
pub fn parse_elements(message: &[u8]) -> Option<Vec<RawElement>> {
    let message = aligned(message)?;
    // SAFETY: as in `parse_rule`; elements belong to the set, which is freed last.
    unsafe {
        let set = allocated(sys::nftnl_set_alloc()).as_ptr();
        let ok = sys::nftnl_set_elems_nlmsg_parse(message.as_ptr().cast(), set) >= 0;
        let mut elements: Vec<RawElement> = Vec::new();
        if ok {
            sys::nftnl_set_elem_foreach(set, Some(collect_element), (&raw mut elements).cast());
        }
        sys::nftnl_set_free(set);
        ok.then_some(elements)
    }
}

/// Called by libnftnl for each element of a set, with the list to put it into.
unsafe extern "C" fn collect_element(element: *mut sys::nftnl_set_elem, list: *mut c_void) -> libc::c_int {
    // SAFETY: `parse_elements` passes a live element and a `Vec<RawElement>` that nothing else uses meanwhile.
    unsafe { (*list.cast::<Vec<RawElement>>()).push(raw_element(element)) };
    0
}

/// One element.
///
/// # Safety
/// `element` must be a live element.
unsafe fn raw_element(element: *mut sys::nftnl_set_elem) -> RawElement {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |attribute: u32| {
            let mut length = 0;
            let data = sys::nftnl_set_elem_get(element, attribute as u16, &raw mut length);
            copied(data, length)
        };
        let verdict = sys::nftnl_set_elem_is_set(element, sys::NFTNL_SET_ELEM_VERDICT as u16).then(|| {
            let code = sys::nftnl_set_elem_get_u32(element, sys::NFTNL_SET_ELEM_VERDICT as u16);
            (
                code.cast_signed(),
                string(sys::nftnl_set_elem_get_str(element, sys::NFTNL_SET_ELEM_CHAIN as u16)),
            )
        });
        let data = if verdict.is_some() { Vec::new() } else { bytes(sys::NFTNL_SET_ELEM_DATA) };
        RawElement {
            key: bytes(sys::NFTNL_SET_ELEM_KEY),
            data,
            verdict,
            user_data: bytes(sys::NFTNL_SET_ELEM_USERDATA),
        }
    }
}
