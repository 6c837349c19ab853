//! Runs one call under ptrace(2) and kills it as it enters its n-th system call, which then is not made.
//!
//! Followed are the plugin and every process that it starts; their system calls are numbered together, in the order in
//! which they happen.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Who dies at the n-th system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The process that enters it; others go on.
    Caller,
    /// Every process of the call: a container runtime's unit is killed as a whole, say.
    Everybody,
}

/// What became of the call.
pub struct Traced {
    /// Somebody was killed. Otherwise the call made fewer system calls, and ended by itself.
    pub killed: bool,
    /// The exit status of the plugin's own process; `None` when it was killed.
    pub status: Option<i32>,
    /// System calls of all processes.
    pub calls: usize,
    /// The number of the one that first reads standard input. Before it a plugin knows nothing that it could change.
    pub reads_input: usize,
    /// Standard output and error, for messages.
    pub output: String,
}

/// Runs the command with this standard input; kills at the `at`-th system call (from 1). Returns when every process that
/// it started has ended.
// The loop below waits for it, and for what it starts.
#[allow(clippy::zombie_processes)]
pub fn run(mut command: Command, stdin: &[u8], scratch: &Path, at: usize, victim: Victim) -> Traced {
    let output = scratch.join("traced-output");
    let file = File::create(&output).unwrap();
    command.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file);
    // SAFETY: between fork and exec only this one system call is made.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let mut child = command.spawn().unwrap();
    let root = Pid::from_raw(child.id().cast_signed());
    assert_eq!(waitpid(root, None), Ok(WaitStatus::Stopped(root, Signal::SIGTRAP)), "no stop at exec");
    let follow = Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK | Options::PTRACE_O_TRACECLONE;
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | follow;
    ptrace::setoptions(root, options).unwrap();
    // The configuration fits into the pipe, so that nobody has to read yet.
    child.stdin.take().unwrap().write_all(stdin).unwrap();

    let mut traced = Traced { killed: false, status: None, calls: 0, reads_input: 0, output: String::new() };
    let mut alive = BTreeSet::from([root]);
    resume(root, None);
    while !alive.is_empty() {
        match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::Exited(pid, status)) => {
                alive.remove(&pid);
                if pid == root {
                    traced.status = Some(status);
                }
            }
            Ok(WaitStatus::Signaled(pid, ..)) => {
                alive.remove(&pid);
            }
            Ok(WaitStatus::PtraceEvent(pid, ..)) => {
                // The message of a fork event is the new process; it is traced from its first instruction.
                if let Ok(new) = ptrace::getevent(pid) {
                    alive.insert(Pid::from_raw(new as i32));
                }
                resume(pid, None);
            }
            Ok(WaitStatus::PtraceSyscall(pid)) => {
                if entering(pid, &mut traced) && traced.calls == at {
                    traced.killed = true;
                    let victims =
                        if victim == Victim::Caller { BTreeSet::from([pid]) } else { alive.clone() };
                    for pid in victims {
                        let _ = kill(pid, Signal::SIGKILL);
                    }
                } else {
                    resume(pid, None);
                }
            }
            Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP | Signal::SIGTRAP)) => {
                alive.insert(pid);
                resume(pid, None);
            }
            Ok(WaitStatus::Stopped(pid, signal)) => resume(pid, Some(signal)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => panic!("waitpid: {errno}"),
        }
    }
    traced.output = String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
    traced
}

/// Lets a process run to its next system call. One that was killed meanwhile is no longer there to run.
fn resume(pid: Pid, signal: Option<Signal>) {
    match ptrace::syscall(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("ptrace: {errno}"),
    }
}

/// Whether the stop is the entry of a system call (not the way back), which is then counted.
fn entering(pid: Pid, traced: &mut Traced) -> bool {
    let Ok(info) = ptrace::syscall_info(pid) else { return false };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return false;
    }
    traced.calls += 1;
    // SAFETY: at an entry this is the member of the union that the kernel has filled in.
    let entry = unsafe { info.u.entry };
    if traced.reads_input == 0 && entry.nr == libc::SYS_read.cast_unsigned() && entry.args[0] == 0 {
        traced.reads_input = traced.calls;
    }
    true
}
