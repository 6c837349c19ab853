//! Tests against the real kernel, each in a network namespace of its own.

use std::{env, thread};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};

/// Runs `body` in a new thread in a new namespace. When that is not permitted the test is skipped, or fails when
/// `CNI_ALL_STRICT=1`.
pub fn private_netns(test: &str, body: impl FnOnce() + Send) {
    let run = || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            body();
            Ok(())
        }
        Err(errno) => Err(errno),
    };
    match thread::scope(|scope| scope.spawn(run).join()) {
        Ok(Ok(())) => {}
        Ok(Err(errno)) => skip(test, &format!("unshare(CLONE_NEWNET): {}", Errno::desc(errno))),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Reports a test that cannot run here.
pub fn skip(test: &str, reason: &str) {
    assert_ne!(env::var("CNI_ALL_STRICT").as_deref(), Ok("1"), "cannot run {test}: {reason}");
    println!("SKIP {test}: {reason}");
}
