//! The CNI protocol as every plugin speaks it: environment, standard input, output, versions. Needs no privileges.
//!
//! The bodies are those of `static` and `host-local`, which touch no network: what is true of them here is the work of
//! the dispatcher, and so of every plugin.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod arguments;
mod environment;
mod json;
mod personality;
mod prev_result;
mod results;
mod static_ipam;
mod streams;
mod verbs;
mod versions;

use serde_json::{Value, json};

/// A configuration for `static` with one address, as a main plugin would pass it on.
fn static_config(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "net",
        "type": "bridge",
        "ipam": {"type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]},
    })
}

/// A configuration for `host-local` with one range, as a main plugin would pass it on.
fn host_local_config(version: &str, dir: &support::Workdir) -> Value {
    json!({
        "cniVersion": version,
        "name": "net",
        "type": "bridge",
        "ipam": {"type": "host-local", "dataDir": dir.data_dir(), "subnet": "10.1.0.0/24"},
    })
}
