//! `cni-all`'s own commands: what the executable does when it is called by its own name.
//!
//! Each command is one file with its arguments (argh), its help and its code; help, completions and the manual page
//! are made from these definitions and the table of plugins.
//!
//! Exit status: 0 done, 1 failed, 2 usage, and what a command documents beyond that.

mod doctor;
mod generate;
mod help;
mod install;
mod list;
mod networks;
mod run;
mod show;
mod suggest;
pub mod tools;
mod validate;
mod verbs;
mod version;

use argh::{ArgsInfo, CommandInfoWithArgs, FromArgs};

use crate::cni::Error;
use crate::personality::Process;
use crate::plugins::PLUGINS;

use suggest::did_you_mean;

/// Exit status of a command that failed.
const FAILED: i32 = 1;

/// Exit status of a command that was called in a way that makes no sense.
const USAGE: i32 = 2;

/// The executable's own arguments. Long descriptions are in `help.rs`.
#[derive(FromArgs, ArgsInfo)]
#[argh(description = "the CNI plugins in one executable", help_triggers("-h", "--help"))]
struct CniAll {
    /// print the version, the compatible Go release and the protocol versions
    #[argh(switch, short = 'V')]
    version: bool,

    /// with --version: as JSON, with commit, target, and the libraries in this executable and their licences
    #[argh(switch)]
    json: bool,

    #[argh(subcommand)]
    command: Option<Command>,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum Command {
    List(list::List),
    Install(install::Install),
    Add(verbs::Add),
    Check(verbs::Check),
    Del(verbs::Del),
    Update(verbs::Update),
    Gc(verbs::Gc),
    Status(verbs::Status),
    Run(run::Run),
    Validate(validate::Validate),
    Show(show::Show),
    Doctor(doctor::Doctor),
    Generate(generate::Generate),
}

/// The definition of every command, for help, completions and the manual page.
fn definition() -> CommandInfoWithArgs {
    CommandInfoWithArgs { name: "cni-all", ..CniAll::get_args_info() }
}

/// The first line of a command's description.
fn summary(command: &CommandInfoWithArgs) -> &'static str {
    command.description.lines().next().unwrap_or_default()
}

/// Whether `word` is a command or an option of `cni-all`, as opposed to the name of a plugin.
pub fn is_own(word: &str) -> bool {
    let command = |word: &str| definition().commands.iter().any(|c| c.name == word);
    word.starts_with('-') || word == "help" || command(word) || tools::find(word).is_some()
}

/// The arguments after the program's name, as text.
///
/// # Errors
/// The first that is not UTF-8.
pub fn words(process: &Process<'_>) -> Result<Vec<String>, String> {
    let word = |arg: &std::ffi::OsString| {
        arg.to_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("argument {:?} is not UTF-8", arg.to_string_lossy()))
    };
    process.args.iter().skip(1).map(word).collect()
}

/// Serves `cni-all ARGUMENTS…` and returns the exit status.
pub fn run(process: &mut Process<'_>) -> i32 {
    let mut words = match words(process) {
        Ok(words) => words,
        Err(msg) => return usage(process, "cni-all", &msg),
    };
    // `cni-all help install` is `cni-all install --help`.
    if words.first().is_some_and(|w| w == "help") {
        words.remove(0);
        words.push("--help".to_owned());
    }
    let first = words.first().map_or("--help", String::as_str);
    if first == "--help" || first == "-h" {
        return print(process, &help::text());
    }
    if !is_own(first) {
        let msg = match words.first().map(|w| did_you_mean(w, known_words())) {
            Some(Some(close)) => format!("{first:?} is no command or plugin; did you mean {close}?"),
            _ => format!("{first:?} is no command or plugin"),
        };
        return usage(process, "cni-all", &msg);
    }
    if let Some(tool) = tools::find(first) {
        return (tool.run)(words.get(1..).unwrap_or_default(), process);
    }
    let args: Vec<&str> = words.iter().map(String::as_str).collect();
    let parsed = match CniAll::from_args(&["cni-all"], &args) {
        Ok(parsed) => parsed,
        Err(exit) if exit.status.is_ok() => return print(process, &exit.output),
        Err(exit) => {
            let command = definition().commands.into_iter().find(|c| c.name == first);
            let name = command.map_or("cni-all".to_owned(), |c| format!("cni-all {}", c.name));
            return usage(process, &name, &one_line(&exit.output));
        }
    };
    match parsed.command {
        _ if parsed.version => version::run(process, parsed.json),
        None if parsed.json => usage(process, "cni-all", "--json: goes with --version, or behind a command"),
        None => print(process, &help::text()),
        Some(Command::List(list)) => list.run(process),
        Some(Command::Install(install)) => install.run(process),
        Some(Command::Add(add)) => add.run(process),
        Some(Command::Check(check)) => check.run(process),
        Some(Command::Del(del)) => del.run(process),
        Some(Command::Update(update)) => update.run(process),
        Some(Command::Gc(gc)) => gc.run(process),
        Some(Command::Status(status)) => status.run(process),
        Some(Command::Run(run)) => run.run(process),
        Some(Command::Doctor(doctor)) => doctor.run(process),
        Some(Command::Show(show)) => show.run(process),
        Some(Command::Validate(validate)) => validate.run(process),
        Some(Command::Generate(generate)) => generate.run(process),
    }
}

/// Everything that may stand in the first place.
fn known_words() -> Vec<&'static str> {
    let commands = definition().commands;
    let names = commands.iter().map(|c| c.name).chain(PLUGINS.iter().map(|p| p.name()));
    names.chain(tools::TOOLS.iter().map(|tool| tool.name)).chain(["help"]).collect()
}

/// argh's message without line breaks: it lists what is missing one per line.
fn one_line(output: &str) -> String {
    output.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Prints `text` to standard output. A reader that went away (`cni-all list | head -1`) is no failure.
fn print(process: &mut Process<'_>, text: &str) -> i32 {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(process.stdout, "{text}{end}").and_then(|()| process.stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            fail(process, "cni-all", &Error::io("write to standard output", &e))
        }
        _ => 0,
    }
}

/// Says what failed on standard error; exit status 1.
fn fail(process: &mut Process<'_>, command: &str, err: &Error) -> i32 {
    let _ = writeln!(process.stderr, "{command}: {err}");
    FAILED
}

/// Says what is wrong with the arguments on standard error, and where to read more; exit status 2.
fn usage(process: &mut Process<'_>, command: &str, msg: &str) -> i32 {
    let _ = writeln!(process.stderr, "{command}: {}\nsee: {command} --help", msg.trim_end_matches('.'));
    USAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_plugin_has_the_name_of_a_command() {
        for plugin in PLUGINS {
            assert!(!is_own(plugin.name()), "{}", plugin.name());
        }
    }

    #[test]
    fn every_command_teaches_with_an_example() {
        fn check(command: &CommandInfoWithArgs) {
            for sub in &command.commands {
                assert!(
                    !sub.command.examples.is_empty() || !sub.command.commands.is_empty(),
                    "{} has no example",
                    sub.name
                );
                check(&sub.command);
            }
        }
        check(&definition());
    }
}
