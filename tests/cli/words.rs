//! Help, version, list, and what is said about words that are not known.

use serde_json::Value;

use super::{cni_all, ok, plugins, run};

#[test]
fn help_teaches_the_commands_the_plugins_and_the_six_variables() {
    let help = ok(cni_all(&["--help"]));
    for word in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"] {
        assert!(help.contains(word), "{word} is missing: {help}");
    }
    for word in ["list", "install", "generate", "run", "CNI_COMMAND=ADD", "CNI_COMMAND=DEL"] {
        assert!(help.contains(word), "{word} is missing: {help}");
    }
    for plugin in plugins() {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{plugin} "))), "{plugin}");
    }
    for args in [&["-h"][..], &["help"], &[]] {
        assert_eq!(ok(cni_all(args)), help, "{args:?}");
    }
}

#[test]
fn the_example_in_the_help_can_be_pasted_into_a_shell() {
    let help = ok(cni_all(&["--help"]));
    let (_, example) = help.split_once("by hand, as root:\n").unwrap();
    let stub = "ip() { :; }; cni-all() { cat | sed 's/^/IN /'; echo \"$CNI_COMMAND $1 $CNI_IFNAME\"; }\n";
    let dir = super::support::Workdir::new();
    let mut shell = std::process::Command::new("bash");
    shell.args(["-euc", &format!("{stub}{example}")]).current_dir(dir.root());
    let printed = ok(shell);
    assert!(printed.contains("ADD bridge eth0") && printed.contains("DEL bridge eth0"), "{printed}");
    let config = std::fs::read(dir.root().join("mynet.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((config["type"].as_str(), config["name"].as_str()), (Some("bridge"), Some("mynet")));
}

#[test]
fn each_command_has_help_with_an_example_of_itself() {
    for words in [
        &["list"][..],
        &["install"],
        &["run"],
        &["generate"],
        &["generate", "man"],
        &["generate", "completions"],
        &["generate", "symlinks.mk"],
    ] {
        let mut args = words.to_vec();
        args.push("--help");
        let help = ok(cni_all(&args));
        let own = format!("cni-all {}", words.join(" "));
        let (_, examples) = help.split_once("Examples:").unwrap_or_else(|| panic!("no example in {help}"));
        assert!(examples.contains(&own) || examples.contains("cni-all "), "{help}");
        assert_eq!(ok(cni_all(&[&["help"], words].concat())), help, "help {words:?}");
    }
}

#[test]
fn the_version_names_the_compatible_release_and_the_protocol() {
    let version = ok(cni_all(&["--version"]));
    assert!(version.starts_with(concat!("cni-all ", env!("CARGO_PKG_VERSION"), "\n")), "{version}");
    assert!(
        version.contains("v1.9.1") && version.contains("0.1.0") && version.contains("1.1.0"),
        "{version}"
    );
}

#[test]
fn the_version_as_json_names_the_target_and_the_licences_of_the_libraries() {
    let version: Value = serde_json::from_str(&ok(cni_all(&["--version", "--json"]))).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(version["target"].as_str().unwrap().contains("-linux-"), "{version}");
    assert_eq!(version["license"], "GPL-3.0-or-later");
    assert!(version["protocolVersions"].as_array().unwrap().contains(&"1.1.0".into()));
    let libraries = version["libraries"].as_array().unwrap();
    let license = |name: &str| &libraries.iter().find(|l| l["name"] == name).unwrap()["license"];
    assert_eq!(
        (license("libmnl"), license("libnftnl")),
        (&"LGPL-2.1-or-later".into(), &"GPL-2.0-or-later".into())
    );
}

#[test]
fn the_list_is_the_same_as_text_and_as_json() {
    let json: Value = serde_json::from_str(&ok(cni_all(&["list", "--json"]))).unwrap();
    let entries = json.as_array().unwrap();
    let names: Vec<&str> = entries.iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names, plugins());
    for (entry, line) in entries.iter().zip(ok(cni_all(&["list"])).lines()) {
        assert!(
            line.contains(entry["about"].as_str().unwrap()) && line.contains(entry["kind"].as_str().unwrap())
        );
        assert!(entry["supportedVersions"].as_array().unwrap().contains(&"1.1.0".into()), "{entry}");
    }
}

#[test]
fn a_word_that_is_not_known_is_a_usage_error_with_a_suggestion() {
    for (args, says) in [
        (&["lsit"][..], "did you mean list?"),
        (&["bridg"], "did you mean bridge?"),
        (&["no-such-thing"], "no-such-thing"),
        (&["--verson"], "--verson"),
        (&["list", "more"], "more"),
        (&["install"], "DIR"),
        (&["install", "x", "--link", "soft"], "symlink"),
        (&["install", "x", "--only", "brigde"], "did you mean bridge?"),
        (&["generate", "completions", "tcsh"], "fish"),
        (&["run"], "no command given"),
    ] {
        let printed = run(cni_all(args));
        assert_eq!((printed.status, printed.stdout.as_str()), (2, ""), "{args:?}: {}", printed.stderr);
        assert!(
            printed.stderr.contains(says) && printed.stderr.contains("--help"),
            "{args:?}: {}",
            printed.stderr
        );
    }
}

#[test]
fn an_argument_that_is_not_utf8_is_refused_instead_of_changed() {
    use std::os::unix::ffi::OsStrExt;
    let mut command = cni_all(&["install"]);
    command.arg(std::ffi::OsStr::from_bytes(b"/tmp/\xff"));
    let printed = run(command);
    assert!(printed.status == 2 && printed.stderr.contains("UTF-8"), "{}", printed.stderr);
}

#[test]
fn a_runtime_that_calls_it_by_its_own_name_gets_a_cni_error() {
    for args in [&[][..], &["no-such"]] {
        let mut command = cni_all(args);
        command.env("CNI_COMMAND", "VERSION");
        let printed = run(command);
        let error: Value = serde_json::from_str(&printed.stdout).unwrap();
        assert_eq!((printed.status, error["code"].as_u64()), (1, Some(4)), "{error}");
    }
    let mut command = cni_all(&["list"]);
    command.env("CNI_COMMAND", "ADD");
    assert!(!ok(command).is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let exe = super::support::executable();
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", "set -o pipefail; \"$0\" generate man | head -1", exe.to_str().unwrap()]);
    assert!(ok(shell).starts_with(".TH"));
}
