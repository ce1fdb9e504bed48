//! The two ways to int4 against numpy, byte for byte: `tests/fixtures/convert/make.py` makes the goldens by docs/format.md and by
//! the search's own description.

use safetensors::SafeTensors;
use torchless_kernels::Kernels;

use super::*;

struct Goldens(Vec<u8>);

impl Goldens {
    fn read() -> Self {
        Self(std::fs::read("tests/fixtures/convert/int4.safetensors").unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

/// Of all goldens.
const SHAPE: (usize, usize) = (37, 192);

/// What is written after the data.
fn all_scales(encoded: &Encoded) -> Vec<u8> {
    [&encoded.front[..], &encoded.scales].concat()
}

fn assert_golden(kind: Kind, encoded: &Encoded, goldens: &Goldens, prefix: &str) {
    let scales = all_scales(encoded);
    Int4(kind).verify(&encoded.data, &scales, SHAPE).unwrap();
    let sizes = Int4(kind).sizes(SHAPE.0, SHAPE.1).unwrap();
    assert_eq!((encoded.data.len(), Some(scales.len())), (sizes.data, sizes.scales));
    assert!(scales == goldens.bytes(&format!("{prefix}scales")), "{kind:?}, {prefix}: scales");
    assert!(encoded.data == goldens.bytes(&format!("{prefix}data")), "{kind:?}, {prefix}: codes");
}

#[test]
fn the_search_finds_what_numpy_finds() {
    let goldens = Goldens::read();
    let (weights, importance) = (goldens.floats("weights"), goldens.floats("importance"));
    for (importance, prefix) in [(Some(&importance[..]), ""), (None, "plain.")] {
        let mut encoded = Encoded::default();
        // In two blocks, as a large tensor is written.
        for rows in [&weights[..32 * SHAPE.1], &weights[32 * SHAPE.1..]] {
            encode_weighted(rows, SHAPE.1, importance, &mut encoded);
        }
        assert_golden(Kind::Fine, &encoded, &goldens, prefix);
    }
}

#[test]
fn grids_become_what_numpy_makes_of_them() {
    let goldens = Goldens::read();
    for (kind, prefix) in [(Kind::WithMinimum, "grid."), (Kind::Coarse, "middle.")] {
        let of = |name: &str| format!("{prefix}{name}");
        let (q, scales, offsets) =
            (goldens.bytes(&of("q")), goldens.floats(&of("scale")), goldens.floats(&of("offset")));
        let q = q.as_chunks::<GRID_GROUP>().0;
        let groups = q.iter().zip(scales).zip(offsets);
        let groups = groups.map(|((&q, scale), offset)| GridGroup { q, scale, offset });
        let groups: Vec<_> = groups.collect();
        let mut encoded = Encoded::default();
        for rows in [&groups[..16 * SHAPE.1 / GRID_GROUP], &groups[16 * SHAPE.1 / GRID_GROUP..]] {
            encode_grid(rows, SHAPE.1, kind, &mut encoded);
        }
        assert_golden(kind, &encoded, &goldens, prefix);
    }
}

/// The largest weights there may be come back as numbers, and all of them as near as 16 codes can be.
#[test]
fn weights_come_back() {
    let (rows, cols) = (18, 128);
    let value = |i: usize| ((i * 7919 % 1009) as f32 / 504.0 - 1.0) * [1e-3, 1.0, 40.0][i / cols % 3];
    let mut weights: Vec<f32> = (0..rows * cols).map(value).collect();
    weights[3 * cols..4 * cols].fill(Int4(Kind::Fine).largest());
    weights[4 * cols..5 * cols].fill(-Int4(Kind::Fine).largest());
    weights[5 * cols..6 * cols].fill(f32::MIN_POSITIVE);
    let mut encoded = Encoded::default();
    Int4(Kind::Fine).encode(&weights, cols, &mut encoded);
    let scales = all_scales(&encoded);
    Int4(Kind::Fine).verify(&encoded.data, &scales, (rows, cols)).unwrap();
    let matrix = Int4(Kind::Fine).weight(&encoded.data, &scales, (rows, cols), false);
    for (row, weights) in weights.chunks(cols).enumerate() {
        let mut found = vec![0.0; cols];
        Kernels::detect().weight_row(&matrix, row, &mut found);
        let squares =
            |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let error = squares(&mut weights.iter().zip(&found).map(|(w, f)| w - f));
        let share = (error / squares(&mut weights.iter().copied())).sqrt();
        assert!(share < 0.1 || row == 5, "row {row}: an error of {share}");
    }
}

#[test]
fn shapes_whose_sizes_cannot_be_counted() {
    for kind in [Kind::Fine, Kind::Coarse, Kind::WithMinimum] {
        let problem = |rows, cols| Int4(kind).sizes(rows, cols).unwrap_err();
        assert!(problem(16, 96).contains("whole groups of 64"));
        assert_eq!(problem(usize::MAX, 1 << 20), OVERFLOWS);
        assert_eq!(problem(1 << 32, 1 << 36), OVERFLOWS);
        let sizes = Int4(kind).sizes(37, 192).unwrap();
        let groups = [576, 576, 1152][kind as usize];
        assert_eq!((sizes.data, sizes.scales), (9 * 512, Some(64 + 3 * 64 + groups)));
    }
}
