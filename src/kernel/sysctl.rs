//! Settings under /proc/sys of the calling thread's network namespace.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use super::dry_run;
use crate::cni::{Error, Result};

/// Reads a setting, without the line end. `path` is relative to /proc/sys, with `/` between its parts, so that interface
/// names may have dots: `net/ipv6/conf/eth0.5/accept_ra`. A setting the kernel does not have is an error with
/// [`Error::is_gone`].
pub fn read(path: &str) -> Result<String> {
    if let Some(written) = dry_run::with(|recording| recording.setting(path)).flatten() {
        return Ok(written);
    }
    let file = file(path);
    let failed = |e| Error::io(format_args!("read {file}"), &e);
    let mut value = [0; 128];
    // Values of network settings are short, and one read returns all there is.
    let length = File::open(&file).and_then(|mut f| f.read(&mut value)).map_err(failed)?;
    Ok(String::from_utf8_lossy(&value[..length]).trim_end().to_owned())
}

/// Writes a setting whatever its value.
pub fn write(path: &str, value: &str) -> Result<()> {
    if dry_run::is_on() {
        // Nothing is written to a setting that there is not.
        read(path)?;
        dry_run::with(|recording| recording.set(path, value));
        return Ok(());
    }
    let file = file(path);
    let written = fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut f| std::io::Write::write_all(&mut f, value.as_bytes()));
    written.map_err(|e| Error::io(format_args!("write {value} to {file}"), &e))
}

/// Writes a setting unless it has the value: a read-only /proc/sys that is right is fine. True when it was written.
pub fn ensure(path: &str, value: &str) -> Result<bool> {
    if read(path)? == value {
        return Ok(false);
    }
    write(path, value)?;
    Ok(true)
}

/// The file of a setting. A link that would be made has the settings of new links.
fn file(path: &str) -> String {
    let file = format!("/proc/sys/{path}");
    if dry_run::is_on() && !Path::new(&file).exists() {
        let parts: Vec<&str> = path.split('/').collect();
        if let ["net", family, kind @ ("conf" | "neigh"), _, key] = parts.as_slice() {
            return format!("/proc/sys/net/{family}/{kind}/default/{key}");
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::private_netns::private_netns;

    #[test]
    fn a_setting_is_written_only_when_it_differs() {
        private_netns("a_setting_is_written_only_when_it_differs", || {
            let path = "net/ipv4/conf/lo/forwarding";
            let before = read(path).unwrap();
            let other = if before == "1" { "0" } else { "1" };
            assert_eq!(ensure(path, &before), Ok(false));
            assert_eq!(ensure(path, other), Ok(true));
            assert_eq!(read(path), Ok(other.to_owned()));
            assert_eq!(ensure(path, other), Ok(false));
        });
    }

    #[test]
    fn a_setting_that_the_kernel_lacks_is_gone_and_named() {
        let err = ensure("net/ipv4/conf/no-such-link/forwarding", "1").unwrap_err();
        assert!(err.is_gone());
        assert!(err.msg().starts_with("read /proc/sys/net/ipv4/conf/no-such-link/forwarding: "), "{err}");
    }

    #[test]
    fn a_refused_value_names_value_and_file() {
        private_netns("a_refused_value", || {
            let err = ensure("net/ipv4/conf/lo/forwarding", "x").unwrap_err();
            assert!(err.msg().starts_with("write x to /proc/sys/net/ipv4/conf/lo/forwarding: "), "{err}");
        });
    }
}
