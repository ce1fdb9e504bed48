#!/usr/bin/env python3
"""Runs the README's examples of curl against a server: readme.py BASE_URL

They are the parts, between empty lines, of `sh` blocks that begin with `curl`. The address they name becomes BASE_URL.
"""

import re
import subprocess
import sys

from server import ROOT, check

ADDRESS = "http://127.0.0.1:8080"
# Fails where the server says no, and is silent otherwise.
SHELL = "set -euo pipefail\ncurl() { command curl --silent --show-error --fail-with-body \"$@\"; }\n"


def run(script, base):
    check(ADDRESS in script, f"README: an example does not name {ADDRESS}:\n{script}")
    command = ["timeout", "120", "bash", "-c", SHELL + script.replace(ADDRESS, base)]
    done = subprocess.run(command, capture_output=True, text=True)
    check(done.returncode != 124, f"README: not done after two minutes:\n{script}")
    check(done.returncode == 0, f"README:\n{script}\n{done.stdout}{done.stderr}")
    check(done.stdout.strip() and '{"error"' not in done.stdout, f"README:\n{script}\nprints\n{done.stdout}")
    print(f"README: {' '.join(script.split())[:100]}", flush=True)


blocks = re.findall(r"^```sh\n(curl.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
examples = [example for block in blocks for example in block.strip().split("\n\n")]
check(examples, "README has no example of curl")
for example in examples:
    run(example, sys.argv[1])
print(f"{len(examples)} passed, 0 failed")
