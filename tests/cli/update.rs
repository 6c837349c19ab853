//! `cni-all update` as it is called; what it does is tested in `tests/netns/update/`.

use super::host::Host;
use super::support::require_netns;
use super::{cni_all, ok, run};

#[test]
fn it_must_be_said_what_is_to_be_updated() {
    for (args, said) in [
        (&["update"][..], "NETWORK"),
        (&["update", "net"], "neither NETNS, --id nor --all is given"),
        (&["update", "net", "demo", "--all"], "--all excludes NETNS, --id, --ifname and -p"),
        (&["update", "net", "--all", "-p", "80:80"], "--all excludes"),
        (&["update", "net", "demo", "-p", "80"], "no port mapping"),
        (&["update", "net", "demo", "--timeout", "0"], "number of seconds"),
    ] {
        let printed = run(cni_all(args));
        assert_eq!((printed.status, printed.stdout.as_str()), (2, ""), "{args:?}: {}", printed.stderr);
        assert!(printed.stderr.contains(said), "{args:?}: {}", printed.stderr);
        assert!(printed.stderr.contains("see: cni-all update --help"), "{args:?}: {}", printed.stderr);
    }
}

#[test]
fn the_help_says_what_can_change_and_that_nothing_is_done_otherwise() {
    let help = ok(cni_all(&["update", "--help"]));
    for said in ["portIsolation", "nothing at all is done", "code 103", "--dry-run", "--capability-args"] {
        assert!(help.contains(said), "{said}: {help}");
    }
}

#[test]
fn failures_are_told_for_people_and_as_json() {
    require_netns!();
    let host = Host::new();
    host.configure(
        "10-net.conflist",
        r#"{"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "loopback"}]}"#,
    );
    let update = |args: &[&str]| run(host.command("cni-all", &[&["update"], args].concat()));
    let printed = update(&["net", "demo"]);
    assert_eq!((printed.status, printed.stdout.as_str()), (1, ""));
    let said = r#"cni-all update: "demo" is not attached to network net; attachments are kept in /var/lib/cni/results"#;
    assert_eq!(printed.stderr.trim_end(), said);
    let printed = update(&["net", "demo", "--json"]);
    assert_eq!((printed.status, printed.stderr.as_str()), (1, ""));
    let json: serde_json::Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!((&json["code"], &json["cniVersion"]), (&999.into(), &"1.1.0".into()));
    assert!(update(&["other", "demo"]).stderr.contains(r#"no net configuration with name "other""#));
    assert!(update(&["net", "demo", "-p", "80:80"]).stderr.contains("-p: no plugin of network net has"));
    let printed = update(&["net", "--all"]);
    assert_eq!((printed.status, printed.stdout.as_str()), (0, "# nothing is attached to network net\n"));
}
