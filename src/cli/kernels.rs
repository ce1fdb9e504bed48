//! `torchless kernels`: every kernel of every instruction set against the reference, for equality and speed.

use anyhow::Context;
use half::f16;
use serde::Serialize;
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::output::{emit_json, emit_line};
use torchless::bench::bandwidth::read;
use torchless_kernels::{BLOCK, CacheElement, GROUP, Isa, Kernels, MatMut, QMatrix, QuantizedBuf};

/// Compare every kernel with the scalar reference: equal or not, and how fast
///
/// All instruction sets of this CPU, on one core. The rows named read are a plain loop over the same memory, timed in turns
/// with the kernels.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  torchless kernels\n  torchless kernels gemm --only avx2 --json")]
pub struct Args {
    /// Only kernels whose name contains this, e.g. gemm or attn
    filter: Option<String>,
    /// Only these instruction sets (comma-separated); the reference is always among them
    #[arg(long, value_delimiter = ',', value_name = "ISA")]
    only: Vec<String>,
    /// Batched products of every matrix, not only of three: takes a minute
    #[arg(long)]
    all: bool,
    /// Seconds to measure each row for
    #[arg(long, default_value_t = 0.05, value_name = "SECONDS")]
    time: f64,
    /// Print the rows as a JSON array
    #[arg(long)]
    json: bool,
}

/// One kernel of one instruction set.
#[derive(Serialize, Debug)]
pub struct Row {
    kernel: &'static str,
    isa: &'static str,
    shape: String,
    /// The largest distance from the reference, in units in the last place; 0 is equal bits.
    max_ulp: u32,
    throughput: f64,
    unit: &'static str,
    speedup: f64,
}

/// Prints the table, or the rows as JSON.
///
/// # Errors
/// If an instruction set is not to be had here, or the results of one differ from the reference.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let kernels = chosen(&args.only)?;
    let budget = Duration::try_from_secs_f64(args.time).context("--time")?;
    let mut rows = Vec::new();
    if !args.json {
        emit_line(&format!(
            "{:<20} {:>16} {:<11} {:>7} {:>10} {:<6} {:>8}",
            "kernel", "shape", "isa", "max ulp", "throughput", "unit", "speed-up"
        ))?;
    }
    for (kernel, make) in cases(args.all) {
        if args.filter.as_ref().is_none_or(|f| kernel.contains(f.as_str())) {
            for row in measure(kernel, make(), &kernels, budget) {
                if !args.json {
                    emit_line(&row.to_line())?;
                }
                rows.push(row);
            }
        }
    }
    if args.json {
        emit_json(&rows)?;
    }
    let wrong = rows.iter().filter(|row| row.max_ulp != 0).count();
    anyhow::ensure!(wrong == 0, "{wrong} of {} results differ from the scalar reference", rows.len());
    Ok(())
}

fn chosen(only: &[String]) -> anyhow::Result<Vec<Kernels>> {
    let mut chosen = vec![Kernels::new(Isa::Scalar)?];
    let others = Isa::ALL.into_iter().filter(|&isa| isa != Isa::Scalar);
    if only.is_empty() {
        chosen.extend(others.filter_map(|isa| Kernels::new(isa).ok()));
    } else {
        let names = only.iter().map(|name| Ok(Kernels::new(name.parse()?)?));
        let named: anyhow::Result<Vec<_>> = names.collect();
        chosen.extend(named?.into_iter().filter(|k| k.isa() != Isa::Scalar));
    }
    Ok(chosen)
}

impl Row {
    fn to_line(&self) -> String {
        let Row { kernel, isa, shape, max_ulp, throughput, unit, speedup } = self;
        format!(
            "{kernel:<20} {shape:>16} {isa:<11} {max_ulp:>7} {throughput:>10.2} {unit:<6} {speedup:>7.1}×"
        )
    }
}

/// A kernel on fixed inputs.
struct Case {
    shape: String,
    /// What one run is worth, in `unit`·seconds: 10⁹ bytes read, or 10⁹ multiply-adds.
    work: f64,
    unit: &'static str,
    task: Box<dyn Task>,
}

trait Task {
    /// The plain loop over the same memory that a kernel's speed is held against, where memory is the limit.
    fn read(&self) -> Option<u64> {
        None
    }
    fn run(&mut self, kernels: Kernels);
    fn results(&self) -> Vec<f32>;
}

/// The rows of one case: the reference, and the others compared with it.
fn measure(kernel: &'static str, mut case: Case, kernels: &[Kernels], budget: Duration) -> Vec<Row> {
    let mut reference = None;
    let mut timed = Vec::new();
    if case.task.read().is_some() {
        timed.push(("read", Isa::Scalar, 0, Timer::default()));
    }
    for &k in kernels {
        case.task.run(k);
        let results = case.task.results();
        let expected = reference.get_or_insert_with(|| results.clone());
        timed.push((kernel, k.isa(), max_ulp(&results, expected), Timer::default()));
    }
    // In turns, so that what else the machine does falls on all alike.
    while timed.iter().any(|(.., timer)| timer.wants_more(budget)) {
        for (name, isa, _, timer) in timed.iter_mut().filter(|(.., timer)| timer.wants_more(budget)) {
            match kernels.iter().find(|k| *name == kernel && k.isa() == *isa) {
                Some(&k) => timer.sample(|| case.task.run(k)),
                None => timer.sample(|| _ = black_box(case.task.read())),
            }
        }
    }
    let slowest = timed.iter().find(|(name, ..)| *name == kernel).map_or(1.0, |(.., timer)| timer.fastest);
    let row = |(name, isa, max_ulp, timer): (&'static str, Isa, u32, Timer)| Row {
        kernel: name,
        isa: isa.name(),
        shape: case.shape.clone(),
        max_ulp,
        throughput: case.work / timer.fastest,
        unit: case.unit,
        speedup: if name == kernel { slowest / timer.fastest } else { 1.0 },
    };
    timed.into_iter().map(row).collect()
}

/// Keeps the shortest time: it is the one that the neighbours disturbed least.
struct Timer {
    fastest: f64,
    spent: Duration,
    samples: u32,
    /// Runs a sample takes, so that a sample is long beside the clock's steps.
    runs: u32,
}

impl Default for Timer {
    fn default() -> Self {
        Self { fastest: f64::INFINITY, spent: Duration::ZERO, samples: 0, runs: 1 }
    }
}

impl Timer {
    fn wants_more(&self, budget: Duration) -> bool {
        self.samples < 2 || self.spent < budget
    }

    fn sample(&mut self, mut run: impl FnMut()) {
        let start = Instant::now();
        for _ in 0..self.runs {
            run();
        }
        let time = start.elapsed();
        self.spent += time;
        self.samples += 1;
        self.fastest = self.fastest.min(time.as_secs_f64() / f64::from(self.runs));
        if time < Duration::from_micros(20) {
            self.runs *= 2;
        }
    }
}

/// How many floats lie between the two vectors' elements at most; NaNs are equal.
fn max_ulp(a: &[f32], b: &[f32]) -> u32 {
    // The bits of floats order as signed magnitudes do.
    let order = |x: f32| {
        if x.is_sign_negative() { -i64::from(x.to_bits() & 0x7fff_ffff) } else { x.to_bits().into() }
    };
    let distance = |(&a, &b): (&f32, &f32)| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0,
        (false, false) if a == b && a.to_bits() != b.to_bits() => 1, // +0 and −0
        (false, false) => u32::try_from(order(a).abs_diff(order(b))).unwrap_or(u32::MAX),
        _ => u32::MAX,
    };
    a.iter().zip(b).map(distance).max().unwrap_or(0)
}

type MakeCase = Box<dyn Fn() -> Case>;

/// Shapes of a 135M model and of a 7B one, rows × columns.
const MATRICES: [(usize, usize); 7] =
    [(576, 576), (1536, 576), (49152, 576), (4096, 4096), (14336, 4096), (4096, 14336), (32000, 4096)];

fn cases(all: bool) -> Vec<(&'static str, MakeCase)> {
    let mut cases: Vec<(&'static str, MakeCase)> = Vec::new();
    for (rows, cols) in MATRICES {
        cases.push(("gemv_i8", Box::new(move || int8_product(rows, cols, 1))));
    }
    let batched =
        MATRICES.into_iter().filter(|&m| all || [(576, 576), (1536, 576), (4096, 4096)].contains(&m));
    for (rows, cols) in batched {
        for tokens in [4, 16, 64, 512] {
            cases.push(("gemm_i8", Box::new(move || int8_product(rows, cols, tokens))));
        }
    }
    cases.push(("gemv_f32", Box::new(|| f32_product(4096, 4096))));
    for n in [576, 4096] {
        cases.push(("quantize", Box::new(move || quantizing(n, |k, s, row| k.quantize(&s[0], row)))));
        let norm: Quantizing = |k, s, row| k.rms_norm_quantize(&s[0], &s[1], 1e-5, row);
        cases.push(("rms_norm_quantize", Box::new(move || quantizing(n, norm))));
        let silu: Quantizing = |k, s, row| k.silu_mul_quantize(&s[0], &s[1], row);
        cases.push(("silu_mul_quantize", Box::new(move || quantizing(n, silu))));
        cases.push(("rms_norm", Box::new(move || updating(n, |k, s, x| k.rms_norm(&s[0], &s[1], 1e-5, x)))));
        cases.push(("silu_mul", Box::new(move || updating(n, |k, s, x| k.silu_mul(&s[0], &s[1], x)))));
        cases.push(("rope", Box::new(move || updating(n, |k, s, x| k.rope(x, &s[0][..32], &s[1][..32])))));
        cases.push(("add", Box::new(move || updating(n, |k, s, x| k.add(x, &s[1])))));
        cases.push(("attn_merge", Box::new(move || updating(n, |k, s, x| k.attn_merge(x, 0.3, &s[1], 0.7)))));
    }
    cases.push(("attn_softmax", Box::new(|| updating(256, |k, _, x| _ = k.softmax_block(x)))));
    // The heads that share keys in decode; a tile of tokens in prefill, which widens the cache first.
    for (queries, head_dim) in [(1, 64), (3, 64), (4, 128), (48, 64)] {
        macro_rules! attn {
            ($name:literal, $element:ty, $kernel:ident) => {
                cases.push(($name, Box::new(move || attention::<$element>(queries, head_dim, $kernel))))
            };
        }
        attn!("attn_scores_f32", f32, scores);
        attn!("attn_scores_f16", f16, scores);
        attn!("attn_scores_i8", i8, scores);
        attn!("attn_accumulate_f32", f32, accumulate);
        attn!("attn_accumulate_f16", f16, accumulate);
        attn!("attn_accumulate_i8", i8, accumulate);
    }
    cases.push(("argmax", Box::new(|| updating(49152, |k, s, x| x[0] = k.argmax(&s[0]) as f32))));
    cases
}

/// A fixed sequence of values in −1..1.
fn floats(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state as i32 >> 8) as f32 / (1 << 23) as f32
    };
    (0..n).map(|_| next()).collect()
}

/// An int8 matrix times some tokens, in panels of 128 rows as the forward pass takes them.
struct Int8Product {
    values: Vec<i8>,
    scales: Vec<f32>,
    shape: (usize, usize, usize),
    x: QuantizedBuf,
    out: Vec<f32>,
}

fn int8_product(rows: usize, cols: usize, tokens: usize) -> Case {
    let mut byte = 0u32;
    let mut next = || {
        byte = byte.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (byte >> 24) as i8
    };
    let values: Vec<i8> = (0..rows * cols).map(|_| next()).collect();
    let scales = floats(rows * cols / GROUP, 1).iter().map(|x| 127.0 / (x.abs() + 0.1)).collect();
    let mut x = QuantizedBuf::new(tokens, cols);
    for t in 0..tokens {
        let token = floats(cols, t as u32);
        Kernels::detect().quantize(&token, x.view_mut(tokens).token(t));
    }
    let macs = (rows * cols * tokens) as f64 * 1e-9;
    let (work, unit, shape) = match tokens {
        1 => (macs * (1.0 + 4.0 / GROUP as f64), "GB/s", format!("{rows}×{cols}")),
        _ => (macs, "GMAC/s", format!("{rows}×{cols}×{tokens}")),
    };
    let out = vec![0.0; rows * tokens];
    Case {
        shape,
        work,
        unit,
        task: Box::new(Int8Product { values, scales, shape: (rows, cols, tokens), x, out }),
    }
}

impl Task for Int8Product {
    fn read(&self) -> Option<u64> {
        let (values, scales) = (bytemuck::cast_slice(&self.values), bytemuck::cast_slice(&self.scales));
        (self.shape.2 == 1).then(|| read(values).wrapping_add(read(scales)))
    }

    fn run(&mut self, kernels: Kernels) {
        let (rows, cols, tokens) = self.shape;
        let w = QMatrix::new(&self.values, &self.scales, rows, cols);
        for first in (0..rows).step_by(128) {
            let panel = first..(first + 128).min(rows);
            let (_, out) = MatMut::new(&mut self.out, tokens, rows).split_cols(first);
            let (out, _) = out.split_cols(panel.len());
            kernels.matmul_i8(&w, panel, &self.x.view(tokens), out);
        }
    }

    fn results(&self) -> Vec<f32> {
        self.out.clone()
    }
}

struct F32Product {
    w: Vec<f32>,
    x: Vec<f32>,
    out: Vec<f32>,
}

fn f32_product(rows: usize, cols: usize) -> Case {
    let task = F32Product { w: floats(rows * cols, 1), x: floats(cols, 2), out: vec![0.0; rows] };
    let work = (rows * cols * 4) as f64 * 1e-9;
    Case { shape: format!("{rows}×{cols}"), work, unit: "GB/s", task: Box::new(task) }
}

impl Task for F32Product {
    fn run(&mut self, kernels: Kernels) {
        let rows = self.out.len();
        kernels.matmul_f32(&self.w, &self.x, self.x.len(), MatMut::new(&mut self.out, 1, rows));
    }

    fn results(&self) -> Vec<f32> {
        self.out.clone()
    }
}

type Quantizing = fn(Kernels, &[Vec<f32>; 2], torchless_kernels::QuantizedRow);

/// A kernel that turns two vectors into quantised values.
struct QuantizingTask {
    sources: [Vec<f32>; 2],
    out: QuantizedBuf,
    kernel: Quantizing,
}

fn quantizing(n: usize, kernel: Quantizing) -> Case {
    let task = QuantizingTask { sources: [floats(n, 1), floats(n, 2)], out: QuantizedBuf::new(1, n), kernel };
    Case { shape: n.to_string(), work: (4 * n) as f64 * 1e-9, unit: "GB/s", task: Box::new(task) }
}

impl Task for QuantizingTask {
    fn run(&mut self, kernels: Kernels) {
        (self.kernel)(kernels, &self.sources, self.out.view_mut(1).token(0));
    }

    fn results(&self) -> Vec<f32> {
        let view = self.out.view(1);
        let integers =
            view.values().iter().map(|&q| f32::from(q)).chain(view.sums().iter().map(|&s| s as f32));
        let outliers = view.outliers().iter().flat_map(|o| o.high.map(f32::from));
        integers.chain(view.scales().iter().copied()).chain(outliers).collect()
    }
}

type Updating = fn(Kernels, &[Vec<f32>; 2], &mut [f32]);

/// A kernel that changes a vector, which starts anew as the first source.
struct UpdatingTask {
    sources: [Vec<f32>; 2],
    x: Vec<f32>,
    kernel: Updating,
}

fn updating(n: usize, kernel: Updating) -> Case {
    let task = UpdatingTask { sources: [floats(n, 1), floats(n, 2)], x: vec![0.0; n], kernel };
    Case { shape: n.to_string(), work: (4 * n) as f64 * 1e-9, unit: "GB/s", task: Box::new(task) }
}

impl Task for UpdatingTask {
    fn run(&mut self, kernels: Kernels) {
        self.x.copy_from_slice(&self.sources[0]);
        (self.kernel)(kernels, &self.sources, &mut self.x);
    }

    fn results(&self) -> Vec<f32> {
        self.x.clone()
    }
}

/// Some queries of one head, and one block of its keys or values.
struct AttentionTask<T> {
    cache: Vec<T>,
    queries: Vec<f32>,
    scores: Vec<[f32; BLOCK]>,
    out: Vec<f32>,
    kernel: fn(Kernels, &mut AttentionTask<T>),
}

fn attention<T: CacheElement>(
    queries: usize,
    head_dim: usize,
    kernel: fn(Kernels, &mut AttentionTask<T>),
) -> Case {
    let mut cache = vec![T::default(); BLOCK * head_dim];
    Kernels::detect().narrow(&floats(cache.len(), 1), &mut cache);
    let work = (queries * cache.len()) as f64 * 1e-9;
    let scores = floats(queries * BLOCK, 2).as_chunks().0.to_vec();
    let (queries_of, out) = (floats(queries * head_dim, 3), vec![0.0; queries * head_dim]);
    let shape = format!("{queries}×{head_dim}×{BLOCK}");
    let task = AttentionTask { cache, queries: queries_of, scores, out, kernel };
    Case { shape, work, unit: "GMAC/s", task: Box::new(task) }
}

fn scores<T: CacheElement>(kernels: Kernels, task: &mut AttentionTask<T>) {
    kernels.attn_scores(&task.queries, &task.cache, &mut task.scores);
}

fn accumulate<T: CacheElement>(kernels: Kernels, task: &mut AttentionTask<T>) {
    let factors = [[0.5; 2]; 64];
    task.out.fill(0.25);
    kernels.attn_accumulate(&task.scores, 0, &task.cache, &factors[..task.scores.len()], &mut task.out);
}

impl<T: CacheElement> Task for AttentionTask<T> {
    fn run(&mut self, kernels: Kernels) {
        (self.kernel)(kernels, self);
    }

    fn results(&self) -> Vec<f32> {
        self.scores.iter().flatten().chain(&self.out).copied().collect()
    }
}
