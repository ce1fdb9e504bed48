//! The forward pass: tokens of one sequence or of several through all layers. Allocates nothing.

use std::ops::ControlFlow;

use torchless_kernels::{ActivationRow, Activations, ActivationsMut, Kernels, MatMut, Team, Weight};

use super::Model;
use super::attention::LayerCache;
use super::segment::{Segment, tokens_of};
use super::workspace::Workspace;
use crate::arch::RopeOf;
use crate::format::bin::Tensor;
use crate::parallel::fork::{fork, grain};

/// One model's pass with one set of kernels, on the threads of one team.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub model: &'a Model,
    pub kernels: Kernels,
    pub team: &'a Team,
    /// Is shown the inputs of a layer's products, where somebody wants to see them.
    pub on_input: Option<&'a OnInput<'a>>,
}

/// Is called with the inputs of a layer's products.
pub(crate) type OnInput<'a> = dyn Fn(Site, &Activations) + Sync + 'a;

/// Whose input it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    /// Of queries, keys and values.
    Qkv,
    /// Of the heads' output.
    O,
    GateUp,
    Down,
}

impl<'a> Pass<'a> {
    /// Runs `tokens`, which are those of `segments`, through all layers; leaves the residual stream in `workspace.x` and the
    /// keys and values in `cache`. Calls `on_layer` with the number of each layer as it is done, which may break it off: then
    /// `workspace.x` is of no use.
    ///
    /// There must be at least one token and no more than `workspace.chunk`, all in the vocabulary.
    pub fn layers<C: LayerCache>(
        &self,
        cache: &mut C,
        workspace: &mut Workspace,
        tokens: &[u32],
        segments: &[Segment],
        on_layer: &mut (dyn FnMut(usize) -> ControlFlow<()> + Send),
    ) -> ControlFlow<()> {
        debug_assert_eq!(tokens.len(), tokens_of(segments));
        self.embed(tokens, &mut workspace.x);
        self.place(workspace, segments);
        for i in 0..self.model.weights.layers.len() {
            self.layer(i, cache, workspace, segments);
            on_layer(i)?;
        }
        ControlFlow::Continue(())
    }

    /// Says at which positions the workspace's tokens are.
    pub fn place(&self, workspace: &mut Workspace, segments: &[Segment]) {
        let half = self.model.config().head_dim / 2;
        for (layers, angles) in [RopeOf::Layers, RopeOf::Windows].into_iter().zip(&mut workspace.angles) {
            for segment in segments {
                let Some(rope) = self.model.ropes.of(layers, segment.long) else { break };
                for (t, position) in segment.rows.clone().zip(segment.start..) {
                    let of_token = t * half..(t + 1) * half;
                    rope.angles(position, &mut angles.cos[of_token.clone()], &mut angles.sin[of_token]);
                }
            }
        }
    }

    /// Takes the workspace's tokens, which are [placed](Self::place), through one layer.
    pub fn layer<C: LayerCache>(
        &self,
        i: usize,
        cache: &mut C,
        workspace: &mut Workspace,
        segments: &[Segment],
    ) {
        let layer = &self.model.weights.layers[i];
        self.attention(i, layer, cache, workspace, segments);
        self.ffn(layer, workspace, tokens_of(segments));
    }

    /// Shows the input of some products.
    pub(super) fn show(&self, site: Site, x: &Activations) {
        if let Some(on_input) = self.on_input {
            on_input(site, x);
        }
    }

    /// Moves the residual streams of these tokens, which are in ascending order, to the beginning: the first ones of the pass are
    /// these then.
    pub fn keep(&self, workspace: &mut Workspace, rows: impl Iterator<Item = usize>) {
        let hidden = self.model.config().hidden_size;
        for (to, from) in rows.enumerate() {
            workspace.x.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
        }
    }

    /// The logits of up to `workspace.logit_rows` tokens of the pass, from `first` on: `[count][vocab_size]`.
    pub fn logits<'w>(&self, workspace: &'w mut Workspace, first: usize, count: usize) -> &'w [f32] {
        debug_assert!(count <= workspace.logit_rows);
        let config = self.model.config();
        let Workspace { x, normed, logits, .. } = workspace;
        let x = &x[first * config.hidden_size..][..count * config.hidden_size];
        let head = &self.model.weights.head;
        self.norm(x, &self.model.weights.norm, normed.view_mut(count, self.model.formats([head])));
        let logits = &mut logits[..count * config.vocab_size];
        let out = MatMut::new(logits, count, config.vocab_size);
        self.products(std::slice::from_ref(head), normed.view(count), out);
        if config.logits_scaling != 1.0 {
            self.kernels.scale(logits, 1.0 / config.logits_scaling);
        }
        if let Some(cap) = config.final_logit_softcapping {
            self.kernels.softcap(logits, cap);
        }
        logits
    }

    /// The values of a matrix.
    pub(super) fn weight(&self, tensor: &Tensor) -> Weight<'a> {
        self.model.file.weight(tensor)
    }

    /// `x[t] = embedding[tokens[t]]`, times the model's multiplier.
    pub fn embed(&self, tokens: &[u32], x: &mut [f32]) {
        let embedding = self.weight(&self.model.weights.embed);
        let multiplier = self.model.config().embedding_multiplier;
        for (token, x) in tokens.iter().zip(x.chunks_exact_mut(embedding.cols())) {
            self.kernels.weight_row(&embedding, *token as usize, x);
            if multiplier != 1.0 {
                self.kernels.scale(x, multiplier);
            }
        }
    }

    /// RMSNorm of each token of `x`.
    pub(super) fn norm(&self, x: &[f32], weight: &Tensor, out: ActivationsMut) {
        let (weight, eps) = (self.model.file.vector(weight), self.model.config().norm_eps);
        self.fill_each_token(x, out, |x, out| self.kernels.rms_norm_into(x, weight, eps, out));
    }

    /// Calls `f(x[t], out[t])` for each token, in parallel where there are many.
    pub(super) fn fill_each_token(
        &self,
        x: &[f32],
        out: ActivationsMut,
        f: impl Fn(&[f32], ActivationRow) + Sync,
    ) {
        let tokens = 0..out.tokens();
        let (grain, len) = (grain(tokens.len(), LEAST_TOKENS), x.len() / tokens.len());
        fork(self.team, out, tokens, grain, &ActivationsMut::split_tokens, &|mut part, tokens| {
            for (row, t) in tokens.enumerate() {
                f(&x[t * len..][..len], part.token(row));
            }
        });
    }

    /// Calls `f(t, row t)` for each token, in parallel where there are many.
    pub(super) fn for_each_token(&self, rows: MatMut<f32>, f: impl Fn(usize, &mut [f32]) + Sync) {
        let tokens = 0..rows.rows();
        let grain = grain(tokens.len(), LEAST_TOKENS);
        fork(self.team, rows, tokens, grain, &MatMut::split_rows, &|mut part, tokens| {
            for (row, t) in tokens.enumerate() {
                f(t, part.row(row));
            }
        });
    }
}

/// Fewest tokens that a piece has where the work on each is small.
pub(super) const LEAST_TOKENS: usize = 8;
