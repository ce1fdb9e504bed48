//! Int8 in panels of 16 rows, as the kernels read it: `w ≈ q · scale` for each 64 columns of a row.
//!
//! `[⌈rows/16⌉][cols/64][16 quads][16 rows][4]` values, `[⌈rows/16⌉][cols/64][16 rows]` scales; rows behind the last are zeros.

use half::f16;
use torchless_kernels::{GROUP, PANEL_ROWS, PanelMatrix, QUAD, Weight};

use super::{Encoded, Encoding, LARGEST_IN_PANELS, OVERFLOWS, Sizes};

pub(super) struct Int8Panels;

/// Bytes of 16 rows and 64 columns.
const PANEL_GROUP: usize = PANEL_ROWS * GROUP;

impl Encoding for Int8Panels {
    fn name(&self) -> &'static str {
        "int8_panels"
    }

    fn sizes(&self, rows: usize, cols: usize) -> Result<Sizes, &'static str> {
        if !cols.is_multiple_of(GROUP) {
            return Err("is not of whole groups of 64 columns, as panels are");
        }
        let groups = rows.div_ceil(PANEL_ROWS).checked_mul(cols / GROUP).ok_or(OVERFLOWS)?;
        let data = groups.checked_mul(PANEL_GROUP).ok_or(OVERFLOWS)?;
        // Four columns of a panel are then one line of the cache, and one register of AVX-512.
        Ok(Sizes {
            data,
            alignment: 64,
            scales: Some(groups * PANEL_ROWS),
            scale: size_of::<f16>(),
            scale_alignment: size_of::<f16>(),
        })
    }

    fn row_granule(&self, _: usize) -> usize {
        PANEL_ROWS
    }

    fn largest(&self) -> f32 {
        LARGEST_IN_PANELS
    }

    fn encode(&self, rows: &[f32], cols: usize, out: &mut Encoded) {
        for panel in rows.chunks(PANEL_ROWS * cols) {
            for g in 0..cols / GROUP {
                let group = |row: &'_ [f32]| row.as_chunks().0[g];
                encode_group(panel.chunks(cols).map(group), out);
            }
        }
    }

    /// A scale that is negative (−0 too), infinite or NaN is damage, and so is whatever is not zero behind the last row.
    fn verify(&self, data: &[u8], scales: &[u8], (rows, cols): (usize, usize)) -> Result<(), String> {
        let scales: &[f16] = bytemuck::cast_slice(scales);
        let groups = cols / GROUP;
        if let Some(at) = first_unsound(scales) {
            let (panel, g, row) = (at / PANEL_ROWS / groups, at / PANEL_ROWS % groups, at % PANEL_ROWS);
            let row = PANEL_ROWS * panel + row;
            return Err(format!("the scale of row {row}, group {g} is {}", scales[at]));
        }
        let in_last = rows % PANEL_ROWS;
        if in_last > 0 {
            let scales = scales[scales.len() - groups * PANEL_ROWS..].chunks(PANEL_ROWS);
            let values = data[data.len() - groups * PANEL_GROUP..].chunks(PANEL_ROWS * QUAD);
            let empty = scales.flat_map(|scales| &scales[in_last..]).all(|scale| scale.to_bits() == 0)
                && values.flat_map(|quads| &quads[in_last * QUAD..]).all(|value| *value == 0);
            if !empty {
                return Err(format!("behind its {rows} rows the last panel is not zero"));
            }
        }
        Ok(())
    }

    fn weight<'a>(&self, data: &'a [u8], scales: &'a [u8], shape: (usize, usize), _: bool) -> Weight<'a> {
        let (data, scales) = (bytemuck::cast_slice(data), bytemuck::cast_slice(scales));
        Weight::Int8Panels(PanelMatrix::new(data, scales, shape.0, shape.1))
    }
}

/// The first scale that is not 0 or a positive number.
fn first_unsound(scales: &[f16]) -> Option<usize> {
    /// Scales whose largest is sought in one go, many at a time: opening a file reads all of them.
    const RUN: usize = 1024;
    // In order of their bits come 0, the positive numbers, infinity, NaNs and all that is negative.
    let unsound = |bits: u16| bits >= f16::INFINITY.to_bits();
    let largest = |run: &[f16]| run.iter().fold(0, |most, scale| scale.to_bits().max(most));
    let first = scales.chunks(RUN).position(|run| unsound(largest(run)))? * RUN;
    scales[first..].iter().position(|scale| unsound(scale.to_bits())).map(|at| first + at)
}

/// Appends one group of each of up to 16 rows, quad by quad, and their scales.
fn encode_group(rows: impl Iterator<Item = [f32; GROUP]>, out: &mut Encoded) {
    let mut values = [[[0; QUAD]; PANEL_ROWS]; GROUP / QUAD];
    let mut scales = [f16::ZERO; PANEL_ROWS];
    for (row, group) in rows.enumerate() {
        scales[row] = scale_of(&group);
        let scale = scales[row].to_f32();
        // A scale of zero is a group of zeros, and 0 / 0 none.
        if scale > 0.0 {
            for (quads, values) in values.iter_mut().zip(group.as_chunks().0) {
                quads[row] = values.map(|value| quantize(value, scale));
            }
        }
    }
    out.data.extend(values.as_flattened().as_flattened());
    out.scales.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
}

/// The f16 nearest to max|w| / 127, or the next one where that is so small (subnormal) that the largest value would be
/// more than half a step beyond 127 steps.
fn scale_of(group: &[f32; GROUP]) -> f16 {
    let max = group.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let nearest = f16::from_f32(max / 127.0);
    match 127.5 * nearest.to_f32() < max {
        true => f16::from_bits(nearest.to_bits() + 1),
        false => nearest,
    }
}

/// `value / scale`, rounded half to even.
fn quantize(value: f32, scale: f32) -> u8 {
    // As in `int8`: a sum of this magnitude has no bits for a fraction.
    const ROUND: f32 = 1.5 * (1 << 23) as f32;
    ((value / scale).clamp(-127.0, 127.0) + ROUND).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;
    use torchless_kernels::Kernels;

    use super::super::int8::Int8;
    use super::*;

    fn group_of(values: &[f32]) -> [f32; GROUP] {
        let mut group = [0.0; GROUP];
        group[..values.len()].copy_from_slice(values);
        group
    }

    #[test]
    fn scales_reach_the_largest_value() {
        let tiny = f16::MIN_POSITIVE_SUBNORMAL.to_f32();
        let cases = [
            (0.0, 0.0),
            (-0.0, 0.0),
            (127.0, 1.0),
            (-63.5, 0.5),
            (f32::MIN_POSITIVE, tiny),
            // Half of the smallest number there is, and a little: the nearest is 0, and 1.
            (127.0 * 0.5 * tiny, tiny),
            (127.0 * 0.51 * tiny, tiny),
            (127.0 * 1.49 * tiny, 2.0 * tiny),
            // The nearest is 3 % too small: the largest value would be 130.9 steps.
            (127.0 * 16.49 * tiny, 17.0 * tiny),
            (127.0 * 1000.3 * tiny, 1000.0 * tiny),
            (Int8Panels.largest(), 65504.0),
        ];
        for (max, scale) in cases {
            assert_eq!(scale_of(&group_of(&[0.0, max])).to_f32(), scale, "{max}");
        }
    }

    #[test]
    fn values_are_rounded_half_to_even() {
        let rounded = [(0.5, 0), (1.5, 2), (-2.5, -2), (126.6, 127), (127.4, 127), (-127.4, -127), (0.51, 1)];
        for (value, q) in rounded {
            assert_eq!(quantize(value, 1.0) as i8, q, "{value}");
        }
        // Divided, not multiplied by what 1 over the scale is rounded to.
        let scale = f16::from_f32(1.0 / 3.0).to_f32();
        for q in -127..=127i8 {
            assert_eq!(quantize(f32::from(q) * scale, scale) as i8, q);
        }
    }

    /// Random rows whose groups have very different magnitudes, the first all zeros.
    fn rows(rows: usize, cols: usize) -> Vec<f32> {
        let mut state = 1u32;
        let value = |i: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let scale = [0.0, 1.0, 1e-3, 30.0, 0.02][i / GROUP % 5];
            (state as i32 as f32) * 2f32.powi(-31) * scale
        };
        (0..rows * cols).map(value).collect()
    }

    #[test]
    fn panels_are_what_numpy_makes() {
        let file = std::fs::read("tests/fixtures/convert/panels.safetensors").unwrap();
        let golden = SafeTensors::deserialize(&file).unwrap();
        let [weights, data, scales] = ["weights", "data", "scales"].map(|name| golden.tensor(name).unwrap());
        let values: Vec<f32> = weights.data().as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect();
        let mut encoded = Encoded::default();
        Int8Panels.encode(&values, weights.shape()[1], &mut encoded);
        assert_eq!(encoded.scales, scales.data());
        assert!(encoded.data == data.data());
    }

    fn row_of(encoding: &dyn Encoding, encoded: &Encoded, shape: (usize, usize), row: usize) -> Vec<f32> {
        let mut out = vec![0.0; shape.1];
        let weight = encoding.weight(&encoded.data, &encoded.scales, shape, false);
        Kernels::detect().weight_row(&weight, row, &mut out);
        out
    }

    #[test]
    fn rows_come_back_within_half_a_step_and_behind_them_are_zeros() {
        for shape in [(16, 64), (1, 64), (37, 192), (32, 128)] {
            let values = rows(shape.0, shape.1);
            let mut encoded = Encoded::default();
            Int8Panels.encode(&values, shape.1, &mut encoded);
            let sizes = Int8Panels.sizes(shape.0, shape.1).unwrap();
            assert_eq!((encoded.data.len(), Some(encoded.scales.len() / 2)), (sizes.data, sizes.scales));
            Int8Panels.verify(&encoded.data, &encoded.scales, shape).unwrap();
            for (row, values) in values.chunks(shape.1).enumerate() {
                let found = row_of(&Int8Panels, &encoded, shape, row);
                for (group, found) in values.chunks(GROUP).zip(found.chunks(GROUP)) {
                    let step = scale_of(group.as_array().unwrap()).to_f32();
                    for (value, found) in group.iter().zip(found) {
                        assert!((value - found).abs() <= 0.5001 * step, "{value} came back as {found}");
                    }
                }
            }
        }
    }

    /// What int8 in rows holds is kept to the last bit of its values.
    #[test]
    fn values_of_rows_stay() {
        let shape = (19, 320);
        let mut in_rows = Encoded::default();
        Int8.encode(&rows(shape.0, shape.1), shape.1, &mut in_rows);
        let again: Vec<f32> = (0..shape.0).flat_map(|row| row_of(&Int8, &in_rows, shape, row)).collect();
        let mut panels = Encoded::default();
        Int8Panels.encode(&again, shape.1, &mut panels);
        for (i, q) in in_rows.data.iter().enumerate() {
            let (row, col) = (i / shape.1, i % shape.1);
            // The formula of docs/format.md.
            let at =
                ((row / 16 * (shape.1 / 64) + col / 64) * 16 + col % 64 / 4) * 64 + row % 16 * 4 + col % 4;
            assert_eq!(panels.data[at] as i8, *q as i8, "row {row}, column {col}");
        }
    }

    #[test]
    fn sizes_that_cannot_be() {
        assert_eq!(Int8Panels.sizes(usize::MAX, 64), Err(OVERFLOWS));
        assert_eq!(Int8Panels.sizes(1 << 32, 1 << 32), Err(OVERFLOWS));
        assert!(Int8Panels.sizes(16, 80).unwrap_err().contains("64 columns"));
    }
}
