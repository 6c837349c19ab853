//! The table of ratios, and the same as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::cases::{GO, KERNEL, KERNEL_WAITING, OURS, OURS_WAITING, Outcome};
use crate::ports::Connections;

/// Everything that was measured.
pub struct Report {
    /// The times.
    pub outcomes: Vec<Outcome>,
    /// Bytes of memory at the peak, per contender.
    pub memory: Vec<(&'static str, u64)>,
    /// Bytes of the stripped executable.
    pub size: u64,
    /// Bytes of the Go plugins' files that have the same names.
    pub go_size: Option<u64>,
    /// How long connections through port mappings took to stand.
    pub connections: Vec<Connections>,
    /// What went wrong: contender and case.
    pub failures: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Del,
}

impl Report {
    fn find(&self, case: &str, size: u32, contender: &str) -> Option<&Outcome> {
        self.outcomes.iter().find(|o| o.case == case && o.size == size && o.contender == contender)
    }

    /// The median in microseconds.
    fn time(&self, case: &str, size: u32, contender: &str, verb: Verb) -> Option<f64> {
        let outcome = self.find(case, size, contender)?;
        if verb == Verb::Add { outcome.add.median() } else { outcome.del.median() }
    }

    /// The start of an empty dynamic program, of which no plugin can be rid.
    fn start(&self) -> Option<f64> {
        self.time("start", 0, "empty dynamic", Verb::Add)
    }

    /// The cases and sizes in the order of measurement.
    fn rows(&self) -> Vec<(&'static str, u32)> {
        let mut rows = Vec::new();
        for outcome in &self.outcomes {
            if outcome.case != "start" && !rows.contains(&(outcome.case, outcome.size)) {
                rows.push((outcome.case, outcome.size));
            }
        }
        rows
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "Start of a process that does nothing, µs:");
        for outcome in self.outcomes.iter().filter(|o| o.case == "start") {
            let name = match outcome.contender {
                OURS => "cni-all, VERSION",
                GO => "Go plugin, VERSION",
                other => other,
            };
            let _ = writeln!(text, "  {name:<20} {}", us(outcome.add.median()));
        }
        let _ = writeln!(
            text,
            "\nMedians in µs, process start to reaping. \"floor\": the kernel's own work for the same changes and the"
        );
        let _ =
            writeln!(text, "start of an empty program. Ratios are times of the one by times of the other.\n");
        let _ = writeln!(
            text,
            "{:<28} {:>7} {:<4} {:>9} {:>9} {:>9} {:>9} {:>10} {:>6}",
            "", "present", "", "cni-all", "Go", "floor", "Go/ours", "ours/floor", "n"
        );
        for (case, size) in self.rows() {
            for (verb, name) in [(Verb::Add, "ADD"), (Verb::Del, "DEL")] {
                self.line(&mut text, (case, size), verb, name, OURS, KERNEL);
            }
            if self.find(case, size, OURS_WAITING).is_some() {
                self.line(&mut text, (case, size), Verb::Del, "DEL*", OURS_WAITING, KERNEL_WAITING);
            }
        }
        let _ = writeln!(text, "* CNI_ALL_WAIT=1: until the kernel has cleaned up.\n");
        let _ = writeln!(text, "Growth, by the smallest size of the case:");
        for (case, size, of, verb) in self.growths() {
            let ratio = |contender| {
                ratio(self.time(case, size, contender, verb), self.time(case, of, contender, verb))
            };
            let name = if verb == Verb::Add { "ADD" } else { "DEL" };
            let shown = |contender| times(ratio(contender));
            let _ = writeln!(
                text,
                "  {case:<28} {name} {size:>6}/{of:<3} cni-all {:>6}  Go {:>6}  kernel {:>6}",
                shown(OURS),
                shown(GO),
                shown(KERNEL)
            );
        }
        let _ = writeln!(text);
        self.connections_text(&mut text);
        for (contender, bytes) in &self.memory {
            let _ = writeln!(
                text,
                "Peak memory, bridge with masquerade: {contender:<8} {:>6.2} MB",
                megabytes(*bytes)
            );
        }
        let _ = writeln!(
            text,
            "Executable, stripped: {:.2} MB ({:.2} MiB)",
            megabytes(self.size),
            self.size as f64 / 1048576.0
        );
        if let Some(bytes) = self.go_size {
            let _ = writeln!(text, "The Go plugins' files of the same names: {:.2} MB", megabytes(bytes));
        }
        text
    }

    fn line(
        &self,
        text: &mut String,
        (case, size): (&str, u32),
        verb: Verb,
        name: &str,
        ours: &str,
        kernel: &str,
    ) {
        let own = self.time(case, size, ours, verb);
        let go = self.time(case, size, GO, verb);
        // host-local changes nothing in the kernel.
        let work = if case == "host-local" { Some(0.0) } else { self.time(case, size, kernel, verb) };
        let floor = work.zip(self.start()).map(|(work, start)| work + start);
        let present = if size == 0 { String::new() } else { size.to_string() };
        let count = self.find(case, size, ours).map_or(0, |o| o.add.count());
        let case = if name == "ADD" { case } else { "" };
        let present = if name == "ADD" { present } else { String::new() };
        let _ = writeln!(
            text,
            "{case:<28} {present:>7} {name:<4} {:>9} {:>9} {:>9} {:>9} {:>10} {count:>6}",
            us(own),
            us(go),
            us(floor),
            times(ratio(go, own)),
            times(ratio(own, floor)),
        );
    }

    /// How long connections took, by layout and number of mappings.
    fn connections_text(&self, text: &mut String) {
        if self.connections.is_empty() {
            return;
        }
        let _ =
            writeln!(text, "Until a TCP connection stands, through the last of so many port mappings, µs:");
        for one in &self.connections {
            let (name, count) = (one.layout.name(), one.times.count());
            let _ =
                writeln!(text, "  {name:<20} {:>6} {:>8} {count:>6}", one.mappings, us(one.times.median()));
        }
        let _ = writeln!(text);
    }

    /// Sizes to compare with the smallest of their case.
    fn growths(&self) -> Vec<(&'static str, u32, u32, Verb)> {
        let rows = self.rows();
        let mut growths = Vec::new();
        for (case, size) in &rows {
            let smallest = rows.iter().filter(|(c, _)| c == case).map(|(_, s)| *s).min().unwrap_or(*size);
            if *size != smallest {
                growths.extend([(*case, *size, smallest, Verb::Add), (*case, *size, smallest, Verb::Del)]);
            }
        }
        growths
    }

    /// The report for programs: medians in microseconds and the ratios of the table.
    pub fn json(&self) -> Value {
        let outcomes: Vec<Value> = self
            .outcomes
            .iter()
            .map(|o| {
                json!({
                    "case": o.case, "present": o.size, "contender": o.contender, "rounds": o.add.count(),
                    "add_us": o.add.median(), "del_us": o.del.median(),
                })
            })
            .collect();
        let mut ratios = Vec::new();
        for (case, size) in self.rows() {
            for (verb, name) in [(Verb::Add, "ADD"), (Verb::Del, "DEL")] {
                let own = self.time(case, size, OURS, verb);
                let work = if case == "host-local" { Some(0.0) } else { self.time(case, size, KERNEL, verb) };
                let floor = work.zip(self.start()).map(|(work, start)| work + start);
                ratios.push(json!({
                    "case": case, "present": size, "verb": name,
                    "go_by_ours": ratio(self.time(case, size, GO, verb), own),
                    "ours_by_floor": ratio(own, floor),
                }));
            }
        }
        let growths: Vec<Value> = self
            .growths()
            .into_iter()
            .map(|(case, size, of, verb)| {
                let name = if verb == Verb::Add { "ADD" } else { "DEL" };
                let grown = |c| ratio(self.time(case, size, c, verb), self.time(case, of, c, verb));
                json!({
                    "case": case, "verb": name, "present": size, "by": of,
                    "ours": grown(OURS), "go": grown(GO), "kernel": grown(KERNEL),
                })
            })
            .collect();
        let connections: Vec<Value> = self
            .connections
            .iter()
            .map(|one| {
                json!({
                    "layout": one.layout.name(), "mappings": one.mappings, "rounds": one.times.count(),
                    "connect_us": one.times.median(),
                })
            })
            .collect();
        let memory: serde_json::Map<String, Value> =
            self.memory.iter().map(|(name, bytes)| ((*name).to_owned(), json!(bytes))).collect();
        json!({
            "times": outcomes, "ratios": ratios, "growth": growths, "connections": connections,
            "peak_memory_bytes": memory,
            "executable_bytes": self.size, "go_bytes": self.go_size, "failures": self.failures,
        })
    }
}

fn ratio(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.zip(b).map(|(a, b)| a / b)
}

fn us(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.0}"))
}

fn times(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.2}"))
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
