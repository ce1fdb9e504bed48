#!/usr/bin/env python3
"""Makes the seeds of the fuzz targets: fuzz/seeds.py target/release/torchless

A tiny GGUF model of either kind of tokenizer, the .bin files it converts to (and those of one that is wide enough for panels), and the files of the fixtures' Hugging Face
folder, each behind the byte that says which it is; schemas, grammars and regular expressions likewise.
"""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEEDS = HERE / "seeds"
HF = HERE.parent / "tests" / "fixtures" / "convert" / "hf"


def text(value):
    value = value.encode()
    return struct.pack("<Q", len(value)) + value


def encoded(value):
    """A GGUF value with its type in front."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    elements = [encoded(element) for element in value]
    kind = elements[0][:4]
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(elements)) + b"".join(e[4:] for e in elements)


# Of GGUF's types the bytes before the nibbles of a block of 32: Q4_0 and Q4_1.
GRIDS = {2: struct.pack("<e", 0.125), 3: struct.pack("<ee", 0.125, -1.0)}


def gguf(tokenizer, width=8, dtype=0):
    """One layer of Llama with 2 heads on one key/value head; the weights are a pattern, matrices of a type of GGUF's."""
    keys = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": width,
        "llama.feed_forward_length": 2 * width,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        **{f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()},
    }
    rows = len(tokenizer["tokens"])
    n, kv, mlp = width, width // 2, 2 * width
    tensors = {"token_embd": (n, rows), "output_norm": (n,), "blk.0.attn_norm": (n,), "blk.0.ffn_norm": (n,),
               "blk.0.attn_q": (n, n), "blk.0.attn_k": (n, kv), "blk.0.attn_v": (n, kv), "blk.0.attn_output": (n, n),
               "blk.0.ffn_gate": (n, mlp), "blk.0.ffn_up": (n, mlp), "blk.0.ffn_down": (mlp, n)}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, value in keys.items():
        head += text(key) + encoded(value)
    data = b""
    for name, dims in tensors.items():
        count = dims[0] * (dims[1] if len(dims) == 2 else 1)
        kind = dtype if len(dims) == 2 else 0
        head += text(f"{name}.weight") + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        if kind == 0:
            data += struct.pack(f"<{count}f", *((i * 37 % 19 - 9) / 8 for i in range(count)))
        else:
            data += b"".join(GRIDS[kind] + bytes((16 * i + j) * 37 % 251 for j in range(16)) for i in range(count // 32))
        data += bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + data


METASPACE = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a"],
             "scores": [0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -4.0, -1.0], "token_type": [2, 3, 3, 6, 1, 1, 1, 1],
             "bos_token_id": 1, "eos_token_id": 2}
BYTE_LEVEL = {"model": "gpt2", "pre": "llama-bpe", "tokens": ["<s>", "a", "b", "ab", "Ġ", "t", "h", "th"],
              "token_type": [3, 1, 1, 1, 1, 1, 1, 1], "merges": ["a b", "t h"], "eos_token_id": 0, "add_bos_token": False}

# A JSON schema, a grammar and a regular expression, in turns.
FORMS = [
    ("object", '{"type":"object","properties":{"a":{"enum":[1,"b",null]},"c":{"$ref":"#/$defs/d"}},"required":["a"],'
               '"$defs":{"d":{"type":"array","items":{"type":"string","pattern":"^a+$"},"maxItems":2}}}'),
    ("rules", 'start: a ("," a)*\na: "x"~1..3 | B\nB: /[a-z]+/\n%ignore " "\n'),
    ("regex", "(a|b)*c{2,5}[^d-f]?"),
    ("all_of", '{"allOf":[{"type":"string","pattern":".*1.*"},{"type":"string","minLength":2}]}'),
    ("parameters", 'start: a::0\na::_: "x" a::incr(_) %if lt(_, 3) | "y"\n'),
    ("words", "the (rain|sun|wind)"),
]


def main():
    torchless = sys.argv[1]
    for target in ["bin", "gguf", "grammar", "hugging_face"]:
        (SEEDS / target).mkdir(parents=True, exist_ok=True)
    for name, tokenizer in [("metaspace", METASPACE), ("byte_level", BYTE_LEVEL)]:
        source = SEEDS / "gguf" / name
        source.write_bytes(gguf(tokenizer))
        for quant in ["f32", "int8"]:
            subprocess.run([torchless, "convert", source, SEEDS / "bin" / f"{name}-{quant}", "--quant", quant], check=True)
    with tempfile.TemporaryDirectory() as work:
        # Groups of 64 columns need a model as wide.
        source = Path(work) / "wide.gguf"
        source.write_bytes(gguf(METASPACE, width=64))
        for name, quant in [("panels", "int8"), ("int4", "int4")]:
            subprocess.run([torchless, "convert", source, SEEDS / "bin" / f"metaspace-{name}", "--quant", quant], check=True)
        # What lies on a grid keeps it.
        for name, dtype in [("by-32", 2), ("minimum", 3)]:
            source.write_bytes(gguf(METASPACE, width=64, dtype=dtype))
            subprocess.run([torchless, "convert", source, SEEDS / "bin" / f"metaspace-int4-{name}", "--quant", "int4"], check=True)
    files = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]
    for which, name in enumerate(files):
        content = (HF / name).read_bytes()
        if name.endswith(".safetensors"):
            content = content[8 : 8 + struct.unpack_from("<Q", content)[0]]
        (SEEDS / "hugging_face" / name).write_bytes(bytes([which]) + content)
    for which, (name, form) in enumerate(FORMS):
        (SEEDS / "grammar" / name).write_bytes(bytes([which % 3]) + form.encode())


if __name__ == "__main__":
    main()
