//! `docker-run`: a container of docker or podman whose network CNI plugins make.
//!
//! A container that only sleeps, started without network, holds the namespace; the wanted one joins it. All arguments are
//! those of `docker run`; the script's settings are variables: `CNI_ALL_ENGINE` (docker, or else podman) and
//! `CNI_ALL_IMAGE` (busybox:latest, which must have /bin/sleep).

use std::process::{Command, Output, Stdio};

use super::scripts::Attached;
use crate::cli::networks::variable;
use crate::cli::run::command::{Outcome, Signals, run_here};
use crate::cni::{Error, Result, ResultExt};
use crate::personality::Process;

/// Exit status when the network could not be set up, as of container engines.
const FAILED: i32 = 125;

/// A container that holds a network namespace; removed by [`Holder::remove`].
struct Holder {
    engine: String,
    id: String,
}

/// `docker-run ARGUMENT…`: as `docker run ARGUMENT…`; its exit status.
pub fn run(args: &[String], process: &mut Process<'_>) -> i32 {
    match prepare(process) {
        Ok((holder, signals)) => {
            let outcome = attach_and_run(&holder, args, &signals, process);
            let removed = holder.remove();
            let status = outcome.unwrap_or_else(|e| fail(process, &e));
            if let Err(e) = removed {
                let _ = fail(process, &e);
            }
            status
        }
        Err(e) => fail(process, &e),
    }
}

fn prepare(process: &Process<'_>) -> Result<(Holder, Signals)> {
    let engine = variable(process, "CNI_ALL_ENGINE").map_or_else(|| engine(process), Ok)?;
    let image = variable(process, "CNI_ALL_IMAGE").unwrap_or_else(|| "busybox:latest".to_owned());
    // What is wrong with the configurations is said before anything is started.
    Attached::prepare("none", "", process)?;
    let signals = Signals::block()?;
    let id = output(&engine, &["run", "-d", "--net=none", &image, "/bin/sleep", "10000000"])?;
    Ok((Holder { engine, id }, signals))
}

fn attach_and_run(
    holder: &Holder,
    args: &[String],
    signals: &Signals,
    process: &mut Process<'_>,
) -> Result<i32> {
    let pid = output(&holder.engine, &["inspect", "-f", "{{ .State.Pid }}", &holder.id])?;
    let attached = Attached::prepare(&holder.id, &format!("/proc/{pid}/ns/net"), process)?;
    attached.add()?;
    let mut command = Command::new(&holder.engine);
    command.arg("run").arg(format!("--net=container:{}", holder.id)).args(args);
    let status = match run_here(&mut command, signals) {
        Ok(Outcome::Ended(status)) => Ok(status),
        Ok(Outcome::NotStarted(e)) => Err(Error::io(format_args!("start {}", holder.engine), &e)),
        Err(e) => Err(e),
    };
    if let Err(e) = attached.del() {
        let _ = fail(process, &e);
    }
    status
}

impl Holder {
    fn remove(&self) -> Result<()> {
        output(&self.engine, &["rm", "-f", &self.id]).map(drop)
    }
}

/// The first of docker and podman that is installed.
fn engine(process: &Process<'_>) -> Result<String> {
    let path = variable(process, "PATH").unwrap_or_default();
    let installed = |name: &&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    ["docker", "podman"]
        .into_iter()
        .find(installed)
        .map(str::to_owned)
        .ok_or_else(|| Error::internal("neither docker nor podman is on PATH"))
}

/// What a command of the engine prints, without the line end.
fn output(engine: &str, args: &[&str]) -> Result<String> {
    let what = format!("{engine} {}", args.join(" "));
    let ran = Command::new(engine).args(args).stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } = ran.map_err(|e| Error::io(&what, &e))?;
    match status.success() {
        true => Ok(String::from_utf8_lossy(&stdout).trim().to_owned()),
        false => Err(Error::internal(String::from_utf8_lossy(&stderr).trim().to_owned())).context(what),
    }
}

fn fail(process: &mut Process<'_>, err: &Error) -> i32 {
    let _ = writeln!(process.stderr, "docker-run: {err}");
    FAILED
}
