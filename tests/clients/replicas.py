#!/usr/bin/env python3
"""nginx, as docs/deploy/nginx.conf has it, in front of two replicas that die under load: replicas.py TORCHLESS

Requests of their own seeds, at temperature 0.8, go through nginx. One replica is killed by SIGKILL in the middle, comes back, and then the other one is
ended by SIGTERM. Every request must be answered, with the text that one replica alone gave it before.
"""

import atexit
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server import ROOT, Server, check, free_port, get, metrics, tiny_model, wait_until

REQUESTS, AT_ONCE = 400, 16
OPTIONS = ["--parallel", "4"]


def body(i, **more):
    messages = [{"role": "user", "content": f"Story {i % 40}, please."}]
    settings = {"messages": messages, "temperature": 0.8, "seed": i % 80, "max_tokens": 400, "ignore_eos": True}
    return settings | more


def post(base, settings):
    request = urllib.request.Request(f"{base}/v1/chat/completions", json.dumps(settings).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=120)


def text(base, i):
    """The answer to request `i`. A full queue is no loss: its client asks again, as every client of OpenAI's does."""
    while True:
        try:
            with post(base, body(i)) as response:
                return json.load(response)["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            if error.code != 429:
                raise
            time.sleep(0.2)


def start_nginx(folder, ports):
    """The file that people use, with this test's ports, in a configuration that needs no root."""
    site = (ROOT / "docs" / "deploy" / "nginx.conf").read_text()
    port = free_port()
    for there, here in [("listen 80;", f"listen 127.0.0.1:{port};"), ("127.0.0.1:8081", f"127.0.0.1:{ports[0]}"),
                        ("127.0.0.1:8082", f"127.0.0.1:{ports[1]}")]:
        check(there in site, f"docs/deploy/nginx.conf has no {there}")
        site = site.replace(there, here)
    (folder / "site.conf").write_text(site)
    temporary = "\n".join(f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(f"""daemon off;
pid {folder}/nginx.pid;
events {{}}
http {{
{temporary}
  log_format replica '$status $upstream_addr';
  access_log {folder}/access.log replica;
  include {folder}/site.conf;
}}
""")
    command = ["nginx", "-c", folder / "nginx.conf", "-e", folder / "error.log"]
    subprocess.run([*command, "-t", "-q"], check=True)
    process = subprocess.Popen(command)
    atexit.register(process.terminate)
    return f"http://127.0.0.1:{port}", process


def load(base, meanwhile):
    """Sends all requests, `meanwhile` in the middle of them; returns the answers."""
    done = threading.Semaphore(0)

    def one(i):
        found = text(base, i)
        done.release()
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [pool.submit(one, i) for i in range(REQUESTS)]
        for _ in range(REQUESTS // 4):
            done.acquire()
        meanwhile()
        return [answer.result() for answer in answers]


def compare(found, expected, what):
    wrong = [i for i in range(REQUESTS) if found[i] != expected[i % 80]]
    check(not wrong, f"{what}: {len(wrong)} of {REQUESTS} answers differ, request {wrong[:1]} the first")
    print(f"{what}: {REQUESTS} requests, all answered, all as alone", flush=True)


def streams(base, replicas):
    """Through nginx a stream comes as it is made, and ends at the replica where the client leaves."""
    def running():
        return sum(metrics(replica.base)["torchless_running"] for replica in replicas)
    with post(base, body(1, stream=True, max_tokens=3000)) as response:
        # The role comes before the engine has begun, each token after it.
        for _ in range(5):
            check(response.readline().startswith(b"data: ") and response.readline() == b"\n", "no event")
        check(running() == 1, "the first tokens come when the stream has ended")
    wait_until(lambda: running() == 0, "the client has gone; its request")
    print("a stream passes as it is made, and is ended by its client", flush=True)


def main(torchless, folder):
    model = tiny_model(torchless, folder)
    replicas = [Server(torchless, model, *OPTIONS) for _ in range(2)]
    base, nginx = start_nginx(folder, [replica.port for replica in replicas])
    wait_until(lambda: nginx.poll() is None and (folder / "nginx.pid").exists(), "nginx")
    expected = [text(replicas[0].base, i) for i in range(80)]

    compare(load(base, lambda: None), expected, "two replicas")
    compare(load(base, replicas[0].process.kill), expected, "one of them killed")
    cut = (folder / "error.log").read_text().count("prematurely closed connection")
    retried = len(re.findall(r"^200 \S+, \S+$", (folder / "access.log").read_text(), re.M))
    check(cut > 0, "the killed replica was idle: that shows nothing")
    print(f"  it died with {cut} requests; {retried} were given to the other one", flush=True)

    replicas[0] = Server(torchless, model, *OPTIONS, port=replicas[0].port)
    compare(load(base, replicas[1].stop), expected, "the other one ended by SIGTERM")
    replicas[1] = Server(torchless, model, *OPTIONS, port=replicas[1].port)
    streams(base, replicas)
    try:
        get(f"{base}/metrics")
        check(False, "nginx shows /metrics to everyone")
    except urllib.error.HTTPError as error:
        check(error.code == 404, f"nginx answers /metrics with {error.code}")
    for replica in replicas:
        replica.stop()


with tempfile.TemporaryDirectory() as temporary:
    main(Path(sys.argv[1]).resolve(), Path(temporary))
