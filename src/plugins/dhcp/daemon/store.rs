//! Leases on disk, so that a daemon that ends, however it ends, is continued by the next one.
//!
//! ```text
//! STATEDIR/lock         held by the daemon that serves; its process id
//! STATEDIR/HASH.json    one attachment, HASH made from container, network and interface
//! ```
//!
//! A file is written aside and renamed. It is not synchronised: after a crash of the host there are no containers.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::outcome::Outcome;
use super::super::v4::lease::Lease;
use super::super::v6;
use super::super::v6::information::Known;
use super::super::v6::slaac::Told;
use super::super::wanted::{Key, Wanted};
use crate::cni::{Code, Error, Result};
use crate::hex::hex;

/// What is remembered of an attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The boot that moments and namespaces are of (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// What it wants.
    pub wanted: Wanted,
    /// The namespace's device and inode.
    pub namespace: (u64, u64),
    /// The interface's index in it.
    pub index: u32,
    /// The interface's hardware address.
    pub mac: [u8; 6],
    /// The IPv4 lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Lease>,
    /// An IPv4 address that a server was asked for, and that server: it may have reserved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requesting: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Who the server's messages come from on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_mac: Option<[u8; 6]>,
    /// The DHCPv6 lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<v6::lease::Lease>,
    /// What a DHCPv6 server was asked for: it may have reserved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requesting6: Option<v6::lease::Lease>,
    /// What routers have told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slaac: Option<Told>,
    /// What DHCPv6 servers have told besides addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<Known>,
    /// What the interface has, once a caller has been told of it. When the leases have changed, it follows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Outcome>,
}

impl Record {
    /// A container uses it.
    pub fn is_leased(&self) -> bool {
        self.given.is_some()
    }
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    boot: String,
}

impl Store {
    /// The store in this directory, which is made when something is written.
    pub fn new(dir: &Path) -> Store {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Store { dir: dir.to_owned(), boot: boot.trim().to_owned() }
    }

    /// This boot, for [`Record::boot`].
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Whether there is anything to look at.
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// Makes the directory and takes the lock that only one daemon holds.
    ///
    /// # Errors
    /// Another daemon holds it.
    pub fn lock(&self) -> Result<Flock<File>> {
        let dir = self.dir.display();
        fs::create_dir_all(&self.dir).map_err(|e| Error::io(format_args!("mkdir -p {dir}"), &e))?;
        let path = self.dir.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(|e| Error::io(format_args!("open {}", path.display()), &e))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => {
                let pid = fs::read_to_string(&path).unwrap_or_default();
                let msg = format!("the dhcp daemon with process id {} serves with {dir} already", pid.trim());
                Error::new(Code::TRY_AGAIN, msg)
            }
            errno => Error::system(format_args!("flock {}", path.display()), errno),
        })?;
        // For people and the message above; that it cannot be written is no reason not to serve.
        let _ = lock.set_len(0).and_then(|()| write!(&*lock, "{}", std::process::id()));
        Ok(lock)
    }

    /// Writes a record over an earlier one.
    ///
    /// # Errors
    /// The file and why.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.wanted.key);
        let aside = path.with_extension("new");
        let bytes =
            serde_json::to_vec(record).map_err(|e| Error::internal(format!("encode a lease: {e}")))?;
        let written = File::create(&aside)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&aside, &path));
        written.map_err(|e| Error::io(format_args!("write {}", path.display()), &e))
    }

    /// Removes a record; that there is none is fine.
    ///
    /// # Errors
    /// The file and why.
    pub fn remove(&self, key: &Key) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format_args!("rm {}", path.display()), &e))
            }
            _ => Ok(()),
        }
    }

    /// Every record of this boot. Files of earlier boots, and what cannot be read, are removed: their namespaces are gone.
    pub fn load(&self) -> Vec<Record> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut records = Vec::new();
        for path in entries.filter(|path| path.extension().is_some_and(|e| e == "json" || e == "new")) {
            let record = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            match record {
                Some(record) if record.boot == self.boot && path == self.path(&record.wanted.key) => {
                    records.push(record);
                }
                _ => {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        records.sort_unstable_by(|a, b| a.wanted.key.cmp(&b.wanted.key));
        records
    }

    fn path(&self, key: &Key) -> PathBuf {
        let mut hash = Sha256::new();
        for part in [&key.container, &key.network, &key.ifname] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        self.dir.join(format!("{}.json", hex(&hash.finalize()[..16])))
    }
}
