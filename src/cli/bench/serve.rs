//! `torchless bench serve`: what a server gives to several people at a time.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use serde::Serialize;
use torchless::Model;
use torchless::bench::load::{self, Load, quantile};
use torchless::runtime::BatchOptions;
use torchless::serve::{Options, Served, Server, Stopper};

use crate::cli::machine::cpu_name;
use crate::cli::model::{ModelArgs, RunArgs};
use crate::cli::output::{emit_json, emit_line};
use crate::cli::plot::{
    self, Area, GREY, HEADER, INK, Picture, colour, font, header, number, plain, round_up, write,
};
use crate::cli::progress;
use crate::cli::values::positive;

/// Measure what a server gives to several people at a time
///
/// Each asks, reads the answer as it comes, and asks again, until all are done. Without --url the server is this program's own.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless bench serve -m model.bin\n  \
    torchless bench serve -m model.bin --streams 1,8 -p 2000 -n 32 --json\n  \
    torchless bench serve --url http://127.0.0.1:8080\n\n\
    tokens/s is of all answers together, reading the prompts included. The times are medians and, in brackets, what 95 of 100 do not \
    exceed: from a question to its first token, and from a token to the next.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A server that speaks OpenAI's API, in place of one of this program's own
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "threads", "ctx", "isa", "kv"])]
    url: Option<String>,
    /// The key that the server at --url asks for
    #[arg(long, value_name = "KEY", env = "TORCHLESS_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// How many ask at the same time
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8,16", value_parser = streams)]
    streams: Vec<usize>,
    /// Words of a prompt, about as many tokens
    #[arg(short, long, value_name = "N", default_value_t = 32, allow_negative_numbers = true, value_parser = positive)]
    prompt_tokens: usize,
    /// Tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, allow_negative_numbers = true, value_parser = positive)]
    gen_tokens: usize,
    /// How often each asks
    #[arg(short, long, value_name = "N", default_value_t = 2, allow_negative_numbers = true, value_parser = positive)]
    repeats: usize,
    /// Print the rows as a JSON array
    #[arg(long)]
    json: bool,
    /// Also draw them
    #[arg(long, value_name = "FILE.svg", value_parser = crate::cli::plot::path)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

fn streams(text: &str) -> Result<usize, String> {
    let most = BatchOptions::MOST_PARALLEL;
    let n = positive(text).ok().filter(|&n| n <= most);
    n.ok_or_else(|| format!("give whole numbers from 1 to {most}"))
}

/// One number of streams.
#[derive(Serialize)]
struct Row {
    streams: usize,
    requests: usize,
    prompt_tokens: usize,
    gen_tokens: usize,
    tokens_per_s: f64,
    first_token_ms: [f64; 2],
    gap_ms: [f64; 2],
    longest_gap_ms: f64,
    seconds: f64,
    server: String,
    cpu: Option<String>,
    version: &'static str,
    revision: &'static str,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let picture = args.plot.as_deref().map(|path| Picture::create(path, &[])).transpose()?;
    let most = args.streams.iter().copied().max().unwrap_or(1);
    let (url, server, own) = match &args.url {
        Some(url) => (url.clone(), url.clone(), None),
        None => {
            let (own, name) = Own::start(&args, most)?;
            (own.url.clone(), name, Some(own))
        }
    };
    let load = |streams| Load {
        streams,
        requests: args.repeats,
        prompt: args.prompt_tokens,
        generate: args.gen_tokens,
    };
    let key = args.api_key.as_deref();
    // So that all weights have been read and all threads woken.
    load::run(&url, key, Load { requests: 1, ..load(1) }, 0, || ())?;
    let bar = progress::runs(args.streams.iter().sum::<usize>() * args.repeats);
    let mut rows = Vec::new();
    for (round, &streams) in args.streams.iter().enumerate() {
        bar.set_message(format!("{streams} at a time"));
        let load = load(streams);
        let served = load::run(&url, key, load, (round + 1) * BatchOptions::MOST_PARALLEL, || bar.inc(1))?;
        let row = Row::new(load, &served, &server);
        if !args.json {
            bar.suspend(|| row.emit(rows.is_empty()))?;
        }
        rows.push(row);
    }
    bar.finish_and_clear();
    drop(own);
    if args.json {
        emit_json(&rows)?;
    }
    match picture {
        Some(picture) => picture.write(SIZE, |area| draw(&rows, area)),
        None => Ok(()),
    }
}

/// A server of this program's own.
struct Own {
    url: String,
    stopper: Stopper,
    thread: Option<thread::JoinHandle<anyhow::Result<()>>>,
}

impl Own {
    /// Starts one for so many streams, and waits until it is ready.
    fn start(args: &Args, streams: usize) -> anyhow::Result<(Self, String)> {
        let model = args.model.open(false)?;
        let name = model.file().path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let scheduler = BatchOptions {
            session: args.run.session_options(&model, args.positions(&model))?,
            parallel: streams,
            kv_memory: None,
        };
        let server = Server::bind(("127.0.0.1", 0), Options::default())?;
        let (url, stopper) = (format!("http://{}", server.address()), server.stopper());
        let thread = thread::Builder::new().name("server".to_owned()).spawn(move || {
            server.run(move || -> anyhow::Result<Served> { Ok(Served { model, scheduler, template: None }) })
        })?;
        let mut own = Self { url, stopper, thread: Some(thread) };
        while !own.is_ready() {
            if own.thread.as_ref().is_none_or(thread::JoinHandle::is_finished) {
                let ended = own.thread.take().map(thread::JoinHandle::join);
                return match ended {
                    Some(Ok(Err(error))) => Err(error),
                    _ => Err(anyhow!("the server has ended before it was ready")),
                };
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok((own, name))
    }

    fn is_ready(&self) -> bool {
        ureq::get(format!("{}/health", self.url)).call().is_ok()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.stopper.stop();
        // What it has to say now interests nobody.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

impl Args {
    /// Positions that a prompt and its answer take: a word may be some tokens.
    fn positions(&self, model: &Model) -> usize {
        let needed = self.prompt_tokens.saturating_mul(3).saturating_add(self.gen_tokens).saturating_add(16);
        needed.min(model.config().max_position_embeddings)
    }
}

impl Row {
    fn new(load: Load, served: &load::Served, server: &str) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let both = |times: &[Duration]| [0.5, 0.95].map(|part| ms(quantile(times, part)));
        let requests = load.streams * load.requests;
        Self {
            streams: load.streams,
            requests,
            prompt_tokens: served.prompt_tokens / requests,
            gen_tokens: served.tokens / requests,
            tokens_per_s: served.tokens_per_s(),
            first_token_ms: both(&served.first),
            gap_ms: both(&served.gaps),
            longest_gap_ms: ms(quantile(&served.gaps, 1.0)),
            seconds: served.time.as_secs_f64(),
            server: server.to_owned(),
            cpu: cpu_name(),
            version: env!("CARGO_PKG_VERSION"),
            revision: env!("TORCHLESS_REVISION"),
        }
    }

    fn emit(&self, first: bool) -> std::io::Result<()> {
        if first {
            emit_line(&format!(
                "{}: prompts of {} tokens, answers of {}\n",
                self.server, self.prompt_tokens, self.gen_tokens
            ))?;
            emit_line("| streams | tokens/s | first token, ms |   gap, ms (longest) |")?;
            emit_line("| ------: | -------: | --------------: | ------------------: |")?;
        }
        let [first, late] = self.first_token_ms;
        let [gap, long] = self.gap_ms;
        let (first, gap) =
            (format!("{first:.0} ({late:.0})"), format!("{gap:.1} ({long:.1}, {:.0})", self.longest_gap_ms));
        emit_line(&format!("| {:>7} | {:>8.1} | {first:>15} | {gap:>19} |", self.streams, self.tokens_per_s))
    }
}

/// Pixels of the picture.
const SIZE: (u32, u32) = (860, 620);

/// Tokens a second together, and the times, over the number of streams.
fn draw(rows: &[Row], area: &Area) -> anyhow::Result<()> {
    let Some(row) = rows.first() else { return Ok(()) };
    let what = format!("prompts of {} tokens, answers of {}", row.prompt_tokens, row.gen_tokens);
    let by = format!("torchless {} ({})", row.version, row.revision);
    let subtitle =
        [Some(what), row.cpu.clone(), Some(by)].into_iter().flatten().collect::<Vec<_>>().join(", ");
    header(area, &format!("{}: several at a time", row.server), &subtitle)?;
    let (_, rest) = area.split_vertically(HEADER);
    let (above, below) = rest.split_vertically((SIZE.1 - HEADER) / 2);
    chart(rows, &above, "Tokens a second, together", "tokens/s", &[("", |row| row.tokens_per_s)])?;
    let times: [Line; 2] =
        [("to the first token", |row| row.first_token_ms[0]), ("from token to token", |row| row.gap_ms[0])];
    chart(rows, &below, "Times, medians", "ms", &times)
}

/// A name and what is drawn of a row.
type Line = (&'static str, fn(&Row) -> f64);

fn chart(rows: &[Row], area: &Area, title: &str, unit: &str, lines: &[Line]) -> anyhow::Result<()> {
    write(area, title, (20, 14), font(14.0, INK), HPos::Left)?;
    let most = rows.iter().map(|row| row.streams).max().unwrap_or(1) as f64;
    let values = lines.iter().flat_map(|(_, value)| rows.iter().map(value));
    let top = round_up(values.fold(f64::MIN_POSITIVE, f64::max) * 1.05);
    let mut chart = plot::chart(area).build_cartesian_2d(0.0..most * 1.1, 0.0..top)?;
    plain(&mut chart.configure_mesh())
        .axis_desc_style(font(12.0, INK))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| number(*y))
        .x_desc("streams")
        .y_desc(unit)
        .draw()?;
    for (i, (name, value)) in lines.iter().enumerate() {
        let points: Vec<_> = rows.iter().map(|row| (row.streams as f64, value(row))).collect();
        chart.draw_series(LineSeries::new(points.iter().copied(), colour(i).stroke_width(2)))?;
        chart.draw_series(points.iter().map(|&at| Circle::new(at, 3, colour(i).filled())))?;
        let y = 14 + 18 * i as i32;
        write(
            area,
            name,
            (SIZE.0 as i32 - 30, y),
            font(12.0, if name.is_empty() { GREY } else { colour(i) }),
            HPos::Right,
        )?;
    }
    Ok(())
}
