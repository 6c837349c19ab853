//! The cost of a call does not depend on how many leases there are: counted in system calls, not in time.

use std::process::Command;

use crate::support::{Net, OURS, installed};

/// Runs one call under strace and returns its system calls, the process's start included.
fn system_calls(net: &Net, verb: &str, id: &str) -> Vec<String> {
    let trace = net.dir().parent().unwrap().join("trace");
    let trace = trace.to_str().unwrap();
    let child = net.spawn(&["/usr/bin/strace", "-o", trace, OURS[0], OURS[1]], verb, id);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let lines = std::fs::read_to_string(trace).unwrap();
    lines.lines().map(|line| line.split('(').next().unwrap().to_owned()).collect()
}

fn strace_works(test: &str) -> bool {
    if !installed(test, "/usr/bin/strace") {
        return false;
    }
    let works = Command::new("/usr/bin/strace").args(["-o", "/dev/null", "true"]).status().unwrap().success();
    assert!(works || std::env::var("CNI_ALL_STRICT").as_deref() != Ok("1"), "{test}: strace cannot trace");
    if !works {
        println!("SKIP {test}: strace cannot trace");
    }
    works
}

#[test]
fn system_calls_do_not_grow_with_the_number_of_leases() {
    if !strace_works("system_calls_do_not_grow_with_the_number_of_leases") {
        return;
    }
    let mut counts = Vec::new();
    for leases in [10, 20_000] {
        let net = Net::new(&format!("cost{leases}"), r#""subnet":"10.0.0.0/8""#);
        (0..leases)
            .for_each(|n| net.put(&format!("10.1.{}.{}", n / 250, n % 250 + 2), &format!("c{n}\r\neth0")));
        net.put("last_reserved_ip.0", "10.1.200.0");
        net.add("first"); // reads them all, once
        let calls = [("ADD", "x"), ("DEL", "x"), ("DEL", "x"), ("DEL", "c7"), ("CHECK", "c8")]
            .map(|(verb, id)| system_calls(&net, verb, id));
        for calls in &calls {
            assert!(!calls.iter().any(|call| call.starts_with("getdents")), "the directory is not listed");
        }
        counts.push(calls.map(|calls| calls.len()));
    }
    println!("system calls of ADD, DEL, DEL again, DEL of an older one, CHECK: {counts:?}");
    assert_eq!(counts[0], counts[1]);
    assert!(counts[0].iter().all(|&count| count < 150), "{counts:?}");
}
