//! Timing a case with every instruction set, and comparing what comes out.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;
use torchless_kernels::{Isa, Kernels};

use super::cases::Case;

/// The name of the rows that are a plain loop.
const READ: &str = "read";

/// One kernel of one instruction set.
#[derive(Serialize, Debug, Clone)]
pub struct Row {
    pub kernel: &'static str,
    pub isa: &'static str,
    pub shape: String,
    /// The largest distance from the reference, in units in the last place; 0 is equal bits.
    pub max_ulp: u32,
    /// In `unit`.
    pub throughput: f64,
    pub unit: &'static str,
    pub speedup: f64,
    /// Multiply-adds, or elements of a vector, for each byte read or written; 0 for a plain loop.
    pub operations_a_byte: f64,
    /// 10⁹ of them a second.
    pub goperations_per_s: f64,
}

impl Row {
    /// The names of the columns.
    pub fn header() -> String {
        let [kernel, shape, isa, ulp] = ["kernel", "shape", "isa", "max ulp"];
        let [throughput, unit, speedup] = ["throughput", "unit", "speed-up"];
        format!("{kernel:<19} {shape:>14} {isa:<10} {ulp:>7} {throughput:>10} {unit:<6} {speedup:>8}")
    }

    /// The row as a line of the table.
    pub fn to_line(&self) -> String {
        let Row { kernel, isa, shape, max_ulp, throughput, unit, speedup, .. } = self;
        format!(
            "{kernel:<19} {shape:>14} {isa:<10} {max_ulp:>7} {throughput:>10.2} {unit:<6} {speedup:>7.1}×"
        )
    }
}

/// The rows of one case: the reference, and the others compared with it.
pub fn measure(kernel: &'static str, mut case: Case, kernels: &[Kernels], budget: Duration) -> Vec<Row> {
    let mut reference = None;
    let mut timed = Vec::new();
    if case.task.read().is_some() {
        timed.push((READ, Isa::Scalar, 0, Timer::default()));
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
    let row = |(name, isa, max_ulp, timer): (&'static str, Isa, u32, Timer)| {
        let operations = if name == READ { 0.0 } else { case.operations };
        Row {
            kernel: name,
            isa: isa.name(),
            shape: case.shape.clone(),
            max_ulp,
            throughput: case.throughput(timer.fastest),
            unit: case.unit.name(),
            speedup: if name == kernel { slowest / timer.fastest } else { 1.0 },
            operations_a_byte: operations / case.bytes,
            goperations_per_s: operations * 1e-9 / timer.fastest,
        }
    };
    timed.into_iter().map(row).collect()
}

/// Keeps the shortest time: it is the one that the neighbours disturbed least.
pub struct Timer {
    /// Seconds of a run.
    pub fastest: f64,
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
    /// Whether the time is not spent yet.
    pub fn wants_more(&self, budget: Duration) -> bool {
        self.samples < 2 || self.spent < budget || self.fastest.is_infinite()
    }

    /// Times some runs.
    pub fn sample(&mut self, mut run: impl FnMut()) {
        let start = Instant::now();
        for _ in 0..self.runs {
            run();
        }
        let time = start.elapsed();
        self.spent += time;
        self.samples += 1;
        // Within one step of a coarse clock nothing takes any time.
        if !time.is_zero() {
            self.fastest = self.fastest.min(time.as_secs_f64() / f64::from(self.runs));
        }
        if time < Duration::from_micros(20) {
            self.runs = self.runs.saturating_mul(2);
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
