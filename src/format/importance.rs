//! What the error of each column of a matrix weighs, as far as the other weights tell: a column whose activations are large is
//! worth more. It stands for the mean square of the activations, up to a factor.

use crate::Malformed;
use crate::arch::Config;
use crate::arch::tensors::mlp_norm;
use crate::format::source::SourceTensor;
use crate::parallel::spread::try_spread;

/// Finds tensors by name.
pub(crate) type Find<'a> = dyn Fn(&str) -> Option<&'a SourceTensor> + 'a;

/// The importance of the columns of matrix `name`; `None` where nothing tells.
///
/// What a norm puts out has about the mean square of its weight. A head's output is a mean of values, so it varies as the values'
/// rows are large; the MLP's inner activations as the rows of gate and up are.
///
/// # Errors
/// When a weight is no finite number.
pub(crate) fn of_columns(config: &Config, name: &str, find: &Find) -> Result<Option<Vec<f32>>, Malformed> {
    let Some((layer, part)) = name.split_once(".self_attn.").or_else(|| name.split_once(".mlp.")) else {
        return norm(find("model.norm.weight"));
    };
    let attn_norm = format!("{layer}.input_layernorm.weight");
    let mlp_norm = format!("{layer}.{}.weight", mlp_norm(config));
    let squares = match part {
        "q_proj.weight" | "k_proj.weight" | "v_proj.weight" => return norm(find(&attn_norm)),
        "gate_proj.weight" | "up_proj.weight" => return norm(find(&mlp_norm)),
        "o_proj.weight" => {
            let values = rows(find(&format!("{layer}.self_attn.v_proj.weight")), find(&attn_norm))?;
            values.map(|values| of_heads(config, &values))
        }
        "down_proj.weight" => {
            let [gate, up] = ["gate", "up"].map(|part| format!("{layer}.mlp.{part}_proj.weight"));
            let (gate, up) = (rows(find(&gate), find(&mlp_norm))?, rows(find(&up), find(&mlp_norm))?);
            gate.zip(up).map(|(gate, up)| gate.iter().zip(up).map(|(gate, up)| gate * up).collect())
        }
        _ => None,
    };
    Ok(squares.and_then(evened))
}

/// The squares of a norm's weights.
fn norm(tensor: Option<&SourceTensor>) -> Result<Option<Vec<f32>>, Malformed> {
    let Some(tensor) = tensor else { return Ok(None) };
    let mut weights = vec![0.0; tensor.shape().iter().product()];
    tensor.read_row(0, &mut weights)?;
    weights.iter_mut().for_each(|weight| *weight *= *weight);
    Ok(evened(weights))
}

/// Of each row of a matrix the sum of its weights' squares, each times the square of the norm before it.
fn rows(matrix: Option<&SourceTensor>, before: Option<&SourceTensor>) -> Result<Option<Vec<f32>>, Malformed> {
    let (Some(matrix), Some(squares)) = (matrix, norm(before)?) else { return Ok(None) };
    let [rows, cols] = *matrix.shape() else { return Ok(None) };
    if squares.len() != cols {
        return Ok(None);
    }
    let mut sums = vec![0.0; rows];
    const ROWS: usize = 64;
    try_spread(sums.chunks_mut(ROWS).enumerate(), |(i, sums)| {
        let mut row = vec![0.0; cols];
        for (sum, r) in sums.iter_mut().zip(i.saturating_mul(ROWS)..) {
            matrix.read_row(r, &mut row)?;
            *sum = row.iter().zip(&squares).map(|(weight, square)| weight * weight * square).sum();
        }
        Ok::<_, Malformed>(())
    })?;
    Ok(Some(sums))
}

/// Each query head's columns have the importance of the value head it reads.
fn of_heads(config: &Config, values: &[f32]) -> Vec<f32> {
    let shared = config.n_heads.checked_div(config.n_kv_heads).unwrap_or(1);
    let heads = values.chunks(config.head_dim.max(1));
    heads.flat_map(|head| std::iter::repeat_n(head, shared)).flatten().copied().collect()
}

/// None below a thousandth of the mean, which is 1: no column counts for nothing. `None` if there is no mean to speak of.
fn evened(mut squares: Vec<f32>) -> Option<Vec<f32>> {
    let mean = squares.iter().sum::<f32>() / squares.len() as f32;
    if !mean.is_normal() {
        return None;
    }
    squares.iter_mut().for_each(|square| *square = (*square / mean).max(1e-3));
    Some(squares)
}
