//! Reading JSON the way the Go plugins do, so that configurations written for them mean the same here.
//!
//! Differences from plain serde_json, all of them Go's `encoding/json` rules (reference: core.md T1, T2, T5, T6):
//! keys of known structures match without regard to case; of several values for one key the last wins, objects being
//! merged; `null` means "not given", and in a list or map of booleans, numbers or text the empty value; numbers keep their text; integers must be written as integers.
//! Failures name the place: `ipam.ranges[0][1].subnet: expected a string, found the number 5`.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::value::RawValue;

use super::error::{Code, Error, Result};
use crate::decimal::scaled;

/// Nesting deeper than this is refused: no configuration needs it, and it bounds the stack.
const MAX_DEPTH: usize = 64;

/// A JSON document with object members in document order (duplicates included) and numbers as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, its text unchanged.
    Number(String),
    /// A string.
    String(String),
    /// A list.
    Array(Vec<Value>),
    /// An object: members in document order, duplicate keys kept.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Parses one JSON document. Bytes that are not UTF-8 become U+FFFD, as in Go.
    ///
    /// # Errors
    /// [`Code::DECODING`] with line and column.
    pub fn parse(bytes: &[u8]) -> Result<Value> {
        let text = String::from_utf8_lossy(bytes);
        if text.trim_ascii().is_empty() {
            return Err(Error::new(Code::DECODING, "the network configuration on standard input is empty"));
        }
        let raw: &RawValue = serde_json::from_str(&text).map_err(|e| {
            Error::new(Code::DECODING, format!("the network configuration is not valid JSON: {e}"))
        })?;
        Value::from_raw(raw.get(), 0).map_err(|e| {
            Error::new(Code::DECODING, format!("the network configuration is not valid JSON: {e}"))
        })
    }

    fn from_raw(text: &str, depth: usize) -> Result<Value, serde_json::Error> {
        if depth > MAX_DEPTH {
            return Err(de::Error::custom(format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(match text.as_bytes().first() {
            Some(b'{') => {
                let members: Members = serde_json::from_str(text)?;
                let members = members.0.into_iter();
                let members =
                    members.map(|(k, v)| Ok((k.into_owned(), Value::from_raw(v.get(), depth + 1)?)));
                Value::Object(members.collect::<Result<_, serde_json::Error>>()?)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                let items = items.into_iter().map(|v| Value::from_raw(v.get(), depth + 1));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            Some(b'"') => Value::String(serde_json::from_str(text)?),
            Some(b't') => Value::Bool(true),
            Some(b'f') => Value::Bool(false),
            Some(b'n') => Value::Null,
            _ => Value::Number(text.to_owned()),
        })
    }

    /// The value of an object's member, matched as for a structure's field; `None` when absent or null.
    pub fn get(&self, key: &str) -> Option<Cow<'_, Value>> {
        match self {
            Value::Object(members) => field(members, key),
            _ => None,
        }
    }

    /// Decodes the value into `T`; see the module for the rules.
    ///
    /// # Errors
    /// [`Code::DECODING`] for a wrong JSON type, [`Code::INVALID_CONFIG`] for a value that is not valid; the message
    /// begins with the path of the offending key.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(Node { value: self, floats: false }).map_err(Error::from)
    }

    /// As [`Value::read`], but integers may be written `1500.0` or `1.5e3`: Go decodes `prevResult` through floats.
    ///
    /// # Errors
    /// As for [`Value::read`].
    pub fn read_result<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(Node { value: self, floats: true }).map_err(Error::from)
    }

    /// The value as JSON without white space: members in their order, numbers as they were written.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Number(text) => out.push_str(text),
            Value::String(text) => write_string(text, out),
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    out.push(if i == 0 { '[' } else { ',' });
                    item.write(out);
                }
                out.push_str(if items.is_empty() { "[]" } else { "]" });
            }
            Value::Object(members) => {
                for (i, (key, value)) in members.iter().enumerate() {
                    out.push(if i == 0 { '{' } else { ',' });
                    write_string(key, out);
                    out.push(':');
                    value.write(out);
                }
                out.push_str(if members.is_empty() { "{}" } else { "}" });
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            Value::Null => "null".to_owned(),
            Value::Bool(b) => format!("the boolean {b}"),
            Value::Number(n) => format!("the number {n}"),
            Value::String(s) => format!("the string {s:?}"),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
        }
    }
}

/// Writes a JSON string: quotes, backslashes and control characters escaped (RFC 8259, section 7).
fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// An object's members as written.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> de::Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// All values given for one field, later ones over earlier ones, objects merged; `None` when absent or only null.
fn field<'a>(members: &'a [(String, Value)], name: &str) -> Option<Cow<'a, Value>> {
    let values =
        members.iter().filter(|(key, value)| key.eq_ignore_ascii_case(name) && *value != Value::Null);
    values.map(|(_, value)| Cow::Borrowed(value)).reduce(|earlier, later| match (&*earlier, &*later) {
        (Value::Object(first), Value::Object(second)) => {
            Cow::Owned(Value::Object(first.iter().chain(second).cloned().collect()))
        }
        _ => later,
    })
}

/// Why a value could not be decoded, and where.
#[derive(Debug)]
struct Mismatch {
    path: String,
    msg: String,
    code: Code,
}

impl Mismatch {
    /// Puts a key in front of the path.
    fn at_key(mut self, key: &str) -> Mismatch {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{key}{dot}{}", self.path);
        self
    }

    /// Puts a list index in front of the path.
    fn at_index(mut self, index: usize) -> Mismatch {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("[{index}]{dot}{}", self.path);
        self
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => f.write_str(&self.msg),
            false => write!(f, "{}: {}", self.path, self.msg),
        }
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(msg: T) -> Mismatch {
        Mismatch { path: String::new(), msg: msg.to_string(), code: Code::INVALID_CONFIG }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Mismatch {
        let found = match unexpected {
            Unexpected::Bool(b) => format!("the boolean {b}"),
            Unexpected::Unsigned(n) => format!("the number {n}"),
            Unexpected::Signed(n) => format!("the number {n}"),
            Unexpected::Str(s) => format!("the string {s:?}"),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "an object".to_owned(),
            Unexpected::Other(text) => text.to_owned(),
            other => other.to_string(),
        };
        let msg = format!("expected {expected}, found {found}");
        Mismatch { path: String::new(), msg, code: Code::DECODING }
    }
}

impl From<Mismatch> for Error {
    fn from(mismatch: Mismatch) -> Error {
        Error::new(mismatch.code, mismatch.to_string())
    }
}

/// A value being decoded. `floats`: integers may be written as floats with an integral value.
#[derive(Clone, Copy)]
struct Node<'a> {
    value: &'a Value,
    floats: bool,
}

impl Node<'_> {
    fn wrong_type(self, expected: &str) -> Mismatch {
        let msg = format!("expected {expected}, found {}", self.value.describe());
        // null is "not given", so what is wrong with it is not its type.
        let code = if *self.value == Value::Null { Code::INVALID_CONFIG } else { Code::DECODING };
        Mismatch { path: String::new(), msg, code }
    }

    fn integer(self) -> Result<i128, Mismatch> {
        let text = match self.value {
            Value::Number(text) => text,
            Value::Null => return Ok(0),
            _ => return Err(self.wrong_type("an integer")),
        };
        if let Ok(number) = text.parse::<i128>() {
            return Ok(number);
        }
        match scaled(text, 0).filter(|_| self.floats) {
            Some((number, true)) => Ok(number.into()),
            _ => Err(self.wrong_type("an integer")),
        }
    }
}

macro_rules! integers {
    ($($method:ident => $visit:ident: $int:ty, $what:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            match <$int>::try_from(self.integer()?) {
                Ok(number) => visitor.$visit(number),
                Err(_) => Err(self.wrong_type($what)),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(text) => match self.integer().map(i64::try_from) {
                Ok(Ok(number)) => visitor.visit_i64(number),
                _ => Err(de::Error::invalid_type(Unexpected::Other(&format!("the number {text}")), &visitor)),
            },
            Value::String(s) => visitor.visit_str(s),
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Object(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Null => visitor.visit_bool(false),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    integers! {
        deserialize_i8 => visit_i8: i8, "an integer from -128 to 127";
        deserialize_i16 => visit_i16: i16, "an integer of 16 bits";
        deserialize_i32 => visit_i32: i32, "an integer of 32 bits";
        deserialize_i64 => visit_i64: i64, "an integer of 64 bits";
        deserialize_u8 => visit_u8: u8, "an integer from 0 to 255";
        deserialize_u16 => visit_u16: u16, "an integer from 0 to 65535";
        deserialize_u32 => visit_u32: u32, "an integer from 0 to 4294967295";
        deserialize_u64 => visit_u64: u64, "an integer of 64 bits, not negative";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::String(s) => visitor.visit_str(s),
            Value::Null => visitor.visit_str(""),
            _ => Err(self.wrong_type("a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Array(items) => visitor.visit_seq(Items { items, next: 0, floats: self.floats }),
            _ => Err(self.wrong_type("a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::Object(members) => visitor.visit_map(Entries { members, next: 0, floats: self.floats }),
            _ => Err(self.wrong_type("an object")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        #[cfg(test)]
        read_keys::note(fields);
        match self.value {
            Value::Object(members) => visitor.visit_map(Fields {
                members,
                fields: fields.iter(),
                current: None,
                floats: self.floats,
            }),
            _ => Err(self.wrong_type("an object")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match self.value {
            Value::String(s) if variants.contains(&s.as_str()) => {
                visitor.visit_enum(s.as_str().into_deserializer())
            }
            Value::String(s) => {
                Err(de::Error::custom(format_args!("{s:?} is none of {}", variants.join(", "))))
            }
            _ => Err(self.wrong_type("a string")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple_struct identifier
    }
}

/// The items of a list.
struct Items<'a> {
    items: &'a [Value],
    next: usize,
    floats: bool,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mismatch> {
        let Some(value) = self.items.get(self.next) else { return Ok(None) };
        self.next += 1;
        seed.deserialize(Node { value, floats: self.floats }).map(Some).map_err(|e| e.at_index(self.next - 1))
    }
}

/// The members of an object read as a map: every key, in document order.
struct Entries<'a> {
    members: &'a [(String, Value)],
    next: usize,
    floats: bool,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        let Some((key, _)) = self.members.get(self.next) else { return Ok(None) };
        self.next += 1;
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let (key, value) = &self.members[self.next - 1];
        seed.deserialize(Node { value, floats: self.floats }).map_err(|e| e.at_key(key))
    }
}

/// The members of an object read as a structure: its fields in declaration order, those that are given.
struct Fields<'a> {
    members: &'a [(String, Value)],
    fields: std::slice::Iter<'static, &'static str>,
    current: Option<(&'static str, Cow<'a, Value>)>,
    floats: bool,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mismatch> {
        for name in self.fields.by_ref() {
            if let Some(value) = field(self.members, name) {
                self.current = Some((name, value));
                return seed.deserialize(name.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let Some((name, value)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(Node { value: &value, floats: self.floats }).map_err(|e| e.at_key(name))
    }
}

/// Which keys decoders look for, so that tests can compare that with the tables of keys.
#[cfg(test)]
pub mod read_keys {
    use std::cell::RefCell;

    thread_local!(static NOTED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) });

    pub(super) fn note(fields: &'static [&'static str]) {
        NOTED.with_borrow_mut(|noted| noted.extend(fields));
    }

    /// The keys that this thread's decoders looked for while `work` ran.
    pub fn during(work: impl FnOnce()) -> Vec<&'static str> {
        NOTED.take();
        work();
        NOTED.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug, PartialEq, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Wire {
        is_gateway: bool,
        mtu: i64,
        ipam: Ipam,
        names: Vec<String>,
        table: Option<u32>,
    }

    #[derive(Deserialize, Debug, PartialEq, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Ipam {
        r#type: String,
        subnet: String,
        range_start: String,
    }

    fn read(text: &str) -> Result<Wire> {
        Value::parse(text.as_bytes())?.read()
    }

    #[test]
    fn keys_match_without_regard_to_case() {
        let wire =
            read(r#"{"ISGATEWAY":true,"Mtu":1400,"IPAM":{"Type":"host-local","RangeStart":"x"}}"#).unwrap();
        assert!(wire.is_gateway && wire.mtu == 1400);
        assert_eq!((wire.ipam.r#type.as_str(), wire.ipam.range_start.as_str()), ("host-local", "x"));
    }

    #[test]
    fn the_last_of_duplicate_keys_wins_and_objects_merge() {
        let text = r#"{"mtu":1,"ipam":{"type":"a","subnet":"s"},"MTU":2,"Ipam":{"type":"b"},"mtu":null,"ipam":null}"#;
        let wire = read(text).unwrap();
        assert_eq!((wire.mtu, wire.ipam.r#type.as_str(), wire.ipam.subnet.as_str()), (2, "b", "s"));
    }

    #[test]
    fn null_means_not_given() {
        assert_eq!(
            read(r#"{"isGateway":null,"mtu":null,"ipam":null,"names":null,"table":null}"#).unwrap(),
            Wire::default()
        );
    }

    #[test]
    fn a_wrong_type_is_named_with_its_path() {
        let err = read(r#"{"ipam":{"subnet":5}}"#).unwrap_err();
        assert_eq!(err.msg(), "ipam.subnet: expected a string, found the number 5");
        assert_eq!(err.code(), Code::DECODING);
        let err = read(r#"{"names":["a",{}]}"#).unwrap_err();
        assert_eq!(err.msg(), "names[1]: expected a string, found an object");
    }

    #[test]
    fn integers_must_be_written_as_integers_except_in_results() {
        for text in [r#"{"mtu":5.0}"#, r#"{"mtu":1e3}"#, r#"{"mtu":"5"}"#, r#"{"mtu":99999999999999999999}"#]
        {
            assert_eq!(read(text).unwrap_err().code(), Code::DECODING, "{text}");
        }
        let value = Value::parse(br#"{"mtu":1.5e3}"#).unwrap();
        assert_eq!(value.read_result::<Wire>().unwrap().mtu, 1500);
    }

    #[test]
    fn what_is_not_one_json_document_is_refused() {
        for text in ["", "  ", "{", "{}{}", "[1,]", "\u{feff}{}", "{} \0", "// c\n{}", "{\"a\":1,}"] {
            assert_eq!(Value::parse(text.as_bytes()).unwrap_err().code(), Code::DECODING, "{text:?}");
        }
        assert!(Value::parse(b" {} \n").is_ok());
        assert!(Value::parse(&b"[".repeat(100_000)).is_err());
        assert!(Value::parse([&b"[".repeat(1000)[..], &b"]".repeat(1000)[..]].concat().as_slice()).is_err());
    }

    #[test]
    fn unknown_keys_and_huge_numbers_in_them_are_kept_as_text() {
        let value = Value::parse(br#"{"x":12345678901234567890123.50}"#).unwrap();
        assert_eq!(*value.get("x").unwrap(), Value::Number("12345678901234567890123.50".into()));
        assert!(value.read::<Wire>().is_ok());
    }

    #[test]
    fn bytes_that_are_not_utf8_become_replacement_characters() {
        let value = Value::parse(b"{\"x\":\"a\xff\"}").unwrap();
        assert_eq!(*value.get("x").unwrap(), Value::String("a\u{fffd}".into()));
    }

    #[test]
    fn what_is_written_back_says_the_same_and_keeps_numbers() {
        let text = r#"{"a":[],"b":{},"n":[1.50,12345678901234567890,-0,1e400],"s":"\u0001\"\\é","t":[true,false,null]}"#;
        let value = Value::parse(text.as_bytes()).unwrap();
        assert_eq!(value.to_text(), text);
        assert_eq!(Value::parse(value.to_text().as_bytes()).unwrap(), value);
    }
}
