//! The f32 matrix product for those who want speed before reproducibility.

use crate::mat::MatMut;

/// `out[t][i] = w[i] · x[t]` for f32 weights `[out.cols][cols]` and activations `[out.rows][cols]`, by the
/// `matrixmultiply` crate: fast for many tokens, but rounded as the CPU's fused multiply-adds have it.
///
/// # Panics
/// If lengths disagree.
pub fn sgemm(w: &[f32], x: &[f32], cols: usize, mut out: MatMut<f32>) {
    assert_eq!(Some(w.len()), out.cols().checked_mul(cols), "f32 weights");
    assert_eq!(Some(x.len()), out.rows().checked_mul(cols), "f32 activations");
    let (tokens, features) = (out.rows(), out.cols());
    let (step, out_step) = (cols as isize, out.stride() as isize);
    let (x, w, out) = (x.as_ptr(), w.as_ptr(), out.as_mut_ptr());
    // SAFETY: x is tokens×cols, w is features×cols and read transposed, out is tokens×features with its rows `out_step`
    // apart: checked above, and by `MatMut`.
    unsafe {
        matrixmultiply::sgemm(tokens, cols, features, 1.0, x, step, 1, w, 1, step, 0.0, out, out_step, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_reference_within_rounding() {
        let (tokens, features, cols) = (9, 5, 70);
        let numbers =
            |n: usize, seed: usize| (0..n).map(|i| ((i * 37 + seed) % 101) as f32 / 50.0 - 1.0).collect();
        let (w, x): (Vec<f32>, Vec<f32>) = (numbers(features * cols, 3), numbers(tokens * cols, 8));
        let (mut fast, mut exact) = (vec![0.0; tokens * features], vec![0.0; tokens * features]);
        sgemm(&w, &x, cols, MatMut::new(&mut fast, tokens, features));
        crate::scalar::matmul_f32(&w, &x, cols, MatMut::new(&mut exact, tokens, features));
        for (fast, exact) in fast.iter().zip(&exact) {
            assert!((fast - exact).abs() < 1e-4, "{fast} {exact}");
        }
    }
}
