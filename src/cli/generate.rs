//! `torchless generate`: a prompt in, text out.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;

use torchless::model::Model;
use torchless::runtime::generate::{GenerateOptions, generate};
use torchless::runtime::session::{Progress, Session, SessionOptions};
use torchless::tokenizer::EncodeOptions;

use super::interrupt;
use super::model::{ModelArgs, RunArgs};
use super::output::{emit, emit_json};
use super::report;
use super::sampling::SamplingArgs;

/// Continue a prompt: prints what the model writes after it
///
/// The same command gives the same text on every machine, at any number of threads; another --seed gives another text.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless generate \"The capital of France is\"\n  \
    torchless generate -m mistral.bin -n 200 --temp 0 \"Once upon a time\"\n  \
    torchless generate --json --seed 7 \"A haiku about rain:\" | jq -r .text")]
pub struct Args {
    /// The text to continue
    prompt: String,
    #[command(flatten)]
    model: ModelArgs,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Go on past the end of the text, up to --max-tokens
    #[arg(long)]
    ignore_eos: bool,
    /// End the text before this string; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Recognise special tokens (such as <|im_start|>) written in the prompt
    #[arg(long)]
    special: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Report loading, tokens, layers and timings on stderr
    #[arg(long)]
    debug: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let sampling = args.sampling.settings()?;
    let model = args.model.open(args.debug)?;
    let prompt =
        model.tokenizer().encode(&args.prompt, EncodeOptions { special: args.special, ..Default::default() });
    let session_options = args.run.session_options(&model, prompt.len().saturating_add(args.max_tokens))?;
    let mut session = Session::new(&model, &session_options)?;
    if args.debug {
        report_start(&model, &prompt, &session_options);
        session.observe(report_layer(model.config().n_layers));
    }
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampling,
        stop: args.stop,
        ignore_eos: args.ignore_eos,
        ..GenerateOptions::default()
    };
    let mut failed = None;
    let result = generate(&mut session, &prompt, &options, |text| stream(text, args.json, &mut failed))?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if args.debug {
        eprintln!("\n{}", report::timings(&result));
    }
    if args.json {
        emit_json(&report::generated(&prompt, &result))?;
    } else if !result.text.ends_with('\n') {
        emit("\n")?;
    }
    Ok(())
}

fn stream(text: &str, quiet: bool, failed: &mut Option<io::Error>) -> ControlFlow<()> {
    if !quiet && let Err(error) = emit(text) {
        *failed = Some(error);
        return ControlFlow::Break(());
    }
    interrupt::check()
}

fn report_start(model: &Model, prompt: &[u32], options: &SessionOptions) {
    let config = model.config();
    eprintln!(
        "model: {}, {} layers of {}, {} heads on {}, vocabulary {}",
        config.architecture,
        config.n_layers,
        config.hidden_size,
        config.n_heads,
        config.n_kv_heads,
        config.vocab_size
    );
    eprintln!("run: {}, {} threads, context {}", options.kernels.isa(), options.threads, options.ctx);
    let pieces: Vec<_> = prompt.iter().map(|&id| model.tokenizer().piece(id).unwrap_or("?")).collect();
    eprintln!("prompt: {} tokens {pieces:?}", prompt.len());
}

/// On a terminal a line that is rewritten after each layer, elsewhere one line a chunk.
fn report_layer(n_layers: usize) -> impl FnMut(Progress) + Send {
    let live = io::stderr().is_terminal();
    move |at| {
        let positions = at.position..at.position + at.tokens;
        let (start, end) = if live { ("\r", "") } else { ("", "\n") };
        if live || at.layers == n_layers {
            eprint!("{start}positions {positions:?}: layer {}/{n_layers}{end}", at.layers);
        }
    }
}
