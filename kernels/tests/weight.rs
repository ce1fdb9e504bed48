//! Weights and activations as values: what they answer, and that they reach the kernels of their formats.

use torchless_kernels::{
    ActivationBuf, ActivationFormat, ActivationFormats, ActivationsMut, Allocator, F32Matrix, GROUP, Gate,
    Int4Matrix, Int4Scales, Kernels, MatMut, PANEL_ROWS, QMatrix, QuantizedBuf, Weight,
};

const ROWS: usize = 40;
const COLS: usize = 2 * GROUP;

fn floats(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state as i32 >> 8) as f32 / (1 << 23) as f32
    };
    (0..n).map(|_| next()).collect()
}

fn both() -> ActivationFormats {
    [ActivationFormat::F32, ActivationFormat::Int8].into_iter().collect()
}

/// Activations of some tokens in both formats.
fn activations(kernels: Kernels, x: &[f32]) -> ActivationBuf {
    let tokens = x.len() / COLS;
    let mut buf = ActivationBuf::new(&mut Allocator::heap(), tokens, COLS, both());
    let mut out = buf.view_mut(tokens, both());
    for (t, x) in x.chunks(COLS).enumerate() {
        kernels.convert(x, out.token(t));
    }
    buf
}

fn quantized(kernels: Kernels, x: &[f32]) -> QuantizedBuf {
    let tokens = x.len() / COLS;
    let mut buf = QuantizedBuf::new(&mut Allocator::heap(), tokens, COLS);
    for (t, x) in x.chunks(COLS).enumerate() {
        kernels.quantize(x, buf.view_mut(tokens).token(t));
    }
    buf
}

fn product(w: &Weight, x: &ActivationBuf, tokens: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; tokens * ROWS];
    let (left, right) = MatMut::new(&mut out, tokens, ROWS).split_cols(7);
    for (rows, out) in [(0..7, left), (7..ROWS, right)] {
        Kernels::detect().matmul(w, rows, &x.view(tokens), out);
    }
    out
}

#[test]
fn an_int8_weight_meets_int8_activations() {
    let kernels = Kernels::detect();
    let values: Vec<i8> = floats(ROWS * COLS, 1).iter().map(|x| (x * 127.0) as i8).collect();
    let scales: Vec<f32> = floats(ROWS * COLS / GROUP, 2).iter().map(|x| 100.0 + 20.0 * x).collect();
    let matrix = QMatrix::new(&values, &scales, ROWS, COLS);
    let w = Weight::Int8(matrix);
    assert_eq!((w.rows(), w.cols(), w.activation()), (ROWS, COLS, ActivationFormat::Int8));
    assert_eq!(w.row_bytes() * ROWS, values.len() + 4 * scales.len());
    assert!(w.row_granule().is_power_of_two());
    for tokens in [1, 9] {
        let x = floats(tokens * COLS, 3);
        let mut expected = vec![0.0; tokens * ROWS];
        let out = MatMut::new(&mut expected, tokens, ROWS);
        kernels.matmul_i8(&matrix, 0..ROWS, &quantized(kernels, &x).view(tokens), out);
        assert_eq!(product(&w, &activations(kernels, &x), tokens), expected, "{tokens} tokens");
    }
    let (mut row, mut expected) = ([0.0; COLS], [0.0; COLS]);
    kernels.weight_row(&w, 5, &mut row);
    kernels.dequantize_row(&matrix, 5, &mut expected);
    assert_eq!(row, expected);
}

#[test]
fn an_int4_weight_meets_int8_activations() {
    let kernels = Kernels::detect();
    let codes = std::array::from_fn(|i| 2 * i as i8 - 11);
    let (panels, groups) = (ROWS.div_ceil(PANEL_ROWS), COLS / GROUP);
    let nibbles: Vec<u8> =
        floats(panels * PANEL_ROWS * COLS / 2, 1).iter().map(|x| (x * 127.0) as i8 as u8).collect();
    let row_scales = floats(panels * PANEL_ROWS, 2);
    let fine = vec![[[3; PANEL_ROWS]; 4]; panels * groups];
    let coarse = vec![[[-700; PANEL_ROWS]; 2]; panels * groups];
    let with_minimum = vec![[[[500; PANEL_ROWS]; 2], [[-900; PANEL_ROWS]; 2]]; panels * groups];
    for (scales, bytes) in [
        (Int4Scales::Fine(&fine), size_of_val(&*fine)),
        (Int4Scales::Coarse(&coarse), size_of_val(&*coarse)),
        (Int4Scales::WithMinimum(&with_minimum), size_of_val(&*with_minimum)),
    ] {
        let matrix = Int4Matrix::new(&codes, &nibbles, scales, &row_scales, (ROWS, COLS));
        let w = Weight::Int4(matrix);
        assert_eq!((w.rows(), w.cols(), w.activation()), (ROWS, COLS, ActivationFormat::Int8));
        assert_eq!(w.row_bytes() * panels * PANEL_ROWS, nibbles.len() + bytes + 4 * row_scales.len());
        assert_eq!(w.row_granule(), PANEL_ROWS);
        for tokens in [1, 9] {
            let x = floats(tokens * COLS, 3);
            let mut expected = vec![0.0; tokens * ROWS];
            let out = MatMut::new(&mut expected, tokens, ROWS);
            kernels.matmul_int4(&matrix, 0..ROWS, &quantized(kernels, &x).view(tokens), out);
            assert_eq!(product(&w, &activations(kernels, &x), tokens), expected, "{tokens} tokens");
        }
        let (mut row, mut expected) = ([0.0; COLS], [0.0; COLS]);
        kernels.weight_row(&w, 5, &mut row);
        kernels.dequantize_int4_row(&matrix, 5, &mut expected);
        assert_eq!(row, expected);
    }
}

#[test]
fn an_f32_weight_adds_in_one_order_unless_any_will_do() {
    let kernels = Kernels::detect();
    let values = floats(ROWS * COLS, 1);
    for (any_order, tokens) in [(false, 1), (false, 9), (true, 1), (true, 9)] {
        let w = Weight::F32(F32Matrix::new(&values, COLS, any_order));
        assert_eq!((w.rows(), w.cols(), w.activation()), (ROWS, COLS, ActivationFormat::F32));
        let x = floats(tokens * COLS, 3);
        let mut expected = vec![0.0; tokens * ROWS];
        kernels.matmul_f32(&values, &x, COLS, MatMut::new(&mut expected, tokens, ROWS));
        let found = product(&w, &activations(kernels, &x), tokens);
        match any_order && tokens > 1 {
            false => assert_eq!(found, expected, "{tokens} tokens"),
            true => {
                for (found, expected) in found.iter().zip(&expected) {
                    approx::assert_abs_diff_eq!(found, expected, epsilon = 1e-4);
                }
            }
        }
    }
    let mut row = [0.0; COLS];
    kernels.weight_row(&Weight::F32(F32Matrix::new(&values, COLS, false)), 39, &mut row);
    assert_eq!(row, values[39 * COLS..]);
}

#[test]
#[should_panic(expected = "activations in the format that the weight wants")]
fn a_weight_without_its_activations_panics() {
    let values = floats(ROWS * COLS, 1);
    let int8 = ActivationFormats::default().with(ActivationFormat::Int8);
    let x = ActivationBuf::new(&mut Allocator::heap(), 1, COLS, int8);
    product(&Weight::F32(F32Matrix::new(&values, COLS, false)), &x, 1);
}

/// Blocks of tokens and features, filled one by one, hold what the kernels give for the whole.
#[test]
fn every_format_is_filled_whatever_the_splits() {
    let kernels = Kernels::detect();
    const TOKENS: usize = 3;
    let (gate, up) = (floats(TOKENS * COLS, 1), floats(TOKENS * COLS, 2));
    let mut buf = ActivationBuf::new(&mut Allocator::heap(), TOKENS + 2, COLS, both());
    let (first, rest) = buf.view_mut(TOKENS, both()).split_tokens(1);
    for (before, block) in [(0, first), (1, rest)] {
        let tokens = block.tokens();
        let (left, right) = block.split_features(ActivationsMut::FEATURES);
        for (start, mut part) in [(0, left), (ActivationsMut::FEATURES, right)] {
            for t in 0..tokens {
                let at = (before + t) * COLS + start;
                let features = at..at + GROUP;
                kernels.glu_into(Gate::Silu, &gate[features.clone()], &up[features], part.token(t));
            }
        }
    }
    let mut expected = vec![0.0; TOKENS * COLS];
    kernels.glu(Gate::Silu, &gate, &up, &mut expected);
    assert_eq!(buf.f32_mut(TOKENS), expected);
    // Of int8 a product tells: that of one-hot rows are the activations themselves.
    let values: Vec<i8> = (0..COLS * COLS).map(|i| if i % (COLS + 1) == 0 { 127 } else { 0 }).collect();
    let scales = vec![127.0; COLS * COLS / GROUP];
    let identity = QMatrix::new(&values, &scales, COLS, COLS);
    let whole = activations(kernels, &expected);
    let [found, expected] = [&buf, &whole].map(|x| {
        let mut out = vec![0.0; TOKENS * COLS];
        let x = x.view(TOKENS);
        kernels.matmul(&Weight::Int8(identity), 0..COLS, &x, MatMut::new(&mut out, TOKENS, COLS));
        out
    });
    assert_eq!(found, expected);
}

#[test]
fn what_a_buffer_takes_is_counted_by_building_it() {
    let formats = |f: &[ActivationFormat]| f.iter().copied().collect::<ActivationFormats>();
    let bytes = |f| Allocator::count(|memory| ActivationBuf::new(memory, 10, COLS, f));
    let (f32, int8) = (bytes(formats(&[ActivationFormat::F32])), bytes(formats(&[ActivationFormat::Int8])));
    assert!((10 * COLS * 4..10 * COLS * 4 + 64).contains(&f32));
    assert!(int8 >= 10 * (COLS + 2 * 16));
    assert_eq!(bytes(both()), f32 + int8);
    assert_eq!(bytes(ActivationFormats::default()), 0);
    assert_eq!(formats(&[ActivationFormat::F32]).or(formats(&[ActivationFormat::Int8])), both());
}
