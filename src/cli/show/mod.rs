//! `cni-all show`: what is attached where, and what is stale.

mod draw;
pub mod gather;

use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};

use super::{fail, print};
use crate::cni::convert::pretty;
use crate::personality::Process;
use crate::runtime::Runtime;

/// Arguments of `cni-all show`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "show",
    help_triggers("-h", "--help"),
    description = "show networks, bridges, links, containers, addresses, port mappings and leases\n\n\
        Read from the configurations, the links' aliases, every network namespace that has a name or a process, \
        host-local's files, nftables and the results that runtimes keep. Nothing is changed.",
    example = "{command_name}",
    example = "{command_name} mynet --json",
    example = "{command_name} --svg >network.svg"
)]
pub struct Show {
    /// print JSON
    #[argh(switch)]
    json: bool,
    /// print a graph for graphviz
    #[argh(switch)]
    dot: bool,
    /// print a picture for a browser
    #[argh(switch)]
    svg: bool,
    /// where the configurations are; default: NETCONFPATH or /etc/cni/net.d
    #[argh(option, arg_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// where the results of ADD are kept; default: /var/lib/cni
    #[argh(option, arg_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// a network, a container's id, or the path of a namespace; default: everything
    #[argh(positional, arg_name = "NAME")]
    only: Option<String>,
}

impl Show {
    /// Looks and prints.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        if [self.json, self.dot, self.svg].iter().filter(|on| **on).count() > 1 {
            return super::usage(process, "cni-all show", "--json, --dot and --svg exclude each other");
        }
        let from_env = (process.env)("NETCONFPATH").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let dir = self.conf_dir.clone().or(from_env).unwrap_or_else(|| "/etc/cni/net.d".into());
        let mut runtime = Runtime::new(Vec::<PathBuf>::new());
        if let Some(dir) = &self.cache_dir {
            runtime.cache_dir.clone_from(dir);
        }
        let mut state = match gather::state(&dir, &runtime, None) {
            Ok(state) => state,
            Err(e) => return fail(process, "cni-all show", &e),
        };
        if let Some(only) = &self.only {
            state.keep(only);
            if state.networks.is_empty() && state.attachments.is_empty() {
                let e = crate::cni::Error::internal(format!(
                    "there is no network, container or namespace {only:?}"
                ));
                return fail(process, "cni-all show", &e);
            }
        }
        let text = match (self.json, self.dot, self.svg) {
            (true, ..) => match pretty(&state) {
                Ok(text) => text,
                Err(e) => return fail(process, "cni-all show", &e),
            },
            (_, true, _) => draw::dot(&state),
            (_, _, true) => draw::svg(&state),
            _ => draw::tree(&state),
        };
        print(process, &text)
    }
}
