//! The kernels alone, without a model: a matrix in int8 times a vector, on whatever this CPU has.
//!
//!     cargo run --release -p torchless-kernels --example matvec

use torchless_kernels::{Allocator, GROUP, Kernels, MatMut, QMatrix, QuantizedBuf};

const ROWS: usize = 4;
const COLS: usize = 256;

fn main() {
    let weight = |row: usize, col: usize| ((row * 31 + col * 17) % 100) as f32 / 50.0 - 1.0;
    let x: Vec<f32> = (0..COLS).map(|col| (col as f32 * 0.1).sin()).collect();

    // Weights are int8 in groups of 64 that share a scale: 127 / the largest absolute value.
    let (mut values, mut scales) = (Vec::new(), Vec::new());
    for row in 0..ROWS {
        let weights: Vec<f32> = (0..COLS).map(|col| weight(row, col)).collect();
        for group in weights.chunks(GROUP) {
            let scale = 127.0 / group.iter().fold(0.0f32, |max, w| max.max(w.abs()));
            values.extend(group.iter().map(|w| (w * scale).round_ties_even() as i8));
            scales.push(scale);
        }
    }

    let kernels = Kernels::detect();
    let matrix = QMatrix::new(&values, &scales, ROWS, COLS);
    let mut quantized = QuantizedBuf::new(&mut Allocator::heap(), 1, COLS);
    kernels.quantize(&x, quantized.view_mut(1).token(0));
    let mut y = [0.0; ROWS];
    kernels.matmul_i8(&matrix, 0..ROWS, &quantized.view(1), MatMut::new(&mut y, 1, ROWS));

    println!("{} kernels; the same bits with any others", kernels.isa());
    for (row, y) in y.iter().enumerate() {
        let exact: f32 = x.iter().enumerate().map(|(col, x)| weight(row, col) * x).sum();
        println!("row {row}: {y:9.5} in int8, {exact:9.5} in f32");
    }
}
