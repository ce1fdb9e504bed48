//! Which tensor of the file is which weight, and that each has the shape the configuration asks for.

use std::collections::HashMap;

use crate::Malformed;
use crate::format::bin::{BinFile, Dtype, Tensor};
use crate::model::Config;

/// All weights, as places in the file.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `[vocab_size, hidden_size]`
    pub embed: Tensor,
    pub layers: Vec<Layer>,
    /// `[hidden_size]`
    pub norm: Tensor,
    /// `[vocab_size, hidden_size]`; the embedding where the two are tied.
    pub head: Tensor,
}

/// One decoder layer's weights.
#[derive(Debug)]
pub(crate) struct Layer {
    /// `[hidden_size]`
    pub attn_norm: Tensor,
    /// `[q_dim, hidden_size]`, `[kv_dim, hidden_size]`, `[kv_dim, hidden_size]`
    pub qkv: [Tensor; 3],
    /// `[hidden_size, q_dim]`
    pub o: Tensor,
    /// `[hidden_size]`
    pub mlp_norm: Tensor,
    /// `[intermediate_size, hidden_size]`
    pub gate: Tensor,
    /// `[intermediate_size, hidden_size]`
    pub up: Tensor,
    /// `[hidden_size, intermediate_size]`
    pub down: Tensor,
}

impl Weights {
    /// Finds every weight of `file`.
    pub fn find(file: &BinFile) -> Result<Self, Malformed> {
        let config = &file.config;
        let by_name = file.tensors().iter().map(|t| (t.name.as_str(), t)).collect();
        let mut table = Table { by_name };
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embed = table.matrix("model.embed_tokens.weight", vocab, hidden)?;
        let norm = table.vector("model.norm.weight", hidden)?;
        let layers =
            (0..config.n_layers).map(|i| Layer::find(&mut table, config, i)).collect::<Result<_, _>>()?;
        let head = match config.tie_word_embeddings {
            true => {
                table.by_name.remove("lm_head.weight");
                embed.clone()
            }
            false => table.matrix("lm_head.weight", vocab, hidden)?,
        };
        table.refuse_rest()?;
        Ok(Self { embed, layers, norm, head })
    }
}

impl Layer {
    fn find(table: &mut Table, config: &Config, i: usize) -> Result<Self, Malformed> {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let (q_dim, kv_dim) = (config.q_dim(), config.kv_dim());
        let name = |part: &str| format!("model.layers.{i}.{part}.weight");
        Ok(Self {
            attn_norm: table.vector(&name("input_layernorm"), hidden)?,
            qkv: [
                table.matrix(&name("self_attn.q_proj"), q_dim, hidden)?,
                table.matrix(&name("self_attn.k_proj"), kv_dim, hidden)?,
                table.matrix(&name("self_attn.v_proj"), kv_dim, hidden)?,
            ],
            o: table.matrix(&name("self_attn.o_proj"), hidden, q_dim)?,
            mlp_norm: table.vector(&name("post_attention_layernorm"), hidden)?,
            gate: table.matrix(&name("mlp.gate_proj"), inter, hidden)?,
            up: table.matrix(&name("mlp.up_proj"), inter, hidden)?,
            down: table.matrix(&name("mlp.down_proj"), hidden, inter)?,
        })
    }
}

/// The tensors of the file that have not found their place yet.
struct Table<'a> {
    by_name: HashMap<&'a str, &'a Tensor>,
}

impl Table<'_> {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, Malformed> {
        let tensor =
            self.by_name.remove(name).ok_or_else(|| Malformed(format!("tensor {name} is missing")))?;
        if tensor.shape != shape {
            let found = &tensor.shape;
            return Err(Malformed(format!(
                "tensor {name}: shape {found:?}, but the metadata ask for {shape:?}"
            )));
        }
        Ok(tensor.clone())
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor, Malformed> {
        self.take(name, &[rows, cols])
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Tensor, Malformed> {
        let tensor = self.take(name, &[n])?;
        match tensor.dtype {
            Dtype::F32 => Ok(tensor),
            Dtype::Int8 => Err(Malformed(format!("tensor {name}: a norm's weights must be f32"))),
        }
    }

    /// A tensor nobody asked for (a bias, another norm, one more layer) would change what the model computes.
    fn refuse_rest(&self) -> Result<(), Malformed> {
        let known = |name: &str| name.ends_with("rotary_emb.inv_freq");
        match self.by_name.keys().filter(|name| !known(name)).min() {
            None => Ok(()),
            Some(name) => Err(Malformed(format!(
                "tensor {name}: not part of a model of this kind, as described by the metadata"
            ))),
        }
    }
}
