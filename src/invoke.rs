//! Runs the plugin that a `type` names: in this process if it is us, else as an executable found on `CNI_PATH`
//! (CNI spec, section 4 "Plugin delegation"; reference: core.md 3.6, 4.5). Both ways give equal results.

mod supervise;

use std::fs::Metadata;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};

use serde::Deserialize;

use crate::cni::json::Value;
use crate::cni::version::negotiate;
use crate::cni::{CniResult, Code, Command, Error, Execution, Request, Result, ResultExt, Version};
use crate::kernel::{Kernel, dry_run, lock};
use crate::log::phase;
use crate::plugins::{self, Plugin};

/// Where a plugin type was found.
enum Found {
    /// It is one of ours, and no other file stands before it on `CNI_PATH`.
    Ours(&'static dyn Plugin),
    /// Another executable.
    Executable(PathBuf),
}

/// Runs `plugin_type` for `req`, whose `command` says which verb. ADD gives a result, the others nothing.
///
/// # Errors
/// The plugin's own error, code and all; [`Code::INVALID_CONFIG`] when there is no such plugin.
pub fn run(plugin_type: &str, req: &Request, kernel: &mut Kernel) -> Result<Option<CniResult>> {
    match find(plugin_type, &req.path, &req.execution)? {
        Found::Ours(plugin) => {
            negotiate(req.command, req.config.version.as_str(), plugin.versions())?;
            let call = || lock::patiently(req.execution.timeout, || plugins::call(plugin, req, kernel));
            phase(plugin_type, call)
        }
        Found::Executable(path) => phase(&format!("exec {plugin_type}"), || execute(&path, plugin_type, req)),
    }
}

/// As [`run`], with another verb than the request's own.
///
/// # Errors
/// As for [`run`].
pub fn run_as(
    command: Command,
    plugin_type: &str,
    req: &Request,
    kernel: &mut Kernel,
) -> Result<Option<CniResult>> {
    match req.command == command {
        true => run(plugin_type, req, kernel),
        false => run(plugin_type, &Request { command, ..req.clone() }, kernel),
    }
}

/// Whether there is such a plugin, and the versions of the protocol that it speaks. Another executable is asked
/// (VERSION), with `execution`.
///
/// # Errors
/// There is none, or its answer cannot be understood.
pub fn versions(plugin_type: &str, cni_path: &str, execution: &Execution) -> Result<Vec<String>> {
    let path = match find(plugin_type, cni_path, execution)? {
        Found::Ours(plugin) => return Ok(plugin.versions().iter().map(ToString::to_string).collect()),
        Found::Executable(path) => path,
    };
    // The oldest plugins want all variables, and a configuration.
    let mut process = Process::new(&path);
    process.env("CNI_COMMAND", Command::Version.as_str()).env("CNI_PATH", cni_path);
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        process.env(name, "dummy");
    }
    process.envs(execution.environment.iter().map(|(name, value)| (name, value)));
    let stdin = format!("{{\"cniVersion\":\"{}\"}}", Version::LATEST);
    let output = supervise::run(&mut process, stdin.as_bytes(), execution.timeout).context(plugin_type)?;
    if !output.status.success() {
        return Err(failure(plugin_type, &output).context(plugin_type));
    }
    supported(&output.stdout).context(plugin_type)
}

/// Whether there is such a plugin.
///
/// # Errors
/// There is none.
pub fn exists(plugin_type: &str, cni_path: &str, execution: &Execution) -> Result<()> {
    find(plugin_type, cni_path, execution).map(drop)
}

/// Whether it runs in this process: then an ADD of it that fails has taken back what it did.
pub fn is_ours(plugin_type: &str, cni_path: &str, execution: &Execution) -> bool {
    matches!(find(plugin_type, cni_path, execution), Ok(Found::Ours(_)))
}

/// The answer to VERSION.
fn supported(stdout: &[u8]) -> Result<Vec<String>> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Wire {
        cni_version: String,
        supported_versions: Vec<String>,
    }
    let wire: Wire =
        Value::parse(stdout).and_then(|answer| answer.read()).context("the answer to VERSION")?;
    match (wire.cni_version.as_str(), wire.supported_versions.as_slice()) {
        ("", _) => Err(Error::new(Code::DECODING, "the answer to VERSION lacks cniVersion")),
        // The spec of that time had no list.
        ("0.2.0", []) => Ok(vec!["0.1.0".to_owned(), "0.2.0".to_owned()]),
        (_, []) => Err(Error::new(Code::DECODING, "the answer to VERSION lacks supportedVersions")),
        _ => Ok(wire.supported_versions),
    }
}

/// The first regular file of that name on `CNI_PATH`; if that is our own executable, or there is none, the built-in
/// plugin. The built-in one at once where that is preferred.
fn find(plugin_type: &str, cni_path: &str, execution: &Execution) -> Result<Found> {
    if plugin_type.is_empty() {
        return Err(Error::config("no plugin name provided"));
    }
    if plugin_type.contains('/') || plugin_type == "." || plugin_type == ".." {
        return Err(Error::config(format!("invalid plugin name: {plugin_type:?}")));
    }
    if let Some(plugin) = plugins::find(plugin_type).filter(|_| execution.prefer_built_in) {
        return Ok(Found::Ours(plugin));
    }
    let dirs: Vec<&str> = cni_path.split(':').filter(|dir| !dir.is_empty()).collect();
    let files = dirs.iter().map(|dir| Path::new(dir).join(plugin_type));
    let first = files
        .into_iter()
        .find_map(|path| std::fs::metadata(&path).ok().filter(Metadata::is_file).map(|m| (path, m)));
    match (first, plugins::find(plugin_type)) {
        (Some((_, file)), Some(plugin)) if is_own_executable(&file) => Ok(Found::Ours(plugin)),
        (Some((path, _)), _) => Ok(Found::Executable(path)),
        (None, Some(plugin)) => Ok(Found::Ours(plugin)),
        (None, None) => {
            let msg = format!("failed to find plugin {plugin_type:?} in path [{}]", dirs.join(" "));
            Err(Error::config(msg)
                .with_details("CNI_PATH lists the directories that plugins are looked for in"))
        }
    }
}

fn is_own_executable(file: &Metadata) -> bool {
    std::fs::metadata("/proc/self/exe").is_ok_and(|own| (own.dev(), own.ino()) == (file.dev(), file.ino()))
}

/// Starts `path` as the protocol says: our environment with this request's `CNI_*` variables, the configuration's
/// original bytes on standard input.
fn execute(path: &Path, plugin_type: &str, req: &Request) -> Result<Option<CniResult>> {
    if dry_run::is_on() {
        dry_run::note(format_args!(
            "CNI_COMMAND={} {}  # another program: what it would change is not known",
            req.command,
            path.display()
        ));
        return Ok(req.config.prev_result()?.filter(|_| req.command == Command::Add));
    }
    let output = start(path, req).context(plugin_type)?;
    if !output.status.success() {
        return Err(failure(plugin_type, &output));
    }
    let mut stderr = std::io::stderr().lock();
    // The delegate's log belongs to ours; that it cannot be written is no reason to fail.
    let _ = stderr.write_all(&output.stderr);
    match req.command {
        Command::Add => result_of(&output.stdout, req.config.version).context(plugin_type).map(Some),
        _ => Ok(None),
    }
}

fn start(path: &Path, req: &Request) -> Result<Output> {
    let mut process = Process::new(path);
    process
        .env("CNI_COMMAND", req.command.as_str())
        .env("CNI_CONTAINERID", &req.container_id)
        .env("CNI_NETNS", &req.netns)
        .env("CNI_IFNAME", &req.ifname)
        .env("CNI_ARGS", &req.raw_args)
        .env("CNI_PATH", &req.path)
        .envs(req.execution.environment.iter().map(|(name, value)| (name, value)));
    supervise::run(&mut process, &req.stdin, req.execution.timeout)
}

/// The error object a failed plugin printed; without one, what can be said from its standard error.
fn failure(plugin_type: &str, output: &Output) -> Error {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Wire {
        code: u32,
        msg: String,
        details: String,
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stderr = stderr.trim();
    if output.stdout.is_empty() {
        return Error::internal(match stderr {
            "" => format!("netplugin failed with no error message: {plugin_type}: {}", output.status),
            text => format!("netplugin failed: {text:?}"),
        });
    }
    match Value::parse(&output.stdout).and_then(|v| v.read::<Wire>()) {
        Ok(wire) => {
            // 0 says that nothing is known: ours is never 0, so that callers can tell it from success.
            let code = if wire.code == 0 { Code::INTERNAL } else { Code(wire.code) };
            Error::new(code, wire.msg).with_details(wire.details).answered()
        }
        Err(e) => Error::internal(format!(
            "netplugin failed but error parsing its diagnostic message {:?}: {e}",
            String::from_utf8_lossy(&output.stdout)
        )),
    }
}

/// A plugin's result in any version it chose; without `cniVersion` it is the request's.
fn result_of(stdout: &[u8], requested: Version) -> Result<CniResult> {
    let value = match Value::parse(stdout).map_err(|e| e.context("the result is not JSON"))? {
        Value::Null => return Ok(CniResult::default()),
        value => value,
    };
    let version = match value.get("cniVersion").as_deref() {
        None => requested,
        Some(Value::String(text)) if text.is_empty() => requested,
        Some(Value::String(text)) => Version::from_text(text)
            .ok_or_else(|| Error::new(Code::DECODING, format!("unsupported CNI result version {text:?}")))?,
        Some(_) => return Err(Error::new(Code::DECODING, "the result's cniVersion is not a string")),
    };
    CniResult::from_json(&value, version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn failed(stdout: &str, stderr: &str) -> Error {
        let status = ExitStatus::from_raw(256);
        failure("x", &Output { status, stdout: stdout.into(), stderr: stderr.into() })
    }

    #[test]
    fn a_delegates_error_object_passes_through() {
        let err = failed(r#"{"Code":11,"MSG":"busy","details":"d","cniVersion":"9"}"#, "log");
        assert_eq!((err.code(), err.msg(), err.details()), (Code::TRY_AGAIN, "busy", "d"));
        assert!(err.is_answer() && !failed("", "").is_answer() && !failed("{", "").is_answer());
        assert_eq!(failed("{}", "").code(), Code::INTERNAL);
    }

    #[test]
    fn a_delegate_that_says_nothing_useful_is_quoted() {
        assert_eq!(failed("", "boom\n").msg(), r#"netplugin failed: "boom""#);
        assert_eq!(failed("", "").msg(), "netplugin failed with no error message: x: exit status: 1");
        assert!(failed("oops", "").msg().contains(r#"diagnostic message "oops""#));
    }

    #[test]
    fn a_plugin_that_is_nowhere_is_named_with_the_path() {
        let msg = |t: &str| {
            find(t, ":/nowhere::/a", &Execution::default())
                .err()
                .map(|e| e.msg().to_owned())
                .unwrap_or_default()
        };
        assert_eq!(msg("no-such"), r#"failed to find plugin "no-such" in path [/nowhere /a]"#);
        assert_eq!(msg(""), "no plugin name provided");
        assert_eq!(msg("a/b"), r#"invalid plugin name: "a/b""#);
    }

    #[test]
    fn a_delegates_result_is_read_in_the_version_it_names() {
        let old = br#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}"#;
        assert_eq!(result_of(old, Version::V1_1_0).unwrap().ips.len(), 1);
        assert_eq!(result_of(br#"{"ip4":{"ip":"10.0.0.2/24"}}"#, Version::V0_2_0).unwrap().ips.len(), 1);
        assert_eq!(result_of(b"null", Version::V1_1_0).unwrap(), CniResult::default());
        assert!(result_of(br#"{"cniVersion":"9.0.0"}"#, Version::V1_1_0).is_err());
        assert!(result_of(b"", Version::V1_1_0).is_err());
    }
}
