//! `torchless man`: the manual pages.

use std::path::PathBuf;

use anyhow::Context;
use clap::Command;

use super::output::emit;

/// Print the manual page, or write one for each command to a folder
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless man | man -l -\n  \
    torchless man --dir ~/.local/share/man/man1")]
pub struct Args {
    /// Write torchless.1 and one page a command to this folder
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

pub fn run(args: &Args, command: Command) -> anyhow::Result<()> {
    match &args.dir {
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .and_then(|()| clap_mangen::generate_to(command, folder))
                .with_context(|| folder.display().to_string())?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            emit(&String::from_utf8(page)?)?;
        }
    }
    Ok(())
}
