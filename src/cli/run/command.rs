//! Starts the command in its namespace, passes signals on and waits for it.
#![allow(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::thread;

use nix::errno::Errno;
use nix::libc::SI_KERNEL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, kill, pthread_sigmask, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::Pid;

use super::{SIGNALLED, resolv};
use crate::cni::{Dns, Error, Result};
use crate::kernel::netns::Netns;

/// Signals that would end this process, and are the command's business instead.
const PASSED_ON: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// Signals that wait until they are asked for.
pub struct Signals {
    fd: SignalFd,
    before: SigSet,
}

/// How it went with the command.
pub enum Outcome {
    /// It ran: its exit status, or 128 + n when signal n ended it.
    Ended(i32),
    /// It could not be executed.
    NotStarted(std::io::Error),
}

impl Signals {
    /// Blocks the signals in this thread and in those it will start.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn block() -> Result<Signals> {
        let failed = |errno| Error::system("block signals", errno);
        // SAFETY: the default disposition runs no code of ours. A caller that ignores SIGCHLD would make children vanish
        // before they can be waited for.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }.map_err(failed)?;
        let mut set: SigSet = PASSED_ON.into_iter().collect();
        set.add(Signal::SIGCHLD);
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(failed)?;
        let fd =
            SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)?;
        Ok(Signals { fd, before })
    }

    /// The number of a signal that asks this process to end and has arrived meanwhile.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pending(&self) -> Result<Option<i32>> {
        while let Some(info) = self.read()? {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                return Ok(Some(info.ssi_signo as i32));
            }
        }
        Ok(None)
    }

    fn read(&self) -> Result<Option<siginfo>> {
        self.fd.read_signal().map_err(|e| Error::system("read signals", e))
    }

    fn wait(&self) -> Result<()> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(Error::system("wait for signals", e)),
        }
    }
}

/// Runs `words` in the namespace until it ends, with `dns` in its /etc/resolv.conf if there is any.
///
/// # Errors
/// What failed before the command could be executed.
pub fn run(words: &[String], netns: &Netns, dns: Option<&Dns>, signals: &Signals) -> Result<Outcome> {
    if let Some(signal) = signals.pending()? {
        return Ok(Outcome::Ended(SIGNALLED + signal));
    }
    match start(words, netns, dns, signals.before)? {
        Ok(child) => wait(child, signals).map(Outcome::Ended),
        Err(e) => Ok(Outcome::NotStarted(e)),
    }
}

/// Runs a command where this process is, until it ends.
///
/// # Errors
/// It cannot be waited for.
pub fn run_here(command: &mut Command, signals: &Signals) -> Result<Outcome> {
    if let Some(signal) = signals.pending()? {
        return Ok(Outcome::Ended(SIGNALLED + signal));
    }
    with_mask(command, signals.before);
    match command.spawn() {
        Ok(child) => wait(child, signals).map(Outcome::Ended),
        Err(e) => Ok(Outcome::NotStarted(e)),
    }
}

/// Gives the command the signals that this process had before it blocked some.
fn with_mask(command: &mut Command, mask: SigSet) {
    // SAFETY: runs between fork and exec: one system call, no allocation, no lock.
    unsafe {
        command.pre_exec(move || Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?));
    }
}

/// Starts the command from a thread of its own, which is in the command's namespaces; this thread stays where it is.
fn start(words: &[String], netns: &Netns, dns: Option<&Dns>, mask: SigSet) -> Result<std::io::Result<Child>> {
    let start = || {
        if let Some(dns) = dns {
            resolv::cover(dns)?;
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        with_mask(&mut command, mask);
        netns.enter(|| Ok(command.spawn()))
    };
    thread::scope(|scope| scope.spawn(start).join())
        .unwrap_or_else(|_| Err(Error::internal("start the command: panicked, see standard error")))
}

fn wait(mut child: Child, signals: &Signals) -> Result<i32> {
    let pid = Pid::from_raw(child.id().cast_signed());
    loop {
        if let Some(status) = child.try_wait().map_err(|e| Error::io("wait for the command", &e))? {
            let signalled = || SIGNALLED + status.signal().unwrap_or_default();
            return Ok(status.code().unwrap_or_else(signalled));
        }
        signals.wait()?;
        while let Some(info) = signals.read()? {
            // What the terminal sends (Ctrl-C) reaches the command without us: it is in the same process group.
            let from_terminal = info.ssi_code == SI_KERNEL;
            if let Some(signal) = PASSED_ON.into_iter().find(|s| *s as u32 == info.ssi_signo)
                && !from_terminal
            {
                // It may have ended just now, which the next turn finds out.
                let _ = kill(pid, signal);
            }
        }
    }
}
