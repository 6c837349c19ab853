//! `cni-all generate`: text made from the table of plugins and the definitions of the commands.

mod completions;
mod man;
mod symlinks;

use argh::{ArgsInfo, FromArgValue, FromArgs};

use super::print;
use crate::personality::Process;

/// Arguments of `cni-all generate`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "generate",
    help_triggers("-h", "--help"),
    description = "print symlinks.mk, shell completions or the manual page",
    example = "{command_name} completions bash >/usr/share/bash-completion/completions/cni-all",
    example = "{command_name} man >/usr/share/man/man1/cni-all.1",
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
            What::Completions(Completions { shell: Shell::Bash }) => completions::bash(),
            What::Completions(Completions { shell: Shell::Zsh }) => completions::zsh(),
            What::Completions(Completions { shell: Shell::Fish }) => completions::fish(),
        };
        print(process, &text)
    }
}
