//! The modules of the dhcp plugin that depend on no others.
#![allow(dead_code)]

#[path = "../../src/plugins/dhcp/clock.rs"]
pub mod clock;
#[path = "../../src/plugins/dhcp/frame.rs"]
pub mod frame;
#[path = "../../src/plugins/dhcp/fuzzed.rs"]
pub mod fuzzed;
#[path = "../../src/plugins/dhcp/names.rs"]
pub mod names;
#[path = "../../src/plugins/dhcp/options.rs"]
pub mod options;
#[path = "../../src/plugins/dhcp/v4/mod.rs"]
pub mod v4;
#[path = "../../src/plugins/dhcp/v6/mod.rs"]
pub mod v6;
