//! A D-Bus client as small as firewalld needs it: method calls with strings to the system bus, and their answers.
//!
//! Its own, because the crates for this (zbus, dbus with its C library, rustbus) are each larger than all it does here:
//! `AUTH EXTERNAL`, `Hello`, and calls whose arguments are strings and whose answer is a string or a boolean
//! (D-Bus specification, "Message Protocol", "Authentication Protocol", "Server Addresses").

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use nix::unistd::Uid;

use crate::cni::{Error, Result};
use crate::hex::hex;

/// Where the system bus is when `DBUS_SYSTEM_BUS_ADDRESS` does not say.
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket;unix:path=/var/run/dbus/system_bus_socket";
/// How long the bus itself may take to answer.
const BUS_LIMIT: Duration = Duration::from_secs(5);
/// How long a service may take: what libdbus waits, too.
const CALL_LIMIT: Duration = Duration::from_secs(25);
/// No message that is of interest here is longer, in bytes.
const MESSAGE_MAX: usize = 1 << 20;

/// Message types.
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
/// Flag of a call: the bus does not start a service that is not running.
const NO_AUTO_START: u8 = 2;
/// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A method of an object of a service.
#[derive(Clone, Copy, Debug)]
pub struct Method<'a> {
    /// The service: `org.freedesktop.DBus`.
    pub destination: &'a str,
    /// The object: `/org/freedesktop/DBus`.
    pub path: &'a str,
    /// The interface that the method belongs to.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
}

/// The bus's own method of that name.
fn bus_method(member: &str) -> Method<'_> {
    let name = "org.freedesktop.DBus";
    Method { destination: name, path: "/org/freedesktop/DBus", interface: name, member }
}

/// What a method answers, as far as it matters here: its first value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A string.
    Text(String),
    /// A boolean.
    Bool(bool),
    /// Nothing, or something else.
    Other,
    /// An error: its name, and the text that comes with it.
    Error(String, String),
}

/// A connection to the system bus.
#[derive(Debug)]
pub struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
}

impl Bus {
    /// Connects to the first of the addresses that answers, as the process's user.
    ///
    /// # Errors
    /// The last address's failure.
    pub fn system(addresses: Option<&str>) -> Result<Bus> {
        let written = addresses.filter(|text| !text.is_empty()).unwrap_or(SYSTEM_BUS);
        let mut last = Error::internal(format!("D-Bus address {written:?} names no bus"));
        for address in written.split(';').filter(|text| !text.is_empty()) {
            match connect(address) {
                Ok(stream) => {
                    let mut bus = Bus { stream: BufReader::new(stream), serial: 0 };
                    match bus.greet() {
                        Ok(()) => return Ok(bus),
                        Err(e) => last = e.context(format_args!("D-Bus at {address}")),
                    }
                }
                Err(e) => last = Error::io(format_args!("connect to D-Bus at {address}"), &e),
            }
        }
        Err(last)
    }

    /// Says who we are, and gets a name of the bus. All in one go: the bus reads on after `BEGIN`.
    fn greet(&mut self) -> Result<()> {
        let deadline = Instant::now() + BUS_LIMIT;
        let uid = hex(Uid::effective().to_string().as_bytes());
        let mut bytes = format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").into_bytes();
        let serial = self.next_serial();
        bytes.extend(call_message(&bus_method("Hello"), &[], serial));
        self.send(&bytes, deadline).map_err(|e| failed("log in", &e))?;
        let line = self.line(deadline).map_err(|e| failed("log in", &e))?;
        if !line.starts_with("OK ") {
            return Err(Error::internal(format!("log in: {}", line.trim_end())));
        }
        match self.answer(serial, deadline).map_err(|e| failed("log in", &e))? {
            Answer::Error(name, text) => Err(Error::internal(format!("log in: {name}: {text}"))),
            _ => Ok(()),
        }
    }

    /// Whether some process has that name; none is started for it.
    ///
    /// # Errors
    /// The connection broke.
    pub fn has_owner(&mut self, name: &str) -> Result<bool> {
        let answer = self.call_within(&bus_method("GetNameOwner"), &[name], BUS_LIMIT)?;
        Ok(matches!(answer, Answer::Text(_)))
    }

    /// Calls a method with strings as arguments.
    ///
    /// # Errors
    /// The connection broke, or no answer came in time. An error that the service answers is an [`Answer`].
    pub fn call(&mut self, method: &Method, arguments: &[&str]) -> Result<Answer> {
        self.call_within(method, arguments, CALL_LIMIT)
    }

    fn call_within(&mut self, method: &Method, arguments: &[&str], limit: Duration) -> Result<Answer> {
        let deadline = Instant::now() + limit;
        let serial = self.next_serial();
        let bytes = call_message(method, arguments, serial);
        let answered = self.send(&bytes, deadline).and_then(|()| self.answer(serial, deadline));
        answered.map_err(|e| {
            let Method { destination, member, .. } = method;
            failed(format_args!("D-Bus call {destination} {member} {}", arguments.join(" ")), &e)
        })
    }

    fn next_serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    fn send(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let stream = self.stream.get_mut();
        stream.set_write_timeout(Some(left(deadline)?))?;
        stream.write_all(bytes)
    }

    fn read(&mut self, length: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        self.stream.get_ref().set_read_timeout(Some(left(deadline)?))?;
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// A line of the authentication protocol.
    fn line(&mut self, deadline: Instant) -> io::Result<String> {
        self.stream.get_ref().set_read_timeout(Some(left(deadline)?))?;
        let mut line = Vec::new();
        self.stream.by_ref().take(512).read_until(b'\n', &mut line)?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Waits for the answer to a call. Signals and whatever else comes is skipped.
    fn answer(&mut self, serial: u32, deadline: Instant) -> io::Result<Answer> {
        loop {
            let mut message = self.read(16, deadline)?;
            let length = message_length(&message).ok_or_else(malformed)?;
            message.extend(self.read(length - 16, deadline)?);
            let parsed = Message::parse(&message).ok_or_else(malformed)?;
            if parsed.reply_serial == serial && matches!(parsed.kind, METHOD_RETURN | ERROR) {
                return Ok(parsed.answer());
            }
        }
    }
}

/// A connection's failure; that of a read that waited long enough has an errno of another meaning.
fn failed(what: impl std::fmt::Display, err: &io::Error) -> Error {
    match err.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Error::internal(format!("{what}: no answer in time"))
        }
        _ => Error::io(what, err),
    }
}

/// What is left of the time; an error when nothing is.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a D-Bus message")
}

/// Connects to one address: `unix:path=/run/dbus/system_bus_socket`, `unix:abstract=…`.
fn connect(address: &str) -> io::Result<UnixStream> {
    let unsupported = || io::Error::new(io::ErrorKind::Unsupported, "neither unix:path= nor unix:abstract=");
    let values = address.strip_prefix("unix:").ok_or_else(unsupported)?;
    for (key, value) in values.split(',').filter_map(|pair| pair.split_once('=')) {
        let value = unescaped(value);
        match key {
            "path" => {
                return UnixStream::connect_addr(&SocketAddr::from_pathname(std::ffi::OsStr::new(&value))?);
            }
            "abstract" => return UnixStream::connect_addr(&SocketAddr::from_abstract_name(&value)?),
            _ => {}
        }
    }
    Err(unsupported())
}

/// A value of an address: `%20` is a space.
fn unescaped(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match digits.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Values one after the other, each at a multiple of its size.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: u32) {
        self.align(4);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.number(text.len() as u32);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }
}

/// A METHOD_CALL message, little-endian.
fn call_message(method: &Method, arguments: &[&str], serial: u32) -> Vec<u8> {
    let mut body = Writer::default();
    for argument in arguments {
        body.string(argument);
    }
    let signature = "s".repeat(arguments.len());
    // The fields start at a multiple of eight, where alignment is that of a message of their own.
    let mut fields = Writer::default();
    for (code, kind, value) in [
        (PATH, "o", method.path),
        (DESTINATION, "s", method.destination),
        (INTERFACE, "s", method.interface),
        (MEMBER, "s", method.member),
        (SIGNATURE, "g", signature.as_str()),
    ] {
        if value.is_empty() {
            continue;
        }
        fields.align(8);
        fields.0.push(code);
        fields.signature(kind);
        match kind {
            "g" => fields.signature(value),
            _ => fields.string(value),
        }
    }
    let mut message = Writer(vec![b'l', METHOD_CALL, NO_AUTO_START, 1]);
    message.number(body.0.len() as u32);
    message.number(serial);
    message.number(fields.0.len() as u32);
    message.0.extend(fields.0);
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// Reads values as the message's sender wrote them.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let bytes = self.message.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.bytes(4)?.try_into().ok()?;
        Some(if self.message.first() == Some(&b'B') {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8_lossy(self.bytes(length)?).into_owned();
        self.byte()?;
        Some(text)
    }

    fn string(&mut self) -> Option<String> {
        let length = self.number()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.text(length)
    }
}

/// How long a message is that starts with these 16 bytes; `None` when it is none, or too long.
fn message_length(start: &[u8]) -> Option<usize> {
    let mut reader = Reader { message: start, at: 4 };
    let body = reader.number()? as usize;
    reader.number()?;
    let fields = reader.number()? as usize;
    let known = matches!(start, [b'l' | b'B', _, _, 1, ..]);
    let length = (16 + fields).next_multiple_of(8) + body;
    (known && body <= MESSAGE_MAX && length <= MESSAGE_MAX).then_some(length)
}

/// What matters of a message that came.
struct Message<'a> {
    kind: u8,
    reply_serial: u32,
    error: String,
    signature: String,
    body: Reader<'a>,
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        let mut reader = Reader { message: bytes, at: 12 };
        let end = 16 + reader.number()? as usize;
        let (mut reply_serial, mut error, mut signature) = (0, String::new(), String::new());
        while reader.at < end {
            reader.align(8);
            let code = reader.byte()?;
            match (code, reader.signature()?.as_str()) {
                (REPLY_SERIAL, "u") => reply_serial = reader.number()?,
                (ERROR_NAME, "s") => error = reader.string()?,
                (SIGNATURE, "g") => signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.string()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.number()?),
                _ => return None,
            }
        }
        reader.align(8);
        Some(Message { kind: *bytes.get(1)?, reply_serial, error, signature, body: reader })
    }

    fn answer(mut self) -> Answer {
        let text = self.signature.starts_with('s').then(|| self.body.string()).flatten();
        match (self.kind, text) {
            (ERROR, text) => Answer::Error(self.error, text.unwrap_or_default()),
            (_, Some(text)) => Answer::Text(text),
            _ if self.signature.starts_with('b') => {
                self.body.number().map_or(Answer::Other, |n| Answer::Bool(n != 0))
            }
            _ => Answer::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_as_the_specification_says() {
        let method = Method { destination: "a.b", path: "/a", interface: "c.d", member: "Do" };
        let written = call_message(&method, &["xyz", "12345/32"], 7);
        let mut expected = vec![b'l', 1, 2, 1, 21, 0, 0, 0, 7, 0, 0, 0, 72, 0, 0, 0];
        expected.extend(b"\x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0");
        expected.extend(b"\x06\x01s\0\x03\0\0\0a.b\0\0\0\0\0");
        expected.extend(b"\x02\x01s\0\x03\0\0\0c.d\0\0\0\0\0");
        expected.extend(b"\x03\x01s\0\x02\0\0\0Do\0\0\0\0\0\0");
        expected.extend(b"\x08\x01g\0\x02ss\0");
        expected.extend(b"\x03\0\0\0xyz\0\x08\0\0\x0012345/32\0");
        assert_eq!(written, expected);
        assert_eq!(message_length(&written[..16]), Some(written.len()));
    }

    #[test]
    fn answers_are_read_in_either_byte_order() {
        for big in [false, true] {
            let number = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
            let message = |kind: u8, signature: &[u8], body: &[u8]| {
                let mut bytes = vec![if big { b'B' } else { b'l' }, kind, 1, 1];
                let mut fields =
                    [&b"\x05\x01u\0"[..], &number(9), b"\x04\x01s\0", &number(3), b"e.f\0\0\0\0\0"].concat();
                fields.extend([b"\x08\x01g\0", signature].concat());
                for n in [body.len() as u32, 1, fields.len() as u32] {
                    bytes.extend(number(n));
                }
                bytes.extend(fields);
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                bytes.extend(body);
                bytes
            };
            let read = |bytes: &[u8]| {
                assert_eq!(message_length(&bytes[..16]), Some(bytes.len()));
                let parsed = Message::parse(bytes).unwrap();
                assert_eq!(parsed.reply_serial, 9);
                parsed.answer()
            };
            let text = [&number(2)[..], b"hi\0"].concat();
            assert_eq!(read(&message(METHOD_RETURN, b"\x01s\0", &text)), Answer::Text("hi".into()));
            assert_eq!(read(&message(METHOD_RETURN, b"\x01b\0", &number(1))), Answer::Bool(true));
            assert_eq!(read(&message(METHOD_RETURN, b"\x01b\0", &number(0))), Answer::Bool(false));
            assert_eq!(read(&message(METHOD_RETURN, b"\x02ai\0", &number(0))), Answer::Other);
            assert_eq!(read(&message(ERROR, b"\x01s\0", &text)), Answer::Error("e.f".into(), "hi".into()));
        }
    }

    #[test]
    fn nonsense_is_refused_without_panic() {
        let good = call_message(&bus_method("GetNameOwner"), &["x"], 1);
        for length in 0..good.len() {
            let _ = Message::parse(&good[..length]);
        }
        for place in 0..good.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[place] = byte;
                if message_length(&bad[..16]).is_some() {
                    let _ = Message::parse(&bad).map(Message::answer);
                }
            }
        }
        assert_eq!(message_length(b"HTTP/1.1 400 Bad"), None);
    }

    #[test]
    fn addresses_are_unescaped_and_others_than_sockets_refused() {
        assert_eq!(unescaped("/run/a%20b%2fc%"), "/run/a b/c%");
        let err = Bus::system(Some("tcp:host=127.0.0.1,port=1")).unwrap_err();
        assert!(err.msg().contains("unix:path="), "{err}");
        let err = Bus::system(Some("unix:path=/nonexistent/one;unix:path=/nonexistent/two")).unwrap_err();
        assert!(err.msg().contains("/nonexistent/two") && err.is_gone(), "{err}");
    }
}
