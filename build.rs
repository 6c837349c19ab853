//! What the compiler has to be told beside Cargo.toml: link order, and which build this is.

#![allow(clippy::print_stdout)]

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    link();
    identify();
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
