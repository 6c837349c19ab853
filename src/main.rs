//! argv[0] → personality. The only place that reads the environment and standard input, prints, and exits.

fn main() {}
