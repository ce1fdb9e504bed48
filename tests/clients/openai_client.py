#!/usr/bin/env python3
"""The official `openai` package against a server: openai_client.py BASE_URL API_KEY [--knows]

--knows: the model is one that knows the capital of France. What a tiny model writes is nonsense, in the right shape.
"""

import asyncio
import json
import re
import sys
from enum import Enum

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from server import busy, check, wait_until

BASE, KEY = sys.argv[1:3]
KNOWS = "--knows" in sys.argv
client = OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id
QUESTION = [{"role": "user", "content": "Name the capital of France."}]
# Every value of theirs is short, whatever the model thinks of them: the JSON ends before the limit does.
WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "The weather of a city",
    "parameters": {"type": "object", "additionalProperties": False, "required": ["city", "celsius"],
                   "properties": {"city": {"enum": ["Paris", "Rome"]}, "celsius": {"type": "boolean"}}}}}
CLOCK = {"type": "function", "function": {
    "name": "clock", "description": "The time of day",
    "parameters": {"type": "object", "additionalProperties": False, "required": ["zone"],
                   "properties": {"zone": {"enum": ["UTC", "CET"]}}}}}


def ask(**settings):
    return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24} | settings)


def refused(kind, *words, **settings):
    """The error that a request must raise, its words checked."""
    try:
        ask(**settings)
    except kind as error:
        for word in words:
            check(word in str(error), f"{settings}: the error does not say {word!r}: {error}")
        return error
    check(False, f"{settings} is not refused")


def chat():
    answer = ask()
    choice, usage = answer.choices[0], answer.usage
    check(answer.object == "chat.completion" and answer.model == MODEL, f"no chat completion: {answer}")
    check(choice.message.role == "assistant" and choice.finish_reason in ("stop", "length"), f"{choice}")
    check(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, f"{usage}")
    check(not KNOWS or "Paris" in choice.message.content, f"the capital of France is {choice.message.content!r}")
    parts = ask(messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}])
    check(parts.choices[0].message.content == choice.message.content, "parts of text are another text")
    check(parts.usage.prompt_tokens == usage.prompt_tokens, "parts of text are other tokens")


def streaming():
    whole = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    text = "".join(delta.content or "" for delta in deltas)
    check(text == whole.choices[0].message.content, f"streamed {text!r}, whole {whole.choices[0].message.content!r}")
    check(deltas[0].role == "assistant" and all(delta.role is None for delta in deltas[1:]), "the role comes once, first")
    check(len({chunk.id for chunk in chunks}) == 1, "the chunks of one answer have one id")
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    check(reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1]), f"reasons to finish: {reasons}")
    check(not chunks[-1].choices, "the last chunk is the usage alone")
    found = chunks[-1].usage
    check((found.prompt_tokens, found.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens), f"{found}")
    check(all(chunk.usage is None for chunk in ask(stream=True)), "usage that nobody asked for")


def settings():
    def text(**settings):
        return ask(temperature=1.0, **settings).choices[0].message.content
    check(text(seed=7) == text(seed=7), "one seed, two texts")
    check(text(seed=7) != text(seed=8), "two seeds, one text")
    several = ask(n=3, temperature=1.0, seed=7)
    check([choice.index for choice in several.choices] == [0, 1, 2], "n=3 makes three choices")
    check(several.choices[0].message.content == text(seed=7), "the first of three is not what it is alone")
    check(len({choice.message.content for choice in several.choices}) > 1, "three choices are one text")
    full = ask(max_completion_tokens=24, max_tokens=openai.NOT_GIVEN).choices[0].message.content
    stop = re.findall(r"[\w ]{2}", full)[-1]
    stopped = ask(stop=[stop]).choices[0]
    check(stopped.finish_reason == "stop" and stop not in stopped.message.content, f"stop {stop!r}: {stopped}")
    check(full.startswith(stopped.message.content), "a stop string changes what is before it")


def logprobs():
    answer = ask(logprobs=True, top_logprobs=4)
    content = answer.choices[0].logprobs.content
    check(len(content) >= answer.usage.completion_tokens - 1, f"{len(content)} log-probabilities, {answer.usage}")
    for token in content:
        tops = [top.logprob for top in token.top_logprobs]
        check(token.logprob <= 0 and len(tops) == 4 and tops == sorted(tops, reverse=True), f"{token}")
        check(token.token == token.top_logprobs[0].token, "at temperature 0 the most probable token is taken")
    said = b"".join(bytes(token.bytes) for token in content)
    check(said.decode(errors="replace").startswith(answer.choices[0].message.content), f"the tokens' bytes say {said!r}")
    streamed = [token for chunk in ask(logprobs=True, top_logprobs=4, stream=True) for choice in chunk.choices
                if choice.logprobs for token in choice.logprobs.content or []]
    check([token.logprob for token in streamed] == [token.logprob for token in content], "streamed log-probabilities differ")


def completions():
    settings = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**settings)
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**settings, stream=True) if chunk.choices)
    check(whole.object == "text_completion" and streamed == whole.choices[0].text, f"{streamed!r}: {whole}")
    check(not KNOWS or "Paris" in streamed, f"the capital of France is{streamed}")


def tools():
    both = {"tools": [WEATHER, CLOCK], "max_tokens": 200}
    named = {"type": "function", "function": {"name": "clock"}}
    for choice, names in [("required", ["weather", "clock"]), (named, ["clock"])]:
        message = ask(**both, tool_choice=choice).choices[0].message
        check(bool(message.tool_calls), f"tool_choice {choice}: no call, but {message.content!r}")
        call = message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        check(call.type == "function" and call.function.name in names, f"{call}")
        expected = {"weather": {"city", "celsius"}, "clock": {"zone"}}[call.function.name]
        check(set(arguments) == expected, f"{call.function.name} is called with {arguments}")
        chunks = list(ask(**both, tool_choice=choice, stream=True))
        deltas = [piece for chunk in chunks if chunk.choices for piece in chunk.choices[0].delta.tool_calls or []]
        first = [piece for piece in deltas if piece.index == 0]
        check([piece.function.name for piece in first if piece.function.name] == [call.function.name], "the name comes once")
        check(len([piece.id for piece in first if piece.id]) == 1, "the id comes once")
        streamed = "".join(piece.function.arguments or "" for piece in first)
        check(streamed == call.function.arguments, f"streamed {streamed!r}, whole {call.function.arguments!r}")
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        check(reasons[-1] == "tool_calls", f"finish_reason {reasons[-1]}")
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"time": "12:00"}'}
    after = ask(messages=[*QUESTION, message.model_dump(exclude_none=True), result], tools=both["tools"])
    check(after.usage.prompt_tokens > ask(tools=both["tools"]).usage.prompt_tokens, "the tool's result is not read")
    check(not ask(**both, tool_choice="none").choices[0].message.tool_calls, "tool_choice none, and a call")


def schemas():
    class Size(str, Enum):
        small = "small"
        large = "large"

    class Order(BaseModel):
        size: Size
        hot: bool

    order = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Order, max_tokens=200).choices[0].message.parsed
    check(isinstance(order, Order), f"no order: {order}")
    schema = {"name": "pair", "schema": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 2}}
    text = ask(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=100).choices[0].message.content
    check(len(json.loads(text)) == 2, f"no pair: {text}")


def errors():
    try:
        OpenAI(base_url=f"{BASE}/v1", api_key="wrong", max_retries=0).models.list()
        check(False, "a wrong key is not refused")
    except openai.AuthenticationError:
        pass
    refused(openai.BadRequestError, "invent", extra_body={"invent": True})
    refused(openai.BadRequestError, "audio", audio={"voice": "alloy", "format": "wav"})
    refused(openai.BadRequestError, "temperature", temperature=-1)
    refused(openai.BadRequestError, "image_url", messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}])
    refused(openai.NotFoundError, "no-such-model", model="no-such-model")
    error = refused(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 20000}])
    check(error.code == "context_length_exceeded", f"a prompt that is too long has the code {error.code}")
    error = refused(openai.BadRequestError, messages=[])
    check(error.type == "invalid_request_error", f"no messages: {error.body}")


def cancelled():
    stream = ask(stream=True, max_tokens=2000, temperature=1.0, extra_body={"ignore_eos": True})
    for _, _ in zip(range(5), stream):
        pass
    check(busy(BASE)["torchless_running"] == 1, f"while it is streamed: {busy(BASE)}")
    stream.close()
    wait_until(lambda: not any(busy(BASE).values()), "a stream was closed; what it held")


def together():
    async def many():
        async with AsyncOpenAI(base_url=f"{BASE}/v1", api_key=KEY, timeout=120) as others:
            asked = [others.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0.8, seed=i % 4, max_tokens=24)
                     for i in range(16)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]
    alone = [ask(temperature=0.8, seed=seed).choices[0].message.content for seed in range(4)]
    check(asyncio.run(many()) == alone * 4, "answers differ from those of the same requests alone")


CHECKS = [chat, streaming, settings, logprobs, completions, tools, schemas, errors, cancelled, together]
if KNOWS:
    # Its template knows no tools.
    CHECKS.remove(tools)
for run in CHECKS:
    run()
    print(f"openai {openai.__version__}, Python: {run.__name__}", flush=True)
print(f"{len(CHECKS)} passed, 0 failed")
