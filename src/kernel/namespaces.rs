//! The network namespaces of this machine, as far as they can be found: those mounted at a path, and those of processes.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::netns::Netns;

/// Every namespace but the calling thread's own that has one of these paths, is mounted somewhere (as `ip netns` and
/// container runtimes do), or that a process is in; each once, by the first path in this order. Opened one after the other;
/// one that goes away meanwhile is left out.
pub fn others(known: Vec<PathBuf>) -> impl Iterator<Item = Netns> {
    let mut paths = known;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    paths.extend(mounts.lines().filter_map(mounted));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    paths.extend(processes.map(|entry| entry.path().join("ns/net")));
    let mut seen: HashSet<(u64, u64)> = identity(Path::new("/proc/thread-self/ns/net")).into_iter().collect();
    paths.into_iter().filter_map(move |path| {
        let is_new = seen.insert(identity(&path)?);
        is_new.then(|| Netns::find(path.to_str()?).ok().flatten()).flatten()
    })
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Path of the network namespace that a line of mountinfo (proc(5)) tells of.
fn mounted(line: &str) -> Option<PathBuf> {
    let mut words = line.split(' ');
    words.nth(3).filter(|root| root.starts_with("net:["))?;
    words.next().map(|path| unescape(path).into())
}

/// Spaces, tabs, line ends and backslashes are written as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::private_netns::private_netns;

    #[test]
    fn mounts_of_network_namespaces_are_told_from_others() {
        let line = r"43 42 0:4 net:[4026532177] /run/netns/a\040b rw shared:2 - nsfs nsfs rw";
        assert_eq!(mounted(line), Some("/run/netns/a b".into()));
        for other in [
            "44 42 0:4 mnt:[4026532177] /run/x rw - nsfs nsfs rw",
            "21 1 0:20 / /sys rw - sysfs sysfs rw",
            "",
        ] {
            assert_eq!(mounted(other), None);
        }
    }

    #[test]
    fn the_own_namespace_is_not_among_the_others() {
        private_netns("the_own_namespace_is_not", || {
            let own = Netns::current().unwrap();
            let others: Vec<Netns> = others(vec!["/proc/self/ns/net".into()]).collect();
            // The process's other threads are where it was started.
            assert!(!others.is_empty() && others.iter().all(|other| !other.same_as(&own)));
        });
    }
}
