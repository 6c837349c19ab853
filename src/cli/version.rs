//! `cni-all --version [--json]`: which build this is, and what is in it.

use serde::Serialize;

use super::{fail, print};
use crate::cni::Version;
use crate::cni::convert::pretty;
use crate::personality::{COMPATIBLE_WITH, Process};

/// `name=version` of the libraries that were linked statically, as `packaging/build-static` knows them; separated by
/// spaces.
const STATIC_LIBRARIES: &str = match option_env!("CNI_ALL_STATIC_LIBRARIES") {
    Some(libraries) => libraries,
    None => "",
};

/// Licence of the combined executable: that of libnftnl, and Apache-2.0, which only version 3 of the GPL goes with.
const LICENSE: &str = "GPL-3.0-or-later";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Build {
    version: &'static str,
    /// Git commit; absent when it was not known at build time.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    target: &'static str,
    license: &'static str,
    compatible_with: &'static str,
    protocol_versions: Vec<&'static str>,
    libraries: Vec<Library>,
}

/// A library that is not a Rust crate (those are in the release's list of components).
#[derive(Debug, PartialEq, Serialize)]
struct Library {
    name: &'static str,
    /// Absent when the machine's own library is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    license: &'static str,
    linked: &'static str,
}

/// The libraries of an executable with these static ones.
fn libraries(linked: &'static str) -> Vec<Library> {
    let library = |name: &'static str| {
        let version = linked.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let license = match name {
            "libmnl" => "LGPL-2.1-or-later",
            "libnftnl" => "GPL-2.0-or-later",
            "libunwind" => "Apache-2.0 WITH LLVM-exception",
            "musl" => "MIT",
            _ => "LGPL-2.1-or-later",
        };
        Library { name, version, license, linked: if version.is_some() { "static" } else { "shared" } }
    };
    let names: &[&str] = match linked {
        "" => &["libmnl", "libnftnl", "glibc"],
        _ => &["libmnl", "libnftnl", "libunwind", "musl"],
    };
    names.iter().copied().map(library).collect()
}

fn protocol_versions() -> Vec<&'static str> {
    Version::ALL.iter().map(|v| v.as_str()).collect()
}

/// Prints the version.
pub fn run(process: &mut Process<'_>, json: bool) -> i32 {
    if !json {
        let text = format!(
            "cni-all {}\ncompatible with the Go plugins {COMPATIBLE_WITH}\nCNI protocol versions supported: {}\n",
            env!("CARGO_PKG_VERSION"),
            protocol_versions().join(", ")
        );
        return print(process, &text);
    }
    let build = Build {
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("CNI_ALL_COMMIT"),
        target: env!("CNI_ALL_TARGET"),
        license: LICENSE,
        compatible_with: COMPATIBLE_WITH,
        protocol_versions: protocol_versions(),
        libraries: libraries(STATIC_LIBRARIES),
    };
    match pretty(&build) {
        Ok(text) => print(process, &text),
        Err(e) => fail(process, "cni-all --version", &e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_libraries_have_versions_and_shared_ones_have_none() {
        let shown = |linked| -> Vec<String> {
            let text = |l: Library| format!("{} {} {}", l.name, l.version.unwrap_or("-"), l.linked);
            libraries(linked).into_iter().map(text).collect()
        };
        assert_eq!(shown(""), ["libmnl - shared", "libnftnl - shared", "glibc - shared"]);
        assert_eq!(
            shown("libmnl=1.0.5 libnftnl=1.2.9 libunwind=19.1.7 musl=1.2.5"),
            ["libmnl 1.0.5 static", "libnftnl 1.2.9 static", "libunwind 19.1.7 static", "musl 1.2.5 static"]
        );
    }
}
