//! `exec-plugins` and `priv-net-run`, the scripts of the CNI repository (reference: core.md 4.7), without jq and a shell.
//!
//! Networks are all `*.conf` files of `NETCONFPATH` in order of names, attached as eth0, eth1, …: numbers count files,
//! loopback's included. Differences: what was attached before a failure is detached again; DEL goes backwards, with the
//! result of ADD; every file is tried on DEL; an own namespace has no name.

use std::path::PathBuf;

use crate::cli::networks::{self, Options};
use crate::cli::run::Session;
use crate::cni::{Error, Result};
use crate::personality::Process;
use crate::runtime::{Attachment, NetworkList, Runtime};

/// A container and the networks that the scripts attach it to.
pub struct Attached {
    runtime: Runtime,
    networks: Vec<(NetworkList, Attachment)>,
}

impl Attached {
    /// What would be attached; nothing is done yet.
    ///
    /// # Errors
    /// A configuration cannot be used.
    pub fn prepare(container_id: &str, netns: &str, process: &Process<'_>) -> Result<Attached> {
        let capability_args = networks::capability_args(process, None)?;
        let args = networks::args(process, None)?;
        let attachment = |(n, network): (usize, NetworkList)| {
            let attachment = Attachment {
                args: args.clone(),
                capability_args: capability_args.clone(),
                ..Attachment::new(container_id, netns, format!("eth{n}"))
            };
            (network, attachment)
        };
        let networks = configured(process)?.into_iter().enumerate().map(attachment).collect();
        Ok(Attached { runtime: networks::runtime(process, Options::default()), networks })
    }

    /// ADD for each network; when one fails, those before it are detached.
    ///
    /// # Errors
    /// The failure, as the script says it.
    pub fn add(&self) -> Result<()> {
        for (n, (network, attachment)) in self.networks.iter().enumerate() {
            if let Err(e) = self.runtime.add(network, attachment) {
                let failed = self.del_last(n).err();
                let e = e.context(format_args!("{} : error executing ADD", network.name));
                return Err(match failed {
                    None => e,
                    Some(left) => e.with_left(&left),
                });
            }
        }
        Ok(())
    }

    /// DEL for each network, last one first.
    ///
    /// # Errors
    /// All failures together.
    pub fn del(&self) -> Result<()> {
        self.del_last(self.networks.len())
    }

    fn del_last(&self, count: usize) -> Result<()> {
        let failures = self.networks.iter().take(count).rev().filter_map(|(network, attachment)| {
            let failed = self.runtime.del(network, attachment).err()?;
            Some(failed.context(format_args!("{} : error executing DEL", network.name)))
        });
        Error::all(failures.collect()).map_or(Ok(()), Err)
    }

    fn check(&self) -> Result<()> {
        self.networks.iter().try_for_each(|(network, attachment)| {
            let what = format!("{} : error executing CHECK", network.name);
            self.runtime.check(network, attachment).map_err(|e| e.context(what))
        })
    }
}

/// `exec-plugins add|del|check CONTAINER-ID NETNS-PATH`; as the script, it reports on standard output.
pub fn exec_plugins(args: &[String], process: &mut Process<'_>) -> i32 {
    let [verb, container_id, netns] = args else {
        let usage = "Usage: exec-plugins add|del CONTAINER-ID NETNS-PATH\n  \
                     Adds or deletes the container specified by NETNS-PATH to the networks\n  \
                     specified in $NETCONFPATH directory\n";
        let _ = process.stdout.write_all(usage.as_bytes());
        return 1;
    };
    let operate = |attached: Attached| match verb.to_ascii_lowercase().as_str() {
        "add" => attached.add(),
        "del" => attached.del(),
        "check" => attached.check(),
        _ => Err(Error::config(format!("unknown command {verb:?}; there are: add, del, check"))),
    };
    let done = Attached::prepare(container_id, netns, process).and_then(operate);
    done.map_or_else(
        |e| {
            let _ = writeln!(process.stdout, "{e}");
            1
        },
        |()| 0,
    )
}

/// `priv-net-run COMMAND…`: a command in a namespace of its own; its exit status.
pub fn priv_net_run(args: &[String], process: &mut Process<'_>) -> i32 {
    if args.is_empty() {
        let _ = writeln!(process.stderr, "Usage: priv-net-run COMMAND [ARGUMENT...]");
        return 1;
    }
    let runtime = networks::runtime(process, Options::default());
    let session =
        configured(process).and_then(|networks| Session::new("priv-net-run", networks, runtime, false));
    match session {
        Ok(session) => session.run(args, process),
        Err(e) => {
            let _ = writeln!(process.stderr, "priv-net-run: {e}");
            1
        }
    }
}

/// All `*.conf` files of the directory of configurations, in order of names.
fn configured(process: &Process<'_>) -> Result<Vec<NetworkList>> {
    let dir = networks::conf_dir(process, None);
    let failed = |e: std::io::Error| Error::io(format_args!("read {}", dir.display()), &e);
    let mut files = std::fs::read_dir(&dir)
        .map_err(failed)?
        .map(|entry| entry.map(|e| e.path()).map_err(failed))
        .collect::<Result<Vec<PathBuf>>>()?;
    files.retain(|file| file.extension().is_some_and(|e| e == "conf"));
    files.sort_unstable();
    match files.is_empty() {
        true => Err(Error::config(format!("there are no *.conf files in {}", dir.display()))),
        false => files.iter().map(|file| NetworkList::load(file)).collect(),
    }
}
