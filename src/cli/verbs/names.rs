//! Namespaces and containers as arguments name them.

use std::fs;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha512};

use crate::cni::{Error, Result};
use crate::hex::hex;
use crate::kernel::netns::Netns;

/// Where namespaces have names (ip-netns(8)).
const NAMES: &str = "/run/netns";

/// The path of a namespace: an absolute path, one below the current directory, or a name in /run/netns. Empty stays empty.
///
/// # Errors
/// There is no current directory.
pub fn resolve(netns: &str) -> Result<String> {
    match netns {
        "" => Ok(String::new()),
        name if !name.contains('/') => Ok(format!("{NAMES}/{name}")),
        path => absolute(path),
    }
}

/// The path, absolute and without `.`, `..` and double slashes; symbolic links are not followed.
///
/// # Errors
/// There is no current directory.
pub fn absolute(path: &str) -> Result<String> {
    let current = || std::env::current_dir().map_err(|e| Error::io("getcwd", &e));
    let path = Path::new(path);
    let path = if path.is_absolute() { path.to_owned() } else { current()?.join(path) };
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    Ok(clean.display().to_string())
}

/// The container's id: as given, or made from the path of its namespace.
pub fn container_id(given: Option<&str>, netns: &str) -> String {
    given.map_or_else(|| id_of(netns), str::to_owned)
}

/// cnitool's id for a container of which nothing is known but the path of its namespace.
pub fn id_of(netns: &str) -> String {
    let digest = Sha512::digest(netns);
    format!("cnitool-{}", hex(&digest[..10]))
}

/// Looks whether there is a namespace, before anything is done.
///
/// # Errors
/// There is none; then those that have names are listed.
pub fn namespace(path: &str) -> Result<()> {
    match Netns::find(path) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => {
            let mut names: Vec<String> = fs::read_dir(NAMES)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort_unstable();
            let details = match names.as_slice() {
                [] => format!("there are none in {NAMES}; ip netns add NAME makes one"),
                names => format!("there are in {NAMES}: {}", names.join(", ")),
            };
            Err(Error::internal(format!("there is no network namespace {path}")).with_details(details))
        }
        Err(e) => Err(e.context(format_args!("{path} is no network namespace"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_cnitool() {
        // printf /var/run/netns/testing | sha512sum | cut -c 1-20
        assert_eq!(id_of("/var/run/netns/testing"), "cnitool-77383ca0a0715733ca6f");
    }

    #[test]
    fn paths_are_cleaned_without_following_links() {
        assert_eq!(absolute("/var/run/../run//netns/./x").unwrap(), "/var/run/netns/x");
        assert_eq!(absolute("/../x/").unwrap(), "/x");
        assert!(absolute("x").unwrap().ends_with("/x"));
        assert_eq!(resolve("demo").unwrap(), "/run/netns/demo");
        assert_eq!(resolve("").unwrap(), "");
    }
}
