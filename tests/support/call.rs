//! One run of a plugin, as a runtime does it: environment, standard input, and what came back.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use super::{Netns, patience};

/// A call that takes longer than this hangs, and is killed.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// A plugin call in the making. Nothing of the test's own environment reaches the plugin but `PATH`.
pub struct Call {
    program: PathBuf,
    args: Vec<OsString>,
    env: BTreeMap<String, OsString>,
    stdin: Option<Vec<u8>>,
    netns: Option<OwnedFd>,
    mounts: Vec<(PathBuf, PathBuf)>,
}

impl Call {
    /// A call of the executable at `program`, with these values until changed:
    /// `CNI_CONTAINERID=c1`, `CNI_NETNS=/nonexistent/netns`, `CNI_IFNAME=eth0`, `CNI_PATH` as given, no `CNI_COMMAND`,
    /// a system bus that is not there (the machine's own must not be talked to), and empty standard input.
    pub fn new(program: &Path, cni_path: &Path) -> Call {
        let env = [
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            ("CNI_CONTAINERID", "c1".into()),
            ("CNI_NETNS", "/nonexistent/netns".into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_PATH", cni_path.as_os_str().to_owned()),
            ("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus".into()),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Call {
            program: program.to_owned(),
            args: Vec::new(),
            env,
            stdin: Some(Vec::new()),
            netns: None,
            mounts: Vec::new(),
        }
    }

    /// Sets `CNI_COMMAND`.
    pub fn command(self, command: &str) -> Call {
        self.env("CNI_COMMAND", command)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Call {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Removes an environment variable.
    pub fn unset(mut self, name: &str) -> Call {
        self.env.remove(name);
        self
    }

    /// Removes every `CNI_*` variable.
    pub fn bare(mut self) -> Call {
        self.env.retain(|name, _| !name.starts_with("CNI_"));
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Call {
        self.args.push(arg.into());
        self
    }

    /// Lets another program start the plugin: `call.through("/usr/bin/strace", &["-f"])`.
    pub fn through(mut self, program: &str, args: &[&str]) -> Call {
        let plugin = std::mem::replace(&mut self.program, program.into());
        let before = args.iter().map(OsString::from).chain([plugin.into_os_string()]);
        self.args = before.chain(self.args).collect();
        self
    }

    /// These bytes on standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Call {
        self.stdin = Some(bytes.into());
        self
    }

    /// This JSON on standard input.
    pub fn config(self, config: &Value) -> Call {
        self.stdin(config.to_string())
    }

    /// A standard input that stays open and never says anything: a plugin that reads it hangs.
    pub fn silent_stdin(mut self) -> Call {
        self.stdin = None;
        self
    }

    /// Runs inside this network namespace (the node's host namespace), not the test's.
    pub fn inside(mut self, netns: &Netns) -> Call {
        self.netns = Some(netns.fd().try_clone_to_owned().unwrap());
        self
    }

    /// Shows the plugin `dir` in the place of `/var/lib/cni`, in a mount namespace of its own: for configurations that
    /// must be used as they stand, without `dataDir`.
    pub fn private_state(self, dir: &Path) -> Call {
        std::fs::create_dir_all("/var/lib/cni").unwrap();
        self.mount(dir, "/var/lib/cni")
    }

    /// Shows the plugin `dir` in the place of a directory of the machine, in a mount namespace of its own.
    pub fn mount(mut self, dir: &Path, onto: &str) -> Call {
        self.mounts.push((dir.to_owned(), onto.into()));
        self
    }

    /// The environment, program and standard input as one could type them; part of every failure's text.
    fn shown(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.env.iter().filter(|(name, _)| name.as_str() != "PATH") {
            let _ = write!(text, "{name}={value:?} ");
        }
        let _ = write!(text, "{}", self.program.display());
        for arg in &self.args {
            let _ = write!(text, " {arg:?}");
        }
        match &self.stdin {
            Some(bytes) => {
                let _ = write!(text, " <<< '{}'", String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]));
            }
            None => text.push_str(" < (open, silent)"),
        }
        text
    }

    /// The process to start, without its streams: for tests that drive it themselves (tracers, benchmarks).
    pub fn to_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(&self.env);
        let netns = self.netns.as_ref().map(|fd| fd.try_clone().unwrap());
        let mounts = self.mounts.clone();
        if netns.is_some() || !mounts.is_empty() {
            let prepare = move || {
                if let Some(fd) = &netns {
                    setns(fd, CloneFlags::CLONE_NEWNET)?;
                }
                if !mounts.is_empty() {
                    use nix::mount::{MsFlags, mount};
                    let none = None::<&str>;
                    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
                    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
                    for (dir, onto) in &mounts {
                        mount(Some(dir), onto, none, MsFlags::MS_BIND, none)?;
                    }
                }
                Ok(())
            };
            // SAFETY: between fork and exec only system calls are made; nix's path conversion stays on the stack for
            // paths this short, so nothing is allocated.
            unsafe { command.pre_exec(prepare) };
        }
        command
    }

    /// Runs the plugin and waits for its end and the end of its output.
    pub fn run(&self) -> Outcome {
        let mut command = self.to_command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start: {e}\n{}", self.shown()));
        let mut input = child.stdin.take();
        if let Some(bytes) = &self.stdin {
            // A plugin may leave its input unread; the broken pipe is then no failure.
            let _ = input.take().unwrap().write_all(bytes);
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (finished, watched) = mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            let timed_out =
                watched.recv_timeout(patience(TIME_LIMIT)) == Err(mpsc::RecvTimeoutError::Timeout);
            if timed_out {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            timed_out
        });
        let output = child.wait_with_output().unwrap();
        let elapsed = started.elapsed();
        drop(input);
        drop(finished);
        assert!(!watchdog.join().unwrap(), "hangs (killed after {TIME_LIMIT:?})\n{}", self.shown());
        Outcome {
            status: output.status.code(),
            signal: output.status.signal(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            elapsed,
            shown: self.shown(),
        }
    }

    /// Runs the plugin, which must succeed: its JSON, or null when it printed nothing.
    #[track_caller]
    pub fn ok(&self) -> Value {
        self.run().ok()
    }

    /// Runs the plugin, which must fail with a CNI error object.
    #[track_caller]
    pub fn err(&self) -> Failure {
        self.run().err()
    }

    /// Runs the plugin, which must fail with this code.
    #[track_caller]
    pub fn fails(&self, code: u64) -> Failure {
        let outcome = self.run();
        let failure = outcome.err();
        assert_eq!(failure.code, code, "another error code was expected\n{outcome}");
        failure
    }

    /// Runs the plugin, which must succeed and print nothing (DEL, CHECK, GC, STATUS).
    #[track_caller]
    pub fn silent(&self) {
        let outcome = self.run();
        assert_eq!(outcome.ok(), Value::Null, "nothing may be printed\n{outcome}");
    }
}

/// What a finished plugin left: exit status, output, and how it was called.
pub struct Outcome {
    /// The exit status; `None` when a signal ended the plugin.
    pub status: Option<i32>,
    /// The signal that ended the plugin.
    pub signal: Option<i32>,
    /// Standard output, byte for byte.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// From the start of the process to the end of its output.
    pub elapsed: Duration,
    shown: String,
}

impl Outcome {
    /// Standard output as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap_or_else(|e| panic!("not UTF-8: {e}\n{self}"))
    }

    /// Standard output as one JSON document, or null when it is empty.
    #[track_caller]
    pub fn json(&self) -> Value {
        if self.stdout.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("not one JSON document: {e}\n{self}"))
    }

    /// Asserts exit status 0; the JSON on standard output.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, Some(0), "success was expected\n{self}");
        self.json()
    }

    /// Asserts exit status 1 and exactly one error object on standard output.
    #[track_caller]
    pub fn err(&self) -> Failure {
        assert_eq!(self.status, Some(1), "exit status 1 was expected\n{self}");
        let json = self.json();
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        let code = json["code"].as_u64().unwrap_or_else(|| panic!("an error object was expected\n{self}"));
        assert!(json["msg"].is_string(), "an error object has a msg\n{self}");
        Failure {
            code,
            msg: text("msg"),
            details: text("details"),
            json: json.clone(),
            shown: self.to_string(),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "  call:   {}", self.shown)?;
        match (self.status, self.signal) {
            (Some(status), _) => writeln!(f, "  exit:   {status}")?,
            (None, signal) => writeln!(f, "  killed: signal {}", signal.unwrap_or_default())?,
        }
        writeln!(f, "  stdout: {}", String::from_utf8_lossy(&self.stdout))?;
        write!(f, "  stderr: {}", self.stderr)
    }
}

/// A CNI error object.
pub struct Failure {
    /// `code`.
    pub code: u64,
    /// `msg`.
    pub msg: String,
    /// `details`; empty when absent.
    pub details: String,
    /// The whole object.
    pub json: Value,
    shown: String,
}

impl Failure {
    /// Asserts that message or details contain each of the words.
    #[track_caller]
    pub fn names(&self, words: &[&str]) -> &Failure {
        for word in words {
            let found = self.msg.contains(word) || self.details.contains(word);
            assert!(found, "the error must name {word:?}\n{}", self.shown);
        }
        self
    }

    /// Asserts the message, byte for byte.
    #[track_caller]
    pub fn says(&self, msg: &str) -> &Failure {
        assert_eq!(self.msg, msg, "\n{}", self.shown);
        self
    }
}
