#!/usr/bin/env python3
"""Compares `torchless serve` with llama-server under the same load: benches/peers/README.md says how."""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parse_args():
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a torchless model file")
    parser.add_argument("--gguf", type=Path, required=True, help="the same model for llama-server")
    parser.add_argument("--llama-server", type=Path, required=True, help="the binary of llama.cpp")
    parser.add_argument("--streams", default="1,2,4,8", help="how many ask at the same time (default: 1,2,4,8)")
    parser.add_argument("--prompt", type=int, default=32, help="words of a prompt (default: 32)")
    parser.add_argument("--generate", type=int, default=128, help="tokens of an answer (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="turns each server takes (default: 3)")
    parser.add_argument("--threads", type=int, default=cpus, help="default: the CPUs this process may use")
    parser.add_argument("--torchless", type=Path, default=ROOT / "target" / "release" / "torchless")
    return parser.parse_args()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url, server):
    for _ in range(600):
        if server.poll() is not None:
            sys.exit(f"error: {server.args[0]} ended with {server.returncode}")
        try:
            return urllib.request.urlopen(f"{url}/health")
        except OSError:
            time.sleep(0.1)
    sys.exit(f"error: {server.args[0]} is not ready after a minute")


def load(args, *options):
    """A row for each number of streams."""
    command = [args.torchless, "bench", "serve", "--json", "--streams", args.streams, *options]
    command += ["-p", args.prompt, "-n", args.generate]
    result = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit("error: the load was not served")
    return json.loads(result.stdout)


def llama(args, streams):
    port = free_port()
    # A slot has its share of the context.
    context = streams * (4 * args.prompt + args.generate)
    options = ["-m", args.gguf, "--port", port, "-np", streams, "-c", context, "-t", args.threads]
    command = [str(part) for part in (args.llama_server, *options)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        return load(args, "--url", url)
    finally:
        server.terminate()
        server.wait()


def main():
    args = parse_args()
    most = max(int(n) for n in args.streams.split(","))
    mine, theirs = [], []
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        mine.append(load(args, "-m", args.model, "-t", args.threads))
        theirs.append(llama(args, most))
    print("| streams | torchless tokens/s | llama-server tokens/s | torchless / llama-server (least–most) |")
    print("|---:|---:|---:|---:|")
    for i, row in enumerate(mine[0]):
        rates = [[run[i]["tokens_per_s"] for run in runs] for runs in (mine, theirs)]
        ratios = [a / b for a, b in zip(*rates)]
        a, b = (statistics.median(rate) for rate in rates)
        spread = f"({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"| {row['streams']} | {a:.1f} | {b:.1f} | **{statistics.median(ratios):.2f}** {spread} |")
    print(f"\nMedians of {args.rounds} rounds in turns, {args.threads} threads, {mine[0][0]['cpu']}.")


if __name__ == "__main__":
    main()
