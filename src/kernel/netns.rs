//! Network namespaces: open one, work inside it, come back.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    thread,
};

use nix::{
    errno::Errno,
    fcntl::Flock,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, PROC_SUPER_MAGIC, statfs},
};

use super::{dry_run, lock, rtnl::PeerNetns};
use crate::cni::{Error, Result};

/// `NSFS_MAGIC`, linux/magic.h.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// Where namespaces have names (ip-netns(8)).
const NAMES: &str = "/run/netns";

/// The calling thread's own namespace: the thread's, because others may be elsewhere.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// An open network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: String,
    identity: (u64, u64),
}

impl Netns {
    /// Opens the namespace at `path` (`CNI_NETNS`).
    ///
    /// A path that does not exist is an error with the text of the Go plugins, which old runtimes look for; [`Netns::find`]
    /// tells it apart.
    pub fn open(path: &str) -> Result<Netns> {
        Netns::find(path)?
            .ok_or_else(|| Error::internal(format!("failed to Statfs \"{path}\": no such file or directory")))
    }

    /// As [`Netns::open`], but `None` when the path does not exist: a DEL has nothing to do there.
    pub fn find(path: &str) -> Result<Option<Netns>> {
        let kind = match statfs(path) {
            Ok(stat) => stat.filesystem_type(),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::system(format_args!("failed to Statfs \"{path}\""), errno)),
        };
        if kind != NSFS_MAGIC && kind != PROC_SUPER_MAGIC {
            return Err(Error::internal(format!("unknown FS magic on \"{path}\": {:x}", kind.0)));
        }
        match File::open(path) {
            Ok(file) => Netns::from_file(file, path.to_owned()).map(Some),
            Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
            Err(e) => Err(Error::io(format_args!("open {path}"), &e)),
        }
    }

    /// The namespace the calling thread is in.
    pub fn current() -> Result<Netns> {
        let file = File::open(CURRENT).map_err(|e| Error::io(format_args!("open {CURRENT}"), &e))?;
        Netns::from_file(file, CURRENT.to_owned())
    }

    /// A namespace that is known by its descriptor only.
    pub fn from_fd(fd: OwnedFd) -> Result<Netns> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Netns::from_file(File::from(fd), path)
    }

    /// A new namespace without a name, with a loopback interface that is down. It ends with the last descriptor, process
    /// or mount that holds it. Its path (`/proc/PID/fd/FD`) is good for other processes while this one lives.
    pub fn create_unnamed() -> Result<Netns> {
        let create = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::system("unshare(CLONE_NEWNET)", e))?;
            Netns::current()
        };
        let mut netns = thread::scope(|scope| {
            scope
                .spawn(create)
                .join()
                .unwrap_or_else(|_| Err(Error::internal("unshare(CLONE_NEWNET): thread died")))
        })?;
        netns.path = format!("/proc/{}/fd/{}", std::process::id(), netns.file.as_raw_fd());
        Ok(netns)
    }

    /// A new namespace under /run/netns, with a loopback interface that is down: `ip netns add NAME`. It stays until
    /// `ip netns delete NAME`.
    pub fn create_named(name: &str) -> Result<Netns> {
        let path = format!("{NAMES}/{name}");
        let failed = |e: std::io::Error| Error::io(format_args!("ip netns add {name}"), &e);
        let unnamed = Netns::create_unnamed()?;
        std::fs::create_dir_all(NAMES).map_err(failed)?;
        let none = None::<&str>;
        // As ip(8) does it: names are seen in every mount namespace.
        let share = || mount(none, NAMES, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
        if share().is_err() {
            mount(Some(NAMES), NAMES, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
                .and_then(|()| share())
                .map_err(|e| Error::system(format_args!("mount --make-shared {NAMES}"), e))?;
        }
        File::create_new(&path).map_err(failed)?;
        mount(Some(unnamed.path()), path.as_str(), none, MsFlags::MS_BIND, none).map_err(|e| {
            let _ = std::fs::remove_file(&path);
            Error::system(format_args!("ip netns add {name}"), e)
        })?;
        Netns::open(&path)
    }

    fn from_file(file: File, path: String) -> Result<Netns> {
        let meta = file.metadata().map_err(|e| Error::io(format_args!("stat {path}"), &e))?;
        Ok(Netns { file, path, identity: (meta.dev(), meta.ino()) })
    }

    /// Where it was opened, as it was given.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Device and inode: what tells namespaces apart as long as they exist.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Both are the same namespace.
    pub fn same_as(&self, other: &Netns) -> bool {
        self.identity == other.identity
    }

    /// It is the one the calling thread is in.
    pub fn is_current(&self) -> Result<bool> {
        let meta = std::fs::metadata(CURRENT).map_err(|e| Error::io(format_args!("stat {CURRENT}"), &e))?;
        Ok(self.identity == (meta.dev(), meta.ino()))
    }

    /// For the other end of a veth pair; `self` must stay open until the change was applied.
    pub fn for_peer(&self) -> PeerNetns {
        PeerNetns { fd: self.file.as_raw_fd(), path: self.path.clone() }
    }

    /// Keeps others that lock the same namespace's file out until the lock is dropped (flock(2), as the Go plugin sbr
    /// does): for those that look for something free inside, and take it.
    ///
    /// # Errors
    /// The path cannot be opened (any more).
    pub fn lock(&self) -> Result<Flock<File>> {
        let file = File::open(&self.path).map_err(|e| Error::io(format_args!("open {}", self.path), &e))?;
        lock::lock(file, true, &self.path)
    }

    /// Runs `work` inside the namespace and comes back, also when `work` panics.
    ///
    /// Sockets opened by `work` stay in the namespace and can be used from outside. When there is no way back the process
    /// is aborted: whatever came next would change the wrong namespace.
    pub fn enter<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let back = File::open(CURRENT).map_err(|e| Error::io(format_args!("open {CURRENT}"), &e))?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::system(format_args!("enter network namespace {}", self.path), e))?;
        let _back = Back(back);
        let _inside = dry_run::enter(self.identity, &self.path);
        work()
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Returns to a namespace when dropped.
struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        if setns(&self.0, CloneFlags::CLONE_NEWNET).is_err() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::private_netns::private_netns;

    #[test]
    fn a_missing_path_has_the_text_that_runtimes_look_for() {
        let err = Netns::open("/no/such/netns").unwrap_err();
        assert_eq!(err.msg(), "failed to Statfs \"/no/such/netns\": no such file or directory");
        assert!(Netns::find("/no/such/netns").unwrap().is_none());
    }

    #[test]
    fn an_ordinary_file_is_refused_with_its_magic() {
        let file = std::env::temp_dir().join(format!("cni-all-not-a-netns-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let err = Netns::open(file.to_str().unwrap()).unwrap_err();
        std::fs::remove_file(&file).unwrap();
        assert!(err.msg().starts_with(&format!("unknown FS magic on \"{}\": ", file.display())), "{err}");
    }

    #[test]
    fn a_file_of_proc_that_is_no_namespace_cannot_be_entered() {
        let err = Netns::open("/proc/version").unwrap().enter(|| Ok(())).unwrap_err();
        assert_eq!(err.errno(), Some(Errno::EINVAL));
    }

    #[test]
    fn the_way_back_is_found_after_success_failure_and_panic() {
        private_netns("the_way_back_is_found", || {
            let home = Netns::current().unwrap();
            let other = Netns::create_unnamed().unwrap();
            assert!(home.is_current().unwrap() && !other.is_current().unwrap() && !other.same_as(&home));
            assert!(other.enter(|| other.is_current()).unwrap());
            assert!(home.is_current().unwrap());
            other.enter(|| Err::<(), _>(Error::internal("x"))).unwrap_err();
            assert!(home.is_current().unwrap());
            std::panic::catch_unwind(|| other.enter(|| -> Result<()> { panic!("on purpose") })).unwrap_err();
            assert!(home.is_current().unwrap());
        });
    }

    #[test]
    fn the_path_of_an_unnamed_namespace_opens_it_again() {
        private_netns("the_path_of_an_unnamed_namespace", || {
            let netns = Netns::create_unnamed().unwrap();
            assert!(Netns::open(netns.path()).unwrap().same_as(&netns));
        });
    }
}
