"""What the scripts of this folder share: a server of their own, a tiny model for it, its metrics, and how a failure is told."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# As Hermes and Qwen have it: tools as JSON in the system prompt, calls as JSON between tags.
TEMPLATE = """{{ bos_token }}{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
<tool_call>{"name": ..., "arguments": ...}</tool_call>
{% endif %}{% for message in messages %}<{{ message.role }}>{{ message.content }}\
{% for call in message.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", "arguments": \
{{ call.function.arguments | tojson }}}</tool_call>{% endfor %}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


def fail(text):
    sys.exit(f"FAILED: {text}")


def check(holds, text):
    if not holds:
        fail(text)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def tiny_model(torchless, folder):
    """A fixture with a longer context and a template that knows tools: it writes nonsense, thousands of tokens a second."""
    source = Path(folder) / "tiny-hf"
    shutil.copytree(ROOT / "tests" / "fixtures" / "models" / "mistral-hf", source)
    for name, changes in [("config.json", {"max_position_embeddings": 4096, "sliding_window": None}),
                          ("tokenizer_config.json", {"chat_template": TEMPLATE})]:
        path = source / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model = Path(folder) / "tiny.bin"
    subprocess.run([torchless, "convert", source, model, "--quant", "int8"], check=True, stderr=subprocess.DEVNULL)
    return model


def get(url, timeout=10):
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return response.read().decode()


def wait_until(holds, what, seconds=30):
    """Waits for a condition; the limit only ends what would never come."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            fail(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def metrics(base):
    """Prometheus' text as {name with labels: value}."""
    lines = (line for line in get(f"{base}/metrics").splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def busy(base):
    """What a server without work has none of."""
    found = metrics(base)
    return {name: found[name] for name in ("torchless_running", "torchless_queued", "torchless_pages_used")}


class Server:
    """`torchless serve` on a port of its own."""

    def __init__(self, torchless, model, *options, port=None, log=None):
        self.port = port or free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.log = open(log, "a") if log else subprocess.DEVNULL
        command = [torchless, "serve", "-m", model, "--port", self.port, *options]
        # Where threads keep free memory each for itself, what is held wanders by a fifth, and a leak cannot be told from it.
        environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
        self.process = subprocess.Popen([str(part) for part in command], stdout=self.log, stderr=self.log, env=environment)
        atexit.register(self.process.kill)
        wait_until(self.ready, f"{' '.join(map(str, command))} is not ready")

    def ready(self):
        check(self.process.poll() is None, f"the server ended by itself with {self.process.returncode}")
        try:
            return bool(get(f"{self.base}/health"))
        except (urllib.error.URLError, OSError):
            return False

    def memory(self):
        """Bytes that the process holds, the mapped model left out."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))

    def files(self):
        """How many it has open, the connection that is being closed included."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def stop(self):
        """Ends it as systemd does; it must end by itself, well."""
        self.process.terminate()
        check(self.process.wait(60) == 0, f"after SIGTERM the server ends with {self.process.returncode}")
