//! The network namespaces of this machine, as far as they can be found: those mounted at a path, and those of processes.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::netns::Netns;

/// Every namespace but the calling thread's own that is mounted somewhere (as `ip netns` and container runtimes do) or
/// that a process is in. One that goes away while it is looked for is left out.
pub fn others() -> Vec<Netns> {
    let mut seen: HashSet<String> = identity(Path::new("/proc/thread-self/ns/net")).into_iter().collect();
    let mut found = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for (name, path) in mounts.lines().filter_map(mounted) {
        if seen.insert(name) {
            found.extend(Netns::find(&path).ok().flatten());
        }
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let path = entry.path().join("ns/net");
        if let Some(name) = identity(&path)
            && seen.insert(name)
        {
            found.extend(path.to_str().and_then(|path| Netns::find(path).ok().flatten()));
        }
    }
    found
}

/// `net:[4026531840]`.
fn identity(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.into_os_string().into_string().ok()
}

/// Identity and path of the network namespace that a line of mountinfo (proc(5)) tells of.
fn mounted(line: &str) -> Option<(String, String)> {
    let mut words = line.split(' ');
    let root = words.nth(3).filter(|root| root.starts_with("net:["))?;
    Some((root.to_owned(), unescape(words.next()?)))
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
        assert_eq!(mounted(line), Some(("net:[4026532177]".to_owned(), "/run/netns/a b".to_owned())));
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
            let others = others();
            // The process's other threads are where it was started.
            assert!(!others.is_empty() && others.iter().all(|other| !other.same_as(&own)));
        });
    }
}
