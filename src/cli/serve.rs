//! `torchless serve`: answer over HTTP.

use std::io;
use std::time::Duration;

use clap::error::ErrorKind;
use torchless::Model;
use torchless::runtime::BatchOptions;
use torchless::serve::{Options, Served, Server};
use tracing_subscriber::filter::LevelFilter;

use super::interrupt::{self, Orderly};
use super::model::{NamedModel, RunArgs};
use super::template::TemplateArgs;
use super::values::{self, positive, seconds};
use super::wrong_usage;

/// Answer over HTTP, as OpenAI's API does, and talk in a browser
///
/// Many are answered at once, and an answer depends on nothing but its request: not on who else asks. Ctrl-C or SIGTERM
/// finishes what runs, and ends.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless serve\n  \
    TORCHLESS_API_KEY=secret torchless serve mistral.bin --host 0.0.0.0 --parallel 16\n  \
    curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\\n    \
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}]}'\n\n\
    Addresses: / (a page to chat on), /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health, \
    /metrics.\n\
    The log is on stderr, one line a request.")]
pub struct Args {
    #[command(flatten)]
    model: NamedModel,
    /// The address to listen at; 0.0.0.0 is all of this machine's
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 takes one that is free
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Most answers that are made at once
    #[arg(long, value_name = "N", default_value_t = 8, allow_negative_numbers = true, value_parser = parallel)]
    parallel: usize,
    /// Memory for keys and values, such as 4G [default: --parallel contexts, as far as there is memory]
    #[arg(long, value_name = "BYTES", value_parser = values::bytes)]
    kv_memory: Option<usize>,
    /// Most answers that wait for their turn; more are refused
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = values::count)]
    queue: usize,
    /// Most seconds a request may take, waiting included
    #[arg(long, value_name = "SECONDS", default_value = "600", allow_negative_numbers = true, value_parser = seconds)]
    timeout: Duration,
    /// Most seconds that what runs may take to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value = "25", allow_negative_numbers = true, value_parser = seconds)]
    grace: Duration,
    /// What those who ask must know; better in the variable, which nobody sees in a list of processes
    #[arg(long, value_name = "KEY", env = "TORCHLESS_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// What the model is called [default: its file's name]
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    #[command(flatten)]
    template: TemplateArgs,
    /// Let pages of this origin ask, such as https://example.org; * is any
    #[arg(long, value_name = "ORIGIN")]
    cors: Option<String>,
    /// Log what is asked
    #[arg(long)]
    log_prompts: bool,
    #[command(flatten)]
    run: RunArgs,
}

/// Answers at once.
fn parallel(text: &str) -> Result<usize, String> {
    let most = BatchOptions::MOST_PARALLEL;
    let n = positive(text).ok().filter(|&n| n <= most);
    n.ok_or_else(|| format!("give a whole number from 1 to {most}"))
}

/// Positions of a sequence where nothing is said, if the model allows so many.
const CONTEXT: usize = 8192;

pub fn run(args: Args) -> anyhow::Result<()> {
    let wrong = |problem: &str| wrong_usage("serve", ErrorKind::InvalidValue, problem);
    let cors = args.cors.map(|origin| origin.parse()).transpose();
    let options = Options {
        alias: args.alias,
        // A variable that is set to nothing is none.
        api_key: args.api_key.filter(|key| !key.is_empty()),
        cors: cors.map_err(|_| wrong("--cors: give an origin, such as https://example.org, or *"))?,
        queue: args.queue,
        timeout: args.timeout,
        grace: args.grace,
        log_prompts: args.log_prompts,
        ..Options::default()
    };
    let open = options.api_key.is_none();
    log();
    // Fetched while someone looks, not behind a server that says it is loading.
    let path = args.model.either().path()?;
    let server = Server::bind((args.host.as_str(), args.port), options)?;
    let address = server.address();
    tracing::info!("listening: http://{address}");
    if open && !address.ip().is_loopback() {
        tracing::warn!(
            "anyone who reaches this address may ask: --api-key, or TORCHLESS_API_KEY, asks for a key"
        );
    }
    let stopper = server.stopper();
    let _orderly = Orderly::begin();
    interrupt::at_first(move || stopper.stop());
    server.run(move || -> anyhow::Result<Served> {
        let model = std::sync::Arc::new(Model::open(&path)?);
        let template = match args.template.is_given() {
            true => Some(args.template.of_model(model.tokenizer())?),
            false => None,
        };
        let scheduler = BatchOptions {
            session: args.run.session_options(&model, CONTEXT)?,
            parallel: args.parallel,
            kv_memory: args.kv_memory,
        };
        Ok(Served { model, scheduler, template })
    })?;
    // It was asked to end, and did.
    interrupt::forget();
    Ok(())
}

/// The log, on stderr; nothing happens where that is closed.
fn log() {
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_target(false);
    // There is no other.
    let _ = log.log_internal_errors(false).with_max_level(LevelFilter::INFO).try_init();
}
