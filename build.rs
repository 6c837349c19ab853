//! What the compiler has to be told beside Cargo.toml: link order, and which build this is.

#![allow(clippy::exit, clippy::print_stderr, clippy::print_stdout)]

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(missing) = missing_libraries() {
        eprintln!("{missing}");
        std::process::exit(1);
    }
    link();
    identify();
}

/// What to do when libmnl or libnftnl is not there; `None` when they are. Found as mnl-sys and nftnl-sys find them: where
/// `LIBMNL_LIB_DIR` and `LIBNFTNL_LIB_DIR` say, or with pkg-config.
fn missing_libraries() -> Option<String> {
    if env::var_os("DOCS_RS").is_some() {
        return None;
    }
    let pkg_config = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".to_owned());
    let wanted = [("libmnl", "1.0.4", "LIBMNL_LIB_DIR"), ("libnftnl", "1.2.4", "LIBNFTNL_LIB_DIR")];
    let missing = wanted.iter().filter(|(name, version, directory)| {
        println!("cargo:rerun-if-env-changed={directory}");
        let mut ask = Command::new(&pkg_config);
        ask.args(["--exists", &format!("{name} >= {version}")]);
        env::var_os(directory).is_none() && !ask.status().is_ok_and(|status| status.success())
    });
    let missing: Vec<String> = missing.map(|(name, version, _)| format!("{name} {version}")).collect();
    (!missing.is_empty()).then(|| {
        format!(
            "cni-all needs {} or newer, and {pkg_config} to find them. Install them first:\n\
            \x20 Debian, Ubuntu  apt-get install gcc pkg-config libmnl-dev libnftnl-dev\n\
            \x20 Fedora, RHEL    dnf install gcc pkgconf-pkg-config libmnl-devel libnftnl-devel\n\
            \x20 Arch            pacman -S gcc pkgconf libmnl libnftnl\n\
            \x20 Alpine          apk add gcc musl-dev pkgconf libmnl-dev libnftnl-dev\n\
            or name the directories of libmnl and libnftnl in LIBMNL_LIB_DIR and LIBNFTNL_LIB_DIR. A static executable\n\
            without any library comes out of packaging/build-static in the repository.",
            missing.join(" and ")
        )
    })
}

/// Link order for static builds: nftnl-sys names libnftnl behind libmnl, which it needs; so libmnl is named once more.
/// (GNU ld(1): archives are searched once, in the order of the command line.)
fn link() {
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        println!("cargo:rustc-link-arg-bins=-Wl,-Bstatic");
        println!("cargo:rustc-link-arg-bins=-lmnl");
        if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("musl") {
            println!("cargo:rustc-link-arg-bins=-lc");
        }
    }
}

/// For `cni-all --version --json`: target, and the commit when it is known: packaging/build-static says it in
/// `CNI_ALL_COMMIT`, a package from the registry in `.cargo_vcs_info.json`. Git is not asked: every commit would
/// compile everything anew.
fn identify() {
    println!("cargo:rustc-env=CNI_ALL_TARGET={}", env::var("TARGET").unwrap_or_default());
    println!("cargo:rerun-if-env-changed=CNI_ALL_COMMIT");
    println!("cargo:rerun-if-env-changed=CNI_ALL_STATIC_LIBRARIES");
    if env::var_os("CNI_ALL_COMMIT").is_none()
        && let Ok(info) = std::fs::read_to_string(".cargo_vcs_info.json")
        && let Some((_, rest)) = info.split_once("\"sha1\"")
        && let Some(commit) = rest.split('"').nth(1)
    {
        println!("cargo:rustc-env=CNI_ALL_COMMIT={commit}");
    }
}
