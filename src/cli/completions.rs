//! `torchless completions`: what a shell needs to complete commands and options.

use clap::Command;
use clap_complete::{Shell, generate};

use super::output::emit;

/// Print the completions of commands and options for a shell
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    echo 'eval \"$(torchless completions bash)\"' >> ~/.bashrc\n  \
    echo 'torchless completions fish | source' >> ~/.config/fish/config.fish\n  \
    torchless completions zsh > \"${fpath[1]}/_torchless\"")]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: &Args, command: &mut Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    generate(args.shell, command, "torchless", &mut script);
    emit(&String::from_utf8(script)?)?;
    Ok(())
}
