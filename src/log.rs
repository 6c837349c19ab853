//! One line for each operation, with what it took: for those who set `CNI_ALL_LOG` or the configuration's key `log` to
//! `stderr` or to a file. Nothing is measured, written or opened otherwise, and never anything to standard output.
//!
//! A line is a JSON object. `phases` are microseconds by what was done; a phase within another is not counted twice, so
//! that all of them together are at most `us`.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cni::Result;
use crate::cni::json::Value;

thread_local! {
    static MEASURED: RefCell<Option<Measured>> = const { RefCell::new(None) };
}

/// Phases of the operation that runs in this thread.
#[derive(Default)]
struct Measured {
    phases: Vec<(String, Duration)>,
    /// For each phase that is under way: what phases within it have taken.
    within: Vec<Duration>,
}

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Log {
    /// Nowhere.
    #[default]
    Off,
    /// Standard error.
    Stderr,
    /// To the end of a file, which is made with mode 0600 when it is not there.
    File(PathBuf),
}

/// What a line is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operation<'a> {
    /// The plugin, when one alone was called.
    pub plugin: &'a str,
    /// The network's name.
    pub network: &'a str,
    /// The container's id; empty for GC and STATUS.
    pub container_id: &'a str,
    /// The interface in the container.
    pub ifname: &'a str,
    /// Path of the container's namespace.
    pub netns: &'a str,
    /// `TRACEPARENT` (W3C Trace Context): which request of a larger whole this was.
    pub trace: Option<&'a str>,
}

impl Log {
    /// The target that a text names: `stderr`, or a file; nothing for an empty one.
    pub fn to(target: &str) -> Log {
        match target {
            "" => Log::Off,
            "stderr" => Log::Stderr,
            path => Log::File(path.into()),
        }
    }

    /// Runs an operation; when a log is wanted, measures and writes its line.
    pub fn operation<T>(
        &self,
        verb: &str,
        about: &Operation<'_>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if *self == Log::Off {
            return work();
        }
        let began = SystemTime::now();
        let started = Instant::now();
        MEASURED.with_borrow_mut(|measured| *measured = Some(Measured::default()));
        let outcome = work();
        let took = started.elapsed();
        let phases = MEASURED.with_borrow_mut(Option::take).unwrap_or_default().phases;
        let text = |value: &str| Value::String(value.to_owned());
        let number = |value: u128| Value::Number(value.to_string());
        let mut members = vec![("time", text(&utc(began))), ("op", text(verb))];
        for (key, value) in [
            ("plugin", about.plugin),
            ("network", about.network),
            ("container", about.container_id),
            ("ifname", about.ifname),
            ("netns", about.netns),
            ("traceparent", about.trace.unwrap_or_default()),
        ] {
            if !value.is_empty() {
                members.push((key, text(value)));
            }
        }
        members.push(("us", number(took.as_micros())));
        let phases = phases.into_iter().map(|(name, took)| (name, number(took.as_micros())));
        members.push(("phases", Value::Object(phases.collect())));
        match &outcome {
            Ok(_) => members.push(("ok", Value::Bool(true))),
            Err(e) => {
                members.push(("ok", Value::Bool(false)));
                members.push(("code", number(e.code().0.into())));
                members.push(("error", text(&e.to_string())));
            }
        }
        let members = members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        self.write(&(Value::Object(members).to_text() + "\n"));
        outcome
    }

    /// Writes a line at once, so that those of several processes do not mix. A log that cannot be written fails no operation.
    fn write(&self, line: &str) {
        let mut stderr = std::io::stderr();
        let written = match self {
            Log::Off => Ok(()),
            Log::Stderr => stderr.write_all(line.as_bytes()),
            Log::File(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .and_then(|mut file| file.write_all(line.as_bytes())),
        };
        if let (Err(e), Log::File(path)) = (written, self) {
            let _ = writeln!(stderr, "cni-all: cannot write the log to {}: {e}", path.display());
        }
    }
}

/// Runs a part of an operation; what it takes is counted under this name.
pub fn phase<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let started = begin_phase();
    let outcome = work();
    if let Some(started) = started {
        end_phase(name, started.elapsed());
    }
    outcome
}

/// Now, when phases are measured.
fn begin_phase() -> Option<Instant> {
    MEASURED.with_borrow_mut(|m| m.as_mut().map(|m| m.within.push(Duration::ZERO)).map(|()| Instant::now()))
}

fn end_phase(name: &str, took: Duration) {
    MEASURED.with_borrow_mut(|measured| {
        let Some(Measured { phases, within }) = measured else { return };
        let own = took.saturating_sub(within.pop().unwrap_or_default());
        if let Some(outer) = within.last_mut() {
            *outer += took;
        }
        match phases.iter_mut().find(|(known, _)| known == name) {
            Some((_, all)) => *all += own,
            None => phases.push((name.to_owned(), own)),
        }
    });
}

/// A time as RFC 3339 writes it, `2026-11-21T08:30:00.000123Z`.
fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years that begin in March, so that the leap day is the last: Howard Hinnant, "chrono-Compatible Low-Level Date
    // Algorithms", civil_from_days.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::Error;

    fn log(name: &str) -> (Log, PathBuf) {
        let path = std::env::temp_dir().join(format!("cni-all-log.{}.{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        (Log::File(path.clone()), path)
    }

    #[test]
    fn a_line_says_what_was_done_how_it_went_and_what_it_took() {
        let (log, path) = log("line");
        let about = Operation {
            network: "net",
            container_id: "c\"1",
            trace: Some("00-ab-cd-01"),
            ..Operation::default()
        };
        let pause = || std::thread::sleep(Duration::from_millis(3));
        let work = || {
            phase("outer", || {
                phase("inner", pause);
                pause();
                phase("inner", pause);
            });
            Ok(())
        };
        log.operation("ADD", &about, work).unwrap();
        let _ = log.operation("DEL", &about, || Err::<(), _>(Error::config("no")));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| Value::parse(line.as_bytes()).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        let number = |value: &Value, key: &str| match value.get(key).as_deref() {
            Some(Value::Number(text)) => text.parse::<u64>().unwrap(),
            other => panic!("{key}: {other:?}"),
        };
        let phases = lines[0].get("phases").unwrap().into_owned();
        let (inner, outer, all) =
            (number(&phases, "inner"), number(&phases, "outer"), number(&lines[0], "us"));
        assert!(inner >= 6_000 && outer >= 3_000 && inner + outer <= all, "{text}");
        assert!(
            text.contains(
                r#""op":"ADD","network":"net","container":"c\"1","traceparent":"00-ab-cd-01","us":"#
            ),
            "{text}"
        );
        assert!(text.contains(r#""ok":false,"code":7,"error":"no"}"#), "{text}");
    }

    #[test]
    fn nothing_is_measured_without_a_log() {
        Log::Off
            .operation("ADD", &Operation::default(), || {
                phase("x", || assert!(MEASURED.with_borrow(Option::is_none)));
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
