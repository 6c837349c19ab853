//! The old ip_tables backend, which filters beside nftables: which tables are in force, and whether they drop.
//!
//! Only asked, never changed (`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`; what
//! `iptables-legacy -L` asks for). Asking for a table makes the kernel load it: only those that are loaded are asked for.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::nft::Family;
use crate::cni::{Error, Result};

/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`, `IP6T_SO_GET_ENTRIES`
const GET_ENTRIES: libc::c_int = 65;
/// `struct ipt_getinfo`: name, `valid_hooks`, five `hook_entry`, five `underflow`, `num_entries`, `size`.
const INFO_SIZE: usize = 84;
/// Where the entries are in `struct ipt_get_entries`: after name and size, aligned.
const ENTRIES_START: usize = 40;
/// Length of a table's name with its final zero.
const NAME_SIZE: usize = 32;
/// A standard target's verdict for `NF_DROP`: it is stored as -verdict - 1.
const DROP: i32 = -libc::NF_DROP - 1;

/// A table that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyTable {
    /// Its name: `filter`.
    pub name: String,
    /// It has rules, or chains, of its users.
    pub has_rules: bool,
    /// It has a chain FORWARD, whose policy is drop.
    pub forward_drops: bool,
}

/// The names of the loaded tables of this namespace; empty where the kernel has no such tables.
pub fn loaded(family: Family) -> Vec<String> {
    let path = if family == Family::Ip6 {
        "/proc/thread-self/net/ip6_tables_names"
    } else {
        "/proc/thread-self/net/ip_tables_names"
    };
    let names = fs::read_to_string(path).unwrap_or_default();
    names.split_whitespace().filter(|name| name.len() < NAME_SIZE).map(str::to_owned).collect()
}

/// Looks into a loaded table.
///
/// # Errors
/// The kernel does not let us, or it is not loaded any more.
pub fn table(family: Family, name: &str) -> Result<LegacyTable> {
    let tool = if family == Family::Ip6 { "ip6tables-legacy" } else { "iptables-legacy" };
    let failed = |errno| Error::system(format_args!("{tool} -t {name} -S"), errno);
    let (domain, level) = match family {
        Family::Ip6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
        _ => (AddressFamily::Inet, libc::IPPROTO_IP),
    };
    let socket = socket(domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).map_err(failed)?;
    let mut info = vec![0; INFO_SIZE];
    info[..name.len()].copy_from_slice(name.as_bytes());
    get(&socket, level, GET_INFO, &mut info).map_err(failed)?;
    let number = |at: usize| u32::from_ne_bytes(bytes_at(&info, at).unwrap_or_default());
    let (hooks, forward, count, size) = (number(32), number(36 + 20 + 4 * 2), number(76), number(80));
    let has_forward = hooks & (1 << libc::NF_INET_FORWARD) != 0;
    let mut entries = vec![0; ENTRIES_START + size as usize];
    entries[..name.len()].copy_from_slice(name.as_bytes());
    entries[NAME_SIZE..NAME_SIZE + 4].copy_from_slice(&size.to_ne_bytes());
    get(&socket, level, GET_ENTRIES, &mut entries).map_err(failed)?;
    Ok(LegacyTable {
        name: name.to_owned(),
        // A table has one entry per hook for its policy, and one at the end.
        has_rules: count > hooks.count_ones() + 1,
        forward_drops: has_forward && policy(&entries, family, forward as usize) == Some(DROP),
    })
}

/// `getsockopt`, whose buffer says what is asked for and gets the answer.
fn get(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, buffer: &mut [u8]) -> Result<(), Errno> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: pointer and length are of one live, exclusively borrowed slice; the kernel writes no more than the length.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    Errno::result(result).map(drop)
}

/// The verdict, as stored, of the entry at an offset; `None` when it is cut off.
fn policy(entries: &[u8], family: Family, offset: usize) -> Option<i32> {
    // `target_offset` of struct ipt_entry, struct ip6t_entry: after addresses, masks and names of links.
    let target_offset = if family == Family::Ip6 { 140 } else { 88 };
    let entry = ENTRIES_START + offset;
    let target = u16::from_ne_bytes(bytes_at(entries, entry + target_offset)?);
    // struct xt_standard_target: 32 bytes of struct xt_entry_target, then the verdict.
    bytes_at(entries, entry + usize::from(target) + 32).map(i32::from_ne_bytes)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nft::testing::{in_namespace, sh};

    #[test]
    fn tables_of_the_old_backend_are_seen_as_their_tool_lists_them() {
        let name = "tables_of_the_old_backend_are_seen_as_their_tool_lists_them";
        in_namespace(name, || {
            for (family, tool) in [(Family::Ip, "iptables-legacy"), (Family::Ip6, "ip6tables-legacy")] {
                if sh(&format!("{tool} -S >/dev/null 2>&1 && echo there || echo missing")).trim() == "missing"
                {
                    println!("SKIP {name}: {tool} does not work with this kernel");
                    continue;
                }
                assert!(loaded(family).contains(&"filter".to_owned()));
                let expected = |has_rules, forward_drops| LegacyTable {
                    name: "filter".into(),
                    has_rules,
                    forward_drops,
                };
                assert_eq!(table(family, "filter").unwrap(), expected(false, false));
                sh(&format!("{tool} -P FORWARD DROP"));
                assert_eq!(table(family, "filter").unwrap(), expected(false, true));
                sh(&format!("{tool} -N OWN; {tool} -A FORWARD -j OWN; {tool} -I INPUT -j ACCEPT"));
                assert_eq!(table(family, "filter").unwrap(), expected(true, true));
                sh(&format!("{tool} -P FORWARD ACCEPT"));
                assert_eq!(table(family, "filter").unwrap(), expected(true, false));
            }
        });
    }
}
