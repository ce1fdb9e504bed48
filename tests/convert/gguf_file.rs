//! Writing GGUF files byte by byte, right and wrong ones.

/// A file under construction. Keys and tensor descriptions are kept encoded.
#[derive(Clone)]
pub struct GgufFile {
    pub version: u32,
    pub keys: Vec<(String, Vec<u8>)>,
    /// Name, dimensions (fastest first), type and, unless it follows from the others', offset.
    pub tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

pub fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub fn typed(kind: u32, value: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], value].concat()
}

pub fn u32_value(value: u32) -> Vec<u8> {
    typed(4, &value.to_le_bytes())
}

pub fn u64_value(value: u64) -> Vec<u8> {
    typed(10, &value.to_le_bytes())
}

pub fn f32_value(value: f32) -> Vec<u8> {
    typed(6, &value.to_le_bytes())
}

pub fn bool_value(value: u8) -> Vec<u8> {
    typed(7, &[value])
}

pub fn str_value(value: &str) -> Vec<u8> {
    typed(8, &string(value))
}

pub fn array_value(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    array_of_len(kind, elements.len() as u64, &elements.concat())
}

pub fn array_of_len(kind: u32, len: u64, bytes: &[u8]) -> Vec<u8> {
    typed(9, &[&kind.to_le_bytes()[..], &len.to_le_bytes()[..], bytes].concat())
}

pub fn strings(texts: &[&str]) -> Vec<u8> {
    array_value(8, &texts.iter().map(|text| string(text)).collect::<Vec<_>>())
}

pub fn f32s(values: &[f32]) -> Vec<u8> {
    array_value(6, &values.iter().map(|value| value.to_le_bytes().to_vec()).collect::<Vec<_>>())
}

pub fn i32s(values: &[i32]) -> Vec<u8> {
    array_value(5, &values.iter().map(|value| value.to_le_bytes().to_vec()).collect::<Vec<_>>())
}

impl GgufFile {
    /// One layer of Llama, 8 wide, 2 heads of 4, with a SentencePiece vocabulary of 8; all weights 0.5.
    pub fn tiny() -> Self {
        Self::wide(8)
    }

    /// The same of another width.
    pub fn wide(width: u32) -> Self {
        let sizes = [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", width),
            ("feed_forward_length", 2 * width),
            ("attention.head_count", 2),
        ];
        let mut file = Self { version: 3, keys: Vec::new(), tensors: Vec::new() };
        file.set("general.architecture", str_value("llama"));
        for (key, size) in sizes {
            file.set(&format!("llama.{key}"), u32_value(size));
        }
        file.set("llama.attention.layer_norm_rms_epsilon", f32_value(1e-6));
        file.set("tokenizer.ggml.model", str_value("llama"));
        file.set("tokenizer.ggml.tokens", strings(&["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a"]));
        file.set("tokenizer.ggml.scores", f32s(&[0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -4.0, -1.0]));
        file.set("tokenizer.ggml.token_type", i32s(&[2, 3, 3, 6, 1, 1, 1, 1]));
        file.set("tokenizer.ggml.bos_token_id", u32_value(1));
        file.set("tokenizer.ggml.eos_token_id", u32_value(2));
        let width = width.into();
        let matrices = [
            ("token_embd", 8),
            ("blk.0.attn_q", width),
            ("blk.0.attn_k", width),
            ("blk.0.attn_v", width),
            ("blk.0.attn_output", width),
            ("blk.0.ffn_gate", 2 * width),
            ("blk.0.ffn_up", 2 * width),
        ];
        for (name, rows) in matrices {
            file.add(name, &[width, rows]);
        }
        file.add("blk.0.ffn_down", &[2 * width, width]);
        for name in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"] {
            file.add(name, &[width]);
        }
        file
    }

    /// Sets a key, replacing it where it is there.
    pub fn set(&mut self, key: &str, value: Vec<u8>) {
        self.keys.retain(|(other, _)| other != key);
        self.keys.push((key.to_owned(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.keys.retain(|(other, _)| other != key);
    }

    /// Adds an f32 tensor `name.weight` of 0.5.
    pub fn add(&mut self, name: &str, dims: &[u64]) {
        let data = 0.5f32.to_le_bytes().repeat(dims.iter().product::<u64>() as usize);
        let name = format!("{name}.weight");
        self.tensors.push(Tensor { name, dims: dims.to_vec(), kind: 0, offset: None, data });
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            file.extend(string(key));
            file.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        file
    }
}
