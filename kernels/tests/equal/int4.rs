//! Int4 weights: the same bits as the reference, for every kind of scales.

use super::*;
use torchless_kernels::{INT4_LIMIT, Int4Matrix, Int4Scales};

/// How a case's weights are scaled.
#[derive(Clone, Copy, Debug)]
enum Sort {
    Fine,
    Coarse,
    WithMinimum,
}

const SORTS: [Sort; 3] = [Sort::Fine, Sort::Coarse, Sort::WithMinimum];

/// Tables: crooked ones, the plain one, and those as wide as a table may be.
const TABLES: [[i8; 16]; 5] = [
    [-31, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7],
    [0, 63, 62, 60, 50, 40, 33, 30, 25, 20, 17, 10, 5, 3, 2, 1],
    [-63, 0, -1, -2, -5, -7, -9, -20, -30, -40, -45, -50, -55, -60, -61, -62],
];

/// The scales and nibbles of a matrix, as large as they may be where `extreme`.
struct Made {
    codes: [i8; 16],
    nibbles: Vec<u8>,
    fine: Vec<[[i8; PANEL_ROWS]; 4]>,
    coarse: Vec<[[i16; PANEL_ROWS]; 2]>,
    with_minimum: Vec<[[[i16; PANEL_ROWS]; 2]; 2]>,
    row_scales: Vec<f32>,
    shape: (usize, usize),
}

impl Made {
    fn new(codes: [i8; 16], (rows, cols): (usize, usize), extreme: bool, seed: u64) -> Self {
        let mut random = Random(seed);
        let panels = rows.div_ceil(PANEL_ROWS);
        let groups = panels * cols / GROUP;
        let largest = codes.iter().map(|code| i32::from(code.unsigned_abs())).max().unwrap().max(1);
        let mut scale = |limit: i32| {
            let limit = (limit / largest).min(i32::from(i16::MAX));
            let pick = random.next() as i64;
            (if extreme { [limit, -limit][pick as usize % 2] } else { (pick % i64::from(limit + 1)) as i32 })
                as i16
        };
        let fine = (0..groups)
            .map(|_| std::array::from_fn(|_| std::array::from_fn(|_| scale(largest * 127) as i8)))
            .collect();
        let coarse = (0..groups)
            .map(|_| std::array::from_fn(|_| std::array::from_fn(|_| scale(INT4_LIMIT))))
            .collect();
        let with_minimum = (0..groups)
            .map(|_| {
                let scales = std::array::from_fn(|_| std::array::from_fn(|_| scale(INT4_LIMIT / 2)));
                let minimums = std::array::from_fn(|_| std::array::from_fn(|_| scale(INT4_LIMIT / 2)));
                [scales, minimums]
            })
            .collect();
        let nibble = |random: &mut Random| match extreme {
            // The same everywhere: the largest sums there are.
            true => (seed % 16) as u8 * 17,
            false => random.next() as u8,
        };
        let nibbles = (0..groups * 512).map(|_| nibble(&mut random)).collect();
        let row_scales = (0..panels * PANEL_ROWS).map(|_| random.float() * 0.01).collect();
        Self { codes, nibbles, fine, coarse, with_minimum, row_scales, shape: (rows, cols) }
    }

    fn matrix(&self, sort: Sort) -> Int4Matrix<'_> {
        let scales = match sort {
            Sort::Fine => Int4Scales::Fine(&self.fine),
            Sort::Coarse => Int4Scales::Coarse(&self.coarse),
            Sort::WithMinimum => Int4Scales::WithMinimum(&self.with_minimum),
        };
        Int4Matrix::new(&self.codes, &self.nibbles, scales, &self.row_scales, self.shape)
    }
}

fn quantized_tokens(floats: &[f32], tokens: usize, cols: usize) -> QuantizedBuf {
    let mut x = QuantizedBuf::new(&mut Allocator::heap(), tokens, cols);
    for t in 0..tokens {
        all()[0].quantize(&floats[t * cols..][..cols], x.view_mut(tokens).token(t));
    }
    x
}

/// The product of the rows from some on, and one row in f32.
fn int4_case(differences: &Differences, made: &Made, x: &QuantizedBuf, tokens: usize, case: &dyn Debug) {
    let (rows, cols) = made.shape;
    for sort in SORTS {
        let w = made.matrix(sort);
        for from in [0, 1, 16, 21].into_iter().filter(|from| *from <= rows) {
            differences.look(&(sort, "from row", from, case), |k| {
                let mut out = vec![-7.0; tokens * (rows + 3)];
                let (_, inner) = MatMut::new(&mut out, tokens, rows + 3).split_cols(2);
                let (inner, _) = inner.split_cols(rows - from);
                k.matmul_int4(&w, from..rows, &x.view(tokens), inner);
                let mut row = vec![0.0; if from < rows { cols } else { 0 }];
                if from < rows {
                    k.dequantize_int4_row(&w, from, &mut row);
                }
                (out, row)
            });
        }
    }
}

#[test]
fn matmul_int4_at_every_edge() {
    let differences = Differences::default();
    let (rows, cols, tokens): (&[usize], &[usize], &[usize]) = match cfg!(miri) {
        true => (&[17], &[64], &[2]),
        false => (
            &[0, 1, 15, 16, 17, 33, 70],
            &[0, 64, 128, 576, 1088],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 24, 33],
        ),
    };
    for (i, &rows) in rows.iter().enumerate() {
        for &cols in cols {
            let made = Made::new(TABLES[(i + cols / 64) % TABLES.len()], (rows, cols), false, 3);
            for &tokens in tokens {
                let floats = Floats::Plain.make(tokens * cols, 11);
                let x = quantized_tokens(&floats, tokens, cols);
                int4_case(&differences, &made, &x, tokens, &(rows, cols, tokens));
            }
        }
    }
}

/// Weights and activations as large as they may be, with outliers of every sort.
#[test]
#[cfg_attr(miri, ignore = "slow")]
fn matmul_int4_at_the_limits() {
    let differences = Differences::default();
    for codes in TABLES {
        for seed in [0, 1, 15, 7] {
            let made = Made::new(codes, (35, 192), true, seed);
            for &floats in FLOATS {
                for tokens in [1, 7, 9, 33] {
                    let x = quantized_tokens(&floats.make(tokens * 192, seed), tokens, 192);
                    int4_case(&differences, &made, &x, tokens, &(codes, seed, floats, tokens));
                }
            }
        }
    }
}

/// The largest sum that is allowed: every activation 127 but for a quad of 128 · 127, every weight the limit.
#[test]
fn the_largest_sum_does_not_wrap() {
    let mut floats = vec![127.0; GROUP];
    floats[8..12].fill(128.0 * 127.0);
    let x = quantized_tokens(&floats, 1, GROUP);
    let coarse = [[[INT4_LIMIT as i16; PANEL_ROWS]; 2]];
    let mut codes = [0; 16];
    codes[5] = 1;
    let w = Int4Matrix::new(&codes, &[0x55; 512], Int4Scales::Coarse(&coarse), &[1.0; 16], (1, GROUP));
    for k in all() {
        let mut out = [0.0];
        k.matmul_int4(&w, 0..1, &x.view(1), MatMut::new(&mut out, 1, 1));
        let sum = i64::from(INT4_LIMIT) * (60 * 127 + 4 * 128 * 127);
        assert!(sum < 1 << 31);
        assert_eq!(out[0], sum as f32, "{k:?}");
    }
}

#[cfg(not(miri))]
proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn matmul_int4_anywhere(rows in 0usize..80, groups in 0usize..24, tokens in 0usize..40, table in 0usize..5, seed: u64) {
        let differences = Differences::default();
        let cols = groups * GROUP;
        let made = Made::new(TABLES[table], (rows, cols), false, seed);
        let x = quantized_tokens(&Floats::Wide.make(tokens * cols, seed), tokens, cols);
        int4_case(&differences, &made, &x, tokens, &(rows, cols, tokens, table, seed));
    }
}

/// A split of the rows or of the tokens never changes a bit.
#[test]
#[cfg_attr(miri, ignore = "slow")]
fn splits_of_int4_change_nothing() {
    let differences = Differences::default();
    let (rows, cols, tokens) = (70, 576, 29);
    let made = Made::new(TABLES[0], (rows, cols), false, 5);
    let floats = Floats::Plain.make(tokens * cols, 2);
    for (k, sort) in all().into_iter().flat_map(|k| SORTS.map(|sort| (k, sort))) {
        let w = made.matrix(sort);
        let mut whole = vec![0.0; tokens * rows];
        let x = quantized_tokens(&floats, tokens, cols);
        k.matmul_int4(&w, 0..rows, &x.view(tokens), MatMut::new(&mut whole, tokens, rows));
        for (row_step, token_step) in [(1, 3), (16, 1), (33, 7), (5, 27)] {
            let mut out = vec![0.0; tokens * rows];
            for t in (0..tokens).step_by(token_step) {
                let n = token_step.min(tokens - t);
                let x = quantized_tokens(&floats[t * cols..], n, cols);
                for r in (0..rows).step_by(row_step) {
                    let m = row_step.min(rows - r);
                    let (_, part) = MatMut::new(&mut out, tokens, rows).split_rows(t);
                    let (_, part) = part.split_rows(n).0.split_cols(r);
                    k.matmul_int4(&w, r..r + m, &x.view(n), part.split_cols(m).0);
                }
            }
            differences.note(
                k,
                &(sort, "rows by", row_step, "tokens by", token_step),
                out.same(&whole),
                String::new,
            );
        }
    }
}
