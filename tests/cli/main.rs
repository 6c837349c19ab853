//! `cni-all`'s own commands, as an operator uses them.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod completions;
mod host;
mod in_use;
mod install;
mod log;
mod run;
mod schema;
mod show;
mod symlinks;
mod tools;
mod update;
mod validate;
mod verbs;
mod words;

use std::process::{Command, Output, Stdio};

use support::executable;

/// `cni-all` with these arguments and nothing of `CNI_*` in its environment.
fn cni_all(args: &[&str]) -> Command {
    let mut command = Command::new(executable());
    command.args(args).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

/// What a command printed.
struct Printed {
    status: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Printed {
    fn from(output: Output) -> Printed {
        Printed {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs a command to its end.
#[track_caller]
fn run(mut command: Command) -> Printed {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}")).into()
}

/// Runs a command that must succeed; its standard output.
#[track_caller]
fn ok(command: Command) -> String {
    let shown = format!("{command:?}");
    let printed = run(command);
    assert_eq!(printed.status, 0, "{shown}: {}{}", printed.stdout, printed.stderr);
    printed.stdout
}

/// The names of all plugins.
fn plugins() -> Vec<String> {
    let listed = ok(cni_all(&["list"]));
    listed.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}
