//! `cni-all install`: every kind of link, over whatever is there, while plugins run, interrupted at any time.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::support::{Workdir, executable};
use super::{Printed, cni_all, ok, plugins, run};

fn dir_arg(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

fn install(dir: &Path, args: &[&str]) -> Printed {
    run(cni_all(&[&["install", dir_arg(dir)], args].concat()))
}

#[track_caller]
fn install_ok(dir: &Path, args: &[&str]) -> String {
    ok(cni_all(&[&["install", dir_arg(dir)], args].concat()))
}

/// A directory with an executable of ours that is another build than the one under test. Made by another process:
/// see `Workdir::script`.
fn other_build(dir: &Workdir) -> PathBuf {
    let path = dir.root().join("cni-all-other");
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat \"$0\" >\"$1\"; echo >>\"$1\"; chmod 755 \"$1\""]).arg(executable()).arg(&path);
    ok(shell);
    path
}

fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    cp.arg(from).arg(to);
    ok(cp);
}

/// The directory is exactly as a complete installation leaves it.
#[track_caller]
fn assert_installed(dir: &Path, link: &str) {
    let own = fs::read(executable()).unwrap();
    let shared = fs::symlink_metadata(dir.join("cni-all")).unwrap();
    assert!(shared.is_file() && shared.mode() & 0o7777 == 0o755);
    assert!(fs::read(dir.join("cni-all")).unwrap() == own, "cni-all is another file");
    for name in plugins() {
        let path = dir.join(&name);
        let meta = fs::symlink_metadata(&path).unwrap();
        match link {
            "symlink" => assert_eq!(fs::read_link(&path).unwrap(), Path::new("cni-all"), "{name}"),
            "hard" => assert_eq!(meta.ino(), shared.ino(), "{name}"),
            _ => assert!(
                meta.is_file() && meta.ino() != shared.ino() && fs::read(&path).unwrap() == own,
                "{name}"
            ),
        }
        let printed = run(Command::new(&path));
        assert!(printed.stderr.starts_with(&format!("CNI {name} plugin ")), "{}", printed.stderr);
    }
    let mut expected = plugins();
    expected.push("cni-all".to_owned());
    expected.sort();
    assert_eq!(names(dir), expected);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_kind_of_link_works_and_each_replaces_the_others() {
    let dir = Workdir::new();
    let bin = dir.root().join("new/opt/bin");
    for link in ["symlink", "hard", "copy", "hard", "symlink", "copy", "symlink"] {
        let changes = install_ok(&bin, &["--link", link]);
        assert!(changes.lines().count() >= plugins().len(), "{changes}");
        assert_installed(&bin, link);
        let again = install_ok(&bin, &["--link", link]);
        assert!(again.contains("up to date") && again.lines().count() == 1, "{link}: {again}");
        assert_installed(&bin, link);
    }
}

#[test]
fn a_second_run_touches_nothing() {
    let dir = Workdir::new();
    let bin = dir.root().join("b");
    install_ok(&bin, &[]);
    let stat = |bin: &Path| -> Vec<(u64, i64, i64)> {
        let all = names(bin).into_iter().map(|name| fs::symlink_metadata(bin.join(name)).unwrap());
        all.chain([fs::metadata(bin).unwrap()]).map(|m| (m.ino(), m.ctime(), m.ctime_nsec())).collect()
    };
    let before = stat(&bin);
    install_ok(&bin, &[]);
    assert_eq!(stat(&bin), before);
    // Also when the installed executable is the one that runs.
    let mut own = Command::new(bin.join("cni-all"));
    own.args(["install", dir_arg(&bin)]);
    ok(own);
    assert_eq!(stat(&bin), before);
}

#[test]
fn foreign_files_are_kept_and_reported_unless_forced() {
    let dir = Workdir::new();
    let bin = dir.root().join("b");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("bridge"), "#!/bin/sh\n").unwrap();
    fs::write(dir.root().join("elsewhere"), "x").unwrap();
    symlink("../elsewhere", bin.join("ptp")).unwrap();
    nix::unistd::mkfifo(&bin.join("static"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(bin.join("unrelated"), "y").unwrap();
    let printed = install(&bin, &[]);
    assert_eq!(printed.status, 3, "{}", printed.stderr);
    for (name, what) in [("bridge", "another program"), ("ptp", "../elsewhere"), ("static", "pipe")] {
        let line = printed.stderr.lines().find(|l| l.contains(&format!("/{name}:")));
        assert!(line.is_some_and(|l| l.contains("kept") && l.contains(what)), "{name}: {}", printed.stderr);
    }
    assert_eq!(fs::read_to_string(bin.join("bridge")).unwrap(), "#!/bin/sh\n");
    assert_eq!(fs::read_link(bin.join("loopback")).unwrap(), Path::new("cni-all"));
    let json = install(&bin, &["--json"]);
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    let bridge = report["files"].as_array().unwrap().iter().find(|f| f["name"] == "bridge").unwrap();
    assert_eq!((json.status, bridge["action"].as_str()), (3, Some("kept")));
    let kept = install(&bin, &["--keep"]);
    assert_eq!((kept.status, &kept.stderr), (0, &printed.stderr));
    assert_eq!(install(&bin, &["--keep", "--force"]).status, 2);
    install_ok(&bin, &["--force"]);
    assert_eq!(fs::read_to_string(bin.join("unrelated")).unwrap(), "y");
    assert_eq!(fs::read_to_string(dir.root().join("elsewhere")).unwrap(), "x");
    fs::remove_file(bin.join("unrelated")).unwrap();
    assert_installed(&bin, "symlink");
}

#[test]
fn an_executable_that_a_copy_wrote_into_through_a_link_is_repaired() {
    let dir = Workdir::new();
    for link in ["symlink", "hard"] {
        let bin = dir.root().join(link);
        install_ok(&bin, &["--link", link]);
        let foreign = dir.script("foreign", "#!/bin/sh\necho foreign\n");
        copy(&foreign, &bin.join("bridge"));
        assert!(ok(Command::new(bin.join("ptp"))).contains("foreign"), "the damage is as expected");
        let printed = install_ok(&bin, &["--link", link]);
        assert!(printed.contains("cni-all (was damaged"), "{printed}");
        assert_installed(&bin, link);
    }
}

#[test]
fn another_version_is_upgraded_however_it_was_linked() {
    let dir = Workdir::new();
    let other = other_build(&dir);
    for link in ["symlink", "hard", "copy"] {
        let bin = dir.root().join(link);
        let mut old = Command::new(&other);
        old.args(["install", dir_arg(&bin), "--link", link]);
        ok(old);
        assert!(fs::read(bin.join("bridge")).unwrap() == fs::read(&other).unwrap());
        let printed = install_ok(&bin, &["--link", link]);
        assert!(printed.contains("another build of cni-all"), "{printed}");
        assert_installed(&bin, link);
    }
    // Links to an executable that is installed elsewhere are ours, too.
    let bin = dir.root().join("links");
    fs::create_dir(&bin).unwrap();
    symlink(&other, bin.join("bridge")).unwrap();
    symlink(bin.join("cni-all"), bin.join("ptp")).unwrap();
    symlink("/nowhere/ptp", bin.join("static")).unwrap();
    symlink("loopback", bin.join("loopback")).unwrap();
    symlink(&other, bin.join("cni-all")).unwrap();
    install_ok(&bin, &[]);
    assert_installed(&bin, "symlink");
    assert!(
        fs::read(&other).unwrap() != fs::read(executable()).unwrap(),
        "nothing was written through a link"
    );
}

/// A plugin that has started and waits for its configuration.
fn waiting_plugin(path: &Path) -> Child {
    let mut command = Command::new(path);
    command.env_clear().envs([
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c"),
        ("CNI_NETNS", "/nonexistent"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/nonexistent"),
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_plugin_that_runs_keeps_its_file_and_ends_as_it_began() {
    let dir = Workdir::new();
    let other = other_build(&dir);
    for link in ["symlink", "hard", "copy"] {
        let bin = dir.root().join(link);
        let mut old = Command::new(&other);
        old.args(["install", dir_arg(&bin), "--link", link]);
        ok(old);
        let mut child = waiting_plugin(&bin.join("static"));
        install_ok(&bin, &["--link", link]);
        assert_installed(&bin, link);
        let running = fs::read(format!("/proc/{}/exe", child.id())).unwrap();
        assert!(running == fs::read(&other).unwrap(), "the running plugin's file was changed");
        let config = br#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"static","addresses":[{"address":"10.1.0.5/24"}]}}"#;
        child.stdin.take().unwrap().write_all(config).unwrap();
        let printed: Printed = child.wait_with_output().unwrap().into();
        assert!(printed.status == 0 && printed.stdout.contains("10.1.0.5/24"), "{}", printed.stdout);
    }
}

#[test]
fn an_interrupted_installation_leaves_only_whole_files_and_the_next_one_completes_it() {
    let dir = Workdir::new();
    let bin = dir.root().join("b");
    let own = fs::read(executable()).unwrap();
    for (round, link) in ["copy", "hard", "symlink"].into_iter().cycle().take(18).enumerate() {
        let mut child =
            cni_all(&["install", dir_arg(&bin), "--link", link]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(400 * (round as u64 + 1)));
        child.kill().unwrap();
        child.wait().unwrap();
        let made = if bin.exists() { names(&bin) } else { Vec::new() };
        for name in made {
            if name.starts_with(".cni-all.tmp.") {
                continue;
            }
            assert!(
                fs::read(bin.join(&name)).is_ok_and(|content| content == own),
                "{name} after round {round}"
            );
        }
    }
    fs::write(bin.join(".cni-all.tmp.bridge"), "half").unwrap();
    install_ok(&bin, &[]);
    assert_installed(&bin, "symlink");
}

#[test]
fn installations_at_the_same_time_do_not_disturb_each_other() {
    let dir = Workdir::new();
    let bin = dir.root().join("b");
    let start = |link: &str| {
        let mut command = cni_all(&["install", dir_arg(&bin), "--link", link]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<Child> = ["copy", "hard", "symlink", "copy"].map(start).into_iter().collect();
    for child in children {
        let printed: Printed = child.wait_with_output().unwrap().into();
        assert_eq!((printed.status, printed.stderr.as_str()), (0, ""));
    }
    install_ok(&bin, &[]);
    assert_installed(&bin, "symlink");
}

#[test]
fn a_directory_in_the_way_is_named_and_nothing_is_changed() {
    let dir = Workdir::new();
    for in_the_way in ["ptp", "cni-all"] {
        let bin = dir.root().join(format!("with-{in_the_way}"));
        fs::create_dir_all(bin.join(in_the_way)).unwrap();
        let printed = install(&bin, &["--force"]);
        assert_eq!(printed.status, 1);
        assert!(printed.stderr.contains(&format!("/{in_the_way} is a directory")), "{}", printed.stderr);
        assert_eq!(names(&bin), [in_the_way]);
    }
    let file = dir.file("file", "");
    let printed = install(&file, &[]);
    assert!(printed.status == 1 && printed.stderr.contains(dir_arg(&file)), "{}", printed.stderr);
}

#[test]
fn only_the_plugins_that_were_asked_for_are_linked() {
    let dir = Workdir::new();
    let bin = dir.root().join("b");
    install_ok(&bin, &["--only", "bridge, host-local,bridge"]);
    assert_eq!(names(&bin), ["bridge", "cni-all", "host-local"]);
    install_ok(&bin, &["--only", "ptp"]);
    assert_eq!(names(&bin), ["bridge", "cni-all", "host-local", "ptp"]);
    assert_eq!(install(&bin, &["--except", "lo"]).status, 2);
    let bin = dir.root().join("c");
    install_ok(&bin, &["--except", "flannel,ptp"]);
    let mut expected = plugins();
    expected.retain(|name| name != "flannel" && name != "ptp");
    expected.push("cni-all".to_owned());
    expected.sort();
    assert_eq!(names(&bin), expected);
}

#[test]
fn a_copy_under_one_name_takes_what_others_copy_onto_it() {
    let dir = Workdir::new();
    let bin = dir.root().join("b");
    install_ok(&bin, &["--except", "flannel"]);
    install_ok(&bin, &["--only", "flannel", "--link", "copy"]);
    copy(&dir.script("foreign", "#!/bin/sh\n"), &bin.join("flannel"));
    install_ok(&bin, &["--except", "flannel"]);
    assert!(fs::read(bin.join("cni-all")).unwrap() == fs::read(executable()).unwrap());
}

#[test]
fn an_executable_with_other_permissions_or_less_content_is_replaced() {
    let dir = Workdir::new();
    let bin = dir.root().join("b");
    install_ok(&bin, &[]);
    fs::set_permissions(bin.join("cni-all"), fs::Permissions::from_mode(0o644)).unwrap();
    install_ok(&bin, &[]);
    assert_installed(&bin, "symlink");
    fs::write(bin.join("cni-all"), "").unwrap();
    install_ok(&bin, &[]);
    assert_installed(&bin, "symlink");
    fs::remove_file(bin.join("cni-all")).unwrap();
    install_ok(&bin, &[]);
    assert_installed(&bin, "symlink");
}
