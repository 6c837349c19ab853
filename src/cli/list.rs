//! `cni-all list`: the plugins in this executable.

use argh::{ArgsInfo, FromArgs};
use serde::Serialize;

use super::{fail, print};
use crate::cni::convert::pretty;
use crate::personality::Process;
use crate::plugins::PLUGINS;

/// Arguments of `cni-all list`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "list",
    help_triggers("-h", "--help"),
    description = "list the plugins in this executable\n\n\
        One line each: name, kind (main, ipam, meta) and what it is for.",
    example = "{command_name}",
    example = "{command_name} --json | jq -r '.[].name'"
)]
pub struct List {
    /// print a JSON list of objects with name, kind, about and supportedVersions
    #[argh(switch)]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: &'static str,
    kind: &'static str,
    about: &'static str,
    supported_versions: Vec<&'static str>,
}

impl List {
    /// Prints the list.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        let entries: Vec<Entry> = PLUGINS
            .iter()
            .map(|plugin| Entry {
                name: plugin.name(),
                kind: plugin.kind().as_str(),
                about: plugin.about(),
                supported_versions: plugin.versions().iter().map(|v| v.as_str()).collect(),
            })
            .collect();
        if self.json {
            return match pretty(&entries) {
                Ok(text) => print(process, &text),
                Err(e) => fail(process, "cni-all list", &e),
            };
        }
        let width = entries.iter().map(|e| e.name.len()).max().unwrap_or_default();
        let lines: Vec<String> =
            entries.iter().map(|e| format!("{:<width$}  {:<4}  {}\n", e.name, e.kind, e.about)).collect();
        print(process, &lines.concat())
    }
}
