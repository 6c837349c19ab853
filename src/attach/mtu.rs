//! `mtu` of interface plugins: a number of bytes, or `"auto"`.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::cni::{Error, Result};
use crate::kernel::rtnl::{Handle, Link};

/// The most that a link's MTU could be (`IFLA_MTU` has 32 bits).
const MAX: i64 = u32::MAX as i64;

/// `mtu` as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtu {
    /// 0 or nothing: the kernel's choice.
    #[default]
    Unset,
    /// This many bytes; may be negative, which plugins take differently.
    Bytes(i64),
    /// That of the way out: see [`of_default_route`].
    Auto,
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mtu, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Mtu;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer or \"auto\"")
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Mtu, E> {
                match bytes {
                    0 => Ok(Mtu::Unset),
                    ..=MAX => Ok(Mtu::Bytes(bytes)),
                    _ => Err(E::custom(format_args!("{bytes} is out of range"))),
                }
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Mtu, E> {
                match word {
                    "auto" => Ok(Mtu::Auto),
                    _ => Err(E::invalid_type(de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(Written)
    }
}

/// An MTU where only a number makes sense: bytes, 0 and less for "not set".
///
/// # Errors
/// [`crate::cni::Code::INVALID_CONFIG`] for one that no link can have.
pub fn of_number(written: i64) -> Result<Option<u32>> {
    match written {
        ..=0 => Ok(None),
        n => u32::try_from(n).map(Some).map_err(|_| Error::config(format!("mtu: {n} is out of range"))),
    }
}

impl Mtu {
    /// For a link of its own, such as a veth: negative numbers mean "not set". `host` is the namespace whose default
    /// route counts.
    ///
    /// # Errors
    /// Routes cannot be listed.
    pub fn bytes(self, host: &mut Handle) -> Result<Option<u32>> {
        match self {
            Mtu::Unset => Ok(None),
            Mtu::Bytes(bytes) => Ok(u32::try_from(bytes).ok()),
            Mtu::Auto => of_default_route(host),
        }
    }

    /// For a link on top of `lower`, which bounds it.
    ///
    /// # Errors
    /// [`crate::cni::Code::INVALID_CONFIG`] for a number that is negative or more than `lower` has.
    pub fn on(self, lower: &Link, host: &mut Handle) -> Result<Option<u32>> {
        match self {
            Mtu::Unset => Ok(None),
            Mtu::Bytes(bytes) => match u32::try_from(bytes) {
                Ok(bytes) if bytes <= lower.mtu => Ok(Some(bytes)),
                _ => Err(Error::config(format!(
                    "mtu: {bytes} is not from 0 to {}, the MTU of {:?}",
                    lower.mtu, lower.name
                ))),
            },
            Mtu::Auto => Ok(of_default_route(host)?.map(|mtu| mtu.min(lower.mtu))),
        }
    }
}

/// What fits through the default route: its own MTU if it has one, else its link's, whichever of several is least.
/// `None` without a default route.
///
/// # Errors
/// Routes or links cannot be read.
pub fn of_default_route(host: &mut Handle) -> Result<Option<u32>> {
    let Some(route) = host.default_routes()?.into_iter().next() else { return Ok(None) };
    let own = Some(route.mtu).filter(|mtu| *mtu > 0);
    let mut least = own;
    for index in route.oif.into_iter().chain(route.nexthops.iter().map(|hop| hop.dev.index)) {
        let mtu = host.link_by_index(index)?.map(|link| link.mtu);
        least = least.into_iter().chain(mtu).min();
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::Code;
    use crate::cni::json::Value;

    fn read(json: &str) -> Result<Mtu> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Wire {
            mtu: Mtu,
        }
        Value::parse(json.as_bytes())?.read::<Wire>().map(|wire| wire.mtu)
    }

    #[test]
    fn a_number_or_the_word_auto_is_read() {
        for (json, mtu) in [
            ("{}", Mtu::Unset),
            (r#"{"mtu":null}"#, Mtu::Unset),
            (r#"{"mtu":0}"#, Mtu::Unset),
            (r#"{"MTU":1400}"#, Mtu::Bytes(1400)),
            (r#"{"mtu":-1}"#, Mtu::Bytes(-1)),
            (r#"{"mtu":"auto"}"#, Mtu::Auto),
        ] {
            assert_eq!(read(json), Ok(mtu), "{json}");
        }
    }

    #[test]
    fn other_words_and_types_are_refused_by_name() {
        for (json, found) in [
            (r#"{"mtu":"1400"}"#, "the string \"1400\""),
            (r#"{"mtu":true}"#, "the boolean true"),
            (r#"{"mtu":[]}"#, "a list"),
        ] {
            let err = read(json).unwrap_err();
            let expected = format!("mtu: expected an integer or \"auto\", found {found}");
            assert_eq!((err.code(), err.msg()), (Code::DECODING, expected.as_str()));
        }
        let err = read(r#"{"mtu":4294967296}"#).unwrap_err();
        assert_eq!((err.code(), err.msg()), (Code::INVALID_CONFIG, "mtu: 4294967296 is out of range"));
    }
}
