#!/usr/bin/env python3
"""Damages model files in every way it knows and runs the command line on them.

    fuzz/mutate.py target/release/torchless --runs 10000 --seed 1

Each run takes one of the fixtures (a .bin file, one re-laid in panels of int8 or int4, a GGUF file, a Hugging Face folder), damages it, and puts it through
`inspect`, `generate -n 1` and half the time `chat`; sources, and now and then a .bin file, through `convert` before. A run must end by itself within
--seconds, with exit code 0, 1 or 2, without a panic, with at most one line of error, and below --megabytes of memory. What does not is kept in --keep.
Run number N of a seed is the same on every machine: `--only N` repeats it.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
BINS = sorted((FIXTURES / "models").glob("*.bin"))
GGUFS = sorted((FIXTURES / "convert").glob("*.gguf"))
FOLDERS = [FIXTURES / "models" / "mistral-hf", FIXTURES / "convert" / "hf"]

INTEGERS = [0, 1, 2, 3, 7, 63, 64, 65, 127, 255, 256, 257, 1000, 4095, 65535, 65536, 10**6, 2**24, 2**30, 2**31 - 1, 2**31,
            2**32 - 1, 2**32, 2**33 + 1, 2**40, 2**53, 2**60, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1, 2**64, 10**30]
STRINGS = ["", " ", "0", "-1", "nan", "inf", "-inf", "1e999", "None", "null", "True", "f32", "int8", "int8_panels", "int4", "int4_by_32", "int4_by_32_minimum", "f16", "\x1b[2J\n\r\u009b1m",
           "é", "▁", "a b", "\0", "../../etc/passwd", "x" * 70000, "[" * 2000, "{{ 1 }}", "gpt-2", "llama-bpe", "byte_level"]
FLOATS = [0.0, -0.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 1e-40, 1e38, 3.4e38, -3.4e38]
# Bits of f16: 0, -0, the least number, the largest, infinities, NaN, -1.
HALVES = [0, 0x8000, 1, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0xBC00]

# Settings with a meaning, and values that abuse it.
LOOPS = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"
DOUBLING = "{% set s = namespace(t='x' * 1000) %}" + "{% set s.t = s.t ~ s.t %}" * 60 + "{{ s.t }}"
RECURSION = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"
TEMPLATES = [LOOPS, DOUBLING, RECURSION, "{{ 'x' * 10 ** 12 }}", "{{ range(10 ** 12) | list }}", "{{ " + "(" * 5000, "{% if",
             "{{ messages[0].content }}", "{{ 'a'.join(messages) }}", "{{ strftime_now('%Q%:%9999999999N') }}", "\0\x1b[2J",
             "{{ '%999999999d' | format(1) }}", "{{ messages | tojson(indent=1000000000) }}", "{{ [1] | batch(0) }}"]
SCALINGS = [{"type": "yarn", "factor": 4.0}, {"rope_type": "dynamic", "factor": 0}, {"rope_type": "linear", "factor": -2.0},
            {"rope_type": "linear", "factor": 0}, {"rope_type": "linear", "factor": 1e308}, {"rope_type": "llama3"}, [], "linear",
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 0},
            {"rope_type": "llama3", "factor": 1e-300, "low_freq_factor": 0, "high_freq_factor": -1,
             "original_max_position_embeddings": 2**64}]
HOSTILE = [("chat_template", TEMPLATES), ("rope_scaling", SCALINGS), ("rope_theta", [0, -1, 1e308, 1e-320, "nan", None]),
           ("eos_token_id", [-1, 2**32, [0] * 10000, [[2]], "2", 1.5]), ("bos_token_id", [-1, 2**32, [1], "1"]),
           ("tie_word_embeddings", [True, False, "True", 1, None]), ("sliding_window", [0, -1, 1, 2**30, 2**64, "1"]),
           ("num_key_value_heads", [0, -1, 3, 2**40]), ("num_hidden_layers", [0, -1, 3, 4096, 2**40]),
           ("head_dim", [0, -2, 1, 3, 1024, 1026]), ("rms_norm_eps", [0, -1, 1e308, "inf", None]), ("vocab_size", [0, -1, 1, 2**24]),
           ("quantization_config", [{}, {"quant_method": "gptq", "bits": 4}]), ("hidden_act", ["gelu", None, 1]),
           ("model_type", ["gpt2", "", None, 7]), ("torch_dtype", ["int4", 3]), ("max_position_embeddings", [0, -1, 1, 2**30, 2**62]),
           ("added_tokens", [[], [{}], [{"id": 2**40, "content": ""}], [{"id": 0, "content": "x", "special": True}] * 1000]),
           ("merges", [[], ["a"], ["a b c"], [["a", ""]], ["a a"] * 5000]), ("vocab", [{}, {"": 0}, {"a": -1}, {"a": 2**32 - 1}]),
           ("normalizer", [None, {"type": "Lowercase"}, {"type": "Sequence", "normalizers": [{}] * 1000}]),
           ("pre_tokenizer", [None, {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated"}])]


def abuse(rng, tree):
    """Sets one known setting to what it cannot be, wherever it is or might be."""
    key, values = rng.choice(HOSTILE)
    places, found = [tree], []
    while places:
        node = places.pop()
        if isinstance(node, dict):
            places += node.values() if len(node) < 100 else []
            found += [node] if key in node else []
    node = rng.choice(found) if found else rng.choice([tree, *(v for v in tree.values() if isinstance(v, dict))])
    hostile = rng.choice(values)
    # A .bin file's metadata are strings.
    as_text = all(isinstance(v, str) for v in node.values()) and not isinstance(hostile, str)
    node[key] = json.dumps(hostile) if as_text else hostile


def integer(rng):
    value = rng.choice(INTEGERS)
    return value if rng.random() < 0.8 else -value


def value(rng, depth=0):
    """A JSON value that nobody expects."""
    kind = rng.randrange(9)
    if kind < 3:
        return integer(rng)
    if kind == 3:
        return str(integer(rng))
    if kind == 4:
        return rng.choice(STRINGS)
    if kind == 5:
        return rng.choice([1e308, -1.5, 1e-320, 0.1])
    if kind == 6 or depth > 3:
        return rng.choice([None, True, False, [], {}])
    if kind == 7:
        return [value(rng, depth + 1) for _ in range(rng.randrange(1, 5))] * rng.choice([1, 1, 1, 1000 >> 3 * depth])
    return {rng.choice(STRINGS)[:40]: value(rng, depth + 1) for _ in range(rng.randrange(4))}


def pick(rng, tree):
    """A place in the tree; vocabularies and merges are long, so the choice is by level, not by number."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return None
        key = rng.choice(keys)
        child = node[key]
        if not isinstance(child, (dict, list)) or not child or rng.random() < 0.2:
            return node, key
        node = child


def damage_json(rng, text):
    """JSON text, damaged in its structure."""
    tree = json.loads(text)
    if isinstance(tree, dict) and rng.random() < 0.25:
        abuse(rng, tree)
        return json.dumps(tree).encode("utf-8", "surrogatepass")[: 2**20]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place = pick(rng, tree)
        if place is None:
            continue
        node, key = place
        how = rng.randrange(8)
        if how < 4:
            old = node[key]
            if isinstance(old, int) and rng.random() < 0.4:
                node[key] = old + rng.choice([-64, -4, -1, 1, 4, 64, old])
            elif isinstance(old, str) and rng.random() < 0.5:
                node[key] = str(integer(rng))
            else:
                node[key] = value(rng)
        elif how == 4:
            del node[key]
        elif how == 5:
            other = pick(rng, tree)
            if other and not isinstance(node[key], (dict, list)) and not isinstance(other[0][other[1]], (dict, list)):
                node[key], other[0][other[1]] = other[0][other[1]], node[key]
        elif how == 6 and isinstance(node, dict):
            node[rng.choice(STRINGS)[:100] if rng.random() < 0.5 else str(integer(rng))] = node.pop(key)
        elif how == 7:
            if isinstance(node, dict):
                node["\0dup" + str(key)] = node[key]
            else:
                node.append(node[key])
    out = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    out = out.replace('"\\u0000dup', '"')  # the same key once more
    if rng.random() < 0.05:
        out = out[: rng.randrange(len(out) + 1)]
    if rng.random() < 0.03:
        at = rng.randrange(len(out) + 1)
        out = out[:at] + "[" * 100000 + out[at:]
    # No longer than a megabyte, by which memory is judged.
    return out.encode("utf-8", "surrogatepass")[: 2**20]


def damage_bytes(rng, data, head):
    """Bytes, damaged without regard to what they mean; mostly within the first `head`."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3, 8, 32])):
        if not data:
            break
        limit = min(head, len(data)) if rng.random() < 0.7 else len(data)
        at = rng.randrange(max(limit, 1))
        how = rng.randrange(10)
        if how < 3:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 3:
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif how == 4:
            data = data[:at] if rng.random() < 0.3 else data
        elif how == 5:
            size = rng.choice([1, 4, 8, 64, 1000])
            other = rng.randrange(len(data))
            data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
        elif how == 6:
            size = rng.choice([1, 4, 8, 64])
            if rng.random() < 0.5:
                del data[at : at + size]
            else:
                data[at:at] = data[at : at + size]
        elif how == 7:
            fmt, top = rng.choice([("<Q", 2**64), ("<I", 2**32), ("<H", 2**16)])
            data[at : at + struct.calcsize(fmt)] = struct.pack(fmt, integer(rng) % top)
        elif how == 8:
            at -= at % 4
            data[at : at + 4] = struct.pack("<f", rng.choice(FLOATS))
        else:
            data += bytes(rng.choice([1, 63, 4096]))
    return bytes(data)


def damage_headed(rng, data):
    """A file of a u64 size, that much JSON, and a payload: `.bin` and safetensors."""
    size = struct.unpack_from("<Q", data)[0]
    how = rng.randrange(11)
    if how == 10:
        # Numbers of one kind throughout, from some place on.
        at = rng.randrange((8 + size) // 4, len(data) // 4) * 4
        return data[:at] + struct.pack("<f", rng.choice(FLOATS)) * ((len(data) - at) // 4)
    if how < 6:
        header = damage_json(rng, data[8 : 8 + size].rstrip(b"\0 "))
        header += b" " * (-(8 + len(header)) % 64)
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    if how == 6:
        return struct.pack("<Q", rng.choice([size + rng.choice([-64, -1, 1, 64]), integer(rng)]) % 2**64) + data[8:]
    if how == 7:
        body = bytearray(data)
        fmt, of = rng.choice([("<f", FLOATS), ("<H", HALVES)])
        length = struct.calcsize(fmt)
        for _ in range(rng.choice([1, 10, 1000])):
            at = rng.randrange((8 + size) // length, len(body) // length) * length
            body[at : at + length] = struct.pack(fmt, rng.choice(of))
        return bytes(body)
    if how == 8:
        return data[: rng.randrange(len(data))]
    return damage_bytes(rng, data, 8 + size)


def gguf_fields(data):
    """(offset, struct format) of every number in a GGUF file's header, and where that ends."""
    sizes = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
    fields, at = [], 4

    def number(fmt):
        nonlocal at
        fields.append((at, fmt))
        at += struct.calcsize(fmt)
        return struct.unpack_from(fmt, data, at - struct.calcsize(fmt))[0]

    def text():
        nonlocal at
        length = number("<Q")
        at += length

    def one(kind):
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = number("<I"), number("<Q")
            for _ in range(count):
                one(inner)
        else:
            number(sizes[kind])

    number("<I")
    tensors, keys = number("<Q"), number("<Q")
    for _ in range(keys):
        text()
        one(number("<I"))
    for _ in range(tensors):
        text()
        for _ in range(number("<I")):
            number("<Q")
        number("<I")
        number("<Q")
    return fields, at


def damage_gguf(rng, data):
    fields, head = gguf_fields(data)
    how = rng.randrange(12)
    if how == 10:
        # A name that is there already, or one that is wanted and then missing.
        names = re.findall(rb"[a-z][a-z_0-9.]{5,60}", data[:head])
        old, new = rng.choice(names), rng.choice(names)
        same = [name for name in names if len(name) == len(old) and name != old]
        new = rng.choice(same) if same else new[: len(old)].ljust(len(old), b"_")
        return data.replace(old, new, rng.choice([1, -1]))
    if how == 11:
        at = rng.randrange(head, len(data))
        return data[:at] + bytes([rng.choice([0, 0x7C, 0x7E, 0x7F, 0x80, 0xFF])]) * (len(data) - at)
    if how < 6:
        data = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 4])):
            at, fmt = rng.choice(fields) if rng.random() < 0.5 else rng.choice(fields[-200:])
            if fmt in ("<f", "<d"):
                struct.pack_into(fmt, data, at, rng.choice(FLOATS))
            else:
                bits = 8 * struct.calcsize(fmt)
                number = rng.choice([integer(rng), struct.unpack_from(fmt, data, at)[0] + rng.choice([-1, 1, 32])])
                number %= 2**bits
                struct.pack_into(fmt.upper() if fmt != "<B" else fmt, data, at, number)
        return bytes(data)
    if how == 6:
        return data[: rng.randrange(len(data))]
    if how == 7:
        return data[: rng.randrange(head)]
    return damage_bytes(rng, data, head)


def damage_folder(rng, folder):
    files = sorted(path for path in folder.iterdir())
    path = rng.choice(files)
    how = rng.randrange(12)
    if how == 0:
        path.unlink()
    elif how == 1:
        path.write_bytes(damage_bytes(rng, path.read_bytes(), 4000))
    elif path.suffix == ".json":
        path.write_bytes(damage_json(rng, path.read_text()))
    else:
        path.write_bytes(damage_headed(rng, path.read_bytes()))


class Failure(Exception):
    pass


def run(command, args, said=b""):
    """Runs one command, to which something is said; returns its exit code and peak memory in megabytes."""
    with tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as stdin:
        stdin.write(said)
        stdin.seek(0)

        def limits():
            # An allocation beyond this fails, and what does not expect that aborts.
            size = args.address_space * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        start = time.monotonic()
        child = subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=err, preexec_fn=limits,
                                 env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"})
        signal.setitimer(signal.ITIMER_REAL, args.seconds)
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except TimeoutError:
            child.kill()
            os.wait4(child.pid, 0)
            raise Failure(f"did not end within {args.seconds} s")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            child.returncode = 0
        seconds, megabytes = time.monotonic() - start, usage.ru_maxrss / 1024
        err.seek(0)
        text = err.read().decode("utf-8", "replace")
    if os.WIFSIGNALED(status):
        raise Failure(f"ended by signal {os.WTERMSIG(status)}: {text[-500:]}")
    code = os.WEXITSTATUS(status)
    if code not in (0, 1, 2):
        raise Failure(f"exit code {code}: {text[-500:]}")
    if "panicked" in text:
        raise Failure(f"panicked: {text[-500:]}")
    lines = text.splitlines()
    errors = [line for line in lines if not line.startswith(("note: ", "warning: "))]
    one_error = len(errors) == 1 and lines[-1] == errors[0] and errors[0].startswith("error: ")
    if code == 1 and (not one_error or any(ord(c) < 32 for line in lines for c in line)):
        raise Failure(f"not one line of error, after notes: {text[:500]!r}")
    if megabytes > args.megabytes:
        raise Failure(f"took {megabytes:.0f} MB")
    return code, megabytes, seconds, text


def alarm(*_):
    raise TimeoutError


def one(number, args, work):
    """Makes run `number`'s model and puts it through the commands; returns their exit codes and the peaks."""
    rng = random.Random(f"{args.seed}/{number}")
    kind = rng.choice(["bin", "bin", "gguf", "hf"])
    model = work / "model"
    relay = kind == "bin" and rng.random() < 0.3
    if kind == "bin":
        model.write_bytes(damage_headed(rng, rng.choice(args.bins)))
    elif kind == "gguf":
        model.write_bytes(damage_gguf(rng, rng.choice(GGUFS).read_bytes()))
    else:
        shutil.copytree(rng.choice(FOLDERS), model)
        damage_folder(rng, model)
    results = []
    program = args.torchless

    def step(*command, said=b""):
        results.append(run([program, *map(str, command)], args, said))
        return results[-1][0]

    bin_file = model
    if kind != "bin" or relay:
        bin_file = work / "converted.bin"
        quant = rng.choice(["int8", "int8-proj", "f32", "int4", "int4:6"])
        rows = ["--layout", "rows"] if "int4" not in quant else []
        layout = rng.choice([[], rows, ["--layout", "panels"] if quant != "f32" else []])
        code = step("convert", model, bin_file, "--quant", quant, *layout)
        left = sorted(path.name for path in work.iterdir())
        expected = ["converted.bin", "model"] if code == 0 else ["model"]
        if left != expected:
            raise Failure(f"convert ended with {code} and left {left}")
        if code != 0:
            return kind, results
    opened = step("inspect", bin_file, *rng.choice([[], ["--json"]])) == 0
    if bin_file != model and not opened:
        raise Failure(f"what convert wrote cannot be opened: {results[-1][3]}")
    if rng.random() < 0.5:
        template = rng.choice([[], [], ["--chat-template", "chatml"]])
        step("chat", "-m", bin_file, "-n", 2, *template, said="the rain <s> é\nthe sun\n".encode())
    step("generate", "-m", bin_file, "-n", 1, *rng.choice([[], ["--temp", 0], ["--json"], ["--special"]]), "the rain <s> é")
    return kind, results


def in_panels(args, path, quant):
    """A fixture as `convert` re-lays it."""
    with tempfile.TemporaryDirectory() as work:
        panels = Path(work) / "panels.bin"
        subprocess.run([args.torchless, "convert", path, panels, "--quant", quant], check=True, capture_output=True)
        return panels.read_bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torchless")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="one run by its number")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--megabytes", type=float, default=300, help="most resident memory")
    parser.add_argument("--address-space", type=int, default=4096, help="in megabytes")
    parser.add_argument("--keep", type=Path, default=Path("fuzz/artifacts/mutate"))
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, alarm)
    wide = [path for path in BINS if "ragged" not in path.name]
    args.bins = [path.read_bytes() for path in BINS] + [in_panels(args, path, q) for q in ("int8", "int4") for path in wide]
    counts, failures, most, slowest = {}, 0, 0.0, 0.0
    for number in range(args.runs) if args.only is None else [args.only]:
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            try:
                kind, results = one(number, args, work)
            except Failure as failure:
                failures += 1
                kept = args.keep / f"{args.seed}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(work, kept)
                print(f"run {number}: {failure}; kept in {kept}", flush=True)
                continue
        for code, megabytes, seconds, text in results:
            most, slowest = max(most, megabytes), max(slowest, seconds)
            if args.only is not None:
                print(code, text)
        key = f"{kind} " + " ".join(str(result[0]) for result in results)
        counts[key] = counts.get(key, 0) + 1
    print(f"seed {args.seed}: {sum(counts.values())} good, {failures} bad; at most {most:.0f} MB and {slowest:.2f} s")
    print("exit codes: " + ", ".join(f"{key}: {count}" for key, count in sorted(counts.items())))
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
