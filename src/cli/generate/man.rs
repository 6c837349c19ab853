//! The manual page, in the man(7) macros.

use std::fmt::Write;

use argh::{CommandInfoWithArgs, FlagInfoKind, Optionality};

use crate::cli::definition;
use crate::cli::help::{ABOUT, BY_HAND, OWN_VARIABLES, VARIABLES};
use crate::cli::tools::TOOLS;
use crate::personality::COMPATIBLE_WITH;
use crate::plugins::PLUGINS;

/// The text of cni-all(8).
pub fn text() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut out = format!(
        ".TH CNI\\-ALL 8 \"\" \"cni\\-all {version}\" \"System Administration\"\n\
         .SH NAME\ncni\\-all \\- the CNI plugins in one executable\n\
         .SH SYNOPSIS\n.B cni\\-all\n.I COMMAND\n.RI [ ARGUMENT ...]\n.br\n.B cni\\-all\n.I PLUGIN\n\
         .RI < CONFIGURATION\n.SH DESCRIPTION\n{}\n.PP\nIt is compatible with release {} of the plugins written in Go.\n",
        roff(ABOUT.trim()),
        roff(COMPATIBLE_WITH),
    );
    out.push_str(".SH COMMANDS\n");
    let mut exit_status = String::new();
    for command in &definition().commands {
        describe(&mut out, command.name, &command.command);
        for code in command.command.error_codes {
            let _ = writeln!(
                exit_status,
                ".TP\n.BR {} \" (\" {} )\n{}",
                code.code,
                command.name,
                roff(code.description)
            );
        }
    }
    out.push_str(".SH TOOLS\nBy a link of that name, or as a command:\n");
    for tool in &TOOLS {
        let _ = writeln!(out, ".TP\n.B {}\n{}", roff(tool.name), roff(tool.about));
    }
    out.push_str(".SH PLUGINS\n");
    for plugin in PLUGINS {
        let _ = writeln!(out, ".TP\n.B {}\n{}", roff(plugin.name()), roff(plugin.about()));
    }
    out.push_str(".SH ENVIRONMENT\nOf a plugin:\n");
    for (name, needed, about) in VARIABLES {
        let _ = writeln!(out, ".TP\n.BR {} \" (\" \"{needed}\" )\n{}", roff(name), roff(about));
    }
    out.push_str(".PP\nOf our own:\n");
    for (name, used_by, about) in OWN_VARIABLES {
        let _ = writeln!(out, ".TP\n.BR {} \" (\" \"{used_by}\" )\n{}", roff(name), roff(about));
    }
    out.push_str(
        ".SH EXIT STATUS\nOf a plugin: 0, or 1 with an error object on standard output. Of a command: 0 when done, 1 when \
         something failed, 2 for wrong arguments, and:\n",
    );
    out.push_str(&exit_status);
    out.push_str(".SH EXAMPLE\nA plugin called by hand:\n.PP\n.nf\n");
    for line in BY_HAND.lines() {
        let _ = writeln!(out, "{}", roff(line));
    }
    out.push_str(".fi\n.SH SEE ALSO\nhttps://www.cni.dev/docs/spec/\n");
    out
}

/// A command, and below it those that it has of its own.
fn describe(out: &mut String, path: &str, command: &CommandInfoWithArgs) {
    let _ = write!(out, ".SS \"cni\\-all {}", roff(path));
    for flag in command.flags.iter().filter(|flag| !flag.hidden && flag.long != "--help") {
        let dots = if flag.optionality == Optionality::Repeating { "..." } else { "" };
        let _ = match flag.kind {
            FlagInfoKind::Switch => write!(out, " [{}]", roff(flag.long)),
            FlagInfoKind::Option { arg_name } => write!(out, " [{} {arg_name}]{dots}", roff(flag.long)),
        };
    }
    for positional in command.positionals {
        let dots = if positional.optionality == Optionality::Greedy { " ..." } else { "" };
        let _ = write!(out, " {}{dots}", positional.name);
    }
    out.push_str("\"\n");
    for paragraph in command.description.split("\n\n").chain(command.notes.iter().copied()) {
        let _ = writeln!(out, "{}\n.PP", roff(paragraph));
    }
    for flag in command.flags.iter().filter(|flag| !flag.hidden && flag.long != "--help") {
        let short = flag.short.map_or(String::new(), |c| format!("\\-{c}, "));
        let value = match flag.kind {
            FlagInfoKind::Switch => String::new(),
            FlagInfoKind::Option { arg_name } => format!(" \\fI{arg_name}\\fR"),
        };
        let _ = writeln!(out, ".TP\n\\fB{short}{}\\fR{value}\n{}", roff(flag.long), roff(flag.description));
    }
    if !command.examples.is_empty() {
        out.push_str(".PP\n.nf\n");
        for example in command.examples {
            let _ =
                writeln!(out, "    {}", roff(&example.replace("{command_name}", &format!("cni-all {path}"))));
        }
        out.push_str(".fi\n");
    }
    for sub in &command.commands {
        describe(out, &format!("{path} {}", sub.name), &sub.command);
    }
}

/// Text as roff takes it: backslashes, minus signs and quotes as they are, no line that begins like a macro.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga");
    let lines = escaped.lines().map(|line| match line.starts_with('.') {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}
