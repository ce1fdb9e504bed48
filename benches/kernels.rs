//! The matmuls and attention kernels of every instruction set of this CPU, on one core.
//!
//! `cargo bench --bench kernels -- gemv` runs those whose name contains `gemv`. `torchless kernels` shows the same at
//! a glance and checks equality; this is for comparing two builds.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use torchless_kernels::{Allocator, BLOCK, CacheElement, GROUP, Isa, Kernels, MatMut, QMatrix, QuantizedBuf};

fn kernels() -> impl Iterator<Item = Kernels> {
    Isa::ALL.into_iter().filter_map(|isa| Kernels::new(isa).ok())
}

/// An int8 matrix and some quantised tokens.
struct Product {
    rows: usize,
    cols: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
    x: QuantizedBuf,
    tokens: usize,
}

impl Product {
    fn new(rows: usize, cols: usize, tokens: usize) -> Self {
        let values = (0..rows * cols).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as i8).collect();
        let scales = vec![100.0; rows * cols / GROUP];
        let mut x = QuantizedBuf::new(&mut Allocator::heap(), tokens, cols);
        let token: Vec<f32> = (0..cols).map(|i| (i as f32).sin()).collect();
        for t in 0..tokens {
            Kernels::detect().quantize(&token, x.view_mut(tokens).token(t));
        }
        Self { rows, cols, values, scales, x, tokens }
    }

    /// In panels of 128 rows, as the forward pass takes them.
    fn run(&self, kernels: Kernels, out: &mut [f32]) {
        let w = QMatrix::new(&self.values, &self.scales, self.rows, self.cols);
        for first in (0..self.rows).step_by(128) {
            let panel = first..(first + 128).min(self.rows);
            let (_, part) = MatMut::new(out, self.tokens, self.rows).split_cols(first);
            let (part, _) = part.split_cols(panel.len());
            kernels.matmul_i8(&w, panel, &self.x.view(self.tokens), part);
        }
    }
}

fn bench_products(c: &mut Criterion, name: &str, shapes: &[(usize, usize)], tokens: &[usize]) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    for (&(rows, cols), &tokens) in shapes.iter().flat_map(|shape| tokens.iter().map(move |t| (shape, t))) {
        let product = Product::new(rows, cols, tokens);
        let mut out = vec![0.0; rows * tokens];
        let macs = (rows * cols * tokens) as u64;
        // One token is limited by the bytes it reads, many by the multiply-adds.
        let work = if tokens == 1 { Throughput::Bytes(macs + macs / 16) } else { Throughput::Elements(macs) };
        group.throughput(work);
        for k in kernels().filter(|k| k.isa() != Isa::Scalar || macs < 1 << 28) {
            let id = BenchmarkId::new(k.isa().name(), format!("{rows}x{cols}x{tokens}"));
            group.bench_function(id, |b| b.iter(|| product.run(k, &mut out)));
        }
    }
}

/// Bytes a second.
fn gemv(c: &mut Criterion) {
    let shapes =
        [(576, 576), (1536, 576), (49152, 576), (4096, 4096), (14336, 4096), (4096, 14336), (32000, 4096)];
    bench_products(c, "gemv_i8", &shapes, &[1]);
}

/// Multiply-adds a second, as "elements".
fn gemm(c: &mut Criterion) {
    bench_products(c, "gemm_i8", &[(576, 576), (1536, 576), (4096, 4096)], &[4, 16, 64, 512]);
}

/// Four queries over one block of positions.
fn bench_attention<T: CacheElement>(c: &mut Criterion, element: &str) {
    const QUERIES: usize = 4;
    let mut group = c.benchmark_group(format!("attention_{element}"));
    for head_dim in [64, 128] {
        let floats: Vec<f32> = (0..BLOCK * head_dim).map(|i| (i as f32).sin()).collect();
        let mut cache = vec![T::default(); floats.len()];
        Kernels::detect().narrow(&floats, &mut cache);
        let (mut scores, mut out) = ([[0.0; BLOCK]; QUERIES], vec![0.0; QUERIES * head_dim]);
        group.throughput(Throughput::Elements(2 * (QUERIES * cache.len()) as u64));
        for k in kernels() {
            group.bench_function(BenchmarkId::new(k.isa().name(), head_dim), |b| {
                b.iter(|| {
                    k.attn_scores(&floats[..QUERIES * head_dim], &cache, &mut scores);
                    for scores in &mut scores {
                        k.softmax_block(scores);
                    }
                    k.attn_accumulate(&scores, 0, &cache, &[[0.5, 0.5]; QUERIES], &mut out);
                });
            });
        }
    }
}

fn attention(c: &mut Criterion) {
    bench_attention::<f32>(c, "f32");
    bench_attention::<f16>(c, "f16");
    bench_attention::<i8>(c, "i8");
}

criterion_group!(benches, gemv, gemm, attention);
criterion_main!(benches);
