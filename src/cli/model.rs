//! Options that several commands share: which model, and how to run it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use torchless::chat::ChatTemplate;
use torchless::format::convert::Quant;
use torchless::kernels::Kernels;
use torchless::kv::KvType;
use torchless::pull::{self, Conversions, Hub, Named, Origin, Reference};
use torchless::runtime::{SessionOptions, Threads};
use torchless::tokenizer::Tokenizer;
use torchless::{Error, Model};

use super::output::note;
use super::progress;
use super::values::{isa, positive};

/// Which model.
#[derive(clap::Args, Default)]
pub struct ModelArgs {
    /// The model: a model file, a GGUF file, a Hugging Face folder, or hf:ORG/NAME[:FILE][@REVISION] [default: $TORCHLESS_MODEL,
    /// or SmolLM2-135M-Instruct, which is fetched on first use]
    ///
    /// What is no model file yet is converted once, into the cache that `torchless cache` lists, and anew when it has changed. What is on
    /// the hub is fetched once, into the Hugging Face cache; `torchless pull` asks for something newer.
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub convert: ConvertArgs,
}

/// What a model that is no model file yet is converted into.
#[derive(clap::Args, Default, Clone)]
pub struct ConvertArgs {
    /// How many bits the matrices of a model get that is converted first: auto, int8, int4, int4:BITS, int8-proj or f32, as
    /// `torchless convert` has it [default: auto]
    #[arg(long, value_name = "KIND")]
    quant: Option<Quant>,
}

/// Which model, for commands that have no other thing to name.
#[derive(clap::Args, Default)]
pub struct NamedModel {
    /// The model; the same as -m
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    path: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

impl NamedModel {
    /// The model that is named either way.
    pub fn either(self) -> ModelArgs {
        ModelArgs { model: self.path.or(self.model.model), ..self.model }
    }
}

impl ModelArgs {
    /// The model file: of whatever is named, after it was fetched and converted as far as that has not been done before.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        let named = self.model.clone().or_else(named_by_variable);
        let path = match named.as_deref().map(Named::of).transpose()? {
            Some(Named::Source(path)) => return self.convert.path(&path),
            Some(Named::Hub(reference)) => return self.convert.hub(&reference),
            Some(Named::ModelFile(path)) => path,
            None => default_model()?,
        };
        if let Some(quant) = self.convert.quant {
            let (path, new) = (path.display(), path.with_extension(format!("{quant}.bin").replace(':', "_")));
            bail!(
                "{path}: is a model file already, and --quant is for what is not: `torchless convert {path} {} --quant {quant}`",
                new.display()
            );
        }
        Ok(path)
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

impl ConvertArgs {
    /// The model file that a GGUF file or a folder becomes.
    fn path(&self, path: &Path) -> anyhow::Result<PathBuf> {
        let conversions = Conversions::in_cache_folder()?;
        let origin = match Origin::of_path(path) {
            Err(error) => {
                let left = conversions.left_of(path).map(|left| {
                    format!(
                        "; what it was converted into is still there, name that instead: {}",
                        left.display()
                    )
                });
                bail!("{error}{}", left.unwrap_or_default());
            }
            origin => origin?,
        };
        self.kept(&conversions, &origin)
    }

    /// The model file that a model of the hub becomes.
    fn hub(&self, reference: &Reference) -> anyhow::Result<PathBuf> {
        let conversions = Conversions::in_cache_folder()?;
        let hub = Hub::from_environment()?;
        // What has been used before is used again, without asking whether there is something newer.
        let used = match hub.find(reference) {
            Ok(path) => conversions.find(&Origin::of_hub(reference, path), self.quant()),
            Err(_) => conversions.of_hub(reference, self.quant()),
        };
        if let Some(model) = used {
            return Ok(model);
        }
        let path = fetch(&hub, reference)?;
        self.kept(&conversions, &Origin::of_hub(reference, path))
    }

    fn quant(&self) -> Quant {
        self.quant.unwrap_or_default()
    }

    /// The conversion that is kept, which is made where it is not.
    fn kept(&self, conversions: &Conversions, origin: &Origin) -> anyhow::Result<PathBuf> {
        let quant = self.quant();
        if let Some(model) = conversions.find(origin, quant) {
            return Ok(model);
        }
        let (name, folder) = (origin.name(), conversions.folder().display());
        let bar = progress::Bytes::new();
        let bar = bar.announcing(format!("Converting {name} (--quant {quant}), once, into {folder}"));
        let converted = conversions.convert(origin, quant, &mut |at| bar.show(at));
        let (model, report) = converted.map_err(|error| match &error {
            Error::Io { path, .. } if path.starts_with(conversions.folder()) => {
                anyhow!("{error} (TORCHLESS_CACHE names another folder)")
            }
            _ => error.into(),
        })?;
        drop(bar);
        for line in report.iter().flat_map(|report| &report.notes) {
            note(format_args!("note: {line}"));
        }
        Ok(model)
    }
}

/// Fetches a model of the hub, as far as it is not here, and says so where the hub could not be asked.
pub fn fetch(hub: &Hub, reference: &Reference) -> anyhow::Result<PathBuf> {
    let bar = progress::Bytes::resumable();
    let bar = bar.announcing(format!("Fetching {reference}, once, into {}", hub.cache.display()));
    let fetched = hub.fetch(reference, &mut |at| bar.show(at))?;
    drop(bar);
    // Whoever asked for that need not be told.
    if let Some(why) = fetched.not_asked.filter(|_| !hub.offline) {
        note(format_args!("note: {reference} as it was when it was fetched: {why}"));
    }
    Ok(fetched.path)
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
