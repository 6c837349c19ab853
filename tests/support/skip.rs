//! Tests that cannot run here say so: `SKIP name: reason`, or a failure under `CNI_ALL_STRICT=1`.

use std::io::Write;
use std::sync::OnceLock;

use super::{Netns, Node, Workdir};

/// Ends the test with SKIP unless namespaces can be made: as root, or under `unshare -Urnm`.
macro_rules! require_netns {
    () => {
        if let Some(reason) = $crate::support::missing_privilege() {
            return $crate::support::skip(reason);
        }
    };
}
pub(crate) use require_netns;

/// Ends the test with SKIP unless a program is installed: `require_tool!("strace")`.
macro_rules! require_tool {
    ($name:expr) => {
        if let Some(reason) = $crate::support::missing_tool($name) {
            return $crate::support::skip(&reason);
        }
    };
}
pub(crate) use require_tool;

/// Ends the test with SKIP unless the kernel has this kind of link.
macro_rules! require_kind {
    ($kind:expr) => {
        $crate::support::require_netns!();
        if !$crate::support::has_kind($kind) {
            return $crate::support::skip_for_kernel(&format!("this kernel has no links of kind {}", $kind));
        }
    };
}
pub(crate) use require_kind;

/// Prints `SKIP <test>: <reason>` past the test harness's capture, or fails the test under `CNI_ALL_STRICT=1`.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    if std::env::var("CNI_ALL_STRICT").is_ok_and(|v| v == "1") {
        panic!("{test} cannot run: {reason} (CNI_ALL_STRICT=1)");
    }
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
}

/// Prints `SKIP <test>: <reason>` for something that this kernel does not have. Under `CNI_ALL_STRICT=1` that is a failure in
/// the virtual machine only (`tests/vm/run` says where we are by `CNI_ALL_VM=1`): its kernel has everything.
pub fn skip_for_kernel(reason: &str) {
    if std::env::var("CNI_ALL_VM").is_ok_and(|v| v == "1") {
        return skip(reason);
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}; tests/vm/run runs it under another kernel");
}

/// Why network namespaces cannot be made and mounted here; `None` when they can. Tried once per process.
pub fn missing_privilege() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING
        .get_or_init(|| {
            if let Some(reason) = missing_tool("ip") {
                return Some(reason);
            }
            let dir = Workdir::new();
            Netns::create(&dir.root().join("probe")).err().map(|e| format!("no network namespace: {e}"))
        })
        .as_deref()
}

/// Why a program cannot be used: it is not in PATH or the system directories. `None` when it is.
pub fn missing_tool(name: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path
        .split(':')
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        .any(|dir| std::path::Path::new(dir).join(name).is_file());
    (!found).then(|| format!("{name} is not installed"))
}

/// Whether this kernel has links of a kind that stands on another link.
pub fn has_kind(kind: &str) -> bool {
    let scratch = Node::new();
    scratch.ip(&["link add below type veth peer name other"]);
    let settings = if kind == "vlan" { "id 5" } else { "" };
    let below = if kind == "dummy" { "" } else { "link below " };
    scratch.try_run(&format!("ip link add {below}name probe type {kind} {settings}")).status.success()
}
