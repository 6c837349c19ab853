//! Completions and the manual page do what they are for.

use std::process::Command;

use super::support::{Workdir, require_tool};
use super::{cni_all, ok, plugins, run};

/// What bash offers for a command line; the last word is the one being completed.
fn bash(line: &[&str]) -> Vec<String> {
    let script = "source <(\"$0\" generate completions bash)
        compopt() { :; }
        COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)); _cni_all; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let exe = super::support::executable();
    let mut shell = Command::new("bash");
    shell.args(["--norc", "-c", script, exe.to_str().unwrap(), "cni-all"]).args(line).current_dir("/");
    ok(shell).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_plugins_options_and_their_values() {
    require_tool!("bash");
    assert_eq!(bash(&["ins"]), ["install"]);
    let first = bash(&[""]);
    for word in plugins().iter().map(String::as_str).chain(["list", "install", "run", "generate"]) {
        assert!(first.iter().any(|w| w == word), "{word}: {first:?}");
    }
    assert_eq!(bash(&["install", "--l"]), ["--link"]);
    assert_eq!(bash(&["install", "--link", ""]), ["symlink", "hard", "copy"]);
    assert_eq!(bash(&["install", "--only", "ptp,lo"]), ["ptp,loopback"]);
    assert_eq!(bash(&["install", "--link", "hard", "/us"]), ["/usr"]);
    assert_eq!(bash(&["generate", "comp"]), ["completions"]);
    assert_eq!(bash(&["generate", "completions", "z"]), ["zsh"]);
    assert_eq!(bash(&["run", "--network", "/etc/hostn"]), ["/etc/hostname"]);
    assert_eq!(bash(&["run", "--q"]), ["--quiet"]);
}

#[test]
fn bash_completes_the_command_that_is_run_not_more_options() {
    require_tool!("bash");
    assert!(bash(&["run", "--network", "list", "unsha"]).contains(&"unshare".to_owned()));
    assert!(bash(&["run", "--", "unsha"]).contains(&"unshare".to_owned()));
    assert_eq!(bash(&["run", "cat", "/etc/hostn"]), ["/etc/hostname"]);
}

#[test]
fn zsh_and_fish_accept_their_completions() {
    let dir = Workdir::new();
    for (shell, check) in [("zsh", "-n"), ("fish", "-n")] {
        if let Some(reason) = super::support::missing_tool(shell) {
            // Not needed for anything else here, so it is no failure under CNI_ALL_STRICT either.
            eprintln!("SKIP {shell}: {reason}");
            continue;
        }
        let file = dir.file(shell, ok(cni_all(&["generate", "completions", shell])));
        let mut command = Command::new(shell);
        command.arg(check).arg(file);
        ok(command);
    }
}

#[test]
fn the_manual_page_has_no_faults() {
    require_tool!("groff");
    let dir = Workdir::new();
    let page = dir.file("cni-all.1", ok(cni_all(&["generate", "man"])));
    let mut groff = Command::new("groff");
    groff.args(["-man", "-ww", "-Kutf8", "-Tutf8", "-P-cbou"]).arg(page);
    let printed = run(groff);
    assert_eq!((printed.status, printed.stderr.as_str()), (0, ""));
    for word in ["cni-all install", "--link", "CNI_CONTAINERID", "EXIT STATUS"]
        .map(str::to_owned)
        .into_iter()
        .chain(plugins())
    {
        assert!(printed.stdout.contains(&word), "{word} is missing: {}", printed.stdout);
    }
}
