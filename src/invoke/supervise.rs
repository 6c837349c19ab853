//! Waits for another executable: reads what it prints, and ends it when it takes too long.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::cni::{Error, Result};

/// Tries to start an executable that is still being written ("text file busy"), one second apart, as libcni does.
const BUSY_TRIES: u32 = 6;

/// How often it is looked whether a process has ended that has closed its output before.
const PAUSE: Duration = Duration::from_millis(2);

/// Starts `command`, writes `input` to its standard input and waits for its end and that of its output.
///
/// After `timeout` it is killed, with the processes it has started.
///
/// # Errors
/// It cannot be started, or it was killed.
pub fn run(command: &mut Command, input: &[u8], timeout: Option<Duration>) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if timeout.is_some() {
        // A group of its own, so that all of it can be ended.
        command.process_group(0);
    }
    let what = format!("start {}", command.get_program().display());
    let failed = |e: std::io::Error| Error::io(&what, &e);
    let mut child = start(command).map_err(failed)?;
    let stdin = child.stdin.take();
    // Written beside the reading, so that neither side can block the other with a full pipe.
    std::thread::scope(|scope| {
        scope.spawn(|| stdin.map(|mut pipe| pipe.write_all(input)));
        match timeout {
            None => child.wait_with_output().map_err(failed),
            Some(timeout) => match before(&mut child, Instant::now() + timeout) {
                Ok(Some(output)) => Ok(output),
                other => {
                    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                    let _ = child.wait();
                    other.map_err(failed)?;
                    let program = command.get_program().display();
                    Err(Error::internal(format!("{program} did not end within {timeout:?} and was killed")))
                }
            },
        }
    })
}

fn start(command: &mut Command) -> std::io::Result<Child> {
    let mut tries = 1;
    loop {
        match command.spawn() {
            Err(e) if e.raw_os_error() == Some(Errno::ETXTBSY as i32) && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_secs(1));
            }
            other => return other,
        }
    }
}

/// What the process printed and how it ended; `None` when the deadline passes first.
fn before(child: &mut Child, deadline: Instant) -> std::io::Result<Option<Output>> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(2);
        fds.extend(out.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        fds.extend(err.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        if fds.is_empty() {
            match child.try_wait()? {
                Some(status) => return Ok(Some(Output { status, stdout, stderr })),
                None => std::thread::sleep(PAUSE.min(left)),
            }
            continue;
        }
        let left = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, left) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>().into_iter();
        if out.is_some() && ready.next() == Some(true) && !read_some(&mut out, &mut stdout)? {
            out = None;
        }
        if err.is_some() && ready.next() == Some(true) && !read_some(&mut err, &mut stderr)? {
            err = None;
        }
    }
}

/// Reads what there is; false at the end.
fn read_some(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut chunk = [0; 16 * 1024];
    match pipe.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut chunk)) {
        Ok(length) => {
            into.extend_from_slice(&chunk[..length]);
            Ok(length > 0)
        }
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(true),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: u64) -> Result<Output> {
        let mut command = Command::new("sh");
        run(command.args(["-c", script]), b"input", Some(Duration::from_millis(timeout)))
    }

    #[test]
    fn what_a_process_prints_on_both_streams_is_read_to_the_end() {
        let output = shell("cat; head -c 200000 /dev/zero; echo error >&2; exit 3", 10_000).unwrap();
        assert_eq!((output.stdout.len(), output.status.code()), (200_005, Some(3)));
        assert_eq!((&output.stdout[..5], &output.stderr[..]), (&b"input"[..], &b"error\n"[..]));
        let closed = shell("exec >&- 2>&-; sleep 0.1; exit 4", 10_000).unwrap();
        assert_eq!(closed.status.code(), Some(4));
    }

    #[test]
    fn one_that_hangs_is_ended_with_all_it_started() {
        let started = Instant::now();
        for script in ["sleep 60", "sleep 60 & sleep 60; true", "exec >&- 2>&-; sleep 60", "yes"] {
            let err = shell(script, 100).unwrap_err();
            assert!(err.msg().contains("sh did not end within 100ms and was killed"), "{err}");
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
