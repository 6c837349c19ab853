//! Tap interfaces: persistent ones are made through /dev/net/tun (Documentation/networking/tuntap.rst), because
//! rtnetlink cannot.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fmt::{self, Display, Formatter};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe2, read, write};

use super::dry_run;
use super::rtnl::{Tun, make_tap};
use crate::cni::{Error, Result};

/// The device that makes them.
pub const DEVICE: &str = "/dev/net/tun";

/// There when SELinux is in force.
const SELINUX: &str = "/sys/fs/selinux/status";

/// What a process writes its SELinux context to (proc_pid_attr(5)).
const OWN_CONTEXT: &CStr = c"/proc/self/attr/current";

/// `struct ifreq`, linux/if.h, as TUNSETIFF uses it.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    _union: [u8; 22],
}

/// A new tap interface. Prints as the command an operator would type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewTap<'a> {
    /// Name.
    pub name: &'a str,
    /// User who may attach to it without privileges; `None` for any.
    pub owner: Option<u32>,
    /// Group that may attach to it without privileges; `None` for any.
    pub group: Option<u32>,
    /// Several processes or threads may each have a queue.
    pub multi_queue: bool,
    /// SELinux context of the process that makes it, which becomes its own; ignored where SELinux is not in force.
    pub selinux_context: Option<&'a str>,
}

impl Display for NewTap<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "ip tuntap add dev {} mode tap", self.name)?;
        if let Some(owner) = self.owner {
            write!(f, " user {owner}")?;
        }
        if let Some(group) = self.group {
            write!(f, " group {group}")?;
        }
        f.write_str(if self.multi_queue { " vnet_hdr multi_queue" } else { " vnet_hdr" })
    }
}

/// Opens the device: the interface will be in the namespace this is done in.
fn open_device() -> Result<OwnedFd> {
    open(DEVICE, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| {
        Error::system(format_args!("open {DEVICE}"), errno).with_details(
            "tap interfaces need the kernel module tun (CONFIG_TUN) and its device file: modprobe tun",
        )
    })
}

/// Whether tap interfaces can be made here.
///
/// # Errors
/// The device is not there, or must not be used.
pub fn status() -> Result<()> {
    open_device().map(drop)
}

/// Makes a persistent tap interface in the calling thread's namespace: down, without the packet information header, with
/// the header of virtio-net (as virtual machine monitors attach to it).
///
/// # Errors
/// The kernel refuses; nothing is left then. EBUSY when there is a tap of this name, EINVAL for another link.
pub fn create(tap: &NewTap<'_>) -> Result<()> {
    // IFF_TUN_EXCL: do not attach to one that is there.
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    if tap.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], flags: flags as u16 as i16, _union: [0; 22] };
    let name = tap.name.as_bytes();
    if name.is_empty() || name.len() >= request.name.len() || name.contains(&b'%') {
        return Err(Error::config(format!("{tap}: a tap interface cannot have this name")));
    }
    request.name[..name.len()].copy_from_slice(name);
    let device = open_device()?;
    if dry_run::is_on() {
        let NewTap { owner, group, multi_queue, .. } = *tap;
        return make_tap(tap.name, &tap.to_string(), Tun { is_tap: true, owner, group, multi_queue });
    }
    let made = match tap.selinux_context.filter(|_| Path::new(SELINUX).exists()) {
        None => set_up(device.as_fd(), &mut request, tap),
        Some(context) => set_up_as(context, device.as_fd(), &mut request, tap)?,
    };
    made.map_err(|(step, errno)| Error::system(format_args!("{tap}: {}", step.as_str()), errno))
}

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Context,
    Interface,
    Owner,
    Group,
    Persistence,
}

impl Step {
    const ALL: [Step; 5] = [Step::Context, Step::Interface, Step::Owner, Step::Group, Step::Persistence];

    fn as_str(self) -> &'static str {
        match self {
            Step::Context => "selinuxContext: write /proc/self/attr/current",
            Step::Interface => "TUNSETIFF",
            Step::Owner => "TUNSETOWNER",
            Step::Group => "TUNSETGROUP",
            Step::Persistence => "TUNSETPERSIST",
        }
    }
}

/// The interface lasts when all of this succeeded; otherwise it goes with the last descriptor of `device`. Makes system
/// calls only, so that a forked child can run it.
fn set_up(device: BorrowedFd<'_>, request: &mut IfReq, tap: &NewTap<'_>) -> Result<(), (Step, Errno)> {
    let fd = device.as_raw_fd();
    // SAFETY: the descriptor is open; TUNSETIFF reads and writes a `struct ifreq`, which `request` has the layout of.
    let made = unsafe { libc::ioctl(fd, libc::TUNSETIFF as _, std::ptr::from_mut(request)) };
    Errno::result(made).map_err(|e| (Step::Interface, e))?;
    let set = |step, number: libc::Ioctl, value: u32| {
        // SAFETY: the descriptor is open; these requests take their argument by value.
        let done = unsafe { libc::ioctl(fd, number, libc::c_ulong::from(value)) };
        Errno::result(done).map(drop).map_err(|e| (step, e))
    };
    if let Some(owner) = tap.owner {
        set(Step::Owner, libc::TUNSETOWNER as _, owner)?;
    }
    if let Some(group) = tap.group {
        set(Step::Group, libc::TUNSETGROUP as _, group)?;
    }
    set(Step::Persistence, libc::TUNSETPERSIST as _, 1)
}

/// As [`set_up`], in a child process that has taken on an SELinux context: the kernel labels the interface with that of
/// the process which makes it. (The context of one thread among others could not be changed freely.)
fn set_up_as(
    context: &str,
    device: BorrowedFd<'_>,
    request: &mut IfReq,
    tap: &NewTap<'_>,
) -> Result<Result<(), (Step, Errno)>> {
    let (answer, report) =
        pipe2(OFlag::O_CLOEXEC).map_err(|e| Error::system("pipe for a labelled tap interface", e))?;
    // SAFETY: the child makes system calls only, allocates nothing and ends by `_exit`.
    let child = match unsafe { fork() } {
        Err(errno) => return Err(Error::system("fork for a labelled tap interface", errno)),
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            let outcome = match take_on(context) {
                Ok(()) => set_up(device, request, tap),
                Err(errno) => Err((Step::Context, errno)),
            };
            let (step, errno) = outcome.err().map_or((0, 0), |(step, errno)| (step as u8, errno as i32));
            let [a, b, c, d] = errno.to_ne_bytes();
            let _ = write(&report, &[step, a, b, c, d]);
            // SAFETY: ends the child at once, running nothing of the parent's.
            unsafe { libc::_exit(0) }
        }
    };
    drop(report);
    let mut bytes = [0; 5];
    let length = read(&answer, &mut bytes);
    let _ = waitpid(child, None);
    match length {
        Ok(5) => {}
        Ok(_) => return Err(Error::internal(format!("{tap}: the process that was to do it has ended"))),
        Err(errno) => return Err(Error::system(format_args!("{tap}: read its outcome"), errno)),
    }
    let [step, errno @ ..] = bytes;
    let step = Step::ALL.into_iter().find(|s| *s as u8 == step).unwrap_or(Step::Interface);
    Ok(match i32::from_ne_bytes(errno) {
        0 => Ok(()),
        errno => Err((step, Errno::from_raw(errno))),
    })
}

fn take_on(context: &str) -> Result<(), Errno> {
    let attribute = open(OWN_CONTEXT, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(&attribute, context.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::Handle;
    use crate::kernel::rtnl::private_netns::{private_netns, skip};

    const TAP: NewTap<'_> =
        NewTap { name: "tap0", owner: None, group: None, multi_queue: false, selinux_context: None };

    fn with_device(test: &str, body: impl FnOnce() + Send) {
        match status() {
            Ok(()) => private_netns(test, body),
            Err(e) => skip(test, e.msg()),
        }
    }

    #[test]
    fn a_tap_prints_as_the_command_that_makes_it() {
        assert_eq!(TAP.to_string(), "ip tuntap add dev tap0 mode tap vnet_hdr");
        let full = NewTap { owner: Some(0), group: Some(5), multi_queue: true, ..TAP };
        assert_eq!(full.to_string(), "ip tuntap add dev tap0 mode tap user 0 group 5 vnet_hdr multi_queue");
    }

    #[test]
    fn a_tap_stays_with_owner_group_and_queues() {
        with_device("a_tap_stays_with_owner_group_and_queues", || {
            create(&TAP).unwrap();
            create(&NewTap { name: "tap1", owner: Some(0), group: Some(5), multi_queue: true, ..TAP })
                .unwrap();
            let mut rtnl = Handle::open().unwrap();
            let plain = rtnl.link("tap0").unwrap().unwrap();
            assert_eq!((plain.kind.as_str(), plain.is_up()), ("tun", false));
            let tun = plain.tun.unwrap();
            assert_eq!((tun.is_tap, tun.owner, tun.group, tun.multi_queue), (true, None, None, false));
            let tun = rtnl.link("tap1").unwrap().unwrap().tun.unwrap();
            assert_eq!((tun.owner, tun.group, tun.multi_queue), (Some(0), Some(5), true));
        });
    }

    #[test]
    fn a_name_that_is_taken_or_a_pattern_is_refused() {
        with_device("a_name_that_is_taken_or_a_pattern_is_refused", || {
            create(&TAP).unwrap();
            let err = create(&TAP).unwrap_err();
            assert_eq!(err.errno(), Some(Errno::EBUSY));
            assert!(err.msg().starts_with("ip tuntap add dev tap0 mode tap vnet_hdr: TUNSETIFF: "), "{err}");
            assert!(create(&NewTap { name: "lo", ..TAP }).is_err());
            assert!(create(&NewTap { name: "tap%d", ..TAP }).is_err());
            assert_eq!(Handle::open().unwrap().links(Some("tun")).unwrap().len(), 1);
        });
    }

    #[test]
    fn the_failure_of_a_labelled_creation_names_its_step() {
        with_device("the_failure_of_a_labelled_creation_names_its_step", || {
            let device = open_device().unwrap();
            let mut request = IfReq { name: [0; 16], flags: 0, _union: [0; 22] };
            let outcome = set_up_as("no:such:context:s0", device.as_fd(), &mut request, &TAP).unwrap();
            assert_eq!(outcome.unwrap_err().0, Step::Context);
        });
    }
}
