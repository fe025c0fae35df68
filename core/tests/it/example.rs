//! The example does what it says. `cargo test` has built it beside this test.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::common::{Site, VERSION};

#[test]
fn the_example_lists_what_is_there_and_what_comes() {
    let site = Site::new();
    site.image(VERSION, "first");
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/watch");
    // Should it say nothing, it ends all the same, and the lines with it.
    let mut child = Command::new("timeout")
        .arg("60")
        .arg(example)
        .arg(site.path(""))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the example has been built");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until = |wanted: &str| {
        lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(wanted))).is_some()
    };
    assert!(until("20240101"), "what is there");
    site.image("images/a/1/amd64/default/20240102", "second");
    assert!(until("20240102"), "what comes");
    // Which passes it on.
    let timeout = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(timeout, rustix::process::Signal::TERM).unwrap();
    child.wait().unwrap();
}
