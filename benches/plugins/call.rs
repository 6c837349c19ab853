//! One call of a plugin as a runtime makes it, timed from the start of the process to its reaping.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

/// A program with its environment and input.
#[derive(Clone)]
pub struct Call {
    program: PathBuf,
    env: Vec<(&'static str, OsString)>,
    stdin: Vec<u8>,
}

/// What a call took and printed.
pub struct Done {
    /// From before the process was started until it was reaped and its output read to the end.
    pub elapsed: Duration,
    /// Standard output.
    pub stdout: Vec<u8>,
}

impl Call {
    /// A program that gets nothing.
    pub fn bare(program: &Path) -> Call {
        let env = vec![("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into())];
        Call { program: program.to_owned(), env, stdin: Vec::new() }
    }

    /// The plugin that the configuration's type names, from the directory `bin`.
    pub fn plugin(bin: &Path, command: &str, id: &str, netns: &Path, ifname: &str, config: &Value) -> Call {
        let mut call = Call::bare(&bin.join(config["type"].as_str().unwrap_or_default()));
        call.env.extend([
            ("CNI_COMMAND", command.into()),
            ("CNI_CONTAINERID", id.into()),
            ("CNI_NETNS", netns.into()),
            ("CNI_IFNAME", ifname.into()),
            ("CNI_PATH", bin.into()),
        ]);
        call.stdin = config.to_string().into_bytes();
        call
    }

    /// Sets one more variable.
    pub fn env(mut self, name: &'static str, value: &str) -> Call {
        self.env.push((name, value.into()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// Runs it; anything but success is an error that tells what it printed.
    pub fn run(&self) -> io::Result<Done> {
        let mut stderr = tempfile()?;
        let mut command = self.command();
        command.stderr(stderr.try_clone()?);
        let mut stdout = Vec::new();
        let started = Instant::now();
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // An empty program leaves its input unread.
            let _ = stdin.write_all(&self.stdin);
        }
        if let Some(mut output) = child.stdout.take() {
            output.read_to_end(&mut stdout)?;
        }
        let status = child.wait()?;
        let elapsed = started.elapsed();
        // A plugin may leave a process that finishes behind its back: it must not disturb the next call.
        reap_orphans();
        if !status.success() {
            let mut text = String::from_utf8_lossy(&stdout).into_owned();
            stderr.seek(SeekFrom::Start(0))?;
            stderr.read_to_string(&mut text)?;
            return Err(io::Error::other(format!("{}: {status}: {text}", self.program.display())));
        }
        Ok(Done { elapsed, stdout })
    }

    /// The most memory the process ever had in use, in bytes: `VmHWM` of /proc/PID/status at its exit.
    ///
    /// (`ru_maxrss` of wait4 is no help: it starts with the memory of the process that called exec.)
    pub fn peak_memory(&self) -> io::Result<u64> {
        let mut command = self.command();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: between fork and exec only this one system call is made.
        unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
        let mut child = command.spawn()?;
        let pid = Pid::from_raw(child.id() as i32);
        waitpid(pid, None)?;
        ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACEEXIT | ptrace::Options::PTRACE_O_EXITKILL)?;
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(&self.stdin);
        }
        let mut peak = 0;
        let mut signal = None;
        loop {
            ptrace::cont(pid, signal)?;
            signal = match waitpid(pid, None)? {
                WaitStatus::PtraceEvent(..) => {
                    peak = high_water_mark(pid)?;
                    None
                }
                WaitStatus::Stopped(_, Signal::SIGTRAP) => None,
                WaitStatus::Stopped(_, signal) => Some(signal),
                _ => break,
            };
        }
        reap_orphans();
        Ok(peak)
    }
}

fn high_water_mark(pid: Pid) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no VmHWM in /proc/PID/status"))
}

/// Waits for what calls left behind; as a child subreaper this process inherits it.
pub fn reap_orphans() {
    while !matches!(waitpid(None, None), Err(Errno::ECHILD)) {}
}

fn tempfile() -> io::Result<File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    Ok(File::from(memfd_create("stderr", MFdFlags::MFD_CLOEXEC)?))
}
