//! Whose leases are where, without reading them all: one symbolic link per holder in `.cni-all/`, named by a hash of
//! what the holder's lease files contain, its target listing their addresses. Links are never followed; nothing has
//! to be rewritten when another holder comes or goes.
//!
//! # When it can be trusted
//! The Go plugin may add and remove leases between two of our calls and knows nothing of the index. What holds is:
//!
//! > If the directory's modification time is the [`seal`] of this boot, every lease has its address in the index.
//!
//! The seal is a time before 1970. The kernel sets the modification time of a directory to its clock whenever a name
//! is added to or removed from it, and that clock is never negative (`timespec64_valid_settod()` in the kernel's
//! include/linux/time64.h), however it is stepped and however coarse it ticks. So only we can set the seal, and anybody
//! who adds a lease breaks it; so does our own change, until it is done and the seal is set anew: a process killed in
//! between leaves an unsealed directory. Lease files get their content under the same lock as their name. A directory
//! without seal is read as a whole once, which repairs the index. File systems that cannot store such a time never
//! look sealed and are always read.
//!
//! The other way round nothing is promised: an entry may name a lease that is gone or someone else's. Every hit is
//! verified by reading the lease.
//!
//! # Boots
//! Seals of an earlier boot do not count, because a power failure may have taken any of the writes. An entry also says
//! during which boot its lease was made, together with the lease's modification time, so that a lease of the same name
//! and content that the Go plugin made later is not taken for it. Wall-clock times are only compared for equality.

use std::fmt::Write;
use std::net::IpAddr;

use crate::hex::hex;
use nix::sys::time::TimeSpec;
use sha2::{Digest, Sha512};

/// The index's directory, inside the network's. The Go plugin walks into it, cannot open the links, and goes on.
pub(super) const DIRECTORY: &str = ".cni-all";

/// Bytes of the hash that name an entry. Hits are verified, so that a collision would cost time only.
const KEY_BYTES: usize = 16;

/// A run of the kernel, told apart by the start of its random boot id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Boot(pub u32);

impl Boot {
    /// The boot that is running; `None` when /proc does not say.
    pub(super) fn current() -> Option<Boot> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        u32::from_str_radix(id.get(..8)?, 16).ok().map(Boot)
    }

    /// The modification time of a directory whose index is complete: between 1935 and 1969.
    pub(super) fn seal(self) -> TimeSpec {
        TimeSpec::new(-1 - i64::from(self.0 >> 2), 0)
    }
}

/// What the index says about one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The reserved address.
    pub addr: IpAddr,
    /// When it was reserved, or first seen.
    pub boot: Boot,
    /// Low 32 bits of the lease file's modification time in nanoseconds.
    pub mtime: u32,
}

/// The name of the entry of a holder: a hash of the content of its lease files, without white space around it.
pub(super) fn key(content: &[u8]) -> String {
    hex(&Sha512::digest(content)[..KEY_BYTES])
}

/// Whether a file of the index's directory is named like an entry.
pub(super) fn is_key(name: &str) -> bool {
    name.len() == 2 * KEY_BYTES && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The target of a holder's link.
pub(super) fn format(entries: &[Entry]) -> String {
    entries.iter().enumerate().fold(String::new(), |mut text, (n, e)| {
        let comma = if n == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{}/{:08x}/{:08x}", e.addr, e.boot.0, e.mtime);
        text
    })
}

/// Reads the target of a holder's link; what is not as [`format`] writes it is left out.
pub(super) fn parse(target: &str) -> Vec<Entry> {
    let entry = |text: &str| {
        let mut parts = text.split('/');
        let addr = parts.next()?.parse().ok()?;
        let boot = u32::from_str_radix(parts.next()?, 16).ok().map(Boot)?;
        let mtime = u32::from_str_radix(parts.next()?, 16).ok()?;
        Some(Entry { addr, boot, mtime })
    };
    target.split(',').filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_being_written() {
        let entry = |addr: &str| Entry { addr: addr.parse().unwrap(), boot: Boot(0x0a), mtime: u32::MAX };
        let entries = [entry("10.1.2.3"), entry("fd00::1")];
        let text = format(&entries);
        assert_eq!(text, "10.1.2.3/0000000a/ffffffff,fd00::1/0000000a/ffffffff");
        assert_eq!(parse(&text), entries);
        assert_eq!(
            parse("x/0/0,10.1.2.3,10.1.2.4/1/2"),
            [Entry { mtime: 2, boot: Boot(1), ..entry("10.1.2.4") }]
        );
    }

    #[test]
    fn the_target_of_a_single_address_fits_into_an_ext4_inode() {
        let addr = "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
        assert!(format(&[Entry { addr, boot: Boot(1), mtime: 1 }]).len() < 60);
    }

    #[test]
    fn no_clock_can_produce_a_seal() {
        for boot in [Boot(0), Boot(1), Boot(u32::MAX)] {
            assert!((i64::from(i32::MIN)..0).contains(&boot.seal().tv_sec()));
        }
    }

    #[test]
    fn names_that_are_not_keys_are_told_apart() {
        assert!(is_key(&key(b"c1\r\neth0")));
        assert!(!is_key("new") && !is_key("10.1.2.3"));
        assert_ne!(key(b"c1\r\neth0"), key(b"c1"));
    }
}
