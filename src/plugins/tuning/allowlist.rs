//! Which settings an administrator lets configurations make: `/etc/cni/tuning/allowlist.conf`, a regular expression
//! (the syntax of RE2) on each line. Without the file everything below `net.` is allowed; an empty one allows nothing.

use std::path::Path;

use regex_lite::Regex;

use super::conf::Sysctl;
use crate::attach::state;
use crate::cni::{Error, Result};

/// The file.
const FILE: &str = "/etc/cni/tuning/allowlist.conf";

/// Refuses settings that are not on the list.
///
/// # Errors
/// The first such setting, with the list; a line that is no regular expression; the file cannot be read.
pub fn check(sysctls: &[Sysctl]) -> Result<()> {
    match state::read(Path::new(FILE))? {
        Some(content) => check_against(&String::from_utf8_lossy(&content), sysctls),
        None => Ok(()),
    }
}

fn check_against(content: &str, sysctls: &[Sysctl]) -> Result<()> {
    let lines = content.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    let patterns = lines.map(|(number, line)| {
        let at = number + 1;
        Regex::new(line).map_err(|e| Error::config(format!("{FILE} line {at}: {line:?}: {e}")))
    });
    let patterns: Vec<Regex> = patterns.collect::<Result<_>>()?;
    // As the Go plugin: anywhere in the name as it is written, IFNAME and all.
    match sysctls.iter().find(|sysctl| !patterns.iter().any(|p| p.is_match(&sysctl.name))) {
        None => Ok(()),
        Some(sysctl) => {
            let list: Vec<&str> = patterns.iter().map(Regex::as_str).collect();
            let msg = format!(
                "Sysctl {} is not allowed. Only the following sysctls are allowed: [{}]",
                sysctl.name,
                list.join(" ")
            );
            Err(Error::config(msg).with_details(format!("allowed are the expressions in {FILE}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &str, name: &str) -> Result<()> {
        let sysctl = Sysctl { name: name.into(), paths: vec![], value: "1".into() };
        check_against(content, &[sysctl])
    }

    #[test]
    fn expressions_match_anywhere_in_the_name_as_written() {
        let list = "  ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n\nsomaxconn\n(?i)NET\\/core\n";
        check(list, "net.ipv4.conf.IFNAME.arp_filter").unwrap();
        check(list, "net/core/somaxconn").unwrap();
        check(list, "net/core/wmem_max").unwrap();
        let err = check(list, "net.ipv4.conf.eth0.arp_filter").unwrap_err();
        assert!(err.msg().starts_with("Sysctl net.ipv4.conf.eth0.arp_filter is not allowed."), "{err}");
        assert!(err.msg().contains("somaxconn"));
    }

    #[test]
    fn an_empty_list_allows_nothing() {
        assert!(check("\n \n", "net.core.somaxconn").is_err());
        check_against("", &[]).unwrap();
    }

    #[test]
    fn a_bad_expression_is_an_error_with_its_line() {
        let err = check("net\n[a-\n", "net.core.somaxconn").unwrap_err();
        assert!(err.msg().contains("allowlist.conf line 2: \"[a-\": "), "{err}");
    }

    #[test]
    fn expressions_of_re2_are_understood() {
        for (expression, name, matches) in [
            ("^[[:alpha:]]+\\.core", "net.core.x", true),
            ("\\Anet\\.(?:core|ipv4)\\.\\w{2,}\\z", "net.ipv4.ip_forward", true),
            ("(?P<family>ipv[46])\\b", "net.ipv6.conf", true),
            ("net\\.ipv4\\.[^.]+$", "net.ipv4.conf.all.forwarding", false),
            ("(?s:.)\\x2eipv4", "net.ipv4.x", true),
        ] {
            assert_eq!(check(expression, name).is_ok(), matches, "{expression}");
        }
    }
}
