//! The files of one network, as the Go plugin keeps them, so that either can take over a node at any time:
//!
//! ```text
//! <dataDir>/<network>/                0755
//!   10.1.2.3            a lease       0600   container id, CR, LF, ifname; older releases: container id only
//!   last_reserved_ip.0  of set 0      0600   the address
//!   lock                flock(2)      0750   empty
//!   .cni-all/                         0700   ours alone, see the module `index`
//!     <hash> -> 10.1.2.3/<boot>/<mtime>
//!     new               a file being written
//! ```
//!
//! A lease is written beside and then linked to its name: it appears complete, and only if the name was free. Nothing
//! is synced to the disk: after a process was killed the kernel still has it all, and after a power failure every
//! container is gone that a lost or empty file could have belonged to. Empty leases (a Go plugin was killed, or the
//! power failed) are removed when the directory is read as a whole, which both make necessary.

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{Mode, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, ftruncate, linkat, symlinkat, unlinkat, write};

use super::index::{self, Boot, Entry};
use crate::cni::names::parse_ip;
use crate::cni::{Error, Result};
use crate::kernel::lock;

/// Where files are written before they get their name. Only who holds the lock uses it.
const NEW: &str = ".cni-all/new";

/// The network's directory, locked until this is dropped.
pub(super) struct Store {
    path: PathBuf,
    dir: OwnedFd,
    boot: Option<Boot>,
    /// The index lists every lease.
    indexed: bool,
    /// The directory's modification time is the seal.
    sealed: bool,
    _lock: Flock<OwnedFd>,
}

/// A lease found to belong to whom was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// The reserved address.
    pub addr: IpAddr,
    /// It was certainly reserved during an earlier boot: its container cannot exist any more.
    pub outdated: bool,
}

/// What an attachment's leases contain.
pub(super) fn content(container_id: &str, ifname: &str) -> String {
    format!("{}\r\n{ifname}", container_id.trim())
}

impl Store {
    /// Opens and locks the directory, making it if it is not there. Waits for the lock.
    ///
    /// # Errors
    /// The failed system call.
    pub(super) fn create(path: &Path, boot: Option<Boot>) -> Result<Store> {
        if let Some(store) = Store::open(path, boot)? {
            return Ok(store);
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(|e| Error::io(format_args!("mkdir -p {}", path.display()), &e))?;
        Store::open(path, boot)?
            .ok_or_else(|| Error::internal(format!("{} was removed while it was being made", path.display())))
    }

    /// Opens and locks the directory; `None` when there is none. Waits for the lock.
    ///
    /// # Errors
    /// The failed system call.
    pub(super) fn open(path: &Path, boot: Option<Boot>) -> Result<Option<Store>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let dir = match open(path, flags | OFlag::O_DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(Error::system(format_args!("open {}", path.display()), e)),
        };
        let fault = |what: &str, e: Errno| Error::system(format_args!("{what} {}/lock", path.display()), e);
        let lock = openat(&dir, "lock", flags | OFlag::O_CREAT, Mode::from_bits_truncate(0o750))
            .map_err(|e| fault("open", e))?;
        let lock = lock::lock(lock, true, &format_args!("{}/lock", path.display()))?;
        let stat = fstat(&dir).map_err(|e| Error::system(format_args!("stat {}", path.display()), e))?;
        let mtime = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        let sealed = boot.is_some_and(|boot| boot.seal() == mtime);
        Ok(Some(Store { path: path.to_owned(), dir, boot, indexed: sealed, sealed, _lock: lock }))
    }

    /// The leases whose files contain `content`, white space around it aside.
    pub(super) fn find(&mut self, content: &str) -> Vec<Lease> {
        if !self.indexed {
            // What cannot be removed is a matter for GC; here it only is no lease of this holder.
            let _ = self.read_all(&|_| true);
        }
        if !self.indexed {
            return self.scan(content);
        }
        let entries = self.entries(&index::key(content.as_bytes()));
        let verified = entries.into_iter().filter_map(|entry| {
            let lease = self.read_lease(entry.addr).filter(|lease| lease.content == content.as_bytes())?;
            Some(Lease { addr: entry.addr, outdated: self.is_outdated(&entry, &lease) })
        });
        verified.collect()
    }

    /// Reserves the first of `candidates` that is free, for the holder whose leases contain `content`.
    /// To be made known by [`Store::record`].
    ///
    /// # Errors
    /// The failed system call; nothing is reserved then.
    pub(super) fn reserve(
        &mut self,
        content: &str,
        candidates: impl Iterator<Item = IpAddr>,
    ) -> Result<Option<Entry>> {
        let mut candidates = candidates.peekable();
        if candidates.peek().is_none() {
            return Ok(None);
        }
        let mtime = self.write_new(content)?;
        let mut reserved = Ok(None);
        for addr in candidates {
            match linkat(&self.dir, NEW, &self.dir, addr.to_string().as_str(), AtFlags::empty()) {
                Ok(()) => {
                    self.sealed = false;
                    reserved = Ok(Some(Entry { addr, boot: self.boot.unwrap_or(Boot(0)), mtime }));
                    break;
                }
                Err(Errno::EEXIST) => {}
                Err(e) => {
                    reserved = Err(self.fault("create", &addr.to_string(), e));
                    break;
                }
            }
        }
        // A leftover is replaced by the next one who writes.
        let _ = unlinkat(&self.dir, NEW, UnlinkatFlags::NoRemoveDir);
        reserved
    }

    /// Puts new reservations of a holder into the index.
    pub(super) fn record(&mut self, content: &str, reserved: &[Entry]) {
        if self.indexed && !reserved.is_empty() {
            let key = index::key(content.as_bytes());
            let mut entries = self.entries(&key);
            entries.retain(|e| reserved.iter().all(|r| r.addr != e.addr));
            entries.extend(reserved);
            self.write_entries(&key, &entries);
        }
    }

    /// Removes leases that were found to contain `content`. Tries every one.
    pub(super) fn release(&mut self, content: &str, addrs: &[IpAddr]) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut gone = Vec::with_capacity(addrs.len());
        for &addr in addrs {
            match self.unlink_lease(addr) {
                Ok(()) => gone.push(addr),
                Err(e) => errors.push(e),
            }
        }
        if self.indexed && !gone.is_empty() {
            let key = index::key(content.as_bytes());
            let mut entries = self.entries(&key);
            entries.retain(|e| !gone.contains(&e.addr));
            self.write_entries(&key, &entries);
        }
        errors
    }

    /// Frees `addr` if its lease is certainly of an earlier boot. Says whether it did.
    ///
    /// # Errors
    /// The failed system call.
    pub(super) fn free_outdated(&mut self, addr: IpAddr) -> Result<bool> {
        if !self.is_outdated_lease(addr) {
            return Ok(false);
        }
        let Some(lease) = self.read_lease(addr) else { return Ok(false) };
        let content = String::from_utf8_lossy(&lease.content).into_owned();
        Error::all(self.release(&content, &[addr])).map_or(Ok(true), Err)
    }

    /// Whether the lease of `addr` is certainly of an earlier boot.
    pub(super) fn is_outdated_lease(&self, addr: IpAddr) -> bool {
        self.read_lease(addr).is_some_and(|lease| {
            let entries = self.entries(&index::key(&lease.content));
            entries.iter().any(|e| e.addr == addr && self.is_outdated(e, &lease))
        })
    }

    /// Addresses that the index says were reserved during an earlier boot; each is to be verified.
    pub(super) fn outdated(&self) -> HashSet<IpAddr> {
        let Some(boot) = self.boot else { return HashSet::new() };
        let names = self.names(index::DIRECTORY).unwrap_or_default();
        let entries = names.iter().filter(|name| index::is_key(name)).flat_map(|key| self.entries(key));
        entries.filter(|e| e.boot != boot).map(|e| e.addr).collect()
    }

    /// Every reserved address.
    ///
    /// # Errors
    /// The failed system call.
    pub(super) fn addresses(&self) -> Result<HashSet<IpAddr>> {
        let names =
            self.names("").map_err(|e| Error::io(format_args!("list {}", self.path.display()), &e))?;
        Ok(names.iter().filter_map(|name| lease_address(name)).collect())
    }

    /// Whether `addr` is reserved by anybody.
    pub(super) fn is_reserved(&self, addr: IpAddr) -> bool {
        faccessat(&self.dir, addr.to_string().as_str(), AccessFlags::F_OK, AtFlags::empty()).is_ok()
    }

    /// What the lease of `addr` contains, white space around it aside; `None` when it is not reserved.
    pub(super) fn holder(&self, addr: IpAddr) -> Option<Vec<u8>> {
        self.read_lease(addr).map(|lease| lease.content)
    }

    /// The address that was reserved last for the set of that number. What cannot be read as one counts as none.
    pub(super) fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let file = self.read_file(&last_reserved_name(set))?;
        parse_ip(std::str::from_utf8(&file.content).ok()?)
    }

    /// Says which address was reserved last for the set of that number.
    ///
    /// Written in place: for a file that is truncated or renamed over, ext4 starts writing to the disk (auto_da_alloc),
    /// which takes 1.5 ms, more than all the rest. Killed in between, the end of a longer address may be left: the next
    /// walk begins elsewhere, or at the start of the set.
    ///
    /// # Errors
    /// The failed system call.
    pub(super) fn set_last_reserved(&mut self, set: usize, addr: IpAddr) -> Result<()> {
        let name = last_reserved_name(set);
        let text = addr.to_string();
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_CREAT | OFlag::O_NOFOLLOW;
        self.sealed = false;
        openat(&self.dir, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .and_then(|file| match write(&file, text.as_bytes())? {
                n if n == text.len() => ftruncate(&file, i64::try_from(n).unwrap_or(0)),
                _ => Err(Errno::ENOSPC),
            })
            .map_err(|e| self.fault("write", &name, e))
    }

    /// Removes every lease whose content `keep` refuses.
    pub(super) fn retain(&mut self, keep: &dyn Fn(&[u8]) -> bool) -> Vec<Error> {
        self.read_all(keep)
    }

    /// Says that the index lists every lease, if it does. To be called last; without it the next one who opens the
    /// directory reads it as a whole.
    pub(super) fn seal(&mut self) {
        if let (true, false, Some(boot)) = (self.indexed, self.sealed, self.boot) {
            self.sealed = futimens(&self.dir, &TimeSpec::UTIME_OMIT, &boot.seal()).is_ok();
        }
    }

    /// Reads every lease: removes empty ones and those that `keep` refuses, and makes the index list the others.
    /// Returns what could not be removed; if the index cannot be made complete, it just is not used.
    fn read_all(&mut self, keep: &dyn Fn(&[u8]) -> bool) -> Vec<Error> {
        self.sealed = false;
        self.indexed =
            matches!(mkdirat(&self.dir, index::DIRECTORY, Mode::S_IRWXU), Ok(()) | Err(Errno::EEXIST));
        let mut errors = Vec::new();
        let mut known = HashSet::new();
        let keys = self.names(index::DIRECTORY).unwrap_or_default();
        for key in &keys {
            if !index::is_key(key) {
                let _ = unlinkat(&self.dir, in_index(key).as_str(), UnlinkatFlags::NoRemoveDir);
                continue;
            }
            let listed = self.entries(key);
            let mut entries = Vec::with_capacity(listed.len());
            for entry in &listed {
                let lease = self.read_lease(entry.addr).filter(|lease| index::key(&lease.content) == *key);
                if let Some(lease) = lease.filter(|_| known.insert(entry.addr)) {
                    self.keep_or_remove(entry.addr, lease, Some(entry), keep, &mut entries, &mut errors);
                }
            }
            if entries != listed {
                self.write_entries(key, &entries);
            }
        }
        let names = match self.names("") {
            Ok(names) => names,
            Err(e) => {
                self.indexed = false;
                errors.push(Error::io(format_args!("list {}", self.path.display()), &e));
                return errors;
            }
        };
        for addr in names.iter().filter_map(|name| lease_address(name)).filter(|a| !known.contains(a)) {
            let Some(lease) = self.read_lease(addr) else {
                self.indexed &= !self.is_reserved(addr);
                continue;
            };
            let key = index::key(&lease.content);
            let listed = self.entries(&key);
            let mut entries = listed.clone();
            self.keep_or_remove(addr, lease, None, keep, &mut entries, &mut errors);
            if entries != listed {
                self.write_entries(&key, &entries);
            }
        }
        errors
    }

    /// Removes a lease that is empty or that `keep` refuses, else adds it to `entries`: as it is `listed` if that is
    /// about the same file, else as made during this boot, which is what has to be assumed.
    fn keep_or_remove(
        &mut self,
        addr: IpAddr,
        lease: FileContent,
        listed: Option<&Entry>,
        keep: &dyn Fn(&[u8]) -> bool,
        entries: &mut Vec<Entry>,
        errors: &mut Vec<Error>,
    ) {
        if lease.content.is_empty() || !keep(&lease.content) {
            match self.unlink_lease(addr) {
                Ok(()) => return,
                Err(e) => errors.push(e),
            }
        }
        let boot = listed.filter(|e| e.mtime == lease.mtime).map(|e| e.boot).or(self.boot);
        entries.push(Entry { addr, boot: boot.unwrap_or(Boot(0)), mtime: lease.mtime });
    }

    /// [`Store::find`] without an index: reads every lease.
    fn scan(&self, content: &str) -> Vec<Lease> {
        let addrs = self.addresses().unwrap_or_default().into_iter();
        let own = addrs.filter(|&addr| self.holder(addr).is_some_and(|holder| holder == content.as_bytes()));
        own.map(|addr| Lease { addr, outdated: false }).collect()
    }

    /// Whether `lease` is what `entry` is about, and was made during an earlier boot.
    fn is_outdated(&self, entry: &Entry, lease: &FileContent) -> bool {
        entry.mtime == lease.mtime && self.boot.is_some_and(|boot| boot != entry.boot)
    }

    fn unlink_lease(&mut self, addr: IpAddr) -> Result<()> {
        let name = addr.to_string();
        match unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => {
                self.sealed = false;
                Ok(())
            }
            Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(self.fault("rm", &name, e)),
        }
    }

    fn read_lease(&self, addr: IpAddr) -> Option<FileContent> {
        let mut file = self.read_file(&addr.to_string())?;
        file.content = file.content.trim_ascii().to_vec();
        Some(file)
    }

    /// A whole file; `None` when it is not there or cannot be read.
    fn read_file(&self, name: &str) -> Option<FileContent> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut file = File::from(openat(&self.dir, name, flags, Mode::empty()).ok()?);
        let stat = file.metadata().ok()?;
        let mut content = vec![0; usize::try_from(stat.size()).ok()?];
        file.read_exact(&mut content).ok()?;
        Some(FileContent { content, mtime: mtime(stat.mtime(), stat.mtime_nsec()) })
    }

    /// Writes a file to be linked or renamed to where it belongs. Returns its modification time as in [`Entry`].
    fn write_new(&self, content: &str) -> Result<u32> {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_CREAT | OFlag::O_EXCL;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let open = || openat(&self.dir, NEW, flags, mode);
        let opened = open().or_else(|e| match e {
            Errno::ENOENT => mkdirat(&self.dir, index::DIRECTORY, Mode::S_IRWXU).and_then(|()| open()),
            // Of a process that was killed. It may be a lease by now: it must not be written to.
            Errno::EEXIST => unlinkat(&self.dir, NEW, UnlinkatFlags::NoRemoveDir).and_then(|()| open()),
            e => Err(e),
        });
        let file = opened.map_err(|e| self.fault("create", NEW, e))?;
        let bytes = content.as_bytes();
        let written = write(&file, bytes).and_then(|n| match n == bytes.len() {
            true => fstat(&file),
            false => Err(Errno::ENOSPC),
        });
        match written {
            Ok(stat) => Ok(mtime(stat.st_mtime, stat.st_mtime_nsec)),
            Err(e) => {
                let _ = unlinkat(&self.dir, NEW, UnlinkatFlags::NoRemoveDir);
                Err(self.fault("write", NEW, e))
            }
        }
    }

    /// What the index says about a holder.
    fn entries(&self, key: &str) -> Vec<Entry> {
        let target = readlinkat(&self.dir, in_index(key).as_str()).unwrap_or_default();
        index::parse(&target.to_string_lossy())
    }

    /// Makes the index say `entries` about a holder. If that fails, the index is not used any more.
    fn write_entries(&mut self, key: &str, entries: &[Entry]) {
        let name = in_index(key);
        let remove = |name: &str| match unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e),
        };
        let target = index::format(entries);
        let written = match entries.is_empty() {
            true => remove(&name),
            false => symlinkat(target.as_str(), &self.dir, name.as_str()).or_else(|e| match e {
                Errno::EEXIST => remove(NEW)
                    .and_then(|()| symlinkat(target.as_str(), &self.dir, NEW))
                    .and_then(|()| renameat(&self.dir, NEW, &self.dir, name.as_str())),
                e => Err(e),
            }),
        };
        self.indexed &= written.is_ok();
    }

    /// Names in the directory, or in one inside it.
    fn names(&self, inside: &str) -> std::io::Result<Vec<String>> {
        let names = std::fs::read_dir(self.path.join(inside))?;
        names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn fault(&self, what: &str, name: &str, errno: Errno) -> Error {
        Error::system(format_args!("{what} {}/{name}", self.path.display()), errno)
    }
}

struct FileContent {
    content: Vec<u8>,
    /// As in [`Entry`].
    mtime: u32,
}

/// The low 32 bits of a time in nanoseconds.
fn mtime(seconds: i64, nanoseconds: i64) -> u32 {
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds) as u32
}

fn in_index(key: &str) -> String {
    format!("{}/{key}", index::DIRECTORY)
}

fn last_reserved_name(set: usize) -> String {
    format!("last_reserved_ip.{set}")
}

/// The address whose lease has that name: only its canonical text counts.
fn lease_address(name: &str) -> Option<IpAddr> {
    let addr: IpAddr = name.parse().ok()?;
    (addr.to_string() == name).then_some(addr)
}

/// Whether `path`, or what it would have to be made in, can be written to.
///
/// # Errors
/// The failed system call.
pub(super) fn check_writable(path: &Path) -> Result<()> {
    let existing = path.ancestors().find(|p| p.exists()).filter(|p| !p.as_os_str().is_empty());
    let existing = existing.unwrap_or(Path::new("."));
    nix::unistd::access(existing, AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|e| Error::system(format_args!("write to {}", existing.display()), e))
}
