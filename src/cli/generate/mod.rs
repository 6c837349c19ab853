//! `cni-all generate`: text made from the table of plugins and the definitions of the commands.

mod completions;
mod man;
mod schema;
mod symlinks;

use argh::{ArgsInfo, FromArgValue, FromArgs};

use super::{fail, print};
use crate::personality::Process;

/// Arguments of `cni-all generate`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "generate",
    help_triggers("-h", "--help"),
    description = "print symlinks.mk, shell completions, the manual page or the schema",
    example = "{command_name} completions bash >/usr/share/bash-completion/completions/cni-all",
    example = "{command_name} man >/usr/share/man/man8/cni-all.8",
    example = "{command_name} symlinks.mk >symlinks.mk"
)]
pub struct Generate {
    #[argh(subcommand)]
    what: What,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum What {
    Symlinks(Symlinks),
    Completions(Completions),
    Man(Man),
    Schema(Schema),
}

/// Arguments of `cni-all generate symlinks.mk`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "symlinks.mk",
    help_triggers("-h", "--help"),
    description = "print the makefile that installs with plain make\n\n\
        The list of plugins and rules that install, uninstall and list them, for builds of images and\n\
        packages that cannot run the executable they build.",
    example = "{command_name} >symlinks.mk",
    example = "make -f symlinks.mk install DESTDIR=/tmp/image BINDIR=/opt/cni/bin LINK=symbolic"
)]
struct Symlinks {}

/// Arguments of `cni-all generate completions`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "completions",
    help_triggers("-h", "--help"),
    description = "print completions for a shell",
    example = "source <({command_name} bash)",
    example = "{command_name} zsh >~/.zfunc/_cni-all",
    example = "{command_name} fish >~/.config/fish/completions/cni-all.fish"
)]
struct Completions {
    /// bash, zsh or fish
    #[argh(positional, arg_name = "SHELL")]
    shell: Shell,
}

/// Arguments of `cni-all generate man`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "man",
    help_triggers("-h", "--help"),
    description = "print the manual page",
    example = "{command_name} | man -l -"
)]
struct Man {}

/// Arguments of `cni-all generate schema`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "schema",
    help_triggers("-h", "--help"),
    description = "print the JSON Schema of network configurations\n\n\
        One document for lists and single configurations, for editors; each plugin's part is in $defs.",
    example = "{command_name} >packaging/schema/cni.schema.json"
)]
struct Schema {}

/// A shell that has completions.
#[derive(Clone, Copy, Debug, FromArgValue)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Generate {
    /// Prints what was asked for.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        let text = match &self.what {
            What::Symlinks(Symlinks {}) => symlinks::text(),
            What::Man(Man {}) => man::text(),
            What::Schema(Schema {}) => match schema::text() {
                Ok(text) => text,
                Err(e) => return fail(process, "cni-all generate schema", &e),
            },
            What::Completions(Completions { shell: Shell::Bash }) => completions::bash(),
            What::Completions(Completions { shell: Shell::Zsh }) => completions::zsh(),
            What::Completions(Completions { shell: Shell::Fish }) => completions::fish(),
        };
        print(process, &text)
    }
}
