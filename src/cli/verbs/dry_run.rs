//! `--dry-run`: what an operation would change, one line for each change as an operator would type it.

use crate::cni::Result;
use crate::kernel::dry_run::record;
use crate::runtime::{NetworkList, Runtime};

/// When files of plugins are written, as against what is done in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// ADD: addresses are reserved first, the result is kept last.
    FilesFirst,
    /// DEL: addresses are released last.
    FilesLast,
}

/// Runs an operation without doing it; what it would do.
///
/// # Errors
/// That of the operation.
pub fn preview<T>(
    runtime: &Runtime,
    network: &NetworkList,
    order: Order,
    operate: impl FnOnce(&Runtime, &NetworkList) -> Result<T>,
) -> Result<String> {
    let (outcome, recorded) = record(|| operate(runtime, network));
    outcome?;
    let recorded = recorded?;
    let cache = runtime.cache_dir.join("results");
    let (kept, files): (Vec<_>, Vec<_>) = recorded.files.into_iter().partition(|(dir, _)| *dir == cache);
    let lines =
        |dirs: Vec<(_, Vec<String>)>| dirs.into_iter().flat_map(|(_, lines)| lines).collect::<Vec<_>>();
    let (kept, files) = (lines(kept), lines(files));
    let all = match order {
        Order::FilesFirst => [files, recorded.lines, kept],
        Order::FilesLast => [recorded.lines, files, kept],
    };
    Ok(all.concat().iter().map(|line| format!("{line}\n")).collect())
}
