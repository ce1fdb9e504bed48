//! The reference itself against arithmetic in f64 and against values worked out by hand.

use approx::assert_abs_diff_eq;
use torchless_kernels::half::f16;
use torchless_kernels::{
    Allocator, BLOCK, GROUP, Gate, Int4Matrix, Int4Scales, Int8Keys, Int8KeysMut, Int8Span, Int8Values,
    Int8ValuesMut, Isa, Kernels, MatMut, Outlier, PANEL_ROWS, QMatrix, QUAD, QuantizedBuf, SpanBuffers,
    SpanQueries, SpanResult, scalar,
};

fn reference() -> Kernels {
    Kernels::new(Isa::Scalar).expect("plain Rust runs everywhere")
}

fn quantize(x: &[f32]) -> QuantizedBuf {
    let mut buf = QuantizedBuf::new(&mut Allocator::heap(), 1, x.len());
    reference().quantize(x, buf.view_mut(1).token(0));
    buf
}

fn matmul(w: &QMatrix, x: &QuantizedBuf) -> Vec<f32> {
    let mut out = vec![0.0; w.rows()];
    reference().matmul_i8(w, 0..w.rows(), &x.view(1), MatMut::new(&mut out, 1, w.rows()));
    out
}

#[test]
fn exp_is_accurate_and_ends_where_it_says() {
    let mut worst = 0.0f64;
    for i in -87_300..88_000 {
        let x = i as f32 / 1000.0;
        let exact = f64::from(x).exp();
        worst = worst.max(((f64::from(scalar::exp(x)) - exact) / exact).abs());
    }
    assert!(worst < 2f64.powi(-22), "relative error {worst}");
    assert_eq!([-87.31, -1e30, f32::NEG_INFINITY, f32::NAN].map(scalar::exp), [0.0; 4]);
    assert_eq!([88.5, f32::INFINITY].map(scalar::exp), [scalar::exp(88.0); 2]);
    assert_eq!(scalar::exp(0.0), 1.0);
}

#[test]
fn quantize_rounds_half_to_even_and_marks_what_is_not_finite() {
    // absmax 127, in two quads: the scale is 1 and the values are rounded as they are.
    let mut x = vec![0.0; 3 * GROUP + QUAD + 1];
    x[..6].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]);
    x[63] = -127.0;
    x[GROUP] = f32::INFINITY;
    // Below 2⁻¹⁰⁰ a group counts as zeros.
    x[2 * GROUP] = 2f32.powi(-101);
    x[3 * GROUP] = -4.0;
    x[3 * GROUP + QUAD] = 4.0;
    let buf = quantize(&x);
    let q = buf.view(1);
    assert_eq!(q.token_values(0)[..6], [127, 0, 2, 2, 0, -2]);
    assert_eq!(q.token_values(0)[3 * GROUP..], [-127, 0, 0, 0, 127]);
    assert_eq!(q.sums(), [2, 0, 0, 0]);
    assert_eq!(q.outliers(), [Outlier::default(); 4]);
    assert!(q.scales()[0] == 1.0 && q.scales()[1].is_nan() && q.scales()[2] == 0.0);
    assert_eq!(q.scales()[3], 4.0 / 127.0);
}

/// The scale, the sum and the outlier of one group of ones, but for `quad` at quad 5; and the values there.
fn ones_but(quad: [f32; QUAD]) -> (f32, i32, Outlier, [i8; QUAD]) {
    let mut x = [1.0; GROUP];
    x[5 * QUAD..][..QUAD].copy_from_slice(&quad);
    let buf = quantize(&x);
    let q = buf.view(1);
    (q.scales()[0], q.sums()[0], q.outliers()[0], q.token_values(0).as_chunks().0[5])
}

#[test]
fn a_quad_that_stands_out_has_14_bits() {
    let none = Outlier::default();
    // 127·(3, −2, ¼, 0) = (381, −254, 32, 0), in 128ths and what is left.
    let outlier = Outlier { high: [3, -2, 0, 0], quad: 5 };
    let expected = (1.0 / 127.0, 60 * 127 + 381 - 254 + 32, outlier, [-3, 2, 32, 0]);
    assert_eq!(ones_but([3.0, -2.0, 0.25, 0.0]), expected);
    // From a ratio of 1.5 on: 190.5 → 190 = 128 + 62.
    let outlier = Outlier { high: [-1, 0, 0, 0], quad: 5 };
    assert_eq!(ones_but([-1.5, 0.0, 0.0, 0.0]), (1.0 / 127.0, 60 * 127 - 190, outlier, [-62, 0, 0, 0]));
    let below = 1.5f32.next_down();
    let (scale, _, outlier, values) = ones_but([-below, 0.0, 0.0, 0.0]);
    assert_eq!((scale, outlier, values), (below / 127.0, none, [-127, 0, 0, 0]));
    // Beyond 128 the others lose precision: at 256 a one is 63.5 → 64.
    let outlier = Outlier { high: [0, 0, 127, 0], quad: 5 };
    let expected = (2.0 / 127.0, 60 * 64 + 16256, outlier, [0; QUAD]);
    assert_eq!(ones_but([0.0, 0.0, 256.0, 0.0]), expected);
    // Two quads of the same size, zeros all around, a group of less than a quad.
    assert_eq!(ones_but([-1.0, 0.0, 0.0, 1.0]).2, none);
    for n in [1, 2, 64] {
        let mut x = vec![0.0; n];
        x[n / 2] = -5.0;
        let buf = quantize(&x);
        let outlier = buf.view(1).outliers()[0];
        assert_eq!((outlier.high[n / 2 % QUAD], outlier.quad as usize), (-127, n / 2 / QUAD));
        assert_eq!((buf.view(1).scales()[0], buf.view(1).sums()[0]), (5.0 / 128.0 / 127.0, -16256));
    }
}

#[test]
fn the_sums_of_parts_lack_what_the_outlier_holds() {
    let mut x: Vec<f32> = (0..GROUP + 20).map(|i| (i % 5) as f32 - 1.0).collect();
    x[37] = 127.0;
    x[GROUP + 17] = 4.0;
    let buf = quantize(&x);
    let view = buf.view(1);
    // The first group's scale is 3 / 127, so that 127 is 5376 = 42·128. The second has no outlier, and ends in its second part.
    assert_eq!(view.outliers(), [Outlier { high: [0, 42, 1, 1], quad: 9 }, Outlier::default()]);
    let [first, second]: [&[i8]; 2] = [&view.token_values(0)[..GROUP], &view.token_values(0)[GROUP..]];
    for (g, values) in [first, second].into_iter().enumerate() {
        let mut expected = [0; 4];
        for (k, value) in values.iter().enumerate() {
            expected[k / 16] += i16::from(*value);
        }
        assert_eq!(view.part_sums()[g], expected, "group {g}");
    }
    let whole = view.sums()[0] - view.part_sums()[0].iter().map(|sum| i32::from(*sum)).sum::<i32>();
    assert_eq!(whole, 44 * 128);
}

/// What the bytes of group `k / 64` say value `k` is, in units of the scale.
fn whole(x: &QuantizedBuf, k: usize) -> i32 {
    let view = x.view(1);
    let Outlier { high, quad } = view.outliers()[k / GROUP];
    let extra = if k % GROUP / QUAD == quad as usize { 128 * i32::from(high[k % QUAD]) } else { 0 };
    i32::from(view.token_values(0)[k]) + extra
}

#[test]
fn quantised_values_are_off_by_half_a_step_at_most() {
    for ratio in [0.5, 1.0, 1.4, 1.6, 10.0, 100.0, 127.0, 129.0, 1e3, 1e6] {
        for at in [0, 17, 63, 64, 68] {
            let mut x: Vec<f32> = (0..GROUP + 5).map(|i| (i as f32 * 0.9).sin()).collect();
            x[at] = ratio;
            let buf = quantize(&x);
            println!("{ratio} at {at}");
            for (k, x) in x.iter().enumerate() {
                let scale = f64::from(buf.view(1).scales()[k / GROUP]);
                // The scale and its inverse are rounded: 16256 steps of 2⁻²³ of a step.
                let found = f64::from(whole(&buf, k)) * scale;
                assert_abs_diff_eq!(found, f64::from(*x), epsilon = scale * 0.504);
            }
            let sums = [0..GROUP, GROUP..GROUP + 5].map(|group| group.map(|k| whole(&buf, k)).sum());
            assert_eq!(buf.view(1).sums(), sums);
        }
    }
}

#[test]
fn matmul_is_the_product_of_what_the_bytes_stand_for() {
    for cols in [64, 128, 100, 65, 3] {
        let rows = 5usize;
        let bytes: Vec<i8> = (0..rows * cols).map(|i| (i * 37 % 256) as u8 as i8).collect();
        let scales: Vec<f32> = (0..(rows * cols).div_ceil(GROUP)).map(|i| 50.0 + i as f32).collect();
        let w = QMatrix::new(&bytes, &scales, rows, cols);
        // Value 29 of each group stands out. With 100 columns a weight group may end beside it.
        let value = |i: usize| (i as f32).sin() * if i % GROUP == 29 { 30.0 } else { 1.0 };
        let x = quantize(&(0..cols).map(value).collect::<Vec<_>>());
        let view = x.view(1);
        println!("{cols} columns");
        for (r, got) in matmul(&w, &x).into_iter().enumerate() {
            let term = |c: usize| {
                let weight = f64::from(bytes[r * cols + c]) / f64::from(scales[(r * cols + c) / GROUP]);
                weight * f64::from(whole(&x, c)) * f64::from(view.scales()[c / GROUP])
            };
            let (exact, size) = (0..cols).map(term).fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
            assert_abs_diff_eq!(f64::from(got), exact, epsilon = 1e-6 * size);
        }
    }
}

#[test]
fn minus_128_counts_as_such_and_an_infinite_scale_as_zeros() {
    let bytes: Vec<i8> = [[-128; GROUP], [5; GROUP]].concat();
    let x = quantize(&[1.0; GROUP]);
    let out = matmul(&QMatrix::new(&bytes, &[1.0, f32::INFINITY], 2, GROUP), &x);
    assert_eq!(out, [(-128 * 64 * 127) as f32 * (1.0 / 127.0), 0.0]);
    // The largest sum there is, still exact in f32.
    let mut x = [1.0; GROUP];
    x[60..].fill(128.0);
    let sum = -128 * (60 * 127 + 4 * 16256);
    assert_eq!(sum as f32 as i32, sum);
    let out = matmul(&QMatrix::new(&bytes, &[1.0, f32::INFINITY], 2, GROUP), &quantize(&x));
    assert_eq!(out, [sum as f32 * (1.0 / 127.0), 0.0]);
}

/// Row 17 of an int4 matrix of two panels and two groups, worked out by hand.
#[test]
fn an_int4_row_is_scaled_codes_less_the_minimums() {
    let (rows, cols, row) = (18, 2 * GROUP, 17);
    let mut codes = [0; 16];
    (codes[3], codes[12]) = (-5, 7);
    // Everywhere code 3 but for row 17's columns 4..8, in the high nibbles of its first oct.
    let mut nibbles = vec![0x33; 32 * cols / 2];
    let second_panel = 16 * cols / 2;
    nibbles[second_panel + 4..][..4].fill(0xc3);
    // Of the first group: 3·code − 2 in columns 0..32, 10·code + 1 behind them; of the second −1·code.
    let mut scales = vec![[[[9; PANEL_ROWS]; 2]; 2]; 4];
    for (group, part, [scale, minimum]) in
        [(2, 0, [3, 2]), (2, 1, [10, -1]), (3, 0, [-1, 0]), (3, 1, [-1, 0])]
    {
        (scales[group][0][part][1], scales[group][1][part][1]) = (scale, minimum);
    }
    let mut row_scales = vec![9.0; 32];
    row_scales[row] = 0.125;
    let w = Int4Matrix::new(&codes, &nibbles, Int4Scales::WithMinimum(&scales), &row_scales, (rows, cols));
    let weights = [-17, -17, -17, -17, 19, 19, 19, 19, -17];
    let mut dequantized = vec![0.0; cols];
    reference().dequantize_int4_row(&w, row, &mut dequantized);
    assert_eq!(dequantized[..9], weights.map(|w| w as f32 * 0.125));
    assert_eq!(dequantized[31..34], [-17, -49, -49].map(|w| w as f32 * 0.125));
    assert_eq!(dequantized[GROUP], 5.0 * 0.125);

    // Ones, of scale 1/127, but for 3 in column 5; then twos, of scale 2/127.
    let mut x = [[1.0; GROUP], [2.0; GROUP]].concat();
    x[5] = 3.0;
    let x = quantize(&x);
    assert_eq!(x.view(1).outliers()[0], Outlier { high: [1, 3, 1, 1], quad: 1 });
    let first = 127 * (28 * -17 + 3 * 19 + 32 * -49) + 381 * 19;
    let second = 127 * 64 * 5;
    let expected = (first as f32 * (1.0 / 127.0) + second as f32 * (2.0 / 127.0)) * 0.125;
    let mut out = [0.0];
    reference().matmul_int4(&w, row..row + 1, &x.view(1), MatMut::new(&mut out, 1, 1));
    assert_eq!(out, [expected]);
    assert_abs_diff_eq!(expected, (-1930.0 + 640.0) * 0.125, epsilon = 1e-3);
}

#[test]
fn float_kernels_do_what_their_names_say() {
    let k = reference();
    let x: Vec<f32> = (0..48).map(|i| (i as f32 * 0.7).cos()).collect();
    let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let close = |a: f32, b: f64| assert_abs_diff_eq!(f64::from(a), b, epsilon = 1e-5 * (1.0 + b.abs()));

    let mut out = vec![0.0; 48];
    k.rms_norm(&x, &[2.0; 48], 1e-5, &mut out);
    let rms = (wide.iter().map(|x| x * x).sum::<f64>() / 48.0 + 1e-5).sqrt();
    out.iter().zip(&wide).for_each(|(&o, x)| close(o, 2.0 * x / rms));

    k.glu(Gate::Silu, &x, &[3.0; 48], &mut out);
    out.iter().zip(&wide).for_each(|(&o, x)| close(o, 3.0 * x / (1.0 + (-x).exp())));
    k.glu(Gate::Gelu, &x, &[3.0; 48], &mut out);
    let tanh = |x: f64| (std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x.powi(3))).tanh();
    out.iter().zip(&wide).for_each(|(&o, x)| close(o, 3.0 * 0.5 * x * (1.0 + tanh(*x))));

    let mut capped: Vec<f32> = x.iter().map(|x| 100.0 * x).collect();
    k.softcap(&mut capped, 50.0);
    capped.iter().zip(&wide).for_each(|(&o, x)| close(o, 50.0 * (2.0 * x).tanh()));

    // A quarter turn of a head of four: (a, b) → (−b, a) with a, b half a head apart.
    let mut head = [1.0, 2.0, 3.0, 4.0];
    k.rope(&mut head, &[0.0; 2], &[1.0; 2]);
    assert_eq!(head, [-3.0, -4.0, 1.0, 2.0]);

    // Keys of three features, sixteen positions side by side.
    let mut scores = [[0.0; BLOCK]];
    k.attn_scores(&x[..3], &x, &mut scores);
    for (j, &score) in scores[0][..16].iter().enumerate() {
        close(score, (0..3).map(|d| wide[d] * wide[16 * d + j]).sum::<f64>());
    }
    let exact: Vec<f64> = scores[0][..16].iter().map(|&s| f64::from(s)).collect();
    let (max, sum) = k.softmax_block(&mut scores[0][..16]);
    let top = exact.iter().copied().fold(f64::MIN, f64::max);
    close(max, top);
    close(sum, exact.iter().map(|s| (s - top).exp()).sum());

    let mut out = [1.0f32; 16];
    let mut values = [f16::ZERO; 48];
    k.narrow(&x, &mut values);
    k.attn_accumulate(&scores, 5, &values, &[[0.5, 2.0]], &mut out);
    for (d, &o) in out.iter().enumerate() {
        close(
            o,
            0.5 + 2.0
                * (0..3).map(|j| f64::from(scores[0][5 + j]) * values[16 * j + d].to_f64()).sum::<f64>(),
        );
    }

    let mut bytes = [0i8; 48];
    let scale = k.narrow_i8(&x, &mut bytes);
    let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
    assert_eq!(scale, largest / 127.0);
    for (&b, &x) in bytes.iter().zip(&x) {
        assert_abs_diff_eq!(f32::from(b) * scale, x, epsilon = scale * 0.5001);
    }
    assert_eq!(k.argmax(&[1.0, f32::NAN, 3.0, 3.0, -1.0]), 2);
    assert_eq!(k.argmax(&[f32::NAN, f32::NEG_INFINITY]), 0);
}

/// `e^x` of what is not above 0, against f64.
#[test]
fn the_short_exponential_is_short_of_the_exact_one_by_little() {
    for i in 0..1_000_000 {
        let x = -87.0 * (i as f32 / 1e6);
        let (got, exact) = (f64::from(scalar::exp_short(x)), f64::from(x).exp());
        let most = if x > -2.0 { 2f64.powi(-18) } else { 2f64.powi(-16) };
        assert!((got / exact - 1.0).abs() < most, "e^{x}: {got}, not {exact}");
    }
    assert_eq!([0.0, -88.0, f32::NEG_INFINITY, f32::NAN].map(scalar::exp_short), [1.0, 0.0, 0.0, 0.0]);
}

/// Two blocks of keys that have much in common, and values, against attention in f64: with all 8 bits for what differs, it is near.
#[test]
fn attention_in_int8_is_near_that_of_the_same_vectors() {
    const HEAD_DIM: usize = 80;
    let k = Kernels::new(Isa::Scalar).unwrap();
    let wave = |i: usize| (i as f32 * 0.7 + (i / HEAD_DIM) as f32 * 1.3).sin();
    let keys: Vec<f32> = (0..128 * HEAD_DIM).map(|i| wave(i) + 50.0 * wave(i % HEAD_DIM)).collect();
    let values: Vec<f32> = (0..128 * HEAD_DIM).map(|i| wave(3 * i + 1)).collect();
    let query: Vec<f32> = (0..HEAD_DIM).map(|i| 0.2 * wave(5 * i)).collect();

    let (mut words, mut value_words) =
        (vec![0.0; 2 * Int8Keys::words(HEAD_DIM)], vec![0.0; 2 * Int8Values::words(HEAD_DIM)]);
    let (first, second) = words.split_at_mut(Int8Keys::words(HEAD_DIM));
    let mut narrow = [0; HEAD_DIM];
    for (block, (words, value_words)) in
        [first, second].into_iter().zip(value_words.chunks_mut(Int8Values::words(HEAD_DIM))).enumerate()
    {
        // Of the first block too, so that what they have in common costs none of them.
        let mean: Vec<f32> = (0..HEAD_DIM).map(|d| 50.0 * wave(d)).collect();
        Int8KeysMut::new(words, HEAD_DIM).set_mean(k, &mean);
        for at in 0..64 {
            let row = (64 * block + at) * HEAD_DIM..(64 * block + at + 1) * HEAD_DIM;
            Int8KeysMut::new(words, HEAD_DIM).store(k, at, &keys[row.clone()]);
            let scale = k.narrow_i8(&values[row], &mut narrow);
            Int8ValuesMut::new(value_words, HEAD_DIM).store(at, &narrow, scale);
        }
    }
    let keys_of = [0, 1].map(|b| {
        Int8Keys::new(&words[b * Int8Keys::words(HEAD_DIM)..][..Int8Keys::words(HEAD_DIM)], HEAD_DIM)
    });
    let values_of = [0, 1].map(|b| {
        Int8Values::new(
            &value_words[b * Int8Values::words(HEAD_DIM)..][..Int8Values::words(HEAD_DIM)],
            HEAD_DIM,
        )
    });
    let mut mean = [0.0; HEAD_DIM];
    keys_of[0].mean_of_keys(&mut mean);
    for (d, mean) in mean.into_iter().enumerate() {
        let exact: f64 = (0..64).map(|at| f64::from(keys[at * HEAD_DIM + d])).sum::<f64>() / 64.0;
        assert_abs_diff_eq!(f64::from(mean), exact, epsilon = 0.01);
    }

    let cols = HEAD_DIM.next_multiple_of(GROUP);
    let mut padded = vec![0.0; cols];
    padded[..HEAD_DIM].copy_from_slice(&query);
    let mut quantized = QuantizedBuf::new(&mut Allocator::heap(), 1, cols);
    k.quantize(&padded, quantized.view_mut(1).token(0));
    let (mut output, mut sums) = ([0.0; HEAD_DIM], [[0.0; 2]]);
    k.attn_span_i8(
        &SpanQueries { f32: &padded, int8: quantized.view(1), softcap: None },
        &Int8Span { keys: &keys_of, values: &values_of },
        std::slice::from_ref(&(10..120)),
        &mut SpanBuffers::new(&mut Allocator::heap()),
        SpanResult { output: &mut output, sums: &mut sums },
    );
    let scores: Vec<f64> = (10..120)
        .map(|at| (0..HEAD_DIM).map(|d| f64::from(query[d]) * f64::from(keys[at * HEAD_DIM + d])).sum())
        .collect();
    let max = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let [found_max, found_sum] = sums[0].map(f64::from);
    assert_abs_diff_eq!(found_max, max, epsilon = 0.02);
    assert_abs_diff_eq!(found_max + found_sum.ln(), max + weights.iter().sum::<f64>().ln(), epsilon = 0.01);
    for (d, output) in output.into_iter().enumerate() {
        let exact: f64 =
            weights.iter().enumerate().map(|(i, w)| w * f64::from(values[(10 + i) * HEAD_DIM + d])).sum();
        let total: f64 = weights.iter().sum();
        assert_abs_diff_eq!(f64::from(output) / f64::from(sums[0][1]), exact / total, epsilon = 0.01);
    }
}
