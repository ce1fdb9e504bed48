//! The reference itself against arithmetic in f64 and against values worked out by hand.

use torchless_kernels::half::f16;
use torchless_kernels::{GROUP, Isa, Kernels, MatMut, QMatrix, QuantizedBuf, TINY, scalar, sgemm};

fn reference() -> Kernels {
    Kernels::new(Isa::Scalar).expect("plain Rust runs everywhere")
}

fn quantize(x: &[f32]) -> QuantizedBuf {
    let mut buf = QuantizedBuf::new(1, x.len());
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
    // absmax 127: the scale is 1 and the values are rounded as they are.
    let mut x = vec![0.0; 3 * GROUP + 1];
    x[..6].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]);
    x[GROUP] = f32::INFINITY;
    x[2 * GROUP] = TINY / 2.0;
    x[3 * GROUP] = -4.0;
    let buf = quantize(&x);
    let q = buf.view(1);
    assert_eq!(q.values()[..6], [127, 0, 2, 2, 0, -2]);
    assert_eq!(q.values()[3 * GROUP], -127);
    assert_eq!(q.sums(), [129, 0, 0, -127]);
    assert!(q.scales()[0] == 1.0 && q.scales()[1].is_nan() && q.scales()[2] == 0.0);
    assert_eq!(q.scales()[3], 4.0 / 127.0);
}

#[test]
fn matmul_is_the_product_of_what_the_bytes_stand_for() {
    for cols in [64, 128, 100, 65, 3] {
        let rows = 5usize;
        let bytes: Vec<i8> = (0..rows * cols).map(|i| (i * 37 % 256) as u8 as i8).collect();
        let scales: Vec<f32> = (0..(rows * cols).div_ceil(GROUP)).map(|i| 50.0 + i as f32).collect();
        let w = QMatrix::new(&bytes, &scales, rows, cols);
        let x = quantize(&(0..cols).map(|i| (i as f32).sin()).collect::<Vec<_>>());
        let view = x.view(1);
        for (r, got) in matmul(&w, &x).into_iter().enumerate() {
            let term = |c: usize| {
                let weight = f64::from(bytes[r * cols + c]) / f64::from(scales[(r * cols + c) / GROUP]);
                weight * f64::from(view.values()[c]) * f64::from(view.scales()[c / GROUP])
            };
            let (exact, size) = (0..cols).map(term).fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
            assert!((f64::from(got) - exact).abs() <= 1e-6 * size, "{cols} columns: {got} for {exact}");
        }
    }
}

#[test]
fn minus_128_counts_as_such_and_an_infinite_scale_as_zeros() {
    let bytes: Vec<i8> = [[-128; GROUP], [5; GROUP]].concat();
    let x = quantize(&[1.0; GROUP]);
    let out = matmul(&QMatrix::new(&bytes, &[1.0, f32::INFINITY], 2, GROUP), &x);
    assert_eq!(out, [(-128 * 64 * 127) as f32 * (1.0 / 127.0), 0.0]);
}

#[test]
fn float_kernels_do_what_their_names_say() {
    let k = reference();
    let x: Vec<f32> = (0..48).map(|i| (i as f32 * 0.7).cos()).collect();
    let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let close = |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} for {b}");

    let mut out = vec![0.0; 48];
    k.rms_norm(&x, &[2.0; 48], 1e-5, &mut out);
    let rms = (wide.iter().map(|x| x * x).sum::<f64>() / 48.0 + 1e-5).sqrt();
    out.iter().zip(&wide).for_each(|(&o, x)| close(o, 2.0 * x / rms));

    k.silu_mul(&x, &[3.0; 48], &mut out);
    out.iter().zip(&wide).for_each(|(&o, x)| close(o, 3.0 * x / (1.0 + (-x).exp())));

    // A quarter turn of a head of four: (a, b) → (−b, a) with a, b half a head apart.
    let mut head = [1.0, 2.0, 3.0, 4.0];
    k.rope(&mut head, &[0.0; 2], &[1.0; 2]);
    assert_eq!(head, [-3.0, -4.0, 1.0, 2.0]);

    let mut scores = [0.0; 3];
    k.attn_scores(&x[..16], &x, 0.25, &mut scores);
    for (j, &score) in scores.iter().enumerate() {
        close(score, 0.25 * (0..16).map(|d| wide[d] * wide[16 * j + d]).sum::<f64>());
    }
    let exact: Vec<f64> = scores.iter().map(|&s| f64::from(s)).collect();
    let (max, sum) = k.softmax_block(&mut scores);
    let top = exact.iter().copied().fold(f64::MIN, f64::max);
    close(max, top);
    close(sum, exact.iter().map(|s| (s - top).exp()).sum());

    let mut acc = [1.0f32; 16];
    let values: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
    k.attn_accumulate(&scores, &values, &mut acc);
    for (d, &a) in acc.iter().enumerate() {
        close(a, 1.0 + (0..3).map(|j| f64::from(scores[j]) * values[16 * j + d].to_f64()).sum::<f64>());
    }
    assert_eq!(k.argmax(&[1.0, f32::NAN, 3.0, 3.0, -1.0]), 2);
    assert_eq!(k.argmax(&[f32::NAN, f32::NEG_INFINITY]), 0);
}

/// Another library computes this product: up to its rounding it is the same.
#[test]
fn sgemm_agrees_with_the_reference() {
    let (rows, cols, tokens) = (19, 70, 9);
    let w: Vec<f32> = (0..rows * cols).map(|i| (i as f32).sin()).collect();
    let x: Vec<f32> = (0..tokens * cols).map(|i| (i as f32 * 0.3).cos()).collect();
    let mut many = vec![0.0; tokens * (rows + 1)];
    let (_, inner) = MatMut::new(&mut many, tokens, rows + 1).split_cols(1);
    sgemm(&w, &x, cols, inner);
    for t in 0..tokens {
        let mut one = vec![0.0; rows];
        reference().matmul_f32(&w, &x[t * cols..][..cols], cols, MatMut::new(&mut one, 1, rows));
        for (a, b) in many[t * (rows + 1) + 1..].iter().zip(&one) {
            assert!((a - b).abs() < 1e-4, "{a} and {b}");
        }
        assert_eq!(many[t * (rows + 1)], 0.0);
    }
}
