//! Any activations and weights: quantising and multiplying gives the scalar reference's bits with every instruction set.
#![no_main]

use arbitrary::Arbitrary;
use torchless::kernels::{GROUP, Isa, Kernels, MatMut, QMatrix, QuantizedBuf};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    tokens: u8,
    rows: u8,
    cols: u8,
    /// Bits of the activations, or of their exponents where that is more than f32 carries without overflow.
    activations: Vec<u32>,
    any_bits: bool,
    scales: Vec<u16>,
    weights: &'a [u8],
}

/// Quantises and multiplies: the quantised activations, their scales' bits, and the products' bits.
fn run(isa: Isa, x: &[f32], tokens: usize, w: &QMatrix) -> (Vec<i8>, Vec<u32>, Vec<u32>) {
    let kernels = Kernels::new(isa).expect("it is available");
    let (rows, cols) = (w.rows(), w.cols());
    let mut buffer = QuantizedBuf::new(tokens, cols);
    for (t, x) in x.chunks_exact(cols).enumerate() {
        kernels.quantize(x, buffer.view_mut(tokens).token(t));
    }
    let quantized = buffer.view(tokens);
    let mut out = vec![0.0f32; tokens * rows];
    kernels.matmul_i8(w, 0..rows, &quantized, MatMut::new(&mut out, tokens, rows));
    let values = (0..tokens).flat_map(|t| quantized.token_values(t).to_vec()).collect();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
    (values, bits(quantized.scales()), bits(&out))
}

libfuzzer_sys::fuzz_target!(|input: Input| {
    let (tokens, rows) = (usize::from(input.tokens % 14) + 1, usize::from(input.rows % 40) + 1);
    // Whole groups, and rows that begin within one.
    let cols =
        if input.cols < 128 { (usize::from(input.cols) % 4 + 1) * GROUP } else { usize::from(input.cols) };
    let pick = |i: usize| input.activations.get(i % input.activations.len().max(1)).copied().unwrap_or(0);
    let activation = |i: usize| match input.any_bits {
        true => f32::from_bits(pick(i)),
        false => (pick(i) as i32 as f32) * 1e-6,
    };
    let x: Vec<f32> = (0..tokens * cols).map(activation).collect();
    let weight = |i: usize| input.weights.get(i % input.weights.len().max(1)).copied().unwrap_or(0) as i8;
    let weights: Vec<i8> = (0..rows * cols).map(weight).collect();
    let scale = |i: usize| match input.scales.get(i % input.scales.len().max(1)) {
        Some(&u16::MAX) => f32::INFINITY,
        Some(&s) => f32::from(s) + 0.5,
        None => 1.0,
    };
    let scales: Vec<f32> = (0..(rows * cols).div_ceil(GROUP)).map(scale).collect();
    let w = QMatrix::new(&weights, &scales, rows, cols);
    let expected = run(Isa::Scalar, &x, tokens, &w);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let found = run(isa, &x, tokens, &w);
        // What NaN and infinity become is not promised; that nothing breaks is.
        if x.iter().all(|v| v.abs() < 1e30) {
            assert!(found == expected, "{isa:?}: {tokens} tokens, {rows} x {cols}");
        }
    }
});
