//! What plugin and daemon say to each other: one JSON object and a newline to the daemon, one JSON object back, then the
//! daemon closes. A plugin that goes away before has changed its mind.
//!
//! The Go plugin and daemon speak Go's `net/rpc` with gob encoding, which nobody else speaks: plugin and daemon are always
//! replaced together, so only the socket's path is kept.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::conf::Daemon;
use super::outcome::Outcome;
use super::wanted::{Key, Wanted};
use crate::cni::json::Value;
use crate::cni::{CniResult, Code, Error, Result, Version};
use crate::kernel::lock;

/// Which of the private protocols this is. A daemon of another one refuses, in words.
pub const PROTOCOL: u32 = 1;

/// Longest request that the daemon reads.
pub const MAX_REQUEST: usize = 256 * 1024;

/// The daemon answers sooner, unless it hangs: acquisitions have a deadline there.
const PATIENCE: Duration = Duration::from_secs(900);

/// How long a daemon that was started may take until it listens.
const START_BUDGET: Duration = Duration::from_secs(10);

/// One request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// What to do.
    pub op: Op,
}

/// What can be asked of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Get leases, or tell those that there are.
    Add(Box<Wanted>),
    /// Tell the leases; an error when there are none.
    Check(Key),
    /// Give up the leases.
    Del(Key),
    /// Give up all leases of a network but these.
    Gc {
        /// The network's name.
        network: String,
        /// Containers and interfaces that are still attached.
        valid: Vec<(String, String)>,
    },
    /// Nothing: is the daemon there?
    Status,
    /// Tell everything.
    Leases,
}

/// The answer.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// A result of the newest version (ADD, CHECK).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// Every attachment, as `cni-all dhcp leases --json` prints them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leases: Option<Box<RawValue>>,
}

/// An [`Error`] on its way.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    code: u32,
    msg: String,
    details: String,
}

impl Answer {
    /// An answer that says nothing but "done".
    pub fn done() -> Answer {
        Answer::default()
    }

    /// A failure.
    pub fn failed(err: &Error) -> Answer {
        let (code, msg, details) = (err.code().0, err.msg().to_owned(), err.details().to_owned());
        Answer { error: Some(Failure { code, msg, details }), ..Answer::default() }
    }

    /// What an attachment has got.
    pub fn of(outcome: &Outcome) -> Answer {
        let raw = outcome.result.to_json(Version::LATEST).and_then(|text| {
            RawValue::from_string(text).map_err(|e| Error::internal(format!("encode the result: {e}")))
        });
        match raw {
            Ok(raw) => Answer { result: Some(raw), ..Answer::default() },
            Err(e) => Answer::failed(&e),
        }
    }

    /// The result inside.
    ///
    /// # Errors
    /// The daemon sent none.
    pub fn result(&self) -> Result<CniResult> {
        let raw = self.result.as_ref().ok_or_else(|| Error::internal("the dhcp daemon sent no result"))?;
        CniResult::from_json(&Value::parse(raw.get().as_bytes())?, Version::LATEST)
    }
}

/// Sends a request over a connection and waits for the answer.
///
/// # Errors
/// The daemon's own, or that it cannot be understood.
pub fn call(mut daemon: UnixStream, socket: &Path, op: Op) -> Result<Answer> {
    let what = || format!("dhcp daemon at {}", socket.display());
    let failed = |e: &std::io::Error| match e.kind() {
        ErrorKind::WouldBlock => Error::new(Code::TRY_AGAIN, format!("{}: no answer in time", what())),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => went_away(socket),
        _ => Error::io(what(), e),
    };
    let mut request = serde_json::to_vec(&Call { protocol: PROTOCOL, op })
        .map_err(|e| Error::internal(format!("encode the request: {e}")))?;
    request.push(b'\n');
    let patience =
        lock::patience().map_or(PATIENCE, |patience| patience.clamp(Duration::from_millis(1), PATIENCE));
    daemon.set_read_timeout(Some(patience)).map_err(|e| failed(&e))?;
    daemon.write_all(&request).map_err(|e| failed(&e))?;
    let mut text = Vec::new();
    daemon.read_to_end(&mut text).map_err(|e| failed(&e))?;
    if text.is_empty() {
        return Err(went_away(socket));
    }
    let answer: Answer = serde_json::from_slice(&text).map_err(|_| {
        Error::internal(format!("{}: the answer is not understood; is it the Go plugin's daemon?", what()))
    })?;
    match answer.error {
        Some(failure) => {
            Err(Error::new(Code(failure.code), failure.msg).with_details(failure.details).answered())
        }
        None => Ok(answer),
    }
}

fn went_away(socket: &Path) -> Error {
    let msg = format!("dhcp daemon at {}: it went away without an answer", socket.display());
    Error::new(Code::TRY_AGAIN, msg)
}

/// A connection to the daemon; `None` when nobody listens.
///
/// # Errors
/// Another reason, such as a missing permission.
pub fn connect(socket: &Path) -> Result<Option<UnixStream>> {
    match UnixStream::connect(socket) {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(e) => Err(Error::io(format_args!("connect to the dhcp daemon at {}", socket.display()), &e)),
    }
}

/// A connection to the daemon, which is started if the configuration lets us.
///
/// # Errors
/// Nobody listens, and how to start a daemon; or it could not be started.
pub fn connect_or_start(socket: &Path, daemon: Daemon) -> Result<UnixStream> {
    if let Some(stream) = connect(socket)? {
        return Ok(stream);
    }
    if !may_start(socket, daemon) {
        let exists = if socket.exists() { "nobody listens on it" } else { "it does not exist" };
        let (socket, msg) = (socket.display(), format!("dhcp daemon at {}: {exists}", socket.display()));
        return Err(Error::new(Code::TRY_AGAIN, msg).with_details(format!(
            "start it with: systemctl start cni-all-dhcp.socket, or: dhcp daemon -socketpath {socket}; or set ipam.daemon to \
             \"auto\""
        )));
    }
    // One start at a time; whoever waited finds the daemon of the other.
    let lock = start_lock(socket)?;
    if let Some(stream) = connect(socket)? {
        return Ok(stream);
    }
    start(socket)?;
    let stream = connect(socket)?;
    drop(lock);
    stream.ok_or_else(|| {
        let log = log_of(socket);
        Error::internal(format!("the dhcp daemon that was started has ended; see {}", log.display()))
    })
}

/// Whether a missing daemon would be started.
pub fn may_start(socket: &Path, daemon: Daemon) -> bool {
    match daemon {
        Daemon::Auto => true,
        Daemon::Required => false,
        // A log beside the socket: a plugin has started the daemon that left the socket there, and nobody else will.
        Daemon::Default => !socket.exists() || log_of(socket).exists(),
    }
}

/// Where a daemon keeps its leases unless told otherwise: beside its socket.
pub fn state_of(socket: &Path) -> PathBuf {
    socket.with_extension("leases")
}

/// Where a daemon that a plugin started writes its log.
fn log_of(socket: &Path) -> PathBuf {
    socket.with_extension("log")
}

fn start_lock(socket: &Path) -> Result<Flock<File>> {
    let path = socket.with_extension("lock");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .map_err(|e| Error::io(format_args!("mkdir -p {}", parent.display()), &e))?;
    }
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.map_err(|e| Error::io(format_args!("open {}", path.display()), &e))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::system(format_args!("flock {}", path.display()), errno))
}

/// Starts a daemon of this executable, which ends by itself some time after its last lease, and waits until it listens.
fn start(socket: &Path) -> Result<()> {
    let log_path = log_of(socket);
    let log =
        File::create(&log_path).map_err(|e| Error::io(format_args!("create {}", log_path.display()), &e))?;
    let what = "start the dhcp daemon";
    let mut child = Command::new("/proc/self/exe")
        .arg0("dhcp")
        .args(["daemon", "-ready", "-exit-when-idle", "60s", "-socketpath"])
        .arg(socket)
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| Error::io(what, &e))?;
    let Some(mut ready) = child.stdout.take() else { return Err(Error::internal(what)) };
    // It says one byte when it listens, or closes its end when it cannot.
    let mut byte = [0];
    let waited = wait_readable(&ready, START_BUDGET)
        .and_then(|()| ready.read_exact(&mut byte).map_err(|e| Error::io(what, &e)));
    waited.map_err(|_| {
        let said = fs::read_to_string(&log_path).unwrap_or_default();
        let last = said.lines().last().unwrap_or("it said nothing").to_owned();
        Error::internal(format!("{what}: {last}"))
    })
}

fn wait_readable(pipe: &impl std::os::fd::AsFd, budget: Duration) -> Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(budget).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(1..) => Ok(()),
        Ok(_) => Err(Error::internal("not ready in time")),
        Err(errno) => Err(Error::system("poll", errno)),
    }
}
