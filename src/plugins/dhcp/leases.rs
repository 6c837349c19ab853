//! `cni-all dhcp leases`: what the daemon holds, in which state, and what happens next.

use std::io::Write;
use std::path::PathBuf;

use argh::FromArgs;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::conf::SOCKET;
use super::rpc::{self, Op};
use crate::cni::{Error, Result};
use crate::personality::Process;

/// show the leases that the dhcp daemon holds
#[derive(FromArgs)]
#[argh(help_triggers("-h", "--help"))]
struct Leases {
    /// print JSON
    #[argh(switch)]
    json: bool,
    /// the daemon's socket; default: /run/cni/dhcp.sock
    #[argh(option, default = "PathBuf::from(SOCKET)")]
    socket: PathBuf,
}

/// What is read of an attachment's JSON.
#[derive(Debug, Deserialize)]
struct Row {
    container: String,
    network: String,
    ifname: String,
    ipv4: Option<Client>,
    ipv6: Option<Client>,
    slaac: Option<Client>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Client {
    state: String,
    address: Option<String>,
    server: Option<String>,
    next: String,
    next_in: Option<u64>,
    expires_in: Option<u64>,
    problem: Option<String>,
}

/// Prints the leases; the exit status.
pub fn run(words: &[String], process: &mut Process<'_>) -> i32 {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let args = match Leases::from_args(&["cni-all dhcp leases"], &words) {
        Ok(args) => args,
        Err(exit) => {
            let (to, status): (&mut dyn Write, i32) =
                if exit.status.is_ok() { (process.stdout, 0) } else { (process.stderr, 2) };
            let _ = write!(to, "{}", exit.output);
            return status;
        }
    };
    match text(&args) {
        Ok(text) => {
            let _ = writeln!(process.stdout, "{}", text.trim_end());
            0
        }
        Err(e) => {
            let _ = writeln!(process.stderr, "cni-all dhcp leases: {e}");
            1
        }
    }
}

fn text(args: &Leases) -> Result<String> {
    let nobody = || Error::internal(format!("dhcp daemon at {}: nobody listens", args.socket.display()));
    let daemon = rpc::connect(&args.socket)?.ok_or_else(nobody)?;
    let answer = rpc::call(daemon, &args.socket, Op::Leases)?;
    let raw: Box<RawValue> =
        answer.leases.ok_or_else(|| Error::internal("the dhcp daemon sent no leases"))?;
    if args.json {
        return crate::cni::json::Value::parse(raw.get().as_bytes()).map(|_| raw.get().to_owned());
    }
    let rows: Vec<Row> = crate::cni::json::Value::parse(raw.get().as_bytes())
        .and_then(|rows| rows.read())
        .map_err(|e| Error::internal(format!("the dhcp daemon's leases are not understood: {e}")))?;
    Ok(table(&rows))
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        ["CONTAINER", "NETWORK", "IFNAME", "ADDRESS", "SERVER", "STATE", "NEXT", "EXPIRES"]
            .map(str::to_owned),
    ];
    for row in rows {
        for client in [&row.ipv4, &row.ipv6, &row.slaac].into_iter().flatten() {
            let dash = || "-".to_owned();
            let next = match client.next_in {
                Some(seconds) => format!("{} in {}", client.next, time(seconds)),
                None => client.next.clone(),
            };
            let state = match &client.problem {
                Some(problem) => format!("{} ({problem})", client.state),
                None => client.state.clone(),
            };
            lines.push([
                row.container.chars().take(12).collect(),
                row.network.clone(),
                row.ifname.clone(),
                client.address.clone().unwrap_or_else(dash),
                client.server.clone().unwrap_or_else(dash),
                state,
                next,
                client.expires_in.map_or_else(dash, time),
            ]);
        }
    }
    let mut widths = [0; 8];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let show = |line: &[String; 8]| {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    lines.iter().map(show).collect()
}

/// Seconds for people: `95s`, `12m`, `3h5m`.
fn time(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        _ => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_a_table_with_aligned_columns() {
        let json = r#"[{"container":"0123456789abcdef","network":"net","ifname":"eth0","netns":"/x","ipv4":{"state":
            "BOUND","address":"10.0.0.5/24","server":"10.0.0.1","next":"renew","nextIn":90,"expiresIn":7300}},
            {"container":"b","network":"net","ifname":"eth0","netns":"/x","ipv4":{"state":"INIT","next":"discover",
            "problem":"no answer"}}]"#;
        let text = table(&serde_json::from_str::<Vec<Row>>(json).unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "0123456789ab  net      eth0    10.0.0.5/24  10.0.0.1  BOUND             renew in 90s  2h1m"
        );
        assert_eq!(
            lines[2],
            "b             net      eth0    -            -         INIT (no answer)  discover      -"
        );
    }
}
