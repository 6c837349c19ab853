//! dhcp: addresses from DHCP and router advertisements (reference: ipam-and-meta.md 4).
//!
//! The plugin is a short-lived process that asks a long-lived one, `dhcp daemon`, which keeps the leases alive. The clients
//! are pure state machines (`v4/machine.rs`, `v6/machine.rs`, `v6/slaac.rs`); `daemon/` gives them sockets, time and files.

mod clock;
pub mod command;
mod conf;
mod daemon;
mod frame;
#[cfg(test)]
mod fuzzed;
mod leases;
mod names;
mod options;
mod outcome;
mod packet_socket;
mod rpc;
mod v4;
mod v6;
mod wanted;

use std::path::Path;
use std::time::{Duration, Instant};

use self::conf::Conf;
use self::daemon::Record;
use self::rpc::Op;
use super::keys::Key;
use super::{Kind, Plugin};
use crate::cni::{CniResult, Code, Error, Request, Result};
use crate::kernel::{Kernel, dry_run};

pub use self::conf::{Daemon, SOCKET};
pub use self::rpc::may_start;

/// How long a daemon may take between holding its leases and listening, when it starts and when it ends.
const TURNOVER: Duration = Duration::from_secs(2);

/// The plugin.
pub struct Dhcp;

impl Plugin for Dhcp {
    fn name(&self) -> &'static str {
        "dhcp"
    }

    fn kind(&self) -> Kind {
        Kind::Ipam
    }

    fn about(&self) -> &'static str {
        "addresses from a DHCP server, kept alive by a daemon"
    }

    fn keys(&self) -> &'static [Key] {
        conf::KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[]
    }

    fn needs_link(&self) -> bool {
        true
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::read(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::read(req)?;
        CniResult::fits(true, req.config.version)?;
        if dry_run::is_on() {
            let msg = "a dry run asks no DHCP server, so the address and what follows from it are not known";
            return Err(Error::new(Code::UNSUPPORTED_FIELD, msg));
        }
        let daemon = rpc::connect_or_start(&conf.socket, conf.daemon)?;
        rpc::call(daemon, &conf.socket, Op::Add(Box::new(conf.wanted)))
            .and_then(|answer| answer.result())
            .inspect_err(|e| {
                // A daemon that answers has given back what it had; of one that has died there are records.
                if !e.is_answer() {
                    let _ = self.del(req, kernel);
                }
            })
    }

    /// Without a daemon nothing is renewed; what an earlier one has left behind is released here.
    fn del(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let key = conf::owner(req);
        release(&Conf::socket(req), Op::Del(key.clone()), &|record| record.wanted.key == key)
    }

    fn check(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let conf = Conf::read(req)?;
        let Some(daemon) = rpc::connect(&conf.socket)? else {
            let socket = conf.socket.display();
            let msg = format!("dhcp daemon at {socket}: nobody listens, so the lease is not renewed");
            return Err(Error::new(Code::CHECK_FAILED, msg));
        };
        let found = rpc::call(daemon, &conf.socket, Op::Check(conf.wanted.key))?.result()?;
        let prev = req.config.prev_result()?.unwrap_or_default();
        for ip in &found.ips {
            if !prev.ips.is_empty() && !prev.ips.iter().any(|p| p.address == ip.address) {
                let msg = format!("{} is leased, but not in prevResult", ip.address);
                return Err(Error::new(Code::CHECK_FAILED, msg));
            }
        }
        Ok(())
    }

    fn gc(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let Some(valid) = req.config.valid_attachments()? else { return Ok(()) };
        let socket = Conf::socket(req);
        let valid: Vec<(String, String)> = valid.into_iter().map(|v| (v.container_id, v.ifname)).collect();
        let network = req.config.name.clone();
        let op = Op::Gc { network: network.clone(), valid: valid.clone() };
        release(&socket, op, &|record| record.wanted.key.is_stale(&network, &valid))
    }

    fn status(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let conf = Conf::read(req)?;
        let unavailable = |e: Error| e.with_code(Code::NOT_AVAILABLE);
        match rpc::connect(&conf.socket).map_err(unavailable)? {
            Some(daemon) => rpc::call(daemon, &conf.socket, Op::Status).map(drop).map_err(unavailable),
            None if may_start(&conf.socket, conf.daemon) => Ok(()),
            None => {
                let msg = format!("dhcp daemon at {}: nobody listens", conf.socket.display());
                Err(Error::new(Code::NOT_AVAILABLE, msg))
            }
        }
    }

    fn command(&self) -> Option<super::OwnCommand> {
        Some(command::run)
    }
}

/// Lets the daemon release something, or does it for a daemon that is not there (any more). One that is just coming or
/// going is waited for.
fn release(socket: &Path, op: Op, wanted: &dyn Fn(&Record) -> bool) -> Result<()> {
    if dry_run::is_on() {
        match &op {
            Op::Del(key) => {
                dry_run::note(format_args!("CNI_COMMAND=DEL dhcp  # release the lease of {}", key.container))
            }
            _ => dry_run::note(format_args!("CNI_COMMAND=GC dhcp  # release what is not valid any more")),
        }
        return Ok(());
    }
    let deadline = Instant::now() + TURNOVER;
    loop {
        let answered = rpc::connect(socket)?.map(|daemon| rpc::call(daemon, socket, op.clone()).map(drop));
        let outcome = match answered {
            Some(Err(e)) if e.code() == Code::TRY_AGAIN => Err(e),
            Some(outcome) => return outcome,
            None => match daemon::release_without(socket, wanted) {
                Err(e) if e.code() == Code::TRY_AGAIN => Err(e),
                outcome => return outcome,
            },
        };
        if Instant::now() >= deadline {
            return outcome;
        }
        std::thread::sleep(TURNOVER / 100);
    }
}
