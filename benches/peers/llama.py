"""llama.cpp through llama-cpp-python: what compare.py runs in its own Python.

    llama.py quantize SRC.gguf DST.gguf Q8_0|Q4_0|Q4_K_M
    llama.py time MODEL.gguf THREADS PROMPT_TOKENS GEN_TOKENS     prints {"pp": tokens/s, "tg": tokens/s}

Decoding alone is timed, as llama-bench does it: no tokenizing, no sampling, no Python in between but a call a token.
"""

import ctypes
import json
import sys
import time

import llama_cpp as ll

BATCH = 512
# As `torchless bench`: enough to have read all weights and woken all threads.
WARM_UP = 8


@ll.llama_log_callback
def silent(level, text, user_data):
    pass


def quantize(src, dst, kind):
    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = True
    if ll.llama_model_quantize(src.encode(), dst.encode(), ctypes.byref(params)) != 0:
        sys.exit(f"{src}: llama.cpp cannot make {kind} of it")


class Context:
    def __init__(self, path, threads, positions):
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not self.model:
            sys.exit(f"{path}: llama.cpp cannot load it")
        params = ll.llama_context_default_params()
        params.n_ctx = positions
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        self.context = ll.llama_init_from_model(self.model, params)
        self.vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))

    def feed(self, tokens):
        for first in range(0, len(tokens), BATCH):
            part = tokens[first : first + BATCH]
            array = (ll.llama_token * len(part))(*part)
            if ll.llama_decode(self.context, ll.llama_batch_get_one(array, len(part))) != 0:
                sys.exit("llama_decode failed")

    def seconds(self, prompt, generate):
        """Seconds for a prompt of so many tokens and so many tokens one by one, from an empty cache."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        tokens = [(7919 * i + 1) % self.vocabulary for i in range(prompt)]
        start = time.perf_counter()
        self.feed(tokens)
        for _ in range(generate):
            self.feed([1])
        ll.llama_synchronize(self.context)
        return time.perf_counter() - start


def measure(path, threads, prompt, generate):
    context = Context(path, threads, max(prompt, generate))
    context.seconds(prompt, 0)
    pp = prompt / context.seconds(prompt, 0)
    context.seconds(0, min(WARM_UP, generate))
    tg = generate / context.seconds(0, generate)
    print(json.dumps({"pp": pp, "tg": tg}))


ll.llama_log_set(silent, None)
ll.llama_backend_init()
command, *args = sys.argv[1:]
if command == "quantize":
    quantize(*args)
else:
    measure(args[0], *map(int, args[1:]))
