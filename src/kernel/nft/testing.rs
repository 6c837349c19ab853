//! For tests on a real kernel: a network namespace of their own, and the tools to look at it with.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs the test in a thread with a fresh network namespace, in which `nft` and `iptables-nft` work. Where that is not
/// permitted it prints SKIP, or fails when CNI_ALL_STRICT=1.
pub(crate) fn in_namespace(name: &str, test: impl FnOnce() + Send) {
    let outcome = std::thread::scope(|scope| {
        let body = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("unshare: {errno}"))?;
            Command::new("nft").args(["list", "ruleset"]).output().map_err(|err| format!("nft: {err}"))?;
            test();
            Ok(())
        };
        scope.spawn(body).join()
    });
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => {
            let reason: String = reason;
            assert!(std::env::var_os("CNI_ALL_STRICT").is_none_or(|v| v != "1"), "{name}: {reason}");
            println!("SKIP {name}: {reason}");
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs a command line through a shell in the calling thread's namespace and returns what it printed; fails when it
/// does.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}\n{out}{err}");
    out.into_owned()
}

/// The whole ruleset as `nft` lists it.
pub(crate) fn ruleset() -> String {
    sh("nft list ruleset")
}
