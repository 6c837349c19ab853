//! Link order for static builds: nftnl-sys names libnftnl behind libmnl, which it needs; so libmnl is named once more.
//! (GNU ld(1): archives are searched once, in the order of the command line.)

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        println!("cargo:rustc-link-arg-bins=-Wl,-Bstatic");
        println!("cargo:rustc-link-arg-bins=-lmnl");
        if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("musl") {
            println!("cargo:rustc-link-arg-bins=-lc");
        }
    }
}
