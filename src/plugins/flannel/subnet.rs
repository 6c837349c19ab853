//! The node's subnet, as the flannel daemon tells it: `/run/flannel/subnet.env`, a variable on each line.

use std::path::Path;

use ipnet::IpNet;

use crate::attach::state;
use crate::cni::{Code, Error, Result};

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// Networks of the whole cluster, IPv4 first.
    pub networks: Vec<IpNet>,
    /// This node's share of them, one for each family, IPv4 first.
    pub subnets: Vec<IpNet>,
    /// Bytes.
    pub mtu: u32,
    /// The daemon masquerades what leaves the cluster's networks.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Code::TRY_AGAIN`] when there is none (yet); line and variable that are not valid; variables that are missing.
    pub fn read(file: &str) -> Result<SubnetEnv> {
        match state::read(Path::new(file))? {
            Some(content) => SubnetEnv::parse(file, &String::from_utf8_lossy(&content)),
            None => Err(Error::new(Code::TRY_AGAIN, format!("there is no {file}"))
                .with_details("the flannel daemon writes it when it has got the node's subnet: see its log")),
        }
    }

    fn parse(file: &str, content: &str) -> Result<SubnetEnv> {
        let (mut v4_networks, mut v6_networks) = (Vec::new(), Vec::new());
        let (mut v4_subnet, mut v6_subnet, mut mtu, mut ip_masq) = (None, None, None, None);
        for (number, line) in content.lines().enumerate() {
            let line = line.trim();
            let (variable, value) = line.split_once('=').unwrap_or((line, ""));
            let fault =
                |what: String| Error::internal(format!("{file} line {}: {variable}: {what}", number + 1));
            let net = |text: &str| match text.parse::<IpNet>() {
                Ok(net) => Ok(net.trunc()),
                Err(_) => Err(fault(format!("{text:?} is not an address with a prefix length"))),
            };
            match variable {
                "FLANNEL_NETWORK" => v4_networks = networks(value, net)?,
                "FLANNEL_IPV6_NETWORK" => v6_networks = networks(value, net)?,
                "FLANNEL_SUBNET" => v4_subnet = Some(net(value)?),
                "FLANNEL_IPV6_SUBNET" => v6_subnet = Some(net(value)?),
                "FLANNEL_MTU" => {
                    let number = value.parse::<u32>();
                    mtu = Some(number.map_err(|_| fault(format!("{value:?} is not a number of bytes")))?);
                }
                "FLANNEL_IPMASQ" if line.contains('=') => ip_masq = Some(value == "true"),
                "FLANNEL_IPMASQ" => return Err(fault("a value is missing".to_owned())),
                _ => {}
            }
        }
        let networks: Vec<IpNet> = v4_networks.into_iter().chain(v6_networks).collect();
        let subnets: Vec<IpNet> = v4_subnet.into_iter().chain(v6_subnet).collect();
        let mut missing = Vec::new();
        if networks.is_empty() {
            missing.push("FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK");
        }
        if subnets.is_empty() {
            missing.push("FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET");
        }
        let (Some(mtu), Some(ip_masq), true) = (mtu, ip_masq, missing.is_empty()) else {
            missing.extend(mtu.is_none().then_some("FLANNEL_MTU"));
            missing.extend(ip_masq.is_none().then_some("FLANNEL_IPMASQ"));
            return Err(Error::internal(format!("{file} is missing {}", missing.join(", "))));
        };
        Ok(SubnetEnv { networks, subnets, mtu, ip_masq })
    }
}

/// A list separated by commas; equal networks once.
fn networks(value: &str, net: impl Fn(&str) -> Result<IpNet>) -> Result<Vec<IpNet>> {
    let mut found = Vec::new();
    for text in value.split(',') {
        let net = net(text.trim())?;
        if !found.contains(&net) {
            found.push(net);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn parse(content: &str) -> Result<SubnetEnv> {
        SubnetEnv::parse("subnet.env", content)
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn one_family_is_read_as_the_daemon_writes_it() {
        let env = parse(GOOD).unwrap();
        assert_eq!((env.networks, env.subnets), (nets(&["10.244.0.0/16"]), nets(&["10.244.1.0/24"])));
        assert_eq!((env.mtu, env.ip_masq), (1450, true));
    }

    #[test]
    fn both_families_several_networks_and_other_variables_are_read() {
        let text = "# comment\nFLANNEL_IPV6_SUBNET=fd00:1::1/64\nFLANNEL_IPV6_NETWORK=fd00::/48\nOTHER=1\n\
                    FLANNEL_NETWORK=10.244.0.0/16,10.4.5.6/16, 10.244.9.9/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=True\n";
        let env = parse(text).unwrap();
        assert_eq!(env.networks, nets(&["10.244.0.0/16", "10.4.0.0/16", "fd00::/48"]));
        assert_eq!(env.subnets, nets(&["10.244.1.0/24", "fd00:1::/64"]));
        assert!(!env.ip_masq, "only true is true");
    }

    #[test]
    fn every_missing_variable_is_named() {
        let err = parse("").unwrap_err();
        assert_eq!(
            err.msg(),
            "subnet.env is missing FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK, \
             FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
        );
        for variable in ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"] {
            let without: Vec<&str> = GOOD.lines().filter(|line| !line.starts_with(variable)).collect();
            let err = parse(&without.join("\n")).unwrap_err();
            assert!(err.msg().starts_with(&format!("subnet.env is missing {variable}")), "{err}");
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        for (line, named) in [
            ("FLANNEL_MTU=abc", "line 5: FLANNEL_MTU: \"abc\" is not a number of bytes"),
            ("FLANNEL_MTU", "line 5: FLANNEL_MTU: \"\" is not a number of bytes"),
            ("FLANNEL_SUBNET=10.244.1.1", "line 5: FLANNEL_SUBNET: \"10.244.1.1\" is not an address"),
            ("FLANNEL_NETWORK=10.0.0.0/8,x", "line 5: FLANNEL_NETWORK: \"x\" is not an address"),
            ("FLANNEL_IPV6_SUBNET=", "line 5: FLANNEL_IPV6_SUBNET: \"\" is not an address"),
            ("FLANNEL_IPMASQ", "line 5: FLANNEL_IPMASQ: a value is missing"),
        ] {
            let err = parse(&format!("{GOOD}{line}\n")).unwrap_err();
            assert!(err.msg().starts_with(&format!("subnet.env {named}")), "{err}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_yet_is_worth_another_try() {
        let err = SubnetEnv::read("/nonexistent/subnet.env").unwrap_err();
        assert_eq!((err.code(), err.msg()), (Code::TRY_AGAIN, "there is no /nonexistent/subnet.env"));
    }
}
