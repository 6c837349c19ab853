//! The world that is measured in: a mount namespace and network namespaces that vanish with this process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

/// Where the private file system is mounted: a directory that every system has, covered in this process's view only.
const ROOT: &str = "/mnt";

/// The private directory; everything in it goes with the process, however it ends.
pub struct World {
    root: PathBuf,
    /// A directory outside of it, to be removed.
    foreign: Option<PathBuf>,
}

impl World {
    /// Enters new mount and network namespaces and mounts a file system of its own. Call it before any thread starts.
    ///
    /// # Errors
    /// Not permitted: needs root, or `unshare -Urnm`.
    pub fn enter(directory: Option<&Path>) -> io::Result<World> {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("cni-all-bench"), ROOT, Some("tmpfs"), MsFlags::empty(), none)?;
        let root = PathBuf::from(ROOT);
        fs::create_dir(root.join("netns"))?;
        fs::create_dir(root.join("data"))?;
        let foreign = directory.map(|d| d.join(format!("cni-all-bench.{}", std::process::id())));
        if let Some(directory) = &foreign {
            fs::create_dir(directory)?;
            mount(Some(directory), &root.join("data"), none, MsFlags::MS_BIND, none)?;
        }
        Ok(World { root, foreign })
    }

    /// A path in the private directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A fresh directory for the leases of one contender in one case.
    pub fn data(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.root.join("data").join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// A fresh directory with one link per plugin, each to `target(plugin)`: the value of CNI_PATH.
    pub fn links(&self, name: &str, target: impl Fn(&str) -> PathBuf) -> io::Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir(&path)?;
        for plugin in ["bridge", "host-local", "loopback", "portmap", "ptp"] {
            symlink(target(plugin), path.join(plugin))?;
        }
        Ok(path)
    }

    /// A fresh network namespace, mounted under this name.
    pub fn netns(&self, name: &str) -> io::Result<Netns> {
        Netns::create(self.root.join("netns").join(name))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(directory) = &self.foreign {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// A network namespace, mounted at a path; gone on drop (the kernel cleans it up some time later).
pub struct Netns {
    path: PathBuf,
    fd: OwnedFd,
}

impl Netns {
    fn create(path: PathBuf) -> io::Result<Netns> {
        // Other threads and the caller stay where they are: only this thread moves, and comes back.
        let here: OwnedFd = fs::File::open("/proc/thread-self/ns/net")?.into();
        unshare(CloneFlags::CLONE_NEWNET)?;
        let made = (|| {
            let own = Path::new("/proc/thread-self/ns/net");
            fs::write(&path, "")?;
            mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            io::Result::Ok(fs::File::open(own)?.into())
        })();
        setns(&here, CloneFlags::CLONE_NEWNET)?;
        Ok(Netns { path, fd: made? })
    }

    /// The path for CNI_NETNS.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Moves the calling thread, and what it starts from now on, into the namespace.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.fd, CloneFlags::CLONE_NEWNET)?)
    }

    /// Waits until no link but `lo` and bridges is left: the kernel removes a dead container's links some time later.
    pub fn settle(&self) -> io::Result<()> {
        self.enter()?;
        let deadline = Instant::now() + Duration::from_secs(120);
        while Instant::now() < deadline {
            let ports = fs::read_to_string("/proc/thread-self/net/dev")?
                .lines()
                .skip(2)
                .filter(|line| !["lo:", "cni0:"].iter().any(|known| line.trim_start().starts_with(known)))
                .count();
            if ports == 0 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}

/// Fills a host-local directory as after this many ADDs: one file per lease from 10.64.0.2 on, and the last address.
pub fn fill_leases(directory: &Path, count: u32) -> io::Result<()> {
    let first = u32::from(std::net::Ipv4Addr::new(10, 64, 0, 2));
    let mut last = String::new();
    fs::create_dir_all(directory)?;
    for number in 0..count {
        last = std::net::Ipv4Addr::from(first + number).to_string();
        fs::write(directory.join(&last), format!("filler{number}\r\neth0"))?;
    }
    fs::write(directory.join("last_reserved_ip.0"), last)?;
    let lock = fs::File::create(directory.join("lock"))?;
    nix::sys::stat::fchmod(&lock, Mode::from_bits_truncate(0o750))?;
    Ok(())
}
