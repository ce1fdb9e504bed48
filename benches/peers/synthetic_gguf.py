"""Writes a Q8_0 GGUF file of random weights.

    synthetic_gguf.py DST < inspect.json      what `torchless inspect --json` says of a model of the same shape

Tensor by tensor: little memory. Weights are evenly distributed with standard deviation 0.02; norms are 1.
"""

import json
import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

BLOCK, BLOCK_BYTES = 32, 34


def matrices(config):
    """Names, rows and columns; rows None for a norm."""
    hidden, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = config["n_heads"] * config["head_dim"], config["n_kv_heads"] * config["head_dim"]
    yield "token_embd", vocab, hidden
    for i in range(config["n_layers"]):
        layer = [
            ("attn_norm", None, hidden),
            ("attn_q", q, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, q),
            ("ffn_norm", None, hidden),
            ("ffn_gate", inter, hidden),
            ("ffn_up", inter, hidden),
            ("ffn_down", hidden, inter),
        ]
        yield from ((f"blk.{i}.{name}", rows, cols) for name, rows, cols in layer)
    yield "output_norm", None, hidden
    if not config["tie_word_embeddings"]:
        yield "output", vocab, hidden


def random_q8_0(rng, rows, cols):
    """Blocks of an f16 scale and 32 int8 values, as bytes."""
    blocks = rng.integers(0, 256, (rows * cols // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    # Bytes evenly distributed over the range of int8 have a standard deviation of 73.9.
    blocks[:, :2] = np.frombuffer(np.float16(0.02 / 73.9).tobytes(), dtype=np.uint8)
    return blocks.reshape(rows, -1)


def describe(writer, config):
    writer.add_block_count(config["n_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["n_heads"])
    writer.add_head_count_kv(config["n_kv_heads"])
    writer.add_layer_norm_rms_eps(config["norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    vocab = config["vocab_size"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [f"▁t{n}" for n in range(vocab - len(pieces))]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + 256 * [TokenType.BYTE]
    types += (vocab - len(types)) * [TokenType.NORMAL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(n) for n in range(vocab)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main():
    config = json.load(sys.stdin)["config"]
    writer = GGUFWriter(sys.argv[1], "llama")
    describe(writer, config)
    for name, rows, cols in matrices(config):
        if rows is None:
            writer.add_tensor_info(f"{name}.weight", (cols,), np.dtype(np.float32), 4 * cols)
        else:
            shape = (rows, cols // BLOCK * BLOCK_BYTES)
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.uint8), shape[0] * shape[1], kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for _, rows, cols in matrices(config):
        writer.write_tensor_data(np.ones(cols, np.float32) if rows is None else random_q8_0(rng, rows, cols))
    writer.close()


main()
