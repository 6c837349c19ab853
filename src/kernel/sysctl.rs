//! Settings under /proc/sys of the calling thread's network namespace.

use std::{
    fs::{self, File},
    io::Read,
};

use crate::cni::{Error, Result};

/// Reads a setting, without the line end. `path` is relative to /proc/sys, with `/` between its parts, so that interface
/// names may have dots: `net/ipv6/conf/eth0.5/accept_ra`. A setting the kernel does not have is an error with
/// [`Error::is_gone`].
pub fn read(path: &str) -> Result<String> {
    let file = format!("/proc/sys/{path}");
    let failed = |e| Error::io(format_args!("read {file}"), &e);
    let mut value = [0; 128];
    // Values of network settings are short, and one read returns all there is.
    let length = File::open(&file).and_then(|mut f| f.read(&mut value)).map_err(failed)?;
    Ok(String::from_utf8_lossy(&value[..length]).trim_end().to_owned())
}

/// Writes a setting whatever its value.
pub fn write(path: &str, value: &str) -> Result<()> {
    let file = format!("/proc/sys/{path}");
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
