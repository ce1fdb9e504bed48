//! Every buffer the forward pass writes to, sized once from the configuration.

use super::attention::over_cache as attention;
use super::linear::{Activations, Blocks, Forms};
use super::weights::{Layer, Weights};
use crate::arch::Config;
use crate::parallel::aligned::Lines;

/// Tokens whose logits are worked out at once where all are wanted.
pub(crate) const LOGIT_ROWS: usize = 16;

/// Buffers for chunks of up to `chunk` tokens; a shape `[tokens][n]` means room for `chunk` tokens.
pub(crate) struct Scratch {
    /// Tokens a chunk may have.
    pub chunk: usize,
    /// The residual stream, `[tokens][hidden_size]`.
    pub x: Lines,
    /// Normalised `x`, the input of q/k/v, gate/up and the head.
    pub normed: Activations,
    /// Queries, keys and values side by side, `[tokens][q_dim + 2·kv_dim]`.
    pub qkv: Lines,
    /// `[tokens][head_dim/2]` each.
    pub cos: Lines,
    pub sin: Lines,
    /// The heads' outputs, `[tokens][q_dim]`.
    pub heads: Lines,
    /// `heads` as the input of `o`; its f32 form stays empty, `heads` is that.
    pub heads_quantized: Activations,
    /// Products on their way to `mlp` or `x`.
    pub blocks: Blocks,
    /// `silu(gate)·up`, the input of `down`.
    pub mlp: Activations,
    /// `[LOGIT_ROWS][vocab_size]`
    pub logits: Lines,
    pub attention: attention::Buffers,
}

/// Which forms of their input the layers' weights need.
struct LayerForms {
    normed: Forms,
    heads: Forms,
    mlp: Forms,
}

impl LayerForms {
    fn of(weights: &Weights) -> Self {
        let inputs = |layer: &Layer| Forms::of(layer.qkv.iter().chain([&layer.gate, &layer.up]));
        let all =
            |f: &dyn Fn(&Layer) -> Forms| weights.layers.iter().map(f).fold(Forms::default(), Forms::or);
        Self {
            normed: all(&inputs).or(Forms::of([&weights.head])),
            heads: Forms { f32: false, ..all(&|layer| Forms::of([&layer.o])) },
            mlp: all(&|layer| Forms::of([&layer.down])),
        }
    }
}

impl Scratch {
    /// Buffers for chunks of up to `chunk` tokens, in contexts of up to `ctx`, of a model with these weights.
    pub fn new(config: &Config, weights: &Weights, ctx: usize, chunk: usize, threads: usize) -> Self {
        let forms = LayerForms::of(weights);
        // Zeroed memory is not touched before it is used: what a short prompt does not need is never paid for.
        let floats = |a_token: usize| Lines::zeroed(chunk * a_token);
        Self {
            chunk,
            x: floats(config.hidden_size),
            normed: Activations::new(chunk.max(LOGIT_ROWS), config.hidden_size, forms.normed),
            qkv: floats(config.q_dim() + 2 * config.kv_dim()),
            cos: floats(config.head_dim / 2),
            sin: floats(config.head_dim / 2),
            heads: floats(config.q_dim()),
            heads_quantized: Activations::new(chunk, config.q_dim(), forms.heads),
            blocks: Blocks::new(chunk, threads),
            mlp: Activations::new(chunk, config.intermediate_size, forms.mlp),
            logits: Lines::zeroed(LOGIT_ROWS * config.vocab_size),
            attention: attention::Buffers::new(config, ctx, threads),
        }
    }

    /// Bytes [`Scratch::new`] allocates.
    pub fn bytes(config: &Config, weights: &Weights, ctx: usize, chunk: usize, threads: usize) -> usize {
        let forms = LayerForms::of(weights);
        let qkv = config.q_dim() + 2 * config.kv_dim();
        let half = config.head_dim / 2;
        let floats = [config.hidden_size, qkv, half, half, config.q_dim()];
        Activations::bytes(chunk.max(LOGIT_ROWS), config.hidden_size, forms.normed)
            + Activations::bytes(chunk, config.q_dim(), forms.heads)
            + Activations::bytes(chunk, config.intermediate_size, forms.mlp)
            + floats.map(|a_token| Lines::bytes(chunk * a_token)).iter().sum::<usize>()
            + Lines::bytes(LOGIT_ROWS * config.vocab_size)
            + Blocks::bytes(chunk, threads)
            + attention::Buffers::bytes(config, ctx, threads)
    }
}
