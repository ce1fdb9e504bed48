#!/usr/bin/env python3
"""Thousands of requests at once, a third of them cancelled, malformed or read slowly: soak.py TORCHLESS [--requests 10000] [--seed 1]

No answer may be wrong: each complete one is compared with that of the same request alone. At the end the server must have no request, no
page and no file left, and hold no more memory with each tenth of the requests. Run number N of a seed asks the same in the same order.
"""

import argparse
import asyncio
import collections
import contextlib
import http.client
import io
import json
import random
import socket
import statistics
import tempfile
from pathlib import Path

from server import Server, busy, check, fail, metrics, tiny_model, wait_until

AT_ONCE = 64
CASES = 60
# Seconds for one request, those of waiting included: far more than any takes.
PATIENCE = 180
SYSTEM = "You are a lamp. You know of the dark and of moths, of switches and of those who leave without touching them. " * 3


def case(i):
    """Request `i`: short and long prompts, half with a common beginning, some with log-probabilities or a schema."""
    chance = random.Random(i)
    question = "".join(chance.choice("abcdefgh ijklmnop") for _ in range(chance.choice([5, 40, 130, 700])))
    messages = [{"role": "user", "content": question}]
    if i % 2:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    body = {"messages": messages, "temperature": chance.choice([0, 0.8, 1.5]), "seed": i, "max_tokens": chance.choice([1, 10, 60, 150]),
            "ignore_eos": i % 3 != 0}
    if i % 5 == 0:
        body |= {"logprobs": True, "top_logprobs": 20}
    if i % 7 == 0:
        schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
        body |= {"response_format": {"type": "json_schema", "json_schema": {"name": "lamp", "schema": schema}}, "ignore_eos": False}
    return body


def http_request(body, path="/v1/chat/completions", method="POST", length=None, more=""):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: lamp\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n"
    return head.encode() + body


GOOD = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
MALFORMED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),    # who thinks that this is TLS
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: lamp\r\nContent-Length: -1\r\nConnection: close\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: lamp\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
    http_request(GOOD, more="X-Long: " + "x" * 2_000_000 + "\r\n"),
    http_request(GOOD, more="".join(f"X-{i}: y\r\n" for i in range(5000))),
    http_request(GOOD, path="/v1/nothing"),
    http_request(GOOD, path="/v1/chat/completions/../../etc/passwd"),
    http_request(GOOD, method="DELETE"),
    http_request(b""),
    http_request(b"{"),
    http_request(b"[" * 100_000),
    http_request(b'{"messages": "\xff\xfe"}'),
    http_request(b"null"),
    http_request({"messages": []}),
    http_request({"messages": [{"role": "a lamp", "content": "x"}]}),
    http_request({"messages": [{"role": "user", "content": 7}]}),
    http_request({"messages": [{"role": "user", "content": "word " * 50_000}]}),
    http_request(GOOD | {"invent": 1}),
    http_request(GOOD | {"temperature": "warm"}),
    http_request(GOOD | {"temperature": -3}),
    http_request(GOOD | {"top_p": 7}),
    http_request(GOOD | {"max_tokens": -1}),
    http_request(GOOD | {"n": 10**9}),
    http_request(GOOD | {"logit_bias": {"99999999": 1}}),
    http_request(GOOD | {"stop": [""] * 1000}),
    http_request(GOOD | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "lamp"}}}}),
    http_request(GOOD | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/none"}}}}),
    http_request({"prompt": 1}, path="/v1/completions"),
    http_request(GOOD | {"messages": [{"role": "user", "content": "x" * 20_000_000}]}),
]


class Connection:
    """One request, one connection, as slow as one likes."""

    async def open(self, port, small=False):
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=4096 if small else 65536)
        return self

    async def send(self, raw):
        try:
            self.writer.write(raw)
            await self.writer.drain()
        except ConnectionError:
            pass    # refused before it was all read: the answer may be there all the same

    async def receive(self, pause=None):
        """Everything until the server closes; with `pause`, a little at a time."""
        raw = bytearray()
        try:
            while part := await self.reader.read(1024 if pause else 65536):
                raw += part
                if pause:
                    await asyncio.sleep(pause)
        except ConnectionError:
            pass
        self.writer.close()
        return bytes(raw)


def parse(raw):
    """Status and body of an HTTP response; None where there is none."""
    class Wire:
        def makefile(self, _):
            return io.BytesIO(raw)
    response = http.client.HTTPResponse(Wire())
    try:
        response.begin()
        return response.status, response.read()
    except (http.client.HTTPException, ConnectionError):
        return None


def answer(body, streamed):
    """What was said, of a stream and of a whole answer alike: text, why it ended, the tokens' log-probabilities."""
    if not streamed:
        choice = json.loads(body)["choices"][0]
        tokens = (choice.get("logprobs") or {}).get("content") or []
        return choice["message"]["content"], choice["finish_reason"], tokens
    events = body.decode().split("\n\n")
    check(events[-2:] == ["data: [DONE]", ""], f"a stream ends with {events[-2:]}")
    text, reason, tokens = "", None, []
    for event in events[:-2]:
        choice = json.loads(event.removeprefix("data: "))["choices"][0]
        text += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        tokens += (choice.get("logprobs") or {}).get("content") or []
    return text, reason, tokens


class Soak:
    def __init__(self, server, seed):
        self.port, self.seed = server.port, seed
        self.counts = collections.Counter()
        self.expected = []

    async def complete(self, i, streamed, slow=None):
        """Asks until there is room."""
        while True:
            connection = await Connection().open(self.port, small=bool(slow))
            await connection.send(http_request(case(i) | {"stream": streamed}))
            found = parse(await connection.receive(slow))
            check(found is not None, f"case {i}: no answer")
            status, body = found
            if status == 200:
                return answer(body, streamed)
            check(status == 429, f"case {i}: {status}: {body[:300]}")
            self.counts["told to come later"] += 1
            await asyncio.sleep(0.1)

    async def cancel(self, i, chance):
        connection = await Connection().open(self.port)
        raw = http_request(case(i) | {"stream": chance.random() < 0.7, "max_tokens": 800, "ignore_eos": True})
        if chance.random() < 0.2:
            await connection.send(raw[: chance.randrange(len(raw))])
        else:
            await connection.send(raw)
            with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
                await asyncio.wait_for(connection.reader.read(1), chance.random())
        # At once, with what the server still sends thrown away.
        connection.writer.transport.abort()

    async def malformed(self, which):
        connection = await Connection().open(self.port)
        sent = asyncio.create_task(connection.send(MALFORMED[which]))
        found = parse(await connection.receive())
        await sent
        # Closing without a word is an answer to what is no HTTP.
        check(found is None or 400 <= found[0] < 500, f"malformed request {which}: {found}")
        self.counts["told to come later"] += found is not None and found[0] == 429

    async def one(self, number):
        chance = random.Random(self.seed * 1_000_003 + number)
        i, kind = chance.randrange(CASES), chance.choice(["whole", "stream"] * 3 + ["cancelled", "malformed", "slow"])
        self.counts[kind] += 1
        if kind == "cancelled":
            await self.cancel(i, chance)
        elif kind == "malformed":
            await self.malformed(chance.randrange(len(MALFORMED)))
        else:
            streamed = kind == "stream" or (kind == "slow" and chance.random() < 0.5)
            found = await self.complete(i, streamed, chance.random() * 0.02 if kind == "slow" else None)
            check(found == self.expected[i], f"request {number}, case {i}, {kind}: another answer than alone:\n{found}\n{self.expected[i]}")

    async def in_time(self, number):
        try:
            await asyncio.wait_for(self.one(number), PATIENCE)
        except asyncio.TimeoutError:
            fail(f"request {number} of seed {self.seed} is not over after {PATIENCE} s")

    async def run(self, numbers):
        left = iter(numbers)

        async def worker():
            for number in left:
                await self.in_time(number)
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


def quiet(server):
    wait_until(lambda: not any(busy(server.base).values()), "all requests are over; the server's")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("torchless", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torchless = args.torchless.resolve()
        # Memory for fewer texts than run at once, so that some are put back into the queue, which is shorter than what comes: some are turned away.
        server = Server(torchless, tiny_model(torchless, folder), "-c", "2048", "--parallel", "16", "--queue", "40", "--kv-memory", "2MB",
                        log=Path(folder) / "log")
        files = server.files()
        soak = Soak(server, args.seed)
        soak.expected = [asyncio.run(soak.complete(i, False)) for i in range(CASES)]
        held = []
        for tenth in range(10):
            asyncio.run(soak.run(range(args.requests * tenth // 10, args.requests * (tenth + 1) // 10)))
            quiet(server)
            held.append(server.memory())
            print(f"{args.requests * (tenth + 1) // 10} requests: {held[-1] / 1e6:.1f} MB", flush=True)
        print(", ".join(f"{kind} {count}" for kind, count in sorted(soak.counts.items())))
        preempted = metrics(server.base)["torchless_preemptions_total"]
        print(f"put back into the queue: {preempted:.0f}")
        check(preempted > 0, "there were pages for all: nothing was put back")
        # A leak grows with every tenth; a heap that finds a new high-water mark grows once. The first tenths fill caches and pools.
        grown = statistics.median(after - before for before, after in zip(held[2:], held[3:]))
        check(
            7 * grown <= 0.05 * held[2],
            f"the server's memory grows: by {grown / 1e6:.2f} MB with each tenth of the requests, from {held[2] / 1e6:.1f} MB",
        )
        wait_until(lambda: server.files() <= files, f"{files} files were open before the first request; as few")
        log = (Path(folder) / "log").read_text()
        check("panicked" not in log, f"a panic: {log[log.find('panicked') - 300:][:900]}")
        server.stop()
        print(f"{args.requests} requests, none answered wrongly, nothing left behind")


main()
