//! Weights in 8-bit floats, with a scale for the tensor or for each block of it: how some publishers ship their models.
//!
//! What stands there for activations is left out: they are rounded less here.

use serde_json::Value;

use super::json::{Json, excerpt};
use super::tensors::Tensors;
use crate::Error;
use crate::format::source::{BlockScales, SourceTensor};

/// How the name of a tensor's scales ends.
const SCALES: &str = "_scale_inv";

/// How those of the scales of what is not stored end.
const OF_ACTIVATIONS: [&str; 5] = [".activation_scale", ".input_scale", ".q_scale", ".k_scale", ".v_scale"];

/// Whether the configuration asks for weights of this kind.
pub fn is_asked(quantization: &Value) -> bool {
    quantization.get("quant_method").is_some_and(|method| method == "fp8")
}

/// Gives each tensor its scales.
///
/// # Errors
/// When they are missing, or are not what the configuration says.
pub fn with_scales(json: &Json, tensors: Tensors) -> Result<Tensors, Error> {
    let block = match json.get("quantization_config").and_then(|asked| asked.get("weight_block_size")) {
        None | Some(Value::Null) => None,
        Some(size) => Some(block(size).ok_or_else(|| {
            json.error(format!("quantization_config: weight_block_size {} is not supported", excerpt(size)))
        })?),
    };
    let quantized = json.get("quantization_config").is_some();
    let (scales, tensors): (Tensors, Tensors) =
        tensors.into_iter().partition(|(name, _)| quantized && name.ends_with(SCALES));
    let of_activations = |name: &str| quantized && OF_ACTIVATIONS.iter().any(|end| name.ends_with(end));
    let scaled = |(name, tensor): (String, SourceTensor)| {
        if !tensor.needs_scales() {
            return Ok((name, tensor));
        }
        let problem = |what: &str| json.error(format!("tensor {name} is in 8-bit floats, and {what}"));
        let found = scales.get(&format!("{name}{SCALES}")).ok_or_else(|| problem("has no scales"))?;
        let scales = read(&tensor, found, block).ok_or_else(|| problem("its scales are of another shape"))?;
        Ok((name, tensor.scaled(scales)))
    };
    tensors.into_iter().filter(|(name, _)| !of_activations(name)).map(scaled).collect()
}

fn block(size: &Value) -> Option<[usize; 2]> {
    let side = |i: usize| size.get(i)?.as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
    Some([side(0)?, side(1)?])
}

/// The scales of a tensor: one, or one for each block.
fn read(tensor: &SourceTensor, scales: &SourceTensor, block: Option<[usize; 2]>) -> Option<BlockScales> {
    let [rows, cols] = *tensor.shape() else { return None };
    let (down, across) = match *scales.shape() {
        [down, across] => (down, across),
        [n] => (1, n),
        _ => return None,
    };
    let block = match (down, across) {
        (1, 1) => [rows, cols],
        _ => block.filter(|[r, c]| (rows.div_ceil(*r), cols.div_ceil(*c)) == (down, across))?,
    };
    let mut values = vec![0.0; down.checked_mul(across)?];
    for (row, values) in values.chunks_mut(across).enumerate() {
        scales.read_row(row, values).ok()?;
    }
    Some(BlockScales { values, block, across, first_row: 0 })
}
