//! argv[0] → personality. The only place that reads the environment and standard input, prints, and exits.

use std::io::{stderr, stdin, stdout};

use cni_all::arena::Arena;
use cni_all::personality::{Process, run};

#[global_allocator]
static ARENA: Arena = Arena::unused();

#[allow(clippy::exit)]
fn main() {
    let status = run(Process {
        args: std::env::args_os().collect(),
        env: &|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()),
        stdin: &mut stdin().lock(),
        stdout: &mut stdout().lock(),
        stderr: &mut stderr().lock(),
    });
    std::process::exit(status);
}
