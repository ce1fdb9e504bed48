//! Options that several commands share: which model, and how to run it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use torchless::Model;
use torchless::chat::ChatTemplate;
use torchless::kv::KvType;
use torchless::runtime::{SessionOptions, Threads};
use torchless::tokenizer::Tokenizer;
use torchless::{kernels::Kernels, pull};

use super::output::note;
use super::progress;
use super::values::{isa, positive};

/// Which model.
#[derive(clap::Args, Default)]
pub struct ModelArgs {
    /// The model file, as `torchless convert` writes it [default: $TORCHLESS_MODEL, or SmolLM2-135M-Instruct, which is
    /// fetched on first use]
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,
}

/// Which model, for commands that have no other thing to name.
#[derive(clap::Args, Default)]
pub struct NamedModel {
    /// The model file; the same as -m
    #[arg(value_name = "PATH", conflicts_with = "model")]
    path: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

impl NamedModel {
    /// The model that is named either way.
    pub fn either(self) -> ModelArgs {
        ModelArgs { model: self.path.or(self.model.model) }
    }
}

impl ModelArgs {
    /// Where the model is; fetches the default one if that is what is wanted and it is not there yet.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        match self.model.clone().or_else(named_by_variable) {
            Some(path) => Ok(path),
            None => default_model(),
        }
    }

    /// Whether a model is named, by an option or by the variable.
    pub fn is_named(&self) -> bool {
        self.model.is_some() || named_by_variable().is_some()
    }

    /// Opens the model.
    pub fn open(&self, debug: bool) -> anyhow::Result<Arc<Model>> {
        let path = self.path()?;
        let start = Instant::now();
        let spinner = progress::spinner("Opening the model");
        let model = Model::open(&path);
        drop(spinner);
        let model = Arc::new(model?);
        if debug {
            let (ms, bytes) = (start.elapsed().as_millis(), super::output::bytes(model.file().bytes()));
            note(format_args!("load: {} ({bytes}) in {ms} ms", path.display()));
        }
        Ok(model)
    }
}

/// Not clap's: to it a variable is an argument given, and in conflict with others.
fn named_by_variable() -> Option<PathBuf> {
    std::env::var_os("TORCHLESS_MODEL").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Notes where a model's chat template cannot be used: a chat would say so, and only then.
pub fn note_chat_template(tokenizer: &Tokenizer) {
    if tokenizer.spec().chat_template.is_none() {
        return;
    }
    if let Err(error) = ChatTemplate::of(tokenizer) {
        note(format_args!("note: {error}; a chat needs another one (--chat-template)"));
    }
}

fn default_model() -> anyhow::Result<PathBuf> {
    let path = pull::default_model_path()?;
    if path.exists() {
        return Ok(path);
    }
    note(format_args!(
        "Fetching the default model, SmolLM2-135M-Instruct (93 MB), once, to {}",
        path.display()
    ));
    let bar = progress::Bytes::new();
    Ok(pull::pull(&mut |at| bar.show(at))?)
}

/// How to run it.
#[derive(clap::Args)]
#[command(next_help_heading = "Running")]
pub struct RunArgs {
    /// Worker threads [default: the CPUs this process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), allow_negative_numbers = true)]
    threads: Option<u16>,
    /// Positions to make room for, prompt and answer together [default: what is needed]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = positive)]
    pub ctx: Option<usize>,
    /// Instruction set: auto, or one this CPU has; TORCHLESS_ISA does the same
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = isa)]
    isa: String,
    /// What keys and values are kept as: int8 takes half of f16's memory and is faster behind long contexts, f16 is
    /// closer to f32 [default: f16, but f32 where all weights are]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub kv: Option<Kv>,
}

/// [`KvType`] on the command line.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Kv {
    F32,
    F16,
    Int8,
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F32 => Self::F32,
            Kv::F16 => Self::F16,
            Kv::Int8 => Self::Int8,
        }
    }
}

/// The threads asked for, as far as they are of use.
pub fn at_most(threads: u16) -> usize {
    let (asked, most) = (usize::from(threads), Threads::most());
    if asked > most {
        note(format_args!(
            "{most} threads instead of {asked}: more would only wait for each other here (--threads)"
        ));
    }
    asked.min(most)
}

impl RunArgs {
    /// The session that is asked for; with no `--ctx`, room for `needed` positions as far as the model allows.
    pub fn session_options(&self, model: &Model, needed: usize) -> anyhow::Result<SessionOptions> {
        let mut options = SessionOptions::new(model);
        options.ctx = self.ctx.unwrap_or(needed.clamp(1, options.ctx));
        options.kernels = Kernels::choose(Some(&self.isa)).context("--isa (or TORCHLESS_ISA)")?;
        if let Some(threads) = self.threads {
            options.threads = at_most(threads);
        }
        if let Some(kv) = self.kv {
            options.kv = kv.into();
        }
        Ok(options)
    }
}
