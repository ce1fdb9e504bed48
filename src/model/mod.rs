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

use crate::arch::rope::Rope;
use crate::arch::{Config, RopeConfig, RopeOf};
use crate::format::bin::{BinFile, Tensor};
use crate::tokenizer::Tokenizer;
use crate::{Error, Malformed};
use weights::Weights;

/// The rotary embeddings of [`Config::ropes`].
#[derive(Debug)]
pub(crate) struct Ropes {
    layers: Rope,
    windows: Option<Rope>,
    long: Option<Rope>,
}

impl Ropes {
    fn new(file: &BinFile, weights: &Weights) -> Result<Self, Malformed> {
        let config = file.config();
        let rope = |(rope, factors): (Option<RopeConfig>, &Option<Tensor>)| {
            let factors = factors.as_ref().map(|factors| file.vector(factors));
            rope.map(|rope| Rope::new(config, &rope, factors)).transpose()
        };
        let [a, b, c] = config.ropes();
        let [of_a, of_b, of_c] = &weights.rope_factors;
        let layers = rope((a, of_a))?.ok_or_else(|| Malformed("no rotary embedding".to_owned()))?;
        Ok(Self { layers, windows: rope((b, of_b))?, long: rope((c, of_c))? })
    }

    /// That of some layers, in a sequence that is long or is not. `None` where no layer has one of its own there.
    pub fn of(&self, layers: RopeOf, long: bool) -> Option<&Rope> {
        match layers {
            RopeOf::Layers => Some(self.long.as_ref().filter(|_| long).unwrap_or(&self.layers)),
            RopeOf::Windows => self.windows.as_ref(),
        }
    }
}

/// An open model: weights in a mapped file, and the tokenizer. Shared by any number of sessions.
#[derive(Debug)]
pub struct Model {
    pub(crate) file: BinFile,
    pub(crate) weights: Weights,
    pub(crate) ropes: Ropes,
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
        let ropes = Ropes::new(&file, &weights).map_err(Malformed::in_file(path))?;
        Ok(Self { file, weights, ropes, tokenizer })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        self.file.config()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the frequencies of each of [`Config::ropes`] are divided by, `rotary_dim/2` numbers, where they are scaled.
    pub fn rope_factors(&self) -> [Option<&[f32]>; 3] {
        self.weights.rope_factors.each_ref().map(|factors| Some(self.file.vector(factors.as_ref()?)))
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
