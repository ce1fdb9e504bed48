//! The `torchless` command.

// They panic where stdout or stderr is closed: `cli::output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
