//! Removal of links without waiting for the kernel's cleaning up.
//!
//! RTM_DELLINK answers after an `rcu_barrier` of some 16 ms (`netdev_run_todo`), long after the link is unregistered, its
//! name free and RTM_DELLINK announced. So a child process sends the request and sits out the wait, while the caller goes
//! on as soon as it saw the announcement.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use neli::consts::nl::Nlmsg;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigHandler, Signal, signal},
        socket::{MsgFlags, recv, send},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, pipe2, read, setsid, write},
};

use super::rtnl::{Batch, Change, Dev, Event, Handle, LinkWatch, Messages, Socket, Step};
use crate::cni::{Error, Result, error::ResultExt};
use crate::log::phase;

/// Longest wait for the announcements. They come within milliseconds unless another process holds the kernel's rtnl lock.
const BUDGET: Duration = Duration::from_secs(60);

/// Most children at once: the waits of several links overlap, one child's follow each other.
const CHILDREN: usize = 8;

/// Removes links of the handle's namespace and returns an outcome for each; a link that is not there is removed.
/// See [`begin_removal`].
pub fn remove_links(handle: &mut Handle, devs: &[Dev], wait: bool) -> Result<Vec<Result<()>>> {
    begin_removal(handle, devs, wait)?.finish(handle)
}

/// Links on their way out. The kernel works on them while the caller does something else.
#[must_use = "whether the links are gone is known after `finish`"]
pub struct Removal {
    devs: Vec<Dev>,
    outcomes: Vec<Result<()>>,
    /// What is not gone yet; `None` when nothing was left to others.
    pending: Option<Pending>,
}

/// What children are at work on.
struct Pending {
    targets: Vec<Target>,
    watch: LinkWatch,
    /// Where children report failures.
    errors: OwnedFd,
    pids: Vec<Pid>,
}

/// Starts to remove links of the handle's namespace; a link that is not there is removed.
///
/// With `wait` this returns when the kernel is done, 16 ms for each link. Without, children send the requests:
/// [`Removal::finish`] returns when the links are gone, and the children end by themselves when the kernel is done. They
/// keep every descriptor but 0, 1 and 2 that is open now open until then, which also spares the caller the wait when it
/// closes an nftables socket; locks must be released by unlocking, not by closing. A caller that lives on finds the
/// children with `waitpid(-1)`. When no child can be started, the links are removed as with `wait`.
///
/// # Errors
/// Sockets or a pipe cannot be opened; nothing was begun then.
pub fn begin_removal(handle: &mut Handle, devs: &[Dev], wait: bool) -> Result<Removal> {
    let ended = |outcomes| Removal { devs: devs.to_vec(), outcomes, pending: None };
    if wait || handle.is_dry_run() {
        return Ok(ended(remove_synchronously(handle, devs)?));
    }
    let children = devs.len().min(CHILDREN);
    if children == 0 {
        return Ok(ended(Vec::new()));
    }
    let (watch, sockets) = handle.watch_and_sockets(children)?;
    let (targets, mut outcomes) = find(handle, devs)?;
    if targets.is_empty() {
        return Ok(ended(outcomes));
    }
    let (errors, report) =
        pipe2(OFlag::O_CLOEXEC).map_err(|e| Error::system("pipe for the removal of links", e))?;
    let mut pids = Vec::with_capacity(children);
    for (socket, share) in sockets.iter().zip(targets.chunks(targets.len().div_ceil(children))) {
        match start(share, socket, report.as_fd())? {
            Some(pid) => pids.push(pid),
            None => {
                let devs: Vec<Dev> = share.iter().map(|target| target.dev.clone()).collect();
                let done = remove_synchronously(handle, &devs)?;
                share.iter().zip(done).for_each(|(target, outcome)| outcomes[target.at] = outcome);
            }
        }
    }
    let pending = Some(Pending { targets, watch, errors, pids });
    Ok(Removal { devs: devs.to_vec(), outcomes, pending })
}

impl Removal {
    /// Returns when the links are gone, with an outcome for each link.
    ///
    /// # Errors
    /// Notifications cannot be received.
    pub fn finish(self, handle: &mut Handle) -> Result<Vec<Result<()>>> {
        phase("wait until links are gone", || self.wait(handle))
    }

    fn wait(self, handle: &mut Handle) -> Result<Vec<Result<()>>> {
        let Removal { devs, mut outcomes, pending } = self;
        let Some(Pending { mut targets, mut watch, errors, pids }) = pending else { return Ok(outcomes) };
        let deadline = Instant::now() + BUDGET;
        while !strike_gone(handle, &mut watch, &mut targets)? {
            match next_report(&watch, &errors, deadline)? {
                Report::Links => {}
                Report::Failures(failures) => {
                    for (at, errno) in failures {
                        targets.retain(|target| target.at != at);
                        if errno != Errno::ENODEV {
                            outcomes[at] = Err(Error::system(Change::DelLink(devs[at].clone()), errno));
                        }
                    }
                }
                Report::Ended => {
                    for pid in pids {
                        let _ = waitpid(pid, None);
                    }
                    let why = "the process that was to do it has ended";
                    return give_up(handle, &targets, outcomes, why);
                }
                Report::Late => return give_up(handle, &targets, outcomes, "not done after 60 s"),
            }
        }
        Ok(outcomes)
    }
}

/// A link to remove: its place in the caller's list, and its index.
struct Target {
    at: usize,
    dev: Dev,
}

fn remove_synchronously(handle: &mut Handle, devs: &[Dev]) -> Result<Vec<Result<()>>> {
    let steps: Vec<Step> = devs.iter().map(|dev| Step::Change(Change::DelLink(dev.clone()))).collect();
    let outcomes = handle.exchange(&steps)?;
    Ok(outcomes.into_iter().map(|outcome| outcome.map(drop).unless_gone().map(drop)).collect())
}

/// The links that are there, with their indexes, and an outcome for each of the others.
fn find(handle: &mut Handle, devs: &[Dev]) -> Result<(Vec<Target>, Vec<Result<()>>)> {
    let unknown: Vec<usize> = (0..devs.len()).filter(|at| devs[*at].index == 0).collect();
    let steps: Vec<Step> = unknown.iter().map(|at| Step::Link(devs[*at].clone())).collect();
    let mut indexes: Vec<u32> = devs.iter().map(|dev| dev.index).collect();
    let mut outcomes: Vec<Result<()>> = devs.iter().map(|_| Ok(())).collect();
    for (at, found) in unknown.into_iter().zip(handle.exchange(&steps)?) {
        match found {
            Ok(link) => indexes[at] = link.map_or(0, |link| link.index),
            Err(err) => outcomes[at] = Err(err),
        }
    }
    let there = indexes.into_iter().enumerate().filter(|(_, index)| *index != 0);
    let targets = there.map(|(at, index)| Target { at, dev: Dev { index, name: devs[at].name.clone() } });
    Ok((targets.collect(), outcomes))
}

/// Takes out of `targets` what was announced as gone; true when nothing is left.
fn strike_gone(handle: &mut Handle, watch: &mut LinkWatch, targets: &mut Vec<Target>) -> Result<bool> {
    let mut lost = false;
    watch.drain(|event| {
        match event {
            Event::Gone { index } => targets.retain(|target| target.dev.index != index),
            Event::Lost => lost = true,
            Event::New(_) => {}
        }
        None::<()>
    })?;
    if lost {
        let mut left = Vec::with_capacity(targets.len());
        for target in targets.drain(..) {
            if handle.link_by_index(target.dev.index)?.is_some() {
                left.push(target);
            }
        }
        *targets = left;
    }
    Ok(targets.is_empty())
}

/// An error for every target that is still there.
fn give_up(
    handle: &mut Handle,
    targets: &[Target],
    mut outcomes: Vec<Result<()>>,
    why: &str,
) -> Result<Vec<Result<()>>> {
    for target in targets {
        if handle.link_by_index(target.dev.index)?.is_some() {
            let what = Change::DelLink(target.dev.clone());
            outcomes[target.at] = Err(Error::internal(format!("{what}: {why}")));
        }
    }
    Ok(outcomes)
}

/// What woke the waiting caller.
enum Report {
    /// There are notifications about links.
    Links,
    /// Requests that failed: place in the caller's list, and why.
    Failures(Vec<(usize, Errno)>),
    /// All children have ended.
    Ended,
    /// The deadline has passed.
    Late,
}

fn next_report(watch: &LinkWatch, errors: &OwnedFd, deadline: Instant) -> Result<Report> {
    let failed = |errno| Error::system("wait until links are removed", errno);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds =
            [PollFd::new(watch.as_fd(), PollFlags::POLLIN), PollFd::new(errors.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Ok(Report::Late),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(failed(errno)),
        }
        if fds[0].any() == Some(true) {
            return Ok(Report::Links);
        }
        let mut records = [0; 64 * RECORD];
        return match read(errors, &mut records) {
            Ok(0) => Ok(Report::Ended),
            Ok(length) => {
                Ok(Report::Failures(records[..length].chunks_exact(RECORD).map(read_record).collect()))
            }
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(failed(errno)),
        };
    }
}

/// A failure on the pipe, written at once: place in the caller's list and error number, four bytes each.
const RECORD: usize = 8;

fn write_record(at: usize, errno: i32) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..4].copy_from_slice(&(at as u32).to_ne_bytes());
    record[4..].copy_from_slice(&errno.to_ne_bytes());
    record
}

fn read_record(record: &[u8]) -> (usize, Errno) {
    let field = |at: usize| record[at..].first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
    (field(0) as usize, Errno::from_raw(field(4)))
}

/// Starts a child that removes the targets; `None` when there can be no further process.
fn start(targets: &[Target], socket: &Socket, report: BorrowedFd<'_>) -> Result<Option<Pid>> {
    let mut batch = Batch::default();
    for target in targets {
        Change::DelLink(target.dev.clone()).encode(&mut batch)?;
    }
    batch.acknowledge_last();
    // SAFETY: the child only runs `child`, which does nothing but system calls on memory that is there already and never
    // returns: no allocation, no lock, no destructor.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => child(targets, batch.bytes(), socket, report),
        Ok(ForkResult::Parent { child }) => Ok(Some(child)),
        Err(_) => Ok(None),
    }
}

/// The child's life: out of reach of what ends the caller, it sends the requests, reads the answers and reports failures.
/// Messages are numbered from 1, so that the first target's is 1.
fn child(targets: &[Target], requests: &[u8], socket: &Socket, report: BorrowedFd<'_>) -> ! {
    step_aside();
    let socket = socket.as_fd().as_raw_fd();
    let tell = |at: usize, errno: i32| {
        let _ = write(report, &write_record(at, errno));
    };
    if let Err(errno) = send(socket, requests, MsgFlags::empty()) {
        targets.iter().for_each(|target| tell(target.at, errno as i32));
        // SAFETY: always sound; no destructor of the parent's copy runs.
        unsafe { libc::_exit(1) };
    }
    let mut answers = [0; 8192];
    let mut answered = 0;
    while answered < targets.len() {
        let length = match recv(socket, &mut answers, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(_) => break,
        };
        for message in Messages(&answers[..length]).filter(|m| m.kind == u16::from(Nlmsg::Error)) {
            answered = message.sequence as usize;
            let code = message.payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
            if let Some(target) = answered.checked_sub(1).and_then(|number| targets.get(number))
                && code != 0
            {
                tell(target.at, -code);
            }
        }
    }
    // SAFETY: as above.
    unsafe { libc::_exit(0) }
}

/// What a child does first: it gets out of reach of what ends the caller, and lets go of the streams.
fn step_aside() {
    for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let _ = setsid();
    for descriptor in 0..3 {
        // SAFETY: nothing in this process uses them from here on; whoever reads them in the runtime waits for their end.
        unsafe { libc::close(descriptor) };
    }
}

/// Starts a child that keeps every descriptor but 0, 1 and 2 that is open now open until the returned one is closed, and
/// then sits out what closing costs: some 13 ms for an nftables socket that has just removed something. `None` when no
/// child can be started.
///
/// What is returned must be closed after the socket. A caller that lives on finds the child with `waitpid(-1)`.
pub fn close_late() -> Option<OwnedFd> {
    let (until, keep) = pipe2(OFlag::O_CLOEXEC).ok()?;
    // SAFETY: as in `start`.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            step_aside();
            // SAFETY: the child does not use it; its parent's copy is what is waited for.
            unsafe { libc::close(keep.as_raw_fd()) };
            while read(&until, &mut [0]) == Err(Errno::EINTR) {}
            // SAFETY: no destructor of the parent's copy runs.
            unsafe { libc::_exit(0) }
        }
        Ok(ForkResult::Parent { .. }) => Some(keep),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use nix::{
        errno::Errno,
        sys::wait::{WaitStatus, waitpid},
        unistd::getpid,
    };

    use super::*;
    use crate::kernel::{
        netns::Netns,
        rtnl::{AddVeth, Link, VethPeer, private_netns::private_netns},
    };

    fn add_veth(handle: &mut Handle, name: &str) -> Link {
        let veth = AddVeth {
            name: name.into(),
            up: true,
            peer: VethPeer { name: format!("{name}p"), ..VethPeer::default() },
            ..AddVeth::default()
        };
        handle.apply(&[Change::AddVeth(veth)]).unwrap();
        handle.link(name).unwrap().unwrap()
    }

    /// Children of this process that have the calling thread as parent (other tests run at the same time).
    fn children() -> Vec<Pid> {
        let path = format!("/proc/{}/task/{}/children", getpid(), nix::unistd::gettid());
        let text = std::fs::read_to_string(path).unwrap();
        text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    /// Waits for all of them; none may have failed.
    fn reap() {
        for child in children() {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
        assert_eq!(children(), []);
    }

    #[test]
    fn links_are_gone_at_once_and_the_children_end_by_themselves() {
        private_netns("links_are_gone_at_once", || {
            let mut handle = Handle::open().unwrap();
            let by_index = add_veth(&mut handle, "va").dev();
            add_veth(&mut handle, "vb");
            let started = Instant::now();
            let devs = [by_index.clone(), Dev::named("vb"), Dev::named("absent0")];
            let outcomes = remove_links(&mut handle, &devs, false).unwrap();
            println!("two links, detached: {:?}", started.elapsed());
            assert_eq!(outcomes, [Ok(()), Ok(()), Ok(())]);
            assert_eq!(handle.link("va"), Ok(None));
            assert_eq!(handle.link("vbp"), Ok(None));
            add_veth(&mut handle, "va");
            reap();
            assert_eq!(remove_links(&mut handle, &[by_index], false), Ok(vec![Ok(())]));
            reap();
        });
    }

    #[test]
    fn an_nftables_socket_that_removed_something_is_closed_by_a_child() {
        private_netns("an_nftables_socket_that_removed_something", || {
            use crate::kernel::nft::{Chain, Change, Family, Socket, Table};
            let table = Table { family: Family::Ip, name: "cni-test" };
            let mut nft = Socket::open().unwrap();
            let chain = Chain { table, name: "gone".into(), base: None };
            nft.apply(&[Change::AddTable(table), Change::AddChain(chain)]).unwrap();
            nft.apply(&[Change::DeleteChain { table, chain: "gone".into() }]).unwrap();
            let keep = close_late().unwrap();
            let started = Instant::now();
            drop(nft);
            println!("closed after {:?}", started.elapsed());
            drop(keep);
            reap();
        });
    }

    #[test]
    fn waiting_removes_the_same_without_a_child() {
        private_netns("waiting_removes_the_same", || {
            let mut handle = Handle::open().unwrap();
            let dev = add_veth(&mut handle, "va").dev();
            let outcomes = remove_links(&mut handle, &[dev.clone(), Dev::named("absent0"), dev], true);
            assert_eq!(outcomes, Ok(vec![Ok(()), Ok(()), Ok(())]));
            assert_eq!(children(), []);
            assert_eq!(remove_links(&mut handle, &[], false), Ok(Vec::new()));
        });
    }

    #[test]
    fn a_failure_in_the_child_reaches_the_caller() {
        private_netns("a_failure_in_the_child", || {
            let mut handle = Handle::open().unwrap();
            add_veth(&mut handle, "va");
            for wait in [false, true] {
                let outcomes =
                    remove_links(&mut handle, &[Dev::named("lo"), Dev::named("va")], wait).unwrap();
                let err = outcomes[0].as_ref().unwrap_err();
                assert_eq!(
                    (err.msg(), err.errno()),
                    (
                        "ip link del lo: Operation not supported on transport endpoint",
                        Some(Errno::EOPNOTSUPP)
                    )
                );
                assert_eq!(outcomes[1], Ok(()));
            }
            reap();
        });
    }

    #[test]
    fn many_links_cost_little_more_than_one() {
        private_netns("many_links_cost_little_more_than_one", || {
            let mut handle = Handle::open().unwrap();
            let devs: Vec<Dev> = (0..20).map(|n| add_veth(&mut handle, &format!("v{n}")).dev()).collect();
            let started = Instant::now();
            let outcomes = remove_links(&mut handle, &devs, false).unwrap();
            println!("20 links, detached: {:?}", started.elapsed());
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            assert_eq!(handle.links(Some("veth")), Ok(Vec::new()));
            reap();
        });
    }

    #[test]
    fn a_container_end_is_removed_through_the_containers_handle() {
        private_netns("a_container_end_is_removed", || {
            let container = Netns::create_unnamed().unwrap();
            let mut inside = container.enter(Handle::open).unwrap();
            add_veth(&mut inside, "eth0");
            assert_eq!(remove_links(&mut inside, &[Dev::named("eth0")], false), Ok(vec![Ok(())]));
            assert_eq!(inside.link("eth0"), Ok(None));
            reap();
        });
    }
}
