//! `cni-all show` and `doctor`: what is there is shown, in every form, and nothing is changed.

use serde_json::Value;

use super::support::Workdir;
use super::{cni_all, ok, run};

/// A directory of configurations with one network, and one lease of a container that is gone.
fn network(dir: &Workdir) -> String {
    let data = dir.data_dir();
    let conf = format!(
        r#"{{"cniVersion":"1.0.0","name":"shown","plugins":[{{"type":"bridge","bridge":"no-such-br",
        "ipam":{{"type":"host-local","dataDir":"{data}","subnet":"203.0.113.0/29"}}}}]}}"#
    );
    dir.file("net.d/10-shown.conflist", conf);
    dir.file("data/shown/203.0.113.3", "gone\r\neth0");
    dir.root().join("net.d").to_str().unwrap().to_owned()
}

#[test]
fn ranges_leases_and_what_is_stale_are_shown() {
    let dir = Workdir::new();
    let conf = network(&dir);
    let state: Value =
        serde_json::from_str(&ok(cni_all(&["show", "shown", "--conf-dir", &conf, "--json"]))).unwrap();
    let shown = &state["networks"][0];
    assert_eq!(shown["plugins"][0], "bridge");
    assert_eq!((&shown["ranges"][0]["free"], &shown["leases"][0]["in_use"]), (&"4".into(), &false.into()));
    assert!(state["stale"][0]["what"].as_str().unwrap().starts_with("lease 203.0.113.3 of network shown"));
    let tree = ok(cni_all(&["show", "--conf-dir", &conf]));
    assert!(tree.contains("lease 203.0.113.3: gone eth0 (stale)"), "{tree}");
    assert!(ok(cni_all(&["show", "--conf-dir", &conf, "--dot"])).starts_with("digraph cni {"));
    assert!(ok(cni_all(&["show", "--conf-dir", &conf, "--svg"])).ends_with("</svg>\n"));
    let printed = run(cni_all(&["show", "nothing", "--conf-dir", &conf]));
    assert!(printed.status == 1 && printed.stderr.contains("\"nothing\""), "{}", printed.stderr);
}

#[test]
fn doctor_names_what_is_missing_and_how_to_mend_it() {
    let dir = Workdir::new();
    let (conf, bin) = (network(&dir), dir.root().join("empty"));
    let printed =
        run(cni_all(&["doctor", "--json", "--conf-dir", &conf, "--bin-dir", bin.to_str().unwrap()]));
    let output: Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!((printed.status, &output["ok"]), (1, &false.into()));
    let findings = output["findings"].as_array().unwrap();
    let mended = |subject: &str, by: &str| {
        findings.iter().any(|f| f["subject"] == subject && f["mend"].as_str().unwrap().starts_with(by))
    };
    assert!(mended("plugins", "cni-all install") && mended("stale lease", "rm "), "{findings:?}");
}
