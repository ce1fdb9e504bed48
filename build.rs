//! Tells the program what it was built from. Never what it is built *for*: the CPU is looked at when it runs.

use std::process::Command;

fn main() {
    let revision = output("git", &["rev-parse", "--short=10", "HEAD"]);
    let rustc = output(&std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()), &["--version"]);
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=TORCHLESS_REVISION={}", revision.as_deref().unwrap_or("unknown revision"));
    println!("cargo::rustc-env=TORCHLESS_RUSTC={}", rustc.as_deref().unwrap_or("unknown rustc"));
    println!("cargo::rustc-env=TORCHLESS_TARGET={target}");
    println!("cargo::rerun-if-changed=build.rs");
    // A commit on the current branch changes this file; outside a checkout there is none, and nothing to watch.
    if let Some(log) = output("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
}

/// The first line a command prints, if it runs and succeeds.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}
