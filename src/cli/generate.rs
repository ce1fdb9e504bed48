//! `torchless generate`: a prompt in, text out.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;

use serde_json::json;
use torchless::model::Model;
use torchless::runtime::generate::{FinishReason, GenerateOptions, Generated, generate};
use torchless::runtime::sampler::Sampling;
use torchless::runtime::session::{Progress, Session, SessionOptions};
use torchless::tokenizer::EncodeOptions;

use super::interrupt::{self, Orderly};
use super::model::{ModelArgs, RunArgs};
use super::output::{emit, emit_json, emit_raw, note, note_part};

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
    /// Send control characters in the text to the terminal as they are, instead of showing them
    #[arg(long)]
    raw: bool,
    /// Report loading, tokens, layers and timings on stderr
    #[arg(long)]
    debug: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// How to choose tokens. The steps are applied in the order listed here, temperature last.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Make recent tokens less likely; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = Sampling::default().repeat_penalty)]
    repeat_penalty: f32,
    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = Sampling::default().top_k)]
    top_k: usize,
    /// Keep the most likely tokens that together have probability P; 1 keeps all
    #[arg(long, value_name = "P", default_value_t = Sampling::default().top_p)]
    top_p: f32,
    /// Keep tokens at least P times as likely as the most likely; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = Sampling::default().min_p)]
    min_p: f32,
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = Sampling::default().temperature)]
    temp: f32,
    /// Seed of the random choices
    #[arg(long, value_name = "N", default_value_t = Sampling::default().seed)]
    seed: u64,
}

impl From<&SamplingArgs> for Sampling {
    fn from(args: &SamplingArgs) -> Self {
        Self {
            temperature: args.temp,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repeat_penalty: args.repeat_penalty,
            seed: args.seed,
            ..Self::default()
        }
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let sampling = Sampling::from(&args.sampling);
    sampling.check()?;
    let model = args.model.open(args.debug)?;
    let prompt =
        model.tokenizer().encode(&args.prompt, EncodeOptions { special: args.special, ..Default::default() });
    let session_options = args.run.session_options(&model, prompt.len().saturating_add(args.max_tokens))?;
    let mut session = Session::new(&model, &session_options)?;
    if args.debug {
        report_start(&model, &prompt, &session_options);
    }
    session.observe(observer(prompt.len(), model.config().n_layers, args.debug));
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampling,
        stop: args.stop,
        ignore_eos: args.ignore_eos,
    };
    let mut failed: Option<io::Error> = None;
    let show = match (args.json, args.raw) {
        (true, _) => |_: &str| Ok(()),
        (false, true) => emit_raw,
        (false, false) => emit,
    };
    let orderly = Orderly::begin();
    let result = generate(&mut session, &prompt, &options, |text| match show(text) {
        Ok(()) => interrupt::check(),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    drop(orderly);
    if let Some(error) = failed {
        return Err(error.into());
    }
    if args.json {
        emit_json(&to_json(&prompt, &result))?;
    } else if !result.text.ends_with('\n') {
        emit("\n")?;
    }
    if args.debug || interrupt::happened() {
        report_end(&result);
    }
    Ok(())
}

fn to_json(prompt: &[u32], result: &Generated) -> serde_json::Value {
    let reason = match result.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    };
    json!({
        "prompt_tokens": prompt,
        "tokens": result.tokens,
        "text": result.text,
        "finish_reason": reason,
        "timings": {
            "prompt_tokens_per_s": result.timings.prompt_tokens_per_s(),
            "tokens_per_s": result.timings.tokens_per_s(),
            "ttft_ms": result.timings.first_token.as_secs_f64() * 1e3,
        },
    })
}

fn report_start(model: &Model, prompt: &[u32], options: &SessionOptions) {
    let config = model.config();
    note(format_args!(
        "model: {}, {} layers of {}, {} heads on {}, vocabulary {}",
        config.architecture,
        config.n_layers,
        config.hidden_size,
        config.n_heads,
        config.n_kv_heads,
        config.vocab_size
    ));
    note(format_args!(
        "run: {}, {} threads, context {}",
        options.kernels.isa(),
        options.threads,
        options.ctx
    ));
    let pieces: Vec<_> = prompt.iter().map(|&id| model.tokenizer().piece(id).unwrap_or("?")).collect();
    note(format_args!("prompt: {} tokens {pieces:?}", prompt.len()));
}

/// Reports layers if `debug`, and ends the process if Ctrl-C was pressed before the prompt's last token is done: then there
/// is no text yet that could end in an orderly way.
fn observer(prompt: usize, n_layers: usize, debug: bool) -> impl FnMut(Progress) + Send {
    let mut report = report_layer(n_layers);
    move |at| {
        if debug {
            report(at);
        }
        if at.position < prompt && interrupt::happened() {
            note(format_args!("interrupted after {} of the prompt's {prompt} tokens", at.position));
            interrupt::end();
        }
    }
}

/// On a terminal a line that is rewritten after each layer, elsewhere one line a chunk.
fn report_layer(n_layers: usize) -> impl FnMut(Progress) + Send {
    let live = io::stderr().is_terminal();
    move |at| {
        let positions = at.position..at.position + at.tokens;
        let (start, end) = if live { ("\r", "") } else { ("", "\n") };
        if live || at.layers == n_layers {
            note_part(&format!("{start}positions {positions:?}: layer {}/{n_layers}{end}", at.layers));
        }
    }
}

fn report_end(result: &Generated) {
    let t = &result.timings;
    note(format_args!(
        "prompt: {} tokens, {:.1} tokens/s; answer: {} tokens, {:.1} tokens/s; first token after {:.0} ms",
        t.prompt_tokens,
        t.prompt_tokens_per_s(),
        result.tokens.len(),
        t.tokens_per_s(),
        t.first_token.as_secs_f64() * 1e3
    ));
}
