//! One plugin call under ptrace(2), killed as it enters a system call of a given number.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use libc::{c_int, c_void, pid_t};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The plugin's own process; its system calls are counted. A child that it left lives on.
    Caller,
    /// Every process of the call; the system calls of all are counted.
    Everybody,
}

/// What became of a call.
#[derive(Debug, Default)]
pub struct Traced {
    /// The system call of that number was reached.
    pub killed: bool,
    /// Exit status of the plugin's own process, unless it was killed.
    pub status: Option<c_int>,
    /// System calls that were counted.
    pub calls: usize,
    /// Number of the one that first reads standard input; 0 when none did.
    pub reads_input: usize,
    /// Standard output and error.
    pub output: String,
}

/// Runs `command`; kills `victim` as it enters system call number `at`, counted from 1 after execve(2). Returns when every
/// process of the call has ended. `dir` is for the files that stand for its standard streams.
pub fn run(mut command: Command, stdin: &[u8], dir: &Path, at: usize, victim: Victim) -> Traced {
    let (input, output) = (dir.join("crash-stdin"), dir.join("crash-output"));
    fs::write(&input, stdin).unwrap();
    let written = File::create(&output).unwrap();
    command
        .stdin(File::open(&input).unwrap())
        .stdout(written.try_clone().unwrap())
        .stderr(Stdio::from(written));
    // SAFETY: ptrace(PTRACE_TRACEME) is one system call without pointers: it may be made between fork and execve.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let main = command.spawn().unwrap().id() as pid_t;
    let mut traced = Trace { main, at, victim, alive: BTreeSet::new(), result: Traced::default() }.follow();
    traced.output = fs::read_to_string(&output).unwrap();
    traced
}

struct Trace {
    main: pid_t,
    at: usize,
    victim: Victim,
    alive: BTreeSet<pid_t>,
    result: Traced,
}

impl Trace {
    fn follow(mut self) -> Traced {
        self.alive.insert(self.main);
        let mut prepared = false;
        while !self.alive.is_empty() {
            let mut status = 0;
            // __WNOTHREAD: other tests, in other threads of this process, have children of their own.
            let flags = libc::__WALL | libc::__WNOTHREAD;
            // SAFETY: waitpid writes one integer, to which the pointer leads.
            let pid = unsafe { libc::waitpid(-1, &mut status, flags) };
            assert!(pid > 0, "waitpid: {}", std::io::Error::last_os_error());
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                self.alive.remove(&pid);
                if pid == self.main && libc::WIFEXITED(status) {
                    self.result.status = Some(libc::WEXITSTATUS(status));
                }
                continue;
            }
            self.alive.insert(pid);
            if pid == self.main && !prepared {
                prepared = true;
                let options = libc::PTRACE_O_TRACESYSGOOD
                    | libc::PTRACE_O_TRACEFORK
                    | libc::PTRACE_O_TRACEVFORK
                    | libc::PTRACE_O_TRACECLONE
                    | libc::PTRACE_O_EXITKILL;
                request(libc::PTRACE_SETOPTIONS, pid, 0, options as usize);
                request(libc::PTRACE_SYSCALL, pid, 0, 0);
                continue;
            }
            let signal = libc::WSTOPSIG(status);
            if signal == libc::SIGTRAP | 0x80 {
                self.system_call(pid);
            }
            // A new child's SIGSTOP and ptrace's own SIGTRAPs are not for the process.
            let forward = if signal & 0x7f == libc::SIGTRAP || signal == libc::SIGSTOP { 0 } else { signal };
            request(libc::PTRACE_SYSCALL, pid, 0, forward as usize);
        }
        self.result
    }

    fn system_call(&mut self, pid: pid_t) {
        if self.victim == Victim::Caller && pid != self.main {
            return;
        }
        // SAFETY: all-zero bytes are a valid ptrace_syscall_info: it is made of integers only.
        let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::ptrace_syscall_info>();
        request(libc::PTRACE_GET_SYSCALL_INFO, pid, size, (&raw mut info) as usize);
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return;
        }
        self.result.calls += 1;
        // SAFETY: `op` says that the kernel filled in the entry variant.
        let entry = unsafe { info.u.entry };
        let reads = entry.nr == libc::SYS_read as u64 && entry.args[0] == 0;
        if reads && pid == self.main && self.result.reads_input == 0 {
            self.result.reads_input = self.result.calls;
        }
        if self.result.calls == self.at {
            self.result.killed = true;
            for victim in self.alive.iter().filter(|p| self.victim == Victim::Everybody || **p == self.main) {
                // SAFETY: kill takes no pointers.
                unsafe { libc::kill(*victim, libc::SIGKILL) };
            }
        }
    }
}

/// One ptrace request. A process that is being killed answers ESRCH, which is fine.
fn request(what: libc::c_uint, pid: pid_t, address: usize, data: usize) {
    // SAFETY: the only request that writes through `data` is PTRACE_GET_SYSCALL_INFO, with a pointer to a structure of
    // the size given in `address`.
    unsafe { libc::ptrace(what, pid, address as *mut c_void, data as *mut c_void) };
}
