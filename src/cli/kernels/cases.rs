//! What is measured: each kernel on fixed inputs of the shapes that models have.

// Whoever includes this file by its path finds that one too.
#[path = "attention.rs"]
mod attention;

use half::f16;
use torchless::bench::bandwidth::read;
use torchless_kernels::{
    Aligned, Allocator, GROUP, Gate, Int4Matrix, Int4Scales, Kernels, MatMut, PanelMatrix, QMatrix,
    QuantizedBuf, Weight,
};

/// A kernel on fixed inputs.
pub struct Case {
    pub shape: String,
    /// Multiply-adds of one run, or elements of the vector where a kernel is no product.
    pub operations: f64,
    /// Bytes that one run reads or writes, each counted once a pass over it.
    pub bytes: f64,
    pub unit: Unit,
    pub task: Box<dyn Task>,
}

/// What a kernel's speed is counted in: what limits it.
#[derive(Clone, Copy)]
pub enum Unit {
    Bytes,
    MultiplyAdds,
}

impl Unit {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "GB/s",
            Self::MultiplyAdds => "GMAC/s",
        }
    }
}

impl Case {
    /// In 10⁹ of its unit, where a run takes `seconds`.
    pub fn throughput(&self, seconds: f64) -> f64 {
        let work = match self.unit {
            Unit::Bytes => self.bytes,
            Unit::MultiplyAdds => self.operations,
        };
        work * 1e-9 / seconds
    }
}

/// What a case runs.
pub trait Task {
    /// The plain loop over the same memory that a kernel's speed is held against, where memory is the limit.
    fn read(&self) -> Option<u64> {
        None
    }
    fn run(&mut self, kernels: Kernels);
    fn results(&self) -> Vec<f32>;
}

/// Makes a case when its turn comes: they take memory.
pub type MakeCase = Box<dyn Fn() -> Case>;

/// Shapes of a 135M model and of a 7B one, rows × columns.
const MATRICES: [(usize, usize); 7] =
    [(576, 576), (1536, 576), (49152, 576), (4096, 4096), (14336, 4096), (4096, 14336), (32000, 4096)];

/// Kernels' names and cases; `all` products, or those that take a moment.
pub fn cases(all: bool) -> Vec<(&'static str, MakeCase)> {
    let mut cases: Vec<(&'static str, MakeCase)> = Vec::new();
    for (rows, cols) in MATRICES {
        for format in Format::ALL.into_iter().filter(|format| all || rows * cols <= format.most()) {
            cases.push((format.names().0, Box::new(move || product(format, rows, cols, 1))));
        }
    }
    let batched =
        MATRICES.into_iter().filter(|&m| all || [(576, 576), (1536, 576), (4096, 4096)].contains(&m));
    for (rows, cols) in batched {
        for tokens in [4, 16, 64, 512] {
            let fits = |format: &Format| all || rows * cols * tokens <= format.most();
            for format in Format::ALL.into_iter().filter(fits) {
                cases.push((format.names().1, Box::new(move || product(format, rows, cols, tokens))));
            }
        }
    }
    cases.push(("gemv_f32", Box::new(|| f32_product(4096, 4096))));
    for n in [576, 4096] {
        vector_cases(n, &mut cases);
    }
    cases.push(("attn_softmax", Box::new(|| updating(256, 16, |k, _, x| _ = k.softmax_block(x)))));
    attention::cases(&mut cases);
    cases.push(("argmax", Box::new(|| updating(49152, 12, |k, s, x| x[0] = k.argmax(&s[0]) as f32))));
    cases
}

/// Kernels that take a vector or two of `n` values.
fn vector_cases(n: usize, cases: &mut Vec<(&'static str, MakeCase)>) {
    cases.push(("quantize", Box::new(move || quantizing(n, 5, |k, s, row| k.quantize(&s[0], row)))));
    let norm: Quantizing = |k, s, row| k.rms_norm_quantize(&s[0], &s[1], 1e-5, row);
    cases.push(("rms_norm_quantize", Box::new(move || quantizing(n, 9, norm))));
    let silu: Quantizing = |k, s, row| k.glu_quantize(Gate::Silu, &s[0], &s[1], row);
    cases.push(("silu_mul_quantize", Box::new(move || quantizing(n, 9, silu))));
    let mut update = |name, bytes, kernel: Updating| {
        cases.push((name, Box::new(move || updating(n, bytes, kernel))));
    };
    update("rms_norm", 20, |k, s, x| k.rms_norm(&s[0], &s[1], 1e-5, x));
    update("silu_mul", 20, |k, s, x| k.glu(Gate::Silu, &s[0], &s[1], x));
    update("rope", 16, |k, s, x| k.rope(x, &s[0][..32], &s[1][..32]));
    update("add", 20, |k, s, x| k.add(x, &s[1]));
    update("attn_merge", 20, |k, s, x| k.attn_merge(x, 0.3, &s[1], 0.7));
}

/// A fixed sequence of values in −1..1.
pub fn floats(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state as i32 >> 8) as f32 / (1 << 23) as f32
    };
    (0..n).map(|_| next()).collect()
}

/// How the weights of a product are stored.
#[derive(Clone, Copy)]
enum Format {
    Rows,
    Panels,
    Int4,
    Int4By32,
    Int4By32Minimum,
}

impl Format {
    const ALL: [Self; 5] = [Self::Rows, Self::Panels, Self::Int4, Self::Int4By32, Self::Int4By32Minimum];

    /// What its products with one token are called, and with several.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Rows => ("gemv_i8", "gemm_i8"),
            Self::Panels => ("gemv_panels", "gemm_panels"),
            Self::Int4 => ("gemv_int4", "gemm_int4"),
            Self::Int4By32 => ("gemv_int4_by_32", "gemm_int4_by_32"),
            Self::Int4By32Minimum => ("gemv_int4_minimum", "gemm_int4_minimum"),
        }
    }

    /// Multiply-adds of a case that takes a moment: int4's reference makes each weight anew for each token. Its kinds differ in
    /// their scales alone.
    fn most(self) -> usize {
        match self {
            Self::Rows | Self::Panels => usize::MAX,
            Self::Int4 => 1 << 28,
            Self::Int4By32 | Self::Int4By32Minimum => 1 << 24,
        }
    }
}

/// A matrix of integers times some tokens, 128 rows at a time as the forward pass takes them.
struct Product {
    weights: Weights,
    shape: (usize, usize, usize),
    x: QuantizedBuf,
    out: Vec<f32>,
}

/// The weights as they are stored: values or nibbles, and scales.
struct Weights {
    format: Format,
    values: Aligned<i8>,
    /// As the file has them: f32 in rows, f16 in panels, whole numbers in int4.
    scales: Aligned<u8>,
    /// Of int4.
    row_scales: Aligned<f32>,
}

/// A crooked table, as `convert` has it.
const CODES: [i8; 16] = [-31, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27];

impl Weights {
    fn new(format: Format, rows: usize, cols: usize) -> Self {
        let mut byte = 0u32;
        let mut next = || {
            byte = byte.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (byte >> 24) as i8
        };
        let groups = rows * cols / GROUP;
        let memory = &mut Allocator::heap();
        let bytes: Vec<u8> = match format {
            Format::Rows => {
                let scales = floats(groups, 1).into_iter().map(|x| 127.0 / (x.abs() + 0.1));
                scales.flat_map(f32::to_le_bytes).collect()
            }
            Format::Panels => {
                let scales = floats(groups, 1).into_iter().map(|x| f16::from_f32((x.abs() + 0.1) / 127.0));
                scales.flat_map(f16::to_le_bytes).collect()
            }
            Format::Int4 => (0..4 * groups).map(|_| next() as u8).collect(),
            // So small that no weight is beyond 28672.
            Format::Int4By32 => (0..2 * groups).flat_map(|_| (i16::from(next()) * 4).to_le_bytes()).collect(),
            Format::Int4By32Minimum => {
                (0..4 * groups).flat_map(|_| (i16::from(next()) * 4).to_le_bytes()).collect()
            }
        };
        let is_int4 = !matches!(format, Format::Rows | Format::Panels);
        let mut values = memory.aligned(if is_int4 { rows * cols / 2 } else { rows * cols });
        values.iter_mut().for_each(|value| *value = next());
        let mut scales = memory.aligned(bytes.len());
        scales.copy_from_slice(&bytes);
        let mut row_scales = memory.aligned(if is_int4 { rows } else { 0 });
        row_scales.iter_mut().zip(floats(rows, 2)).for_each(|(scale, x)| *scale = x);
        Self { format, values, scales, row_scales }
    }

    /// As a kernel takes them. Rows are whole panels.
    fn matrix(&self, rows: usize, cols: usize) -> Weight<'_> {
        let int4 = |scales| {
            let nibbles = bytemuck::cast_slice(&self.values);
            Weight::Int4(Int4Matrix::new(&CODES, nibbles, scales, &self.row_scales, (rows, cols)))
        };
        let scales = &self.scales[..];
        match self.format {
            Format::Rows => {
                Weight::Int8(QMatrix::new(&self.values, bytemuck::cast_slice(scales), rows, cols))
            }
            Format::Panels => {
                Weight::Int8Panels(PanelMatrix::new(&self.values, bytemuck::cast_slice(scales), rows, cols))
            }
            Format::Int4 => int4(Int4Scales::Fine(bytemuck::cast_slice(scales))),
            Format::Int4By32 => int4(Int4Scales::Coarse(bytemuck::cast_slice(scales))),
            Format::Int4By32Minimum => int4(Int4Scales::WithMinimum(bytemuck::cast_slice(scales))),
        }
    }
}

fn product(format: Format, rows: usize, cols: usize, tokens: usize) -> Case {
    let weights = Weights::new(format, rows, cols);
    let mut x = QuantizedBuf::new(&mut Allocator::heap(), tokens, cols);
    for t in 0..tokens {
        let token = floats(cols, t as u32);
        Kernels::detect().quantize(&token, x.view_mut(tokens).token(t));
    }
    let (unit, shape) = match tokens {
        1 => (Unit::Bytes, format!("{rows}×{cols}")),
        _ => (Unit::MultiplyAdds, format!("{rows}×{cols}×{tokens}")),
    };
    // Weights and activations with their scales; results.
    let quantized = rows * weights.matrix(rows, cols).row_bytes() + tokens * (cols + 4 * (cols / GROUP));
    let out = vec![0.0; rows * tokens];
    Case {
        shape,
        operations: (rows * cols * tokens) as f64,
        bytes: (quantized + 4 * rows * tokens) as f64,
        unit,
        task: Box::new(Product { weights, shape: (rows, cols, tokens), x, out }),
    }
}

impl Task for Product {
    fn read(&self) -> Option<u64> {
        let Weights { values, scales, row_scales, .. } = &self.weights;
        let all = [bytemuck::cast_slice(values), &**scales, bytemuck::cast_slice(row_scales)];
        (self.shape.2 == 1).then(|| all.into_iter().map(read).fold(0, u64::wrapping_add))
    }

    fn run(&mut self, kernels: Kernels) {
        let (rows, cols, tokens) = self.shape;
        let weights = self.weights.matrix(rows, cols);
        let x = self.x.view(tokens);
        for first in (0..rows).step_by(128) {
            let part = first..(first + 128).min(rows);
            let (_, out) = MatMut::new(&mut self.out, tokens, rows).split_cols(first);
            let (out, _) = out.split_cols(part.len());
            match &weights {
                Weight::Int8(w) => kernels.matmul_i8(w, part, &x, out),
                Weight::Int8Panels(w) => kernels.matmul_panels(w, part, &x, out),
                Weight::Int4(w) => kernels.matmul_int4(w, part, &x, out),
                _ => (),
            }
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
    Case {
        shape: format!("{rows}×{cols}"),
        operations: (rows * cols) as f64,
        bytes: (4 * (rows * cols + rows + cols)) as f64,
        unit: Unit::Bytes,
        task: Box::new(task),
    }
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

/// `bytes` of each element are read or written.
fn quantizing(n: usize, bytes: usize, kernel: Quantizing) -> Case {
    let task = QuantizingTask {
        sources: [floats(n, 1), floats(n, 2)],
        out: QuantizedBuf::new(&mut Allocator::heap(), 1, n),
        kernel,
    };
    vector_case(n, bytes, Box::new(task))
}

fn vector_case(n: usize, bytes: usize, task: Box<dyn Task>) -> Case {
    let (shape, operations, bytes) = (n.to_string(), n as f64, (n * bytes) as f64);
    Case { shape, operations, bytes, unit: Unit::Bytes, task }
}

impl Task for QuantizingTask {
    fn run(&mut self, kernels: Kernels) {
        (self.kernel)(kernels, &self.sources, self.out.view_mut(1).token(0));
    }

    fn results(&self) -> Vec<f32> {
        let view = self.out.view(1);
        let integers =
            view.token_values(0).iter().map(|&q| f32::from(q)).chain(view.sums().iter().map(|&s| s as f32));
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

/// `bytes` of each element are read or written, 8 of them to start anew.
fn updating(n: usize, bytes: usize, kernel: Updating) -> Case {
    let task = UpdatingTask { sources: [floats(n, 1), floats(n, 2)], x: vec![0.0; n], kernel };
    vector_case(n, bytes, Box::new(task))
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
