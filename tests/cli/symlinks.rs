//! symlinks.mk is up to date, and does with plain make what `cni-all install` does.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use super::support::{Workdir, executable, require_tool};
use super::{Printed, cni_all, ok, plugins, run};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/symlinks.mk");

fn make(target: &str, destdir: &Path, variables: &[&str]) -> Printed {
    let mut make = Command::new("make");
    make.args(["-s", "-f", COMMITTED, target, "BINDIR=/opt/cni/bin"]).args(variables).env_remove("MAKEFLAGS");
    make.arg(format!("CNI_ALL={}", executable().display())).arg(format!("DESTDIR={}", destdir.display()));
    run(make)
}

/// Name, kind of file, target or content, permissions, and which files are one.
fn tree(dir: &Path) -> Vec<(String, String, u32, u64)> {
    let shared = fs::symlink_metadata(dir.join("cni-all")).unwrap().ino();
    let mut tree: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let same = meta.is_file() && fs::read(&path).unwrap() == fs::read(executable()).unwrap();
            let what = match meta.is_symlink() {
                true => format!("-> {}", fs::read_link(&path).unwrap().display()),
                false => format!("ours: {same}"),
            };
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, what, meta.mode(), u64::from(meta.ino() == shared))
        })
        .collect();
    tree.sort();
    tree
}

#[test]
fn the_committed_file_is_what_is_generated() {
    let committed = fs::read_to_string(COMMITTED).unwrap();
    let generated = ok(cni_all(&["generate", "symlinks.mk"]));
    assert!(
        committed == generated,
        "symlinks.mk is out of date; run: cargo run -- generate symlinks.mk >symlinks.mk"
    );
}

#[test]
fn make_installs_what_cni_all_installs() {
    require_tool!("make");
    let dir = Workdir::new();
    for (variable, link) in [("LINK=symbolic", "symlink"), ("LINK=hard", "hard")] {
        let (image, bin) = (dir.root().join(format!("image-{link}")), dir.root().join(format!("bin-{link}")));
        ok(cni_all(&["install", bin.to_str().unwrap(), "--link", link]));
        for again in ["first", "again"] {
            let printed = make("install", &image, &[variable]);
            assert_eq!((printed.status, printed.stderr.as_str()), (0, ""), "{again}");
            assert_eq!(tree(&image.join("opt/cni/bin")), tree(&bin), "{link} {again}");
        }
        // Each finds the other's work complete.
        let found = ok(cni_all(&["install", image.join("opt/cni/bin").to_str().unwrap(), "--link", link]));
        assert!(found.contains("up to date"), "{found}");
    }
}

#[test]
fn make_keeps_foreign_files_and_repairs_like_cni_all() {
    require_tool!("make");
    let dir = Workdir::new();
    let bin = dir.root().join("opt/cni/bin");
    assert_eq!(make("install", dir.root(), &[]).status, 0);
    fs::remove_file(bin.join("bridge")).unwrap();
    fs::write(bin.join("bridge"), "foreign").unwrap();
    fs::remove_file(bin.join("ptp")).unwrap();
    symlink("/nowhere", bin.join("ptp")).unwrap();
    fs::write(bin.join("loopback"), "written through the link").unwrap();
    fs::write(bin.join(".cni-all.tmp.left"), "").unwrap();
    let printed = make("install", dir.root(), &[]);
    assert!(
        printed.status != 0 && printed.stderr.contains("/bridge: a file of another program"),
        "{}",
        printed.stderr
    );
    assert_eq!(fs::read_to_string(bin.join("bridge")).unwrap(), "foreign");
    assert_eq!(make("install", dir.root(), &["FORCE=1"]).status, 0);
    let found = ok(cni_all(&["install", bin.to_str().unwrap()]));
    assert!(found.contains("up to date"), "{found}");
    assert!(!bin.join(".cni-all.tmp.left").exists());
    fs::remove_file(bin.join("ptp")).unwrap();
    fs::create_dir(bin.join("ptp")).unwrap();
    let printed = make("install", dir.root(), &[]);
    assert!(printed.status != 0 && printed.stderr.contains("ptp is a directory"), "{}", printed.stderr);
}

#[test]
fn make_uninstalls_only_what_is_ours_and_lists_the_plugins() {
    require_tool!("make");
    let dir = Workdir::new();
    let bin = dir.root().join("opt/cni/bin");
    for variable in ["LINK=symbolic", "LINK=hard"] {
        assert_eq!(make("install", dir.root(), &[variable]).status, 0);
        fs::remove_file(bin.join("bridge")).unwrap();
        fs::write(bin.join("bridge"), "foreign").unwrap();
        assert_eq!(make("uninstall", dir.root(), &[]).status, 0);
        let left: Vec<_> = fs::read_dir(&bin).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["bridge"]);
        fs::remove_file(bin.join("bridge")).unwrap();
    }
    let listed = make("list", dir.root(), &[]).stdout;
    assert_eq!(listed.lines().collect::<Vec<_>>(), plugins());
}
