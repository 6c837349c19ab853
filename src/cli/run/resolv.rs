//! /etc/resolv.conf as the command sees it (resolv.conf(5)).

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::cni::{Dns, Error, Result};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Puts a file with these settings over /etc/resolv.conf, in a mount namespace that the calling thread gets for itself.
///
/// Equivalent to: `unshare -m`, `mount --bind FILE /etc/resolv.conf`
///
/// # Errors
/// What could not be done.
pub fn cover(dns: &Dns) -> Result<()> {
    if !Path::new(RESOLV_CONF).exists() {
        let msg = format!("the network names DNS servers, and there is no {RESOLV_CONF} to put them over");
        return Err(Error::internal(msg));
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| Error::system("unshare(CLONE_NEWNS)", e))?;
    // The host must not see the mount below; later mounts of the host may still arrive.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|e| Error::system("mount --make-rslave /", e))?;
    let path = std::env::temp_dir().join(format!("cni-all-resolv.conf.{}", std::process::id()));
    let failed = |e: std::io::Error| Error::io(format_args!("write {}", path.display()), &e);
    let _ = fs::remove_file(&path);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    let written = file
        .write_all(text(dns).as_bytes())
        .and_then(|()| file.set_permissions(Permissions::from_mode(0o644)))
        .map_err(failed);
    let mounted = written.and_then(|()| {
        mount(Some(&path), RESOLV_CONF, none, MsFlags::MS_BIND, none)
            .map_err(|e| Error::system(format_args!("mount --bind {} {RESOLV_CONF}", path.display()), e))
    });
    // The mount holds the file; its name is needed no more.
    let _ = fs::remove_file(&path);
    mounted
}

fn text(dns: &Dns) -> String {
    let mut out: String = dns.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !dns.domain.is_empty() {
        out.push_str(&format!("domain {}\n", dns.domain));
    }
    for (keyword, words) in [("search", &dns.search), ("options", &dns.options)] {
        if !words.is_empty() {
            out.push_str(&format!("{keyword} {}\n", words.join(" ")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_written_as_resolv_conf_wants_them() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let dns = Dns {
            nameservers: words(&["10.1.0.1", "fd00::1"]),
            domain: "example.org".to_owned(),
            search: words(&["a.example", "b.example"]),
            options: words(&["ndots:5"]),
        };
        let expected = "nameserver 10.1.0.1\nnameserver fd00::1\ndomain example.org\n\
                        search a.example b.example\noptions ndots:5\n";
        assert_eq!(text(&dns), expected);
        assert_eq!(text(&Dns::default()), "");
    }
}
