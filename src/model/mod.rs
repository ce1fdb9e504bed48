//! What a model computes: its weights as views into the file, and the forward pass.

mod attention;
mod ffn;
pub(crate) mod forward;
mod linear;
pub(crate) mod segment;
mod weights;
pub(crate) mod workspace;

use std::path::Path;

use torchless_kernels::ActivationFormats;

use crate::arch::Config;
use crate::arch::rope::Rope;
use crate::format::bin::{BinFile, Tensor};
use crate::tokenizer::Tokenizer;
use crate::{Error, Malformed};
use weights::Weights;

/// An open model: weights in a mapped file, and the tokenizer. Shared by any number of sessions.
#[derive(Debug)]
pub struct Model {
    pub(crate) file: BinFile,
    pub(crate) weights: Weights,
    pub(crate) rope: Rope,
    tokenizer: Tokenizer,
}

impl Model {
    /// Opens the `.bin` file at `path`. The file must not change while the model is open.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or is of a kind that is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let (file, tokenizer) = BinFile::open(path)?;
        let weights = weights::find(&file).map_err(Malformed::in_file(path))?;
        let tokenizer = Tokenizer::new(tokenizer).map_err(|Malformed(problem)| {
            Error::file(path, format!("{problem}; convert the model again from its source"))
        })?;
        let factors = weights.rope_factors.as_ref().map(|factors| file.vector(factors));
        let rope = Rope::new(file.config().rope_theta, file.config().head_dim, factors)
            .map_err(Malformed::in_file(path))?;
        Ok(Self { file, weights, rope, tokenizer })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        self.file.config()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the rotary embedding's frequencies are divided by, `head_dim/2` numbers, where they are scaled.
    pub fn rope_factors(&self) -> Option<&[f32]> {
        self.weights.rope_factors.as_ref().map(|factors| self.file.vector(factors))
    }

    /// The formats that products with these weights want their input in.
    fn formats<'t>(&self, weights: impl IntoIterator<Item = &'t Tensor>) -> ActivationFormats {
        weights.into_iter().map(|tensor| self.file.weight(tensor).activation()).collect()
    }

    /// The file the weights are in.
    pub fn file(&self) -> &BinFile {
        &self.file
    }

    /// Bytes of weights that working out one token reads: all matrices once, and one row of the embedding.
    pub fn bytes_a_token(&self) -> usize {
        let layers = self.weights.layers.iter().flat_map(weights::Layer::all);
        layers.map(Tensor::bytes).sum::<usize>()
            + self.weights.norm.bytes()
            + self.weights.head.bytes()
            + self.weights.embed.bytes() / self.config().vocab_size
    }
}
