//! File locks (flock(2)), waited for no longer than the caller has patience: another process may hang with one.

use std::cell::Cell;
use std::fmt::Display;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, Flockable};
use nix::sys::stat::{fstat, major, minor};

use crate::cni::{Code, Error, Result};

thread_local! {
    /// How long each lock is waited for; `None`: for ever.
    static PATIENCE: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Between two looks at a lock that another process has.
const STEP: Duration = Duration::from_millis(2);

/// Does something that waits no longer than this for another process, each time.
pub fn patiently<T>(patience: Option<Duration>, work: impl FnOnce() -> T) -> T {
    let before = PATIENCE.replace(patience);
    let outcome = work();
    PATIENCE.set(before);
    outcome
}

/// How long to wait for another process; `None`: for ever. For those that wait for something else than a lock.
pub fn patience() -> Option<Duration> {
    PATIENCE.get()
}

/// Locks an open file; `exclusive`, or shared with others.
///
/// # Errors
/// [`Code::TRY_AGAIN`] when patience ends, naming the process that has the lock; the failed system call. `what` is the
/// file.
pub fn lock<F: Flockable + AsFd>(mut file: F, exclusive: bool, what: &dyn Display) -> Result<Flock<F>> {
    let (at_once, waiting) = match exclusive {
        true => (FlockArg::LockExclusiveNonblock, FlockArg::LockExclusive),
        false => (FlockArg::LockSharedNonblock, FlockArg::LockShared),
    };
    let patience = PATIENCE.get();
    let deadline = patience.map(|patience| Instant::now() + patience);
    loop {
        let how = if deadline.is_some() { at_once } else { waiting };
        file = match (Flock::lock(file, how), deadline) {
            (Ok(lock), _) => return Ok(lock),
            (Err((file, Errno::EINTR)), _) => file,
            (Err((file, Errno::EWOULDBLOCK)), Some(deadline)) if Instant::now() < deadline => {
                std::thread::sleep(STEP);
                file
            }
            (Err((file, Errno::EWOULDBLOCK)), _) => {
                let holder =
                    holder(&file).map_or("another process".to_owned(), |pid| format!("process {pid}"));
                let patience = patience.unwrap_or_default();
                return Err(Error::new(
                    Code::TRY_AGAIN,
                    format!("flock {what}: {holder} did not release it within {patience:?}"),
                ));
            }
            (Err((_, e)), _) => return Err(Error::system(format_args!("flock {what}"), e)),
        };
    }
}

/// The process that locked the file, of those in our PID namespace: proc_locks(5).
fn holder(file: &impl AsFd) -> Option<u32> {
    let stat = fstat(file).ok()?;
    let place = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`; of those who wait, `1: -> FLOCK …`.
        let mut words = line.split_whitespace().skip(1).skip_while(|word| *word != "FLOCK").skip(3);
        let (pid, of) = (words.next()?, words.next()?);
        let holds = of == place && !line.contains("->");
        holds.then(|| pid.parse().ok())?.filter(|pid| *pid != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn patience_with_a_lock_ends_and_its_holder_is_named() {
        let path = std::env::temp_dir().join(format!("cni-all-lock.{}", std::process::id()));
        let held = lock(File::create(&path).unwrap(), true, &"it").unwrap();
        let again = || lock(File::open(&path).unwrap(), true, &"it").map(drop);
        let err = patiently(Some(Duration::from_millis(20)), again).unwrap_err();
        assert_eq!(err.code(), Code::TRY_AGAIN);
        let expected = format!("flock it: process {} did not release it within 20ms", std::process::id());
        assert_eq!(err.msg(), expected);
        drop(held);
        assert_eq!(patiently(Some(Duration::ZERO), again), Ok(()));
        std::fs::remove_file(path).unwrap();
    }
}
