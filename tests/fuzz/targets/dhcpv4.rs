#![no_main]

#[path = "../plugins.rs"]
mod plugins;

libfuzzer_sys::fuzz_target!(|data: &[u8]| plugins::dhcp::fuzzed::dhcpv4(data));
