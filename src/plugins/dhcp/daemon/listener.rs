//! The socket that plugins connect to: systemd's, or one of our own; and how it is handed to the next executable.
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::libc;

use crate::cni::{Error, Result};

/// The first descriptor that is passed (sd_listen_fds(3)).
const FIRST: i32 = 3;

/// Who may connect: root and its group.
const MODE: u32 = 0o660;

/// The socket, and whether it is ours to remove.
pub struct Listener {
    /// The socket, non-blocking.
    pub socket: UnixListener,
    path: PathBuf,
    own: bool,
}

impl Listener {
    /// Takes the socket that systemd passed, or makes one.
    ///
    /// # Errors
    /// More than one socket was passed; another daemon listens; the path cannot be used.
    pub fn open(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Listener> {
        let listener = match passed(env)? {
            Some(fd) => Listener { socket: fd.into(), path: path.to_owned(), own: false },
            None => Listener { socket: bind(path)?, path: path.to_owned(), own: true },
        };
        // It may have come from an earlier executable of ours, with nobody else to remove it.
        let own = listener.own || env("CNI_ALL_DHCP_OWN_SOCKET").is_some_and(|v| v == "1");
        listener.socket.set_nonblocking(true).map_err(|e| Error::io("set the socket non-blocking", &e))?;
        Ok(Listener { own, ..listener })
    }

    /// Takes the socket's path away, unless it is systemd's.
    pub fn remove(&self) {
        if self.own {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Starts the executable that is now where this one was started from, in this process, on the same socket.
    /// Returns only when that fails.
    pub fn exec_anew(&self, args: &[String]) -> Error {
        let own = match fs::read_link("/proc/self/exe") {
            Ok(path) => PathBuf::from(path.to_string_lossy().trim_end_matches(" (deleted)")),
            Err(e) => return Error::io("read /proc/self/exe", &e),
        };
        let fd = self.socket.as_fd().as_raw_fd();
        // SAFETY: dup2(2) and fcntl(2) with F_SETFD take numbers only; descriptor 3 is replaced whatever it was, as this
        // program ends here. When it is the socket already, dup2 does nothing and it still closes on exec.
        if unsafe { libc::dup2(fd, FIRST) < 0 || libc::fcntl(FIRST, libc::F_SETFD, 0) < 0 } {
            return Error::system("pass the socket on", Errno::last());
        }
        let failed = Command::new(&own)
            .arg0("dhcp")
            .args(args)
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", "1")
            .env("CNI_ALL_DHCP_OWN_SOCKET", if self.own { "1" } else { "0" })
            .exec();
        Error::io(format_args!("exec {}", own.display()), &failed)
    }
}

/// The one socket that systemd passed.
fn passed(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<OwnedFd>> {
    let number = |name: &str| env(name).and_then(|value| value.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => {
            // SAFETY: fcntl(2) with F_SETFD and F_GETFD takes numbers only; it fails when there is no such descriptor.
            if unsafe { libc::fcntl(FIRST, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return Err(Error::system("LISTEN_FDS: descriptor 3", Errno::last()));
            }
            // SAFETY: the descriptor is open, and by the protocol of sd_listen_fds(3) ours.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(FIRST) }))
        }
        Some(n) => Err(Error::config(format!(
            "LISTEN_FDS: too many (>1) sockets passed through socket activation: {n}"
        ))),
    }
}

/// Binds the path. What a daemon that was killed left there is replaced.
fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(parent) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(|e| Error::io(format_args!("mkdir -p {}", parent.display()), &e))?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(Error::internal(format!("somebody listens on {} already", path.display())));
    }
    let aside = path.with_extension("sock.new");
    let _ = fs::remove_file(&aside);
    let failed = |e: &std::io::Error| Error::io(format_args!("listen on {}", path.display()), e);
    let socket = UnixListener::bind(&aside).map_err(|e| failed(&e))?;
    let placed =
        fs::set_permissions(&aside, fs::Permissions::from_mode(MODE)).and_then(|()| fs::rename(&aside, path));
    placed.map_err(|e| failed(&e))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pid: u32, sockets: &str) -> Result<Option<OwnedFd>> {
        let env = |name: &str| match name {
            "LISTEN_PID" => Some(pid.to_string()),
            "LISTEN_FDS" => Some(sockets.to_owned()),
            _ => None,
        };
        passed(&env)
    }

    #[test]
    fn sockets_for_another_process_are_not_ours_and_two_are_too_many() {
        let own = std::process::id();
        assert!(with(own + 1, "1").unwrap().is_none() && with(own, "0").unwrap().is_none());
        let msg = with(own, "2").unwrap_err().to_string();
        assert!(msg.contains("LISTEN_FDS: too many (>1) sockets"), "{msg}");
    }
}
