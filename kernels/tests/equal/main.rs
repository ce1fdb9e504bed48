//! Every kernel of every instruction set against the scalar reference: the same bits, on one list of cases.
//!
//! Which instruction sets a machine must have is said by `TORCHLESS_EXPECT_ISAS` (comma-separated names): where it is
//! set, any other set fails, so that none is left out unseen.

mod int4;
mod span;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;

#[cfg(not(miri))]
use proptest::prelude::*;
use torchless_kernels::half::f16;
use torchless_kernels::{
    Allocator, BLOCK, CacheElement, GROUP, Gate, Isa, Kernels, MatMut, Outlier, PANEL_ROWS, PanelMatrix,
    QMatrix, QUAD, QuantizedBuf,
};

/// Lengths around every edge a float kernel has: a lane, a register, a group. Under Miri, which looks at memory and
/// not at results, a few.
const LENGTHS: &[usize] = if cfg!(miri) {
    &[0, 1, 17, 64, 79]
} else {
    &[0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 48, 63, 64, 65, 79, 127, 128, 129, 192, 576, 1000]
};

/// The kernels of every instruction set this machine has, the reference first.
fn all() -> Vec<Kernels> {
    Isa::ALL.into_iter().filter_map(|isa| Kernels::new(isa).ok()).collect()
}

/// The differences that a test finds, of which it then names some for each instruction set: one that differs in a single
/// case is wrong in another way than one that differs in all of them.
#[derive(Default)]
struct Differences(RefCell<BTreeMap<&'static str, Found>>);

/// What was found of one instruction set.
#[derive(Default)]
struct Found {
    cases: usize,
    differing: Vec<String>,
}

impl Differences {
    /// Cases that are named for each instruction set.
    const NAMED: usize = 10;

    /// Runs `f` with every instruction set and expects what it says with the reference.
    fn look<T: Same + Debug>(&self, case: &dyn Debug, f: impl Fn(Kernels) -> T) {
        let kernels = all();
        let expected = f(kernels[0]);
        for k in &kernels[1..] {
            let got = f(*k);
            self.note(*k, case, got.same(&expected), || format!(":\n{got:?}\nexpected\n{expected:?}"));
        }
    }

    /// Notes whether a case is the same. The first difference of an instruction set is told in full.
    fn note(&self, k: Kernels, case: &dyn Debug, same: bool, full: impl FnOnce() -> String) {
        let mut found = self.0.borrow_mut();
        let Found { cases, differing } = found.entry(k.isa().name()).or_default();
        *cases += 1;
        match differing.len() {
            _ if same => (),
            0 => differing.push(format!("{case:?}{}", full())),
            1..Self::NAMED => differing.push(format!("{case:?}")),
            _ => differing.push(String::new()),
        }
    }
}

/// So that no test forgets to ask.
impl Drop for Differences {
    fn drop(&mut self) {
        let mut text = String::new();
        for (isa, Found { cases, differing }) in self.0.take() {
            if !differing.is_empty() {
                text += &format!("\n{isa} differs in {} of {cases} cases:\n", differing.len());
                differing.iter().take(Self::NAMED).for_each(|case| text += &format!("  {case}\n"));
            }
        }
        assert!(text.is_empty() || std::thread::panicking(), "{text}");
    }
}

/// Equal bits; NaNs are equal whatever their payload.
trait Same {
    fn same(&self, other: &Self) -> bool;
}

impl Same for f32 {
    fn same(&self, other: &f32) -> bool {
        self.to_bits() == other.to_bits() || (self.is_nan() && other.is_nan())
    }
}

impl Same for f16 {
    fn same(&self, other: &f16) -> bool {
        self.to_bits() == other.to_bits() || (self.is_nan() && other.is_nan())
    }
}

macro_rules! same_by_eq {
    ($($t:ty)*) => { $(impl Same for $t { fn same(&self, other: &$t) -> bool { self == other } })* };
}
same_by_eq!(i8 i16 i32 usize Outlier);

impl<T: Same> Same for Vec<T> {
    fn same(&self, other: &Vec<T>) -> bool {
        self.len() == other.len() && self.iter().zip(other).all(|(a, b)| a.same(b))
    }
}

macro_rules! same_tuple {
    ($($t:ident $i:tt),*) => {
        impl<$($t: Same),*> Same for ($($t,)*) {
            fn same(&self, other: &Self) -> bool { $(self.$i.same(&other.$i))&&* }
        }
    };
}
same_tuple!(A 0, B 1);
same_tuple!(A 0, B 1, C 2);
same_tuple!(A 0, B 1, C 2, D 3, E 4);

/// A small deterministic generator (SplitMix64; Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In −1..1.
    fn float(&mut self) -> f32 {
        (self.next() as i32 >> 8) as f32 / (1 << 23) as f32
    }
}

/// What the floats of a case look like.
#[derive(Clone, Copy, Debug)]
enum Floats {
    /// A third of the groups have an outlier.
    Plain,
    /// One outlier a group, as [`with_outlier`] makes them.
    Outliers,
    /// Every power of two there is.
    Wide,
    /// ±0, subnormals, the largest, and plain values in between.
    Limits,
    /// Those and infinities and NaN.
    Broken,
    Zero,
}

const FLOATS: &[Floats] = if cfg!(miri) {
    &[Floats::Broken]
} else {
    &[Floats::Plain, Floats::Outliers, Floats::Wide, Floats::Limits, Floats::Broken, Floats::Zero]
};

impl Floats {
    fn make(self, n: usize, seed: u64) -> Vec<f32> {
        let mut random = Random(seed);
        let limits =
            [0.0, -0.0, 1e-45, -1e-40, f32::MIN_POSITIVE, f32::MAX, f32::MIN, 88.0, -87.3, 89.0, -104.0];
        let broken = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let one = |random: &mut Random| {
            let pick = random.next() as usize;
            match self {
                Floats::Plain | Floats::Outliers => random.float() * 4.0,
                Floats::Wide => random.float() * 2f32.powi(pick as i32 % 128),
                Floats::Limits if pick.is_multiple_of(3) => limits[pick / 3 % limits.len()],
                Floats::Broken if pick.is_multiple_of(40) => broken[pick / 40 % broken.len()],
                Floats::Broken if pick.is_multiple_of(3) => limits[pick / 3 % limits.len()],
                Floats::Limits | Floats::Broken => random.float() * 100.0,
                Floats::Zero => 0.0,
            }
        };
        let mut x: Vec<f32> = (0..n).map(|_| one(&mut random)).collect();
        for (i, group) in x.chunks_mut(GROUP).enumerate() {
            let pick = random.next() as usize;
            match self {
                Floats::Plain if pick.is_multiple_of(3) => {
                    group[pick / 3 % group.len()] *= 2f32.powi(2 + (pick / 1000 % 9) as i32);
                }
                Floats::Outliers => with_outlier(group, pick % group.len(), seed as usize % OUTLIERS + i),
                _ => (),
            }
        }
        x
    }
}

/// Sorts of [`with_outlier`].
const OUTLIERS: usize = 14;

/// Makes `group[at]` an outlier, or nearly one: at each ratio to the others that the quantisation treats differently.
fn with_outlier(group: &mut [f32], at: usize, sort: usize) {
    group.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0));
    // In another quad, if there is one.
    let other = (at + QUAD) % group.len();
    group[other] = -1.0;
    group[at] = match sort % OUTLIERS {
        0 => 1.5,
        1 => 1.5f32.next_down(),
        2 => -1.5,
        3 => 3.7,
        4 => 128f32.next_down(),
        5 => 128.0,
        6 => -128f32.next_up(),
        7 => -1000.0,
        8 => f32::MAX,
        sort => {
            let factor = [0.0, 1e-30, f32::MIN_POSITIVE, 1e37, 1.0][sort - 9];
            group.iter_mut().for_each(|x| *x *= factor);
            match sort {
                12 => f32::MIN,
                // Two quads with the same maximum.
                13 => 1.0,
                _ => 1e30,
            }
        }
    };
}

/// `f` on vectors of every sort and length. Each starts one element into its allocation: nothing may rely on alignment.
fn for_floats(f: impl Fn(&(Floats, usize), &[f32], &[f32])) {
    for &sort in FLOATS {
        for &n in LENGTHS {
            let (x, y) = (sort.make(n + 1, n as u64), sort.make(n + 1, !(n as u64)));
            f(&(sort, n), &x[1..], &y[1..]);
        }
    }
}

/// Values, scales, sums, those of the parts, outliers.
type QuantizedToken = (Vec<i8>, Vec<f32>, Vec<i32>, Vec<i16>, Vec<Outlier>);

/// What a quantising kernel writes for one token.
fn quantized(n: usize, f: impl FnOnce(torchless_kernels::QuantizedRow)) -> QuantizedToken {
    let mut buf = QuantizedBuf::new(&mut Allocator::heap(), 1, n);
    f(buf.view_mut(1).token(0));
    let view = buf.view(1);
    (
        view.token_values(0).to_vec(),
        view.scales().to_vec(),
        view.sums().to_vec(),
        view.part_sums().as_flattened().to_vec(),
        view.outliers().to_vec(),
    )
}

fn updated(x: &[f32], f: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut x = x.to_vec();
    f(&mut x);
    x
}

#[test]
#[should_panic(expected = "portable differs in 2 of 3 cases:\n  0, in full\n  2\n")]
fn every_difference_is_named() {
    let (differences, portable) = (Differences::default(), Kernels::new(Isa::Portable).unwrap());
    for case in 0..3 {
        differences.note(portable, &case, case == 1, || ", in full".to_owned());
    }
}

#[test]
fn the_machine_has_the_instruction_sets_it_should() {
    let names: Vec<_> = all().iter().map(|k| k.isa().name()).collect();
    println!("instruction sets tested: {}", names.join(","));
    match std::env::var("TORCHLESS_EXPECT_ISAS") {
        Ok(expected) => assert_eq!(names.join(","), expected),
        Err(_) => assert!(names.starts_with(&["scalar", "portable"])),
    }
}

#[test]
fn quantize() {
    let differences = Differences::default();
    for_floats(|case, x, _| differences.look(case, |k| quantized(x.len(), |row| k.quantize(x, row))));
}

/// An outlier of every sort at every position of a whole and of short groups, behind a whole one.
#[test]
fn quantize_outliers() {
    let differences = Differences::default();
    for n in if cfg!(miri) { vec![64, 6] } else { vec![64, 63, 62, 61, 60, 37, 6, 5, 4, 3, 2, 1] } {
        for at in (0..n).step_by(if cfg!(miri) { 5 } else { 1 }) {
            for sort in 0..OUTLIERS {
                let mut x = Floats::Plain.make(GROUP + n, at as u64);
                with_outlier(&mut x[GROUP..], at, sort);
                differences.look(&(n, at, sort), |k| quantized(x.len(), |row| k.quantize(&x, row)));
            }
        }
    }
}

/// The cases are what they say: outliers at every quad, and in a third of plain groups.
#[test]
fn the_cases_have_outliers() {
    let outliers = |x: &[f32]| {
        let (.., outliers) = quantized(x.len(), |row| all()[0].quantize(x, row));
        outliers.into_iter().filter(|o| *o != Outlier::default()).map(|o| o.quad).collect::<Vec<_>>()
    };
    let groups = 300;
    let plain = outliers(&Floats::Plain.make(groups * GROUP, 1));
    assert!((groups / 5..groups / 2).contains(&plain.len()), "{} of {groups}", plain.len());
    let many = outliers(&Floats::Outliers.make(groups * GROUP, 1));
    assert!(many.len() > groups * 2 / 3, "{} of {groups}", many.len());
    assert!((0..16).all(|quad| plain.contains(&quad) && many.contains(&quad)), "{plain:?} {many:?}");
}

#[test]
fn rms_norm() {
    let differences = Differences::default();
    for_floats(|case, x, w| {
        differences.look(case, |k| updated(x, |out| k.rms_norm(x, w, 1e-5, out)));
        differences.look(case, |k| quantized(x.len(), |row| k.rms_norm_quantize(x, w, 1e-5, row)));
    });
}

#[test]
fn glu() {
    let differences = Differences::default();
    for_floats(|case, gate, up| {
        for f in [Gate::Silu, Gate::Gelu] {
            let case = (f, case);
            differences.look(&case, |k| updated(gate, |out| k.glu(f, gate, up, out)));
            differences.look(&case, |k| quantized(gate.len(), |row| k.glu_quantize(f, gate, up, row)));
        }
    });
}

#[test]
fn softcap() {
    let differences = Differences::default();
    for_floats(|case, x, _| differences.look(case, |k| updated(x, |x| k.softcap(x, 30.0))));
}

/// The exponential, seen through `silu(x)·1`, at every value its reduction treats differently.
#[test]
#[cfg_attr(miri, ignore = "slow")]
fn silu_over_the_whole_range() {
    let differences = Differences::default();
    let mut gate: Vec<f32> = (-1100..1100).map(|i| i as f32 / 10.0).collect();
    gate.extend((-130..130).flat_map(|n| {
        let edge = (n as f32 + 0.5) * std::f32::consts::LN_2;
        [edge.next_down(), edge, edge.next_up()]
    }));
    let ones = vec![1.0; gate.len()];
    differences.look(&"silu", |k| updated(&gate, |out| k.glu(Gate::Silu, &gate, &ones, out)));
    differences.look(&"gelu", |k| updated(&gate, |out| k.glu(Gate::Gelu, &gate, &ones, out)));
}

#[test]
fn rope() {
    let differences = Differences::default();
    for half in [1, 2, 3, 8, 15, 16, 17, 32, 40, 64] {
        for heads in [0, 1, 3] {
            for &sort in FLOATS {
                let (x, angles) = (sort.make(heads * 2 * half, 1), Floats::Plain.make(half, 2));
                let (cos, sin): (Vec<_>, Vec<_>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
                differences.look(&(sort, half, heads), |k| updated(&x, |x| k.rope(x, &cos, &sin)));
            }
        }
    }
}

#[test]
fn elementwise() {
    let differences = Differences::default();
    for_floats(|case, x, y| {
        differences.look(case, |k| updated(x, |x| k.add(x, y)));
        differences.look(case, |k| updated(x, |x| k.mul(x, y)));
        differences.look(case, |k| updated(x, |x| k.scale(x, 0.7)));
        differences.look(case, |k| updated(x, |x| k.attn_merge(x, 0.3, y, 1.7)));
        differences.look(case, |k| {
            let mut out = vec![f16::ZERO; x.len()];
            k.narrow(x, &mut out);
            out
        });
        differences.look(case, |k| {
            let mut out = vec![0i8; x.len()];
            let scale = k.narrow_i8(x, &mut out);
            (out, scale)
        });
    });
}

#[test]
fn argmax() {
    let differences = Differences::default();
    for_floats(|case, x, _| differences.look(case, |k| k.argmax(x)));
    for &n in LENGTHS {
        for at in [0, n / 2, n.saturating_sub(1)] {
            for (low, high) in [(0.0, 1.0), (f32::NEG_INFINITY, f32::MIN), (-0.0, 0.0), (f32::NAN, 0.0)] {
                let mut x = vec![low; n];
                x.iter_mut().skip(at).step_by(5).for_each(|x| *x = high);
                differences.look(&(n, at, low, high), |k| k.argmax(&x));
            }
        }
    }
}

#[test]
fn softmax_block() {
    let differences = Differences::default();
    for_floats(|case, x, _| {
        differences.look(case, |k| {
            let mut x = x.to_vec();
            let (max, sum) = k.softmax_block(&mut x);
            (x, max, sum)
        });
    });
}

/// Head widths and queries around each tile, positions around the 16 of a column.
#[test]
fn attention() {
    let differences = Differences::default();
    for &sort in FLOATS {
        for head_dim in [1, 3, 16, 17, 32, 48, 64, 80, 128, 192] {
            for (queries, positions) in [(0, 16), (1, 0), (1, 64), (2, 33), (3, 16), (4, 48), (5, 63), (9, 1)]
            {
                let (q, p) = (sort.make(queries * head_dim, 1), sort.make(queries * BLOCK, 2));
                let cache = sort.make(head_dim * positions, 3);
                let case = (sort, head_dim, queries, positions);
                let first = (BLOCK - positions).min(7);
                attention_case::<f32>(&differences, &case, &q, &p, first, &cache);
                attention_case::<f16>(&differences, &case, &q, &p, first, &cache);
            }
        }
    }
}

/// Scores with the keys that fill whole columns, and the weighted values from position `first` of the block on.
fn attention_case<T: CacheElement + Debug + PartialEq>(
    differences: &Differences,
    case: &impl Debug,
    q: &[f32],
    p: &[f32],
    first: usize,
    cache: &[f32],
) {
    let p = p.as_chunks::<BLOCK>().0;
    let head_dim = q.len() / p.len().max(1);
    let mut narrowed = vec![T::default(); cache.len()];
    all()[0].narrow(cache, &mut narrowed);
    let columns = narrowed.len() / (16 * head_dim).max(1) * 16;
    differences.look(&("scores", case), |k| {
        let mut scores = vec![[0.5; BLOCK]; p.len()];
        k.attn_scores(q, &narrowed[..columns * head_dim], &mut scores);
        scores.into_flattened()
    });
    let factors: Vec<_> = (0..p.len()).map(|i| [0.7 + i as f32, 1.3]).collect();
    let values = if p.is_empty() { &[] } else { &narrowed[..] };
    differences
        .look(&("values", case), |k| updated(q, |out| k.attn_accumulate(p, first, values, &factors, out)));
    differences.look(&("widened", case), |k| updated(cache, |out| k.widen(&narrowed, out)));
}

/// All f16 values, widened; and all f32 values around the ties between two of them, narrowed.
#[test]
#[cfg_attr(miri, ignore = "slow")]
fn every_f16() {
    let differences = Differences::default();
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    differences.look(&"widened", |k| updated(&vec![0.0; all.len()], |out| k.widen(&all, out)));
    let ties = all.windows(2).flat_map(|pair| {
        let tie = (pair[0].to_f32() + pair[1].to_f32()) / 2.0;
        [pair[0].to_f32(), tie.next_down(), tie, tie.next_up()]
    });
    let ties: Vec<f32> = ties.chain([65519.99, 65520.0, -65520.0, 1e38]).collect();
    differences.look(&"narrowed", |k| {
        let mut out = vec![f16::ZERO; ties.len()];
        k.narrow(&ties, &mut out);
        out
    });
}

#[test]
fn matmul_f32() {
    let differences = Differences::default();
    for &sort in FLOATS {
        for (rows, cols, tokens) in [(0, 5, 1), (1, 0, 1), (3, 1, 2), (5, 17, 1), (16, 64, 3), (7, 200, 7)] {
            let (w, x) = (sort.make(rows * cols, 1), sort.make(tokens * cols, 2));
            differences.look(&(sort, rows, cols, tokens), |k| {
                let mut out = vec![0.0; tokens * rows];
                k.matmul_f32(&w, &x, cols, MatMut::new(&mut out, tokens, rows));
                out
            });
        }
    }
}

/// What the int8 values of a case look like.
#[derive(Clone, Copy, Debug)]
enum Bytes {
    Random,
    /// All of them this: the largest sums there are.
    All(i8),
    /// −128 and 127 only.
    Extremes,
}

impl Bytes {
    fn make(self, n: usize, seed: u64) -> Vec<i8> {
        let mut random = Random(seed);
        let one = |random: &mut Random| match self {
            Bytes::Random => random.next() as i8,
            Bytes::All(value) => value,
            Bytes::Extremes => [-128, 127][random.next() as usize % 2],
        };
        (0..n).map(|_| one(&mut random)).collect()
    }
}

/// What the weights' stored scales look like.
#[derive(Clone, Copy, Debug)]
enum Scales {
    Plain,
    /// Infinite (a group of zeros), 0, NaN, subnormal and huge ones among plain ones.
    Limits,
}

impl Scales {
    fn make(self, n: usize) -> Vec<f32> {
        let mut random = Random(n as u64);
        let limits = [f32::INFINITY, 1e-40, 1e38, f32::MAX, f32::MIN_POSITIVE, 0.0, f32::NAN];
        let one = |random: &mut Random| {
            let pick = random.next() as usize;
            match self {
                Scales::Limits if pick.is_multiple_of(3) => limits[pick / 3 % limits.len()],
                _ => 127.0 / (random.float().abs() + 0.01),
            }
        };
        (0..n).map(|_| one(&mut random)).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Int8Case {
    rows: usize,
    cols: usize,
    tokens: usize,
    w: Bytes,
    scales: Scales,
    x: Floats,
}

/// The product of all rows but the first, and the dequantised first; the output lies inside a wider matrix.
fn int8_case(differences: &Differences, case: Int8Case) {
    let Int8Case { rows, cols, tokens, .. } = case;
    let bytes = case.w.make(rows * cols + 1, 7);
    let scales = case.scales.make((rows * cols).div_ceil(GROUP) + 1);
    let w = QMatrix::new(&bytes[1..], &scales[1..], rows, cols);
    let floats = case.x.make(tokens * cols, 11);
    let mut x = QuantizedBuf::new(&mut Allocator::heap(), tokens, cols);
    for t in 0..tokens {
        all()[0].quantize(&floats[t * cols..][..cols], x.view_mut(tokens).token(t));
    }
    if cols.is_multiple_of(GROUP) {
        panel_case(differences, case, &x);
    }
    let from = rows.min(1);
    differences.look(&case, |k| {
        let mut out = vec![-7.0; tokens * (rows + 3)];
        let (_, inner) = MatMut::new(&mut out, tokens, rows + 3).split_cols(2);
        let (inner, _) = inner.split_cols(rows - from);
        k.matmul_i8(&w, from..rows, &x.view(tokens), inner);
        let mut first = vec![0.0; cols * from];
        if rows > 0 {
            k.dequantize_row(&w, 0, &mut first);
        }
        (out, first)
    });
}

/// The same of a matrix in panels; from its first row on, and from places in a panel and in the panel behind it.
fn panel_case(differences: &Differences, case: Int8Case, x: &QuantizedBuf) {
    let Int8Case { rows, cols, tokens, .. } = case;
    let padded = rows.next_multiple_of(PANEL_ROWS);
    let bytes = case.w.make(padded * cols, 7);
    let scales: Vec<_> = case.scales.make(padded * cols / GROUP).into_iter().map(panel_scale).collect();
    let w = PanelMatrix::new(&bytes, &scales, rows, cols);
    for from in [0, 1, 16, 21].into_iter().filter(|from| *from <= rows) {
        differences.look(&("panels from row", from, case), |k| {
            let mut out = vec![-7.0; tokens * (rows + 3)];
            let (_, inner) = MatMut::new(&mut out, tokens, rows + 3).split_cols(2);
            let (inner, _) = inner.split_cols(rows - from);
            k.matmul_panels(&w, from..rows, &x.view(tokens), inner);
            let mut row = vec![0.0; if from < rows { cols } else { 0 }];
            if from < rows {
                k.dequantize_panel_row(&w, from, &mut row);
            }
            (out, row)
        });
    }
}

/// A panel's scale multiplies: 1 over the stored one of rows, and what of it f16 can say.
fn panel_scale(scale: f32) -> f16 {
    f16::from_f32(1.0 / scale)
}

/// Rows around 16, 32 and 64, groups around the blocks that a tile and a run take (8, 16, 256), tokens around each tile.
#[test]
fn matmul_i8_at_every_edge() {
    let differences = Differences::default();
    let plain =
        Int8Case { rows: 0, cols: 0, tokens: 0, w: Bytes::Random, scales: Scales::Plain, x: Floats::Plain };
    if cfg!(miri) {
        for (rows, cols, tokens) in
            [(0, 64, 1), (3, 0, 1), (18, 128, 1), (34, 64, 9), (3, 100, 2), (16, 129 * 64, 1)]
        {
            int8_case(&differences, Int8Case { rows, cols, tokens, ..plain });
        }
        return;
    }
    for cols in [0, 64, 128, 448, 512, 576, 960, 1024, 1088, 2112] {
        for tokens in [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13] {
            for rows in [0, 1, 2, 16, 17, 18, 32, 33, 34, 49, 66] {
                int8_case(&differences, Int8Case { rows, cols, tokens, ..plain });
            }
        }
    }
    for cols in [1, 2, 63, 65, 100, 127] {
        for tokens in [0, 1, 5] {
            int8_case(&differences, Int8Case { rows: 7, cols, tokens, ..plain });
        }
    }
    for cols in [127, 128, 129, 143, 144, 257, 272, 513].map(|groups| groups * 64) {
        for tokens in [1, 9] {
            int8_case(&differences, Int8Case { rows: 19, cols, tokens, ..plain });
        }
    }
    // Tiles of 16 tokens, panels of 64 rows and 32 groups in parts of up to 8.
    for tokens in [16, 23, 24, 25, 31, 32, 33, 48] {
        for rows in [2, 16, 17, 18, 50, 64, 65, 66, 130] {
            for cols in [64, 448, 512, 576] {
                int8_case(&differences, Int8Case { rows, cols, tokens, ..plain });
            }
        }
    }
    for cols in [17, 31, 32, 33, 65].map(|groups| groups * 64) {
        int8_case(&differences, Int8Case { rows: 35, cols, tokens: 41, ..plain });
    }
}

/// Every tile's remainder, one token and runs of few groups, with an outlier in nearly every group.
#[test]
#[cfg_attr(miri, ignore = "slow")]
fn matmul_i8_with_outliers() {
    let differences = Differences::default();
    let x = Floats::Outliers;
    for w in [Bytes::Random, Bytes::All(-128), Bytes::Extremes] {
        for tokens in (1..=13).chain([24, 33]) {
            for cols in [64, 576, 1024, 1088, 2112, 257 * 64, 1, 2, 3, 65, 100, 127] {
                int8_case(&differences, Int8Case { rows: 35, cols, tokens, w, scales: Scales::Plain, x });
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "slow")]
fn matmul_i8_with_values_at_the_limits() {
    let differences = Differences::default();
    for w in
        [Bytes::All(127), Bytes::All(-127), Bytes::All(-128), Bytes::All(0), Bytes::Extremes, Bytes::Random]
    {
        for scales in [Scales::Plain, Scales::Limits] {
            for &x in FLOATS {
                for tokens in [1, 9, 33] {
                    for cols in [128, 100] {
                        int8_case(&differences, Int8Case { rows: 35, cols, tokens, w, scales, x });
                    }
                }
            }
        }
    }
}

#[cfg(not(miri))]
proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn matmul_i8_anywhere(rows in 0usize..80, cols in 0usize..1500, aligned: bool, tokens in 0usize..60) {
        let differences = Differences::default();
        let cols = if aligned { cols / GROUP * GROUP } else { cols };
        let (w, scales, x) = (Bytes::Random, Scales::Limits, Floats::Wide);
        int8_case(&differences, Int8Case { rows, cols, tokens, w, scales, x });
    }

    #[test]
    fn floats_anywhere(x in prop::collection::vec(any::<f32>(), 1..300), eps in 0f32..1.0) {
        let differences = Differences::default();
        differences.look(&x, |k| quantized(x.len(), |row| k.quantize(&x, row)));
        differences.look(&x, |k| quantized(x.len(), |row| k.rms_norm_quantize(&x, &x, eps, row)));
        differences.look(&x, |k| updated(&x, |out| k.glu(Gate::Silu, &x, &x, out)));
        differences.look(&x, |k| k.argmax(&x));
        differences.look(&x, |k| updated(&x, |x| _ = k.softmax_block(x)));
    }
}

/// A split of the rows or of the tokens never changes a bit: threads and batching rest on it.
#[test]
#[cfg_attr(miri, ignore = "slow")]
fn splits_change_nothing() {
    let differences = Differences::default();
    let (rows, cols, tokens) = (70, 576, 40);
    let (bytes, scales) = (Bytes::Random.make(rows * cols, 1), Scales::Plain.make(rows * cols / GROUP));
    let w = QMatrix::new(&bytes, &scales, rows, cols);
    let padded = rows.next_multiple_of(PANEL_ROWS);
    let panel_bytes = Bytes::Random.make(padded * cols, 3);
    let panel_scales: Vec<_> =
        Scales::Plain.make(padded * cols / GROUP).into_iter().map(panel_scale).collect();
    let panels = PanelMatrix::new(&panel_bytes, &panel_scales, rows, cols);
    for k in all() {
        let quantized = |range: std::ops::Range<usize>| {
            let mut x = QuantizedBuf::new(&mut Allocator::heap(), range.len(), cols);
            for (i, t) in range.clone().enumerate() {
                let floats = Floats::Plain.make(cols, t as u64);
                k.quantize(&floats, x.view_mut(range.len()).token(i));
            }
            x
        };
        let mut whole = vec![0.0; tokens * rows];
        let mut whole_panels = vec![0.0; tokens * rows];
        let all = quantized(0..tokens);
        k.matmul_i8(&w, 0..rows, &all.view(tokens), MatMut::new(&mut whole, tokens, rows));
        k.matmul_panels(&panels, 0..rows, &all.view(tokens), MatMut::new(&mut whole_panels, tokens, rows));
        for row_step in [1, 16, 33] {
            for token_step in [1, 3, 7, 27] {
                let (mut out, mut out_panels) = (vec![0.0; tokens * rows], vec![0.0; tokens * rows]);
                for t in (0..tokens).step_by(token_step) {
                    let n = token_step.min(tokens - t);
                    let x = quantized(t..t + n);
                    for r in (0..rows).step_by(row_step) {
                        let m = row_step.min(rows - r);
                        let (_, part) = MatMut::new(&mut out, tokens, rows).split_rows(t);
                        let (_, part) = part.split_rows(n).0.split_cols(r);
                        k.matmul_i8(&w, r..r + m, &x.view(n), part.split_cols(m).0);
                        let (_, part) = MatMut::new(&mut out_panels, tokens, rows).split_rows(t);
                        let (_, part) = part.split_rows(n).0.split_cols(r);
                        k.matmul_panels(&panels, r..r + m, &x.view(n), part.split_cols(m).0);
                    }
                }
                let case = ("rows by", row_step, "tokens by", token_step);
                differences.note(k, &case, out.same(&whole), String::new);
                differences.note(k, &("panels", case), out_panels.same(&whole_panels), String::new);
            }
        }
    }
}

#[test]
fn a_choice_is_never_replaced() {
    for isa in Isa::ALL {
        match Kernels::choose(Some(isa.name())) {
            Ok(k) => assert_eq!(k.isa(), isa),
            Err(e) => {
                assert!(!isa.is_available());
                assert!(e.to_string().contains(&format!("cannot run {isa}")), "{e}");
            }
        }
    }
    // Without a choice the environment's is taken, and without that the fastest.
    let forced = std::env::var("TORCHLESS_ISA").unwrap_or_else(|_| all().last().unwrap().isa().to_string());
    assert_eq!(Kernels::choose(None).unwrap().isa().name(), forced);
    let e = Kernels::choose(Some("sse9")).unwrap_err().to_string();
    assert!(e.contains("sse9") && e.contains("avx2") && e.contains("dotprod"), "{e}");
}
