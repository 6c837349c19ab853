//! Completions for shells, from the definitions of the commands and the table of plugins.

use std::fmt::Write;

use argh::{CommandInfoWithArgs, FlagInfoKind};

use crate::cli::tools::TOOLS;
use crate::cli::{definition, summary};
use crate::plugins::PLUGINS;

/// What may stand for a placeholder of a command's arguments.
enum Values {
    Words(Vec<&'static str>),
    Files,
    Directories,
    /// A command of the system with its own arguments.
    CommandLine,
}

/// The placeholders of all commands (`arg_name` in their definitions).
fn values(placeholder: &str) -> Values {
    match placeholder {
        "LINK" => Values::Words(vec!["symlink", "hard", "copy"]),
        "NAMES" => Values::Words(PLUGINS.iter().map(|p| p.name()).collect()),
        "SHELL" => Values::Words(vec!["bash", "zsh", "fish"]),
        "DIR" => Values::Directories,
        "COMMAND" => Values::CommandLine,
        _ => Values::Files,
    }
}

/// A command with the words that lead to it, `" generate man"`; the executable itself first, under an empty path.
fn commands() -> Vec<(String, CommandInfoWithArgs)> {
    fn walk(path: String, command: CommandInfoWithArgs, all: &mut Vec<(String, CommandInfoWithArgs)>) {
        for sub in &command.commands {
            walk(format!("{path} {}", sub.name), sub.command.clone(), all);
        }
        all.push((path, command));
    }
    let mut all = Vec::new();
    walk(String::new(), definition(), &mut all);
    all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    all
}

/// All spellings of a command's options.
fn options(command: &CommandInfoWithArgs) -> Vec<String> {
    let mut words = vec!["--help".to_owned(), "-h".to_owned()];
    for flag in command.flags.iter().filter(|flag| !flag.hidden && flag.long != "--help") {
        words.push(flag.long.to_owned());
        words.extend(flag.short.map(|c| format!("-{c}")));
    }
    words
}

/// The options that take a value: spelling and placeholder.
fn valued(command: &CommandInfoWithArgs) -> Vec<(String, &'static str)> {
    let mut options = Vec::new();
    for flag in command.flags {
        if let FlagInfoKind::Option { arg_name } = flag.kind {
            options.push((flag.long.to_owned(), arg_name));
            options.extend(flag.short.map(|c| (format!("-{c}"), arg_name)));
        }
    }
    options
}

/// Words that may come next after `path`.
fn next_words(path: &str, command: &CommandInfoWithArgs) -> Vec<&'static str> {
    let mut words: Vec<&str> = command.commands.iter().map(|sub| sub.name).collect();
    if path.is_empty() {
        words.extend(PLUGINS.iter().map(|p| p.name()));
        words.extend(TOOLS.iter().map(|tool| tool.name));
        words.push("help");
    }
    words
}

/// For bash, with or without the package bash-completion.
pub fn bash() -> String {
    let all = commands();
    let paths: Vec<String> = all.iter().filter(|c| !c.0.is_empty()).map(|c| format!("{:?}", c.0)).collect();
    let mut skipped = Vec::new();
    let mut after_option = String::new();
    let mut by_command = String::new();
    let action = |placeholder: &str| match values(placeholder) {
        Values::Words(words) if placeholder == "NAMES" => format!("_cni_all_list {:?}", words.join(" ")),
        Values::Words(words) => format!("_cni_all_words {:?}", words.join(" ")),
        Values::Directories => {
            "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- \"$cur\")".to_owned()
        }
        Values::Files => "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")".to_owned(),
        Values::CommandLine => "_cni_all_command \"$i\"".to_owned(),
    };
    let mut commandline = Vec::new();
    for (path, command) in &all {
        for (option, placeholder) in valued(command) {
            skipped.push(format!("\"{path} {option}\""));
            let _ = writeln!(after_option, "    \"{path} {option}\") {}; return ;;", action(placeholder));
        }
        let positional = command.positionals.first().map(|p| p.name);
        if positional.is_some_and(|name| matches!(values(name), Values::CommandLine)) {
            commandline.push(format!("{path:?}"));
        }
        let words = next_words(path, command);
        let otherwise = match positional {
            Some(name) => action(name),
            None => format!("_cni_all_words {:?}", words.join(" ")),
        };
        let options = options(command).join(" ");
        let _ = writeln!(
            by_command,
            "    {path:?}) if [[ $cur == -* ]]; then _cni_all_words {options:?}; else {otherwise}; fi ;;"
        );
    }
    format!(
        r#"# bash completion for cni-all; printed by `cni-all generate completions bash`

_cni_all_words() {{
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}}

# Words separated by commas.
_cni_all_list() {{
    local before=""
    [[ $cur == *,* ]] && before="${{cur%,*}},"
    compopt -o nospace
    mapfile -t COMPREPLY < <(compgen -P "$before" -W "$1" -- "${{cur##*,}}")
}}

# Another command, whose name is word $1.
_cni_all_command() {{
    if (($1 < COMP_CWORD)) && declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif (($1 < COMP_CWORD)); then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
    fi
}}

_cni_all() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD - 1]}}" path="" i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$path ${{COMP_WORDS[i]}}" in
        {paths}) path="$path ${{COMP_WORDS[i]}}" ;;
        {skipped}) ((i++)) ;;
        *) case "$path:${{COMP_WORDS[i]}}" in
            {commandline}:--) _cni_all_command "$((i + 1))"; return ;;
            {commandline}:-*) ;;
            {commandline}:*) _cni_all_command "$i"; return ;;
            esac ;;
        esac
    done
    i=$COMP_CWORD
    case "$path $prev" in
{after_option}    esac
    case "$path" in
{by_command}    esac
}}

complete -F _cni_all cni-all
"#,
        paths = paths.join(" | "),
        skipped = skipped.join(" | "),
        commandline = commandline.join(" | "),
    )
}

/// For zsh: a file `_cni-all` in a directory of `$fpath`, or to be sourced.
pub fn zsh() -> String {
    let mut cases = String::new();
    for (path, command) in commands() {
        let mut specs: Vec<String> = vec!["'(-h --help)'{-h,--help}'[show help]'".to_owned()];
        for flag in command.flags.iter().filter(|flag| !flag.hidden && flag.long != "--help") {
            let about = quoted(&flag.description.replace('[', "\\[").replace(']', "\\]").replace('\n', " "));
            let value = match flag.kind {
                FlagInfoKind::Option { arg_name } => format!(":{arg_name}:{}", zsh_action(arg_name)),
                FlagInfoKind::Switch => String::new(),
            };
            let repeated = if flag.optionality == argh::Optionality::Repeating { "*" } else { "" };
            specs.push(match flag.short {
                Some(short) => format!("'(-{short} {0})'{{-{short},{0}}}'[{about}]{value}'", flag.long),
                None => format!("'{repeated}{}[{about}]{value}'", flag.long),
            });
        }
        for positional in command.positionals {
            specs.push(match values(positional.name) {
                Values::CommandLine => "'*::command:_normal'".to_owned(),
                _ => format!("'1:{}:{}'", positional.name, zsh_action(positional.name)),
            });
        }
        let words = next_words(&path, &command);
        if !words.is_empty() {
            specs.push("'1:command:->words'".to_owned());
            specs.push("'*::argument:->rest'".to_owned());
        }
        let function = format!("_cni-all{}", path.replace(' ', "-"));
        let _ = writeln!(
            cases,
            "{function}() {{\n    local curcontext=$curcontext state line\n    typeset -A opt_args\n    _arguments -C -S {}",
            specs.join(" \\\n        ")
        );
        if !words.is_empty() {
            let described: Vec<String> = described(&path, &command)
                .into_iter()
                .map(|(word, about)| format!("'{word}:{}'", quoted(&about)))
                .collect();
            let subs: String = command
                .commands
                .iter()
                .map(|sub| format!("        {0}) {function}-{0} ;;\n", sub.name))
                .collect();
            let _ = writeln!(
                cases,
                "    local -a described=(\n        {}\n    )\n    case $state in\n    words) _describe command described ;;\n    \
                 rest)\n        case $line[1] in\n{subs}        esac ;;\n    esac",
                described.join("\n        "),
            );
        }
        cases.push_str("}\n\n");
    }
    format!(
        "#compdef cni-all\n# zsh completion for cni-all; printed by `cni-all generate completions zsh`\n\n{cases}\
         if [[ ${{funcstack[1]}} == _cni-all ]]; then\n    _cni-all \"$@\"\nelse\n    compdef _cni-all cni-all\nfi\n"
    )
}

fn zsh_action(placeholder: &str) -> String {
    match values(placeholder) {
        Values::Words(words) if placeholder == "NAMES" => format!("_sequence compadd - {}", words.join(" ")),
        Values::Words(words) => format!("({})", words.join(" ")),
        Values::Directories => "_files -/".to_owned(),
        Values::Files | Values::CommandLine => "_files".to_owned(),
    }
}

/// For fish.
pub fn fish() -> String {
    let mut out = "# fish completion for cni-all; printed by `cni-all generate completions fish`\n\n\
                   complete -c cni-all -f\n"
        .to_owned();
    for (path, command) in commands() {
        let subs: Vec<&str> = command.commands.iter().map(|sub| sub.name).collect();
        let mut here: Vec<String> =
            path.split_whitespace().map(|word| format!("__fish_seen_subcommand_from {word}")).collect();
        match (path.is_empty(), subs.is_empty()) {
            (true, _) => here.push("__fish_use_subcommand".to_owned()),
            (false, true) => {}
            (false, false) => here.push(format!("not __fish_seen_subcommand_from {}", subs.join(" "))),
        }
        let here = here.join("; and ");
        for (word, about) in described(&path, &command) {
            let _ = writeln!(out, "complete -c cni-all -n '{here}' -a '{word}' -d '{}'", fish_quoted(&about));
        }
        let _ = writeln!(out, "complete -c cni-all -n '{here}' -s h -l help -d 'show help'");
        for flag in command.flags.iter().filter(|flag| !flag.hidden && flag.long != "--help") {
            let short = flag.short.map_or(String::new(), |c| format!(" -s {c}"));
            let value = match flag.kind {
                FlagInfoKind::Option { arg_name } => format!(" -r{}", fish_action(arg_name)),
                FlagInfoKind::Switch => String::new(),
            };
            let long = flag.long.trim_start_matches('-');
            let about = fish_quoted(&flag.description.replace('\n', " "));
            let _ = writeln!(out, "complete -c cni-all -n '{here}'{short} -l {long}{value} -d '{about}'");
        }
        for positional in command.positionals {
            let _ = writeln!(out, "complete -c cni-all -n '{here}'{}", fish_action(positional.name));
        }
    }
    out
}

fn fish_action(placeholder: &str) -> String {
    match values(placeholder) {
        Values::Words(words) if placeholder == "NAMES" => {
            format!(" -f -a '(__fish_complete_list , \"printf \\'%s\\\\\\\\n\\' {}\")'", words.join(" "))
        }
        Values::Words(words) => format!(" -f -a '{}'", words.join(" ")),
        Values::Directories => " -f -a '(__fish_complete_directories)'".to_owned(),
        Values::Files => " -F".to_owned(),
        Values::CommandLine => " -f -a '(__fish_complete_subcommand --fcs-skip=2)'".to_owned(),
    }
}

/// The words that may come next, with what they mean.
fn described(path: &str, command: &CommandInfoWithArgs) -> Vec<(&'static str, String)> {
    let mut words: Vec<(&str, String)> =
        command.commands.iter().map(|sub| (sub.name, summary(&sub.command).to_owned())).collect();
    if path.is_empty() {
        words.extend(PLUGINS.iter().map(|p| (p.name(), p.about().to_owned())));
        words.extend(TOOLS.iter().map(|tool| (tool.name, tool.about.to_owned())));
        words.push(("help", "show help".to_owned()));
    }
    words
}

/// For the inside of single quotes of a POSIX shell.
fn quoted(text: &str) -> String {
    text.replace('\'', r"'\''")
}

/// For the inside of fish's single quotes.
fn fish_quoted(text: &str) -> String {
    text.replace('\\', r"\\").replace('\'', r"\'")
}
