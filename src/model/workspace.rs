//! Every buffer the forward pass writes to, sized once from the configuration.

use torchless_kernels::{ActivationBuf, ActivationFormat, Aligned, Allocator};

use super::Model;
use super::attention::AttentionBuffers;
use super::linear::ProductBuffers;

/// Tokens whose logits are worked out at once where all of a sequence's are wanted.
const LOGIT_ROWS: usize = 16;

/// Buffers for passes of up to `chunk` tokens; a shape `[tokens][n]` means room for `chunk` tokens.
pub(crate) struct Workspace {
    /// Tokens a pass may have.
    pub chunk: usize,
    /// Tokens whose logits can be worked out at once.
    pub logit_rows: usize,
    /// `[tokens][hidden_size]`: the residual stream.
    pub x: Aligned<f32>,
    /// `[tokens][hidden_size]`: `x` normalised, the input of q/k/v, of gate and up, and of the head.
    pub normed: ActivationBuf,
    /// `[tokens][q_dim + 2·kv_dim]`: queries, keys and values side by side.
    pub qkv: Aligned<f32>,
    /// What a token's heads are rotated by, in the layers of each [`RopeOf`](crate::arch::RopeOf); empty where these have no embedding of their own.
    pub angles: [Angles; 2],
    /// `[tokens][q_dim]`: what attention gives each head, in f32 and as `o` wants it.
    pub heads: ActivationBuf,
    /// `[tokens][intermediate_size]`: `silu(gate)·up`, the input of `down`.
    pub ffn: ActivationBuf,
    /// Products on their way to `ffn` or `x`.
    pub products: ProductBuffers,
    /// `[tokens][hidden_size]`: what attention or the MLP gives, where it is normalised before it is added.
    pub branch: Aligned<f32>,
    /// `[logit_rows][vocab_size]`
    pub logits: Aligned<f32>,
    pub attention_buffers: AttentionBuffers,
}

/// Cosines and sines, `[tokens][head_dim/2]`.
pub(crate) struct Angles {
    pub cos: Aligned<f32>,
    pub sin: Aligned<f32>,
}

impl Angles {
    fn new(memory: &mut Allocator, len: usize) -> Self {
        Self { cos: memory.aligned(len), sin: memory.aligned(len) }
    }
}

/// What passes a workspace is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Positions of a sequence.
    pub ctx: usize,
    /// Tokens of a pass.
    pub chunk: usize,
    /// Sequences of a pass.
    pub sequences: usize,
    pub threads: usize,
}

impl Workspace {
    /// Zeroed memory is not touched before it is used: what a short prompt does not need is never paid for.
    pub fn new(memory: &mut Allocator, model: &Model, room: Room) -> Self {
        let Room { chunk, threads, .. } = room;
        let (config, weights) = (model.config(), &model.weights);
        let layers = || weights.layers.iter();
        let normed = layers().flat_map(|layer| layer.qkv.iter().chain([&layer.gate, &layer.up]));
        let normed = model.formats(normed.chain([&weights.head]));
        let heads = model.formats(layers().map(|layer| &layer.o)).with(ActivationFormat::F32);
        let ffn = model.formats(layers().map(|layer| &layer.down));
        let logit_rows = LOGIT_ROWS.max(room.sequences);
        let rows = chunk.max(logit_rows);
        Self {
            chunk,
            logit_rows,
            x: memory.aligned(chunk * config.hidden_size),
            normed: ActivationBuf::new(memory, rows, config.hidden_size, normed),
            qkv: memory.aligned(chunk * (config.q_dim() + 2 * config.kv_dim())),
            angles: [Some(config.rope), config.window_rope].map(|rope| {
                let tokens = if rope.is_some() { chunk } else { 0 };
                Angles::new(memory, tokens * config.head_dim / 2)
            }),
            heads: ActivationBuf::new(memory, chunk, config.q_dim(), heads),
            ffn: ActivationBuf::new(memory, chunk, config.intermediate_size, ffn),
            products: ProductBuffers::new(memory, chunk, threads, config.hidden_size),
            branch: memory.aligned(if config.post_norms { chunk * config.hidden_size } else { 0 }),
            logits: memory.aligned(logit_rows * config.vocab_size),
            attention_buffers: AttentionBuffers::new(memory, config, room),
        }
    }
}
