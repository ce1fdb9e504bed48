//! Any floats, weights and shapes: each kernel gives the scalar reference's bits with every instruction set, and reads and
//! writes nothing beyond its slices. An input is one kernel with one instruction set, and small: many are tried that way.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use torchless::kernels::half::f16;
use torchless::kernels::{
    Allocator, BLOCK, CODE_SPAN, CacheElement, GROUP, INT4_LIMIT, Int4Matrix, Int4Scales, Int8Keys, Int8KeysMut,
    Gate, Int8Span, Int8Values, Int8ValuesMut, Isa, Kernels, MatMut,
    PANEL_ROWS, PanelMatrix, QMatrix, QuantizedBuf, QuantizedRow, SpanBuffers, SpanQueries, SpanResult,
};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    family: Family,
    isa: u8,
    shape: [u8; 3],
    numbers: Numbers,
    pool: &'a [u8],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Family {
    Quantize,
    RmsNorm,
    SiluMul,
    Rope,
    Elementwise,
    Argmax,
    SoftmaxBlock,
    Attention(Element),
    MatmulF32,
    MatmulI8,
    MatmulPanels,
    MatmulInt4(Scales),
}

/// How an int4 matrix is scaled.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Scales {
    Fine,
    Coarse,
    WithMinimum,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Element {
    F32,
    F16,
    I8,
}

/// How the pool becomes numbers, over and over where it is short.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Numbers {
    /// The bits of floats.
    Bits,
    /// Integers between −8 and 8, in steps of 2⁻²⁸.
    Plain,
    /// Pseudo-random plain numbers, one in 16 of which is the pool's bits.
    Sparse,
}

/// The reference, and what is compared with it.
static KERNELS: LazyLock<(Kernels, Vec<Kernels>)> = LazyLock::new(|| {
    let mut all = Isa::ALL.into_iter().filter_map(|isa| Kernels::new(isa).ok());
    (all.next().expect("every CPU has the reference"), all.collect())
});

impl Input<'_> {
    /// Number `i` of the pool.
    fn word(&self, i: usize) -> u32 {
        match self.pool.len() {
            0 => 0,
            n => u32::from_le_bytes([0, 1, 2, 3].map(|k| self.pool[(4 * i + k) % n])),
        }
    }

    /// `n` floats, others for each `salt`.
    fn floats(&self, n: usize, salt: usize) -> Vec<f32> {
        let plain = |bits: u32| bits as i32 as f32 / (1 << 28) as f32;
        let one = |i: usize| {
            let word = self.word(i);
            match self.numbers {
                Numbers::Bits => f32::from_bits(word),
                Numbers::Plain => plain(word),
                Numbers::Sparse => match (word ^ i as u32).wrapping_mul(0x9e37_79b1) {
                    hash if hash >> 28 == 0 => f32::from_bits(word),
                    hash => plain(hash),
                },
            }
        };
        (0..n).map(|i| one(i + 1009 * salt)).collect()
    }

    /// Up to 300, mostly near the whole groups.
    fn len(&self) -> usize {
        usize::from(self.shape[0]) + usize::from(self.shape[1] % 46)
    }
}

/// What a kernel wrote; NaNs are equal whatever their payload.
#[derive(Debug, Default, PartialEq)]
struct Out(Vec<u32>);

impl Out {
    fn floats(mut self, values: &[f32]) -> Self {
        self.0.extend(values.iter().map(|v| if v.is_nan() { f32::NAN } else { *v }.to_bits()));
        self
    }

    fn integers(mut self, values: impl IntoIterator<Item = impl Into<i64>>) -> Self {
        self.0.extend(values.into_iter().map(|v| v.into() as u32));
        self
    }

    /// What `f` makes of `x`.
    fn updated(self, x: &[f32], f: impl FnOnce(&mut [f32])) -> Self {
        let mut x = x.to_vec();
        f(&mut x);
        self.floats(&x)
    }

    /// What `f` makes of one token of `n` values.
    fn quantized(self, n: usize, f: impl FnOnce(QuantizedRow)) -> Self {
        let mut buffer = QuantizedBuf::new(&mut Allocator::heap(), 1, n);
        f(buffer.view_mut(1).token(0));
        let view = buffer.view(1);
        let outliers = view.outliers().iter();
        self.integers(view.token_values(0).iter().copied())
            .floats(view.scales())
            .integers(view.sums().iter().copied())
            .integers(outliers.clone().flat_map(|outlier| outlier.high))
            .integers(outliers.map(|outlier| outlier.quad))
    }
}

fn run(k: Kernels, input: &Input) -> Out {
    let out = Out::default();
    let n = input.len();
    let [x, y] = [0, 1].map(|salt| input.floats(n, salt));
    match input.family {
        Family::Quantize => out.quantized(n, |row| k.quantize(&x, row)),
        Family::RmsNorm => out
            .updated(&x, |out| k.rms_norm(&x, &y, 1e-5, out))
            .quantized(n, |row| k.rms_norm_quantize(&x, &y, 1e-5, row)),
        Family::SiluMul => out
            .updated(&x, |out| k.glu(Gate::Silu, &x, &y, out))
            .updated(&x, |out| k.glu(Gate::Gelu, &x, &y, out))
            .updated(&x, |x| k.softcap(x, 30.0))
            .quantized(n, |row| k.glu_quantize(Gate::Silu, &x, &y, row)),
        Family::Rope => {
            let (heads, half) = (usize::from(input.shape[0] % 4), usize::from(input.shape[1] % 70) + 1);
            let (x, angles) = (input.floats(heads * 2 * half, 0), input.floats(2 * half, 1));
            out.updated(&x, |x| k.rope(x, &angles[..half], &angles[half..]))
        }
        Family::Elementwise => elementwise(k, &x, &y),
        Family::Argmax => out.integers([k.argmax(&x) as i64]),
        Family::SoftmaxBlock => {
            let mut x = x;
            let (max, sum) = k.softmax_block(&mut x);
            out.floats(&x).floats(&[max, sum])
        }
        Family::Attention(Element::F32) => attention::<f32>(k, input),
        Family::Attention(Element::F16) => attention::<f16>(k, input),
        Family::Attention(Element::I8) => attention_span(k, input),
        Family::MatmulF32 => {
            let (tokens, rows, cols) = matrix(input);
            let (w, x) = (input.floats(rows * cols, 0), input.floats(tokens * cols, 1));
            out.updated(&vec![0.0; tokens * rows], |out| {
                k.matmul_f32(&w, &x, cols, MatMut::new(out, tokens, rows));
            })
        }
        Family::MatmulI8 => matmul_i8(k, input),
        Family::MatmulPanels => matmul_panels(k, input),
        Family::MatmulInt4(scales) => matmul_int4(k, input, scales),
    }
}

fn elementwise(k: Kernels, x: &[f32], y: &[f32]) -> Out {
    let (mut half, mut byte) = (vec![f16::ZERO; x.len()], vec![0i8; x.len()]);
    k.narrow(x, &mut half);
    let scale = k.narrow_i8(x, &mut byte);
    let half: Vec<f32> = half.iter().map(|h| h.to_f32()).collect();
    Out::default()
        .updated(x, |x| k.add(x, y))
        .updated(x, |x| k.mul(x, y))
        .updated(x, |x| k.scale(x, 0.7))
        .updated(x, |x| k.attn_merge(x, 0.3, y, 1.7))
        .floats(&half)
        .integers(byte)
        .floats(&[scale])
}

/// The scores of a few queries with the keys that fill whole columns, and the weighted values of all positions.
fn attention<T: CacheElement>(k: Kernels, input: &Input) -> Out {
    let [queries, head_dim, positions] = input.shape.map(usize::from);
    let (queries, head_dim, positions) = (queries % 6 + 1, head_dim % 70 + 1, positions % (BLOCK + 1));
    let (q, p) = (input.floats(queries * head_dim, 0), input.floats(queries * BLOCK, 1));
    let cache = input.floats(positions * head_dim, 2);
    let mut narrow = vec![T::default(); cache.len()];
    k.narrow(&cache, &mut narrow);
    let (p, columns) = (p.as_chunks::<BLOCK>().0, positions / 16 * 16);
    let mut scores = vec![[0.5; BLOCK]; queries];
    k.attn_scores(&q, &narrow[..columns * head_dim], &mut scores);
    let factors: Vec<_> = (0..queries).map(|i| [0.7 + i as f32, 1.3]).collect();
    let first = (BLOCK - positions).min(7);
    Out::default()
        .floats(scores.as_flattened())
        .updated(&q, |out| k.attn_accumulate(p, first, &narrow, &factors, out))
        .updated(&cache, |out| k.widen(&narrow, out))
}

/// A few queries, each of which looks at a part of a block of int8 keys and values, behind one whose mean is taken off.
fn attention_span(k: Kernels, input: &Input) -> Out {
    let [queries, head_dim, at] = input.shape.map(usize::from);
    let (queries, head_dim) = (queries % 10 + 1, head_dim % 70 + 1);
    let (keys, values) = (input.floats(BLOCK * head_dim, 0), input.floats(BLOCK * head_dim, 1));
    let (mut key_words, mut value_words) =
        (vec![0.0; Int8Keys::words(head_dim)], vec![0.0; Int8Values::words(head_dim)]);
    Int8KeysMut::new(&mut key_words, head_dim).set_mean(k, &input.floats(head_dim, 2));
    let mut narrow = vec![0; head_dim];
    for (position, (key, value)) in keys.chunks(head_dim).zip(values.chunks(head_dim)).enumerate() {
        Int8KeysMut::new(&mut key_words, head_dim).store(k, position, key);
        let scale = k.narrow_i8(value, &mut narrow);
        Int8ValuesMut::new(&mut value_words, head_dim).store(position, &narrow, scale);
    }
    let cols = head_dim.next_multiple_of(GROUP);
    let mut padded = vec![0.0; queries * cols];
    let mut quantized = QuantizedBuf::new(&mut Allocator::heap(), queries, cols);
    for (t, query) in input.floats(queries * head_dim, 3).chunks(head_dim).enumerate() {
        padded[t * cols..][..head_dim].copy_from_slice(query);
        k.quantize(&padded[t * cols..][..cols], quantized.view_mut(queries).token(t));
    }
    let seen: Vec<_> = (0..queries).map(|t| (at + t) % 20..(at * 7 + 13 * t) % 44 + 20).collect();
    let (mut output, mut sums) = (vec![0.5; queries * head_dim], vec![[0.5; 2]; queries]);
    k.attn_span_i8(
        &SpanQueries { f32: &padded, int8: quantized.view(queries), softcap: None },
        &Int8Span {
            keys: &[Int8Keys::new(&key_words, head_dim)],
            values: &[Int8Values::new(&value_words, head_dim)],
        },
        &seen,
        &mut SpanBuffers::new(&mut Allocator::heap()),
        SpanResult { output: &mut output, sums: &mut sums },
    );
    let mut mean = vec![0.0; head_dim];
    Int8Keys::new(&key_words, head_dim).mean_of_keys(&mut mean);
    Out::default().floats(&output).floats(sums.as_flattened()).floats(&mean)
}

/// Tokens, rows and columns of a product of no more than 2¹⁵ multiplications.
fn matrix(input: &Input) -> (usize, usize, usize) {
    let [tokens, rows, cols] = input.shape.map(usize::from);
    let (tokens, rows) = (tokens % 40, rows % 40);
    // Whole groups, and rows that begin within one.
    let cols = if cols < 128 { cols % 5 * GROUP } else { cols };
    (tokens, rows, cols.min((1 << 15) / (tokens * rows).max(1)))
}

fn matmul_i8(k: Kernels, input: &Input) -> Out {
    let (tokens, rows, cols) = matrix(input);
    let mut x = QuantizedBuf::new(&mut Allocator::heap(), tokens, cols);
    for t in 0..tokens {
        k.quantize(&input.floats(cols, t), x.view_mut(tokens).token(t));
    }
    let weights: Vec<i8> = (0..rows * cols).map(|i| input.word(i) as i8).collect();
    let scales = input.floats((rows * cols).div_ceil(GROUP), 3);
    let w = QMatrix::new(&weights, &scales, rows, cols);
    let first = rows.min(1);
    Out::default()
        .updated(&vec![0.0; tokens * (rows - first)], |out| {
            k.matmul_i8(&w, first..rows, &x.view(tokens), MatMut::new(out, tokens, rows - first));
        })
        .updated(&vec![0.0; cols * first], |out| match first {
            0 => {}
            _ => k.dequantize_row(&w, 0, out),
        })
}

fn matmul_panels(k: Kernels, input: &Input) -> Out {
    let (tokens, rows, cols) = matrix(input);
    let cols = cols / GROUP * GROUP;
    let mut x = QuantizedBuf::new(&mut Allocator::heap(), tokens, cols);
    for t in 0..tokens {
        k.quantize(&input.floats(cols, t), x.view_mut(tokens).token(t));
    }
    let padded = rows.next_multiple_of(PANEL_ROWS) * cols;
    let weights: Vec<i8> = (0..padded).map(|i| input.word(i) as i8).collect();
    let scales: Vec<_> = (0..padded / GROUP).map(|i| f16::from_bits(input.word(i) as u16)).collect();
    let w = PanelMatrix::new(&weights, &scales, rows, cols);
    let first = rows.min(input.word(7) as usize % 20);
    Out::default()
        .updated(&vec![0.0; tokens * (rows - first)], |out| {
            k.matmul_panels(&w, first..rows, &x.view(tokens), MatMut::new(out, tokens, rows - first));
        })
        .updated(&vec![0.0; if first < rows { cols } else { 0 }], |out| {
            if first < rows {
                k.dequantize_panel_row(&w, first, out);
            }
        })
}

/// Any codes within the span of a table, and any scales and minimums with which they stay within the limit.
fn matmul_int4(k: Kernels, input: &Input, kind: Scales) -> Out {
    let (tokens, rows, cols) = matrix(input);
    let cols = cols / GROUP * GROUP;
    let mut x = QuantizedBuf::new(&mut Allocator::heap(), tokens, cols);
    for t in 0..tokens {
        k.quantize(&input.floats(cols, t), x.view_mut(tokens).token(t));
    }
    // From below zero, or from it: 63 at the most above the least, and above 0.
    let least = (input.word(1) as u8 as i8).min(0);
    let codes: [i8; 16] = std::array::from_fn(|i| least + (input.word(i + 2) % (CODE_SPAN as u32 + 1)) as i8);
    let groups = rows.div_ceil(PANEL_ROWS) * cols / GROUP;
    let fits = |scale: i16, minimum: i16| {
        let of = |code: i8| i32::from(scale) * i32::from(code) - i32::from(minimum);
        codes.iter().all(|code| of(*code).abs() <= INT4_LIMIT)
    };
    // Halved until it fits: the largest there may be are among them.
    let fitted = |word: u32| {
        let mut pair = [word as i16, (word >> 16) as i16];
        if !matches!(kind, Scales::WithMinimum) {
            pair[1] = 0;
        }
        while !fits(pair[0], pair[1]) {
            pair = pair.map(|n| n / 2);
        }
        pair
    };
    let fine: Vec<_> = (0..groups)
        .map(|g| [0, 1, 2, 3].map(|i| std::array::from_fn(|r| input.word(67 * g + 16 * i + r) as i8)))
        .collect();
    let pairs = |g: usize| [0, 1].map(|i| std::array::from_fn::<_, 16, _>(|r| fitted(input.word(37 * g + 16 * i + r))));
    let coarse: Vec<_> = (0..groups).map(|g| pairs(g).map(|rows| rows.map(|pair| pair[0]))).collect();
    let with_minimum: Vec<_> =
        (0..groups).map(|g| [0, 1].map(|which| pairs(g).map(|rows| rows.map(|pair| pair[which])))).collect();
    let scales = match kind {
        Scales::Fine => Int4Scales::Fine(&fine),
        Scales::Coarse => Int4Scales::Coarse(&coarse),
        Scales::WithMinimum => Int4Scales::WithMinimum(&with_minimum),
    };
    let nibbles: Vec<u8> = (0..groups * PANEL_ROWS * GROUP / 2).map(|i| input.word(i) as u8).collect();
    let row_scales = input.floats(rows.next_multiple_of(PANEL_ROWS), 3);
    let w = Int4Matrix::new(&codes, &nibbles, scales, &row_scales, (rows, cols));
    let first = rows.min(input.word(7) as usize % 20);
    Out::default()
        .updated(&vec![0.0; tokens * (rows - first)], |out| {
            k.matmul_int4(&w, first..rows, &x.view(tokens), MatMut::new(out, tokens, rows - first));
        })
        .updated(&vec![0.0; if first < rows { cols } else { 0 }], |out| {
            if first < rows {
                k.dequantize_int4_row(&w, first, out);
            }
        })
}

libfuzzer_sys::fuzz_target!(|input: Input| {
    let (reference, others) = &*KERNELS;
    let kernels = others[usize::from(input.isa) % others.len()];
    let (found, expected) = (run(kernels, &input), run(*reference, &input));
    assert!(found == expected, "{}: {found:?}, and not {expected:?}", kernels.isa());
});
