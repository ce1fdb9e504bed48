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
