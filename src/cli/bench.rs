//! `torchless bench`: how fast a model runs here, and how near to the memory's limit.

mod plot;
mod report;
mod serve;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::error::ErrorKind;
use indicatif::ProgressBar;
use serde::Serialize;
use torchless::Model;
use torchless::bench::{Test, bandwidth::memory_bandwidth, measure};
use torchless::kernels::Kernels;
use torchless::runtime::SessionOptions;

use super::machine::{Resident, cpu_name};
use super::model::{Kv, NamedModel, at_most};
use super::output::count;
use super::plot::Picture;
use super::progress;
use super::values::{self, isa};
use super::wrong_usage;
use plot::Plot;
use report::Report;

/// Measure how many tokens a second the model runs at here
///
/// pp512 is a prompt of 512 tokens, tg128 the generation of 128, both from an empty cache or behind the tokens --depth
/// puts into it. Each is run once to warm up and then timed: mean ± standard deviation.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    torchless bench\n  \
    torchless bench model.bin -p 0 -n 64 -d 0,4096 -t 1,2\n  \
    torchless bench --isa auto,portable --json\n  \
    torchless bench -p 512 -n 32 -d 0,512,1024,1536 --plot speed.svg\n  \
    torchless bench serve --streams 1,4,8\n\n\
    GB/s is what a generated token must read at the least: all weights, and the keys and values in sight. The last column \
    is its share of what a plain loop on as many threads reads, measured just before and after the test over the weights themselves \
    (over other memory where a cache could hold them). Prompts are limited by arithmetic; --json and CSV give the two for \
    them too, the weights counted once for each 512 tokens."
)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    model: NamedModel,
    /// Prompt lengths to time; 0 leaves the test out
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "512", allow_negative_numbers = true, value_parser = values::count)]
    prompt_tokens: Vec<usize>,
    /// Numbers of tokens to generate; 0 leaves the test out
    #[arg(short = 'n', long, value_name = "N,…", value_delimiter = ',', default_value = "128", allow_negative_numbers = true, value_parser = values::count)]
    gen_tokens: Vec<usize>,
    /// Also time a prompt of P tokens and the generation of N after it as one
    #[arg(long, value_name = "P,N")]
    pg: Vec<Combined>,
    /// Tokens that are in the cache before each test
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "0", allow_negative_numbers = true, value_parser = values::count)]
    depth: Vec<usize>,
    /// Timed runs of each test
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..), allow_negative_numbers = true)]
    repeats: u16,
    /// Worker threads [default: the CPUs this process may use]
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024), allow_negative_numbers = true)]
    threads: Vec<u16>,
    /// Instruction sets: auto, or those this CPU has; TORCHLESS_ISA does the same
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "auto", value_parser = isa)]
    isa: Vec<String>,
    /// What keys and values are kept as: int8 takes half of f16's memory and is faster behind long contexts [default: f16,
    /// but f32 where all weights are]
    #[arg(long, value_enum, value_name = "TYPE")]
    kv: Option<Kv>,
    /// How to print the results
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "md")]
    format: Format,
    /// Print the rows as a JSON array: --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Also draw them, over the depth where there are several, beside what the memory allows
    #[arg(long, value_name = "FILE.svg", value_parser = super::plot::path)]
    plot: Option<PathBuf>,
}

#[derive(clap::Subcommand)]
enum Command {
    Serve(serve::Args),
}

#[derive(Clone, Copy, clap::ValueEnum, PartialEq, Eq)]
enum Format {
    /// A table, and what it was measured with
    Md,
    /// An array of rows
    Json,
    /// A line a row, with a header
    Csv,
}

/// `P,N` of `--pg`.
#[derive(Clone, Copy)]
struct Combined {
    prompt: usize,
    generate: usize,
}

impl FromStr for Combined {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |n: &str| n.parse().ok().filter(|&n| n > 0);
        let both = text.split_once(',').and_then(|(p, n)| Some((parse(p)?, parse(n)?)));
        let (prompt, generate) = both.ok_or("two numbers above zero are needed, as in 512,128")?;
        Ok(Self { prompt, generate })
    }
}

/// One test with one instruction set and one number of threads.
#[derive(Serialize)]
struct Row<'a> {
    test: String,
    threads: usize,
    isa: &'static str,
    tokens_per_s: f64,
    stddev: f64,
    gb_per_s: f64,
    /// `gb_per_s / memory_gb_per_s`
    bandwidth_share: f64,
    /// What a plain loop read on as many threads, just before and after.
    memory_gb_per_s: f64,
    prompt_tokens: usize,
    gen_tokens: usize,
    depth: usize,
    kv: String,
    /// Tokens a second of each run.
    samples: Vec<f64>,
    /// The most that was in RAM; null where the system does not tell.
    resident_anonymous_bytes: Option<usize>,
    resident_file_bytes: Option<usize>,
    resident_file_huge_bytes: Option<usize>,
    #[serde(flatten)]
    setting: &'a Setting,
}

/// What is the same in all rows.
#[derive(Serialize)]
struct Setting {
    model: String,
    model_bytes: usize,
    model_params: usize,
    load_ms: f64,
    cpu: Option<String>,
    version: &'static str,
    revision: &'static str,
}

impl Setting {
    fn new(model: &Model, load_ms: f64) -> Self {
        let tensors = model.file().tensors();
        let name = model.file().path().file_stem().unwrap_or_default();
        Self {
            model: super::output::one_line(&name.to_string_lossy()),
            model_bytes: tensors.iter().map(|t| t.bytes()).sum(),
            model_params: tensors.iter().map(|t| t.shape().iter().product::<usize>()).sum(),
            load_ms,
            cpu: cpu_name(),
            version: env!("CARGO_PKG_VERSION"),
            revision: env!("TORCHLESS_REVISION"),
        }
    }
}

pub fn run(mut args: Args) -> anyhow::Result<()> {
    if let Some(Command::Serve(args)) = args.command {
        return serve::run(args);
    }
    let tests = args.tests();
    if tests.is_empty() {
        let nothing = "nothing is left to measure: give -p, -n or --pg a number above zero";
        return Err(wrong_usage("bench", ErrorKind::InvalidValue, nothing));
    }
    let path = std::mem::take(&mut args.model).either().path()?;
    let start = Instant::now();
    let model = Arc::new(Model::open(path)?);
    let setting = Setting::new(&model, start.elapsed().as_secs_f64() * 1e3);
    let options = args.session_options(&model)?;
    for test in &tests {
        test.check(&model)?;
    }

    let inputs = [model.file().path().to_owned()];
    let picture = args.plot.as_deref().map(|path| Picture::create(path, &inputs)).transpose()?;
    let runs = options.len() * tests.len() * (1 + usize::from(args.repeats));
    let mut report =
        Report::new(if args.json { Format::Json } else { args.format }, &setting, &tests, &options);
    let bar = progress::runs(runs);
    for options in &options {
        for &test in &tests {
            bar.set_message(format!(
                "{test}, {}, {}",
                count(options.threads, "thread"),
                options.kernels.isa()
            ));
            let row = args.measure(&model, options, test, &setting, &bar)?;
            bar.suspend(|| report.add(row))?;
        }
    }
    bar.finish_and_clear();
    let rows = report.finish()?;
    if let Some(picture) = picture {
        let plot = Plot::new(&rows, &setting);
        picture.write(plot.size(), |area| plot.draw(area))?;
    }
    Ok(())
}

impl Args {
    fn tests(&self) -> Vec<Test> {
        let prompts = self.prompt_tokens.iter().map(|&prompt| (prompt, 0));
        let generations = self.gen_tokens.iter().map(|&generate| (0, generate));
        let combined = self.pg.iter().map(|c| (c.prompt, c.generate));
        let tests: Vec<_> = prompts.chain(generations).filter(|&t| t != (0, 0)).chain(combined).collect();
        let at = |&depth| tests.iter().map(move |&(prompt, generate)| Test { prompt, generate, depth });
        self.depth.iter().flat_map(at).collect()
    }

    /// Every instruction set with every number of threads.
    fn session_options(&self, model: &Model) -> anyhow::Result<Vec<SessionOptions>> {
        let mut defaults = SessionOptions::new(model);
        if let Some(kv) = self.kv {
            defaults.kv = kv.into();
        }
        let threads = match self.threads[..] {
            [] => vec![defaults.threads],
            _ => self.threads.iter().map(|&t| at_most(t)).collect(),
        };
        let mut all = Vec::new();
        for isa in &self.isa {
            let kernels = Kernels::choose(Some(isa)).context("--isa (or TORCHLESS_ISA)")?;
            all.extend(threads.iter().map(|&threads| SessionOptions {
                kernels,
                threads,
                ..defaults.clone()
            }));
        }
        Ok(all)
    }

    fn measure<'a>(
        &self,
        model: &Arc<Model>,
        options: &SessionOptions,
        test: Test,
        setting: &'a Setting,
        bar: &ProgressBar,
    ) -> anyhow::Result<Row<'a>> {
        let before = memory_bandwidth(model, options.threads)?;
        let mut resident = None;
        let measurement = measure(model, options, test, self.repeats.into(), || {
            bar.inc(1);
            resident = Resident::now().map(|now| now.max(resident.unwrap_or_default()));
            ControlFlow::Continue(())
        })?;
        // A shared machine's memory is faster at one time than at another.
        let memory = (before + memory_bandwidth(model, options.threads)?) / 2.0;
        Ok(Row {
            test: test.to_string(),
            threads: options.threads,
            isa: options.kernels.isa().name(),
            tokens_per_s: measurement.mean(),
            stddev: measurement.stddev(),
            gb_per_s: measurement.bytes_per_s() * 1e-9,
            bandwidth_share: measurement.bytes_per_s() / memory,
            memory_gb_per_s: memory * 1e-9,
            prompt_tokens: test.prompt,
            gen_tokens: test.generate,
            depth: test.depth,
            kv: format!("{:?}", options.kv).to_lowercase(),
            samples: measurement.tokens_per_s,
            resident_anonymous_bytes: resident.map(|r| r.anonymous),
            resident_file_bytes: resident.map(|r| r.file),
            resident_file_huge_bytes: resident.map(|r| r.file_huge),
            setting,
        })
    }
}
