//! Who this host and its attachments are to DHCP servers.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::super::wanted::Key;

/// Distinguishes identifiers made from the machine id from the machine id itself, which is not for the network
/// (machine-id(5)).
const APPLICATION: &[u8] = b"cni-all dhcp duid";

/// A DUID-UUID (RFC 6355) made from the machine id; on a host without one, from the boot's.
pub fn duid(prefix: &str) -> Vec<u8> {
    let files = [
        format!("{prefix}/etc/machine-id"),
        format!("{prefix}/var/lib/dbus/machine-id"),
        "/proc/sys/kernel/random/boot_id".to_owned(),
    ];
    let id =
        files.iter().find_map(|file| std::fs::read_to_string(Path::new(file)).ok().filter(|t| t.len() >= 32));
    let mut hash = Sha256::new();
    hash.update(APPLICATION);
    hash.update(id.unwrap_or_default().trim().as_bytes());
    let mut uuid: Vec<u8> = hash.finalize().iter().take(16).copied().collect();
    // Version 8 and variant of RFC 9562: made by a rule of our own.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    [vec![0, 4], uuid].concat()
}

/// The identifier of an attachment's identity association: the same whenever it is made.
pub fn iaid(key: &Key) -> u32 {
    let mut hash = Sha256::new();
    hash.update(key.to_string().as_bytes());
    let hash = hash.finalize();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_duid_is_the_machines_and_does_not_tell_its_id() {
        let root = std::env::temp_dir().join(format!("cni-all-duid-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        let prefix = root.to_str().unwrap();
        let duid_of = |id: &str| {
            std::fs::write(root.join("etc/machine-id"), id).unwrap();
            duid(prefix)
        };
        let one = duid_of("0123456789abcdef0123456789abcdef\n");
        assert_eq!(one, duid_of("0123456789abcdef0123456789abcdef"));
        assert_ne!(one, duid_of("0123456789abcdef0123456789abcdee\n"));
        // DUID-UUID (RFC 6355): type 4 and a UUID of version 8, variant 1.
        assert_eq!((one.len(), &one[..2], one[8] >> 4, one[10] >> 6), (18, &[0, 4][..], 8, 2));
        assert!(!one.windows(4).any(|window| window == [0x01, 0x23, 0x45, 0x67]));
        // A machine that has not got its id yet goes by the boot's.
        assert_eq!(duid_of("uninitialized\n"), duid_of(""));
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn identifiers_stay_the_same_and_differ_between_attachments() {
        assert_eq!(duid(""), duid(""));
        assert_eq!((duid("").len(), &duid("")[..2]), (18, &[0, 4][..]));
        let key = |ifname: &str| Key { container: "c".into(), network: "n".into(), ifname: ifname.into() };
        assert_eq!(iaid(&key("eth0")), iaid(&key("eth0")));
        assert_ne!(iaid(&key("eth0")), iaid(&key("eth1")));
    }
}
