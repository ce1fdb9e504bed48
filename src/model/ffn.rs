//! The feed-forward half of a layer: `x += down · (f(gate · norm(x)) · (up · norm(x)))`.

use std::ops::Range;

use torchless_kernels::{Activations, ActivationsMut, Gate, MatMut};

use super::forward::{Pass, Site};
use super::linear::{ProductBuffers, Residual, rows_grain, tokens_grain};
use super::weights::Layer;
use super::workspace::Workspace;
use crate::arch::Activation;
use crate::parallel::fork::{Split, fork2};

impl Pass<'_> {
    /// The feed-forward half of `layer`, for the first `tokens` tokens of the workspace.
    pub(super) fn ffn(&self, layer: &Layer, workspace: &mut Workspace, tokens: usize) {
        let hidden = self.model.config().hidden_size;
        let Workspace { x, normed, ffn, products, branch, .. } = workspace;
        let x = &mut x[..tokens * hidden];
        self.norm(x, &layer.mlp_norm, normed.view_mut(tokens, self.model.formats([&layer.gate, &layer.up])));
        self.show(Site::GateUp, &normed.view(tokens));
        let formats = self.model.formats([&layer.down]);
        self.gate_up(layer, normed.view(tokens), ffn.view_mut(tokens, formats), products);
        self.show(Site::Down, &ffn.view(tokens));
        let residual = Residual { x: MatMut::new(x, tokens, hidden), branch, products };
        self.add_branch(&layer.down, layer.mlp_post_norm.as_ref(), ffn.view(tokens), residual);
    }

    /// `out[t] = f(gate · x[t]) · (up · x[t])`: each thread takes some features through all steps.
    fn gate_up(&self, layer: &Layer, x: Activations, out: ActivationsMut, buffers: &ProductBuffers) {
        let f = match self.model.config().activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::Gelu,
        };
        let [gate, up] = [&layer.gate, &layer.up].map(|tensor| self.weight(tensor));
        let (tokens, n) = (x.tokens(), gate.rows());
        let part = tokens_grain(tokens, 2 * n * gate.cols());
        let features = rows_grain(n, &gate, ActivationsMut::FEATURES).min(buffers.features(part));
        let split: [&Split<_>; 2] = [&ActivationsMut::split_tokens, &ActivationsMut::split_features];
        let work = |mut out: ActivationsMut, tokens: Range<usize>, rows: Range<usize>| {
            let (x, len) = (x.part(tokens), rows.len());
            let mut buffers = buffers.threads.mine();
            let [gates, ups] = &mut *buffers;
            for (w, products) in [(&gate, &mut *gates), (&up, &mut *ups)] {
                let products = MatMut::new(&mut products[..x.tokens() * len], x.tokens(), len);
                self.product(w, rows.clone(), &x, products);
            }
            for (t, (gate, up)) in
                gates.chunks_exact(len).zip(ups.chunks_exact(len)).take(x.tokens()).enumerate()
            {
                self.kernels.glu_into(f, gate, up, out.token(t));
            }
        };
        fork2(self.team, out, [0..tokens, 0..n], [part, features], split, &work);
    }
}
