#!/usr/bin/env python3
"""Runs the README's examples of curl against a server: readme.py BASE_URL

They are the `sh` blocks that begin with `curl`. The address they name, that of `torchless serve` without options, becomes BASE_URL.
"""

import json
import re
import subprocess
import sys

from server import ROOT, check

ADDRESS = "http://127.0.0.1:8080"
# Fails where the server says no, and is silent otherwise.
SHELL = "set -euo pipefail\ncurl() { command curl --silent --show-error --fail-with-body \"$@\"; }\n"


def run(script, base):
    check(ADDRESS in script, f"README: an example does not name {ADDRESS}:\n{script}")
    done = subprocess.run(["bash", "-c", SHELL + script.replace(ADDRESS, base)], capture_output=True, text=True, timeout=120)
    check(done.returncode == 0, f"README:\n{script}\n{done.stdout}{done.stderr}")
    check(done.stdout.strip(), f"README: this prints nothing:\n{script}")
    if done.stdout.startswith("{"):
        check("error" not in json.loads(done.stdout), f"README:\n{script}\n{done.stdout}")
    print(f"README: {script.splitlines()[0]}", flush=True)


blocks = re.findall(r"^```sh\n(curl.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
check(blocks, "README has no example of curl")
for block in blocks:
    run(block, sys.argv[1])
print(f"{len(blocks)} passed, 0 failed")
