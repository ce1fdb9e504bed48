//! A model's weights: for each tensor where it lies in the file.

use crate::Malformed;
use crate::arch::tensors::{HEAD, Tensors};
use crate::format::bin::{BinFile, Dtype, Tensor};

/// Where all weights lie in the file; [`BinFile::weight`] gives the values of one.
pub(crate) type Weights = Tensors<Tensor>;

/// Where one layer's weights lie.
pub(crate) type Layer = crate::arch::tensors::Layer<Tensor>;

/// Finds every weight of `file`.
///
/// # Errors
/// If one is missing or of another shape, a vector is not f32, or a tensor is left over.
pub(crate) fn find(file: &BinFile) -> Result<Weights, Malformed> {
    let tied = file.config().tie_word_embeddings;
    // Old exporters store the rotary frequencies, which follow from rope_theta, and a head that is the embedding.
    let ignored = |name: &str| name.ends_with("rotary_emb.inv_freq") || tied && name == HEAD;
    let found = file.tensors().iter().map(|tensor| (tensor.name(), tensor));
    Tensors::take_from(
        file.config(),
        found.filter(|(name, _)| !ignored(name)).collect(),
        |tensor| tensor.shape(),
        |name, tensor| match tensor.shape() {
            [_] if tensor.dtype() != Dtype::F32 => {
                Err(Malformed(format!("tensor {name}: a vector must be f32")))
            }
            _ => Ok(tensor.clone()),
        },
    )
}
