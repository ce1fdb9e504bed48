//! The names that tensors have in published files, and what is stored there in another way than here.

use std::collections::HashMap;

use crate::Malformed;
use crate::arch::Config;
use crate::arch::architectures::Architecture;
use crate::arch::tensors::is_rotated;
use crate::format::source::{HeadOrder, SourceTensor};

/// Where the text model's tensors are in one that takes more than text.
const TEXT_PREFIXES: [&str; 4] =
    ["language_model.model.", "model.language_model.model.", "model.language_model.", "language_model."];

/// Tensors by name.
pub type Tensors = HashMap<String, SourceTensor>;

/// The tensors of the text model under the names of a model that is nothing else; how many are not of it, where it is part of
/// another.
///
/// # Errors
/// When two get the same name.
pub fn of_text_model<T>(
    tensors: HashMap<String, T>,
    is_part: bool,
) -> Result<(HashMap<String, T>, usize), Malformed> {
    let (mut named, mut others) = (HashMap::new(), 0usize);
    let has_prefix = tensors.keys().any(|name| in_text_model(name).is_some());
    for (name, tensor) in tensors {
        let inner = match in_text_model(&name) {
            Some(inner) => inner,
            None if is_part && has_prefix && !name.starts_with("lm_head.") => {
                others = others.saturating_add(1);
                continue;
            }
            None => &name,
        };
        let full = full_name(inner);
        if named.insert(full.clone(), tensor).is_some() {
            return Err(Malformed(format!("two tensors are {full:?}")));
        }
    }
    Ok((named, others))
}

fn in_text_model(name: &str) -> Option<&str> {
    TEXT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// A model that was saved without its head has tensors without `model.`.
fn full_name(name: &str) -> String {
    let bare =
        ["layers.", "embed_tokens.", "norm.", "rotary_emb."].iter().any(|start| name.starts_with(start));
    if bare { format!("model.{name}") } else { name.to_owned() }
}

/// Takes apart what is stored as one matrix: queries, keys and values; gate and up.
///
/// # Errors
/// When it has other rows than its parts together.
pub fn split(tensors: Tensors, config: &Config) -> Result<Tensors, Malformed> {
    let (q, kv, inter) = (config.q_dim(), config.kv_dim(), config.intermediate_size);
    let gate_up = [("mlp.gate_proj.weight", inter), ("mlp.up_proj.weight", inter)];
    let down = [("mlp.down_proj.weight", config.hidden_size)];
    let qkv =
        [("self_attn.q_proj.weight", q), ("self_attn.k_proj.weight", kv), ("self_attn.v_proj.weight", kv)];
    let stored: [(&str, &[(&str, usize)]); 4] = [
        ("self_attn.qkv_proj.weight", &qkv),
        ("mlp.gate_up_proj.weight", &gate_up),
        ("shared_mlp.input_linear.weight", &gate_up),
        ("shared_mlp.output_linear.weight", &down),
    ];
    let mut parts_of = Tensors::new();
    for (name, tensor) in tensors {
        let found = stored.iter().find_map(|(end, parts)| Some((name.strip_suffix(end)?, parts)));
        let parts = match found {
            Some((stem, parts)) => {
                tensor.cut(stem, parts).map_err(|problem| Malformed(format!("tensor {name} {problem}")))?
            }
            None => vec![(name, tensor)],
        };
        for (name, part) in parts {
            if parts_of.insert(name.clone(), part).is_some() {
                return Err(Malformed(format!("tensor {name} is there by itself and as a part of another")));
            }
        }
    }
    Ok(parts_of)
}

/// Tells tensors that are stored in another way than they are used.
pub fn as_used(tensors: Tensors, architecture: &Architecture, config: &Config) -> Tensors {
    let order = HeadOrder::Partial { head_dim: config.head_dim, rotary_dim: config.rotary_dim() };
    let used = |(name, tensor): (String, SourceTensor)| {
        let tensor = match architecture.norm_plus_one && name.ends_with("norm.weight") {
            true => tensor.plus_one(),
            false => tensor,
        };
        let tensor = if is_rotated(&name) && config.rotary_dim() < config.head_dim {
            tensor.ordered(order)
        } else {
            tensor
        };
        (name, tensor)
    };
    tensors.into_iter().map(used).collect()
}
