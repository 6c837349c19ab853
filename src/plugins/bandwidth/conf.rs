//! What is limited, and to what.

use ipnet::IpNet;
use serde::Deserialize;

use crate::cni::{Error, Request, Result};

/// Keys as written, at top level or in `runtimeConfig.bandwidth`. Rates are bits per second, bursts bits.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Keys {
    ingress_rate: Option<u64>,
    ingress_burst: Option<u64>,
    egress_rate: Option<u64>,
    egress_burst: Option<u64>,
    shaped_subnets: Option<Vec<String>>,
    unshaped_subnets: Option<Vec<String>>,
}

impl Keys {
    fn has_limits(&self) -> bool {
        [self.ingress_rate, self.ingress_burst, self.egress_rate, self.egress_burst]
            .iter()
            .any(Option::is_some)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    runtime_config: RuntimeConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    bandwidth: Option<Keys>,
}

/// The limits of an attachment. Directions are the container's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Towards the container; `None`: as fast as it goes.
    pub ingress: Option<Limit>,
    /// From the container.
    pub egress: Option<Limit>,
    /// What the limits count.
    pub subnets: Subnets,
}

/// One direction's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes per second, at least 1.
    pub rate: u64,
    /// Bytes that may pass at once after silence.
    pub burst: u32,
}

/// Which traffic is limited, by the address of the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Subnets {
    /// All of it.
    #[default]
    All,
    /// Only with these networks.
    Only(Vec<IpNet>),
    /// All but with these networks.
    Except(Vec<IpNet>),
}

impl Limits {
    /// Reads the limits of a request: those of the configuration itself if it names any, be it as 0; else those of
    /// `runtimeConfig.bandwidth`. The subnets are the configuration's unless only `runtimeConfig` has any.
    ///
    /// # Errors
    /// [`crate::cni::Code::INVALID_CONFIG`] naming key and value, [`crate::cni::Code::DECODING`] for a wrong JSON type.
    pub fn new(req: &Request) -> Result<Limits> {
        let own: Keys = req.config.read()?;
        let runtime = req.config.read::<Wire>()?.runtime_config.bandwidth.unwrap_or_default();
        const RUNTIME: &str = "runtimeConfig.bandwidth.";
        let (limits, at) = if own.has_limits() { (&own, "") } else { (&runtime, RUNTIME) };
        let has_subnets = own.shaped_subnets.is_some() || own.unshaped_subnets.is_some();
        let (subnets, subnets_at) = if has_subnets { (&own, "") } else { (&runtime, RUNTIME) };
        Ok(Limits {
            ingress: limit(at, "ingress", limits.ingress_rate, limits.ingress_burst)?,
            egress: limit(at, "egress", limits.egress_rate, limits.egress_burst)?,
            subnets: subnets_of(subnets_at, subnets)?,
        })
    }

    /// Neither direction is limited.
    pub fn is_none(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

fn limit(at: &str, direction: &str, rate: Option<u64>, burst: Option<u64>) -> Result<Option<Limit>> {
    let (rate, burst) = (rate.unwrap_or(0), burst.unwrap_or(0));
    let key = |which: &str| format!("{at}{direction}{which}");
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (0, _) => {
            return Err(Error::config(format!("{}: {burst} without {}", key("Burst"), key("Rate"))));
        }
        (_, 0) => return Err(Error::config(format!("{}: {rate} without {}", key("Rate"), key("Burst")))),
        (1..8, _) => {
            return Err(Error::config(format!(
                "{}: {rate} bit/s is less than one byte per second",
                key("Rate")
            )));
        }
        (_, 1..8) => {
            return Err(Error::config(format!("{}: {burst} bits are less than one byte", key("Burst"))));
        }
        _ => {}
    }
    let bytes = u32::try_from(burst / 8).ok().filter(|bytes| *bytes < u32::MAX);
    let Some(burst) = bytes else {
        return Err(Error::config(format!("{}: {burst} bits are more than 4 GiB", key("Burst"))));
    };
    Ok(Some(Limit { rate: rate / 8, burst }))
}

fn subnets_of(at: &str, keys: &Keys) -> Result<Subnets> {
    let parse = |key: &str, list: &Option<Vec<String>>| -> Result<Vec<IpNet>> {
        let net = |(i, text): (usize, &String)| {
            text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| {
                Error::config(format!("{at}{key}[{i}]: {text:?} is not a network such as \"10.1.0.0/16\""))
            })
        };
        list.iter().flatten().enumerate().map(net).collect()
    };
    let shaped = parse("shapedSubnets", &keys.shaped_subnets)?;
    let unshaped = parse("unshapedSubnets", &keys.unshaped_subnets)?;
    match (shaped.is_empty(), unshaped.is_empty()) {
        (true, true) => Ok(Subnets::All),
        (false, true) => Ok(Subnets::Only(shaped)),
        (true, false) => Ok(Subnets::Except(unshaped)),
        (false, false) => {
            Err(Error::config(format!("{at}shapedSubnets and {at}unshapedSubnets cannot both be given")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::{Accepts, Environment, Version};

    fn limits(keys: &str) -> Result<Limits> {
        let env = Environment::read(|name| match name {
            "CNI_COMMAND" => Some("STATUS".to_owned()),
            "CNI_PATH" => Some("x".to_owned()),
            _ => None,
        });
        let stdin = format!(r#"{{"cniVersion":"1.1.0","name":"n","type":"bandwidth"{keys}}}"#);
        let accepts = Accepts { versions: Version::ALL, nameless: false };
        Limits::new(&Request::new(env?, stdin.into_bytes(), accepts)?)
    }

    #[test]
    fn bits_become_bytes_and_zero_is_no_limit() {
        let both = limits(r#","ingressRate":8000,"ingressBurst":87,"egressRate":0,"egressBurst":0"#).unwrap();
        assert_eq!(both.ingress, Some(Limit { rate: 1000, burst: 10 }));
        assert!(both.egress.is_none() && !both.is_none());
        assert!(limits("").unwrap().is_none());
        let most = limits(r#","egressRate":18446744073709551615,"egressBurst":34359738352"#).unwrap();
        assert_eq!(most.egress, Some(Limit { rate: u64::MAX / 8, burst: u32::MAX - 1 }));
    }

    #[test]
    fn a_limit_at_top_level_hides_those_of_the_runtime_even_when_it_is_zero() {
        let runtime = r#","RuntimeConfig":{"bandWidth":{"ingressRate":8,"ingressBurst":8}}"#;
        assert_eq!(limits(runtime).unwrap().ingress, Some(Limit { rate: 1, burst: 1 }));
        assert!(limits(&format!(r#"{runtime},"egressRate":0"#)).unwrap().is_none());
        let subnets = limits(&format!(r#"{runtime},"unshapedSubnets":["10.1.2.3/16"]"#)).unwrap();
        assert_eq!(subnets.subnets, Subnets::Except(vec!["10.1.0.0/16".parse().unwrap()]));
        assert!(subnets.ingress.is_some());
    }

    #[test]
    fn what_cannot_be_is_refused_by_key_and_value() {
        for (keys, msg) in [
            (r#","ingressRate":8"#, "ingressRate: 8 without ingressBurst"),
            (r#","egressBurst":8"#, "egressBurst: 8 without egressRate"),
            (r#","egressRate":7,"egressBurst":8"#, "egressRate: 7 bit/s is less than one byte per second"),
            (r#","egressRate":8,"egressBurst":7"#, "egressBurst: 7 bits are less than one byte"),
            (
                r#","ingressRate":8,"ingressBurst":34359738360"#,
                "ingressBurst: 34359738360 bits are more than 4 GiB",
            ),
            (
                r#","runtimeConfig":{"bandwidth":{"egressRate":8}}"#,
                "runtimeConfig.bandwidth.egressRate: 8 without runtimeConfig.bandwidth.egressBurst",
            ),
            (
                r#","shapedSubnets":["10.0.0.0"]"#,
                r#"shapedSubnets[0]: "10.0.0.0" is not a network such as "10.1.0.0/16""#,
            ),
            (
                r#","shapedSubnets":["::/0"],"unshapedSubnets":["::/0"]"#,
                "shapedSubnets and unshapedSubnets cannot both be given",
            ),
        ] {
            assert_eq!(limits(keys).unwrap_err().msg(), msg);
        }
        assert_eq!(limits(r#","ingressRate":-1"#).unwrap_err().code(), crate::cni::Code::DECODING);
    }
}
