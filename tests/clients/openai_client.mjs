// The official `openai` package of npm against a server: node openai_client.mjs BASE_URL API_KEY
import OpenAI from "openai";

const [base, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Name the capital of France." }];
const ask = (settings) => client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 24, ...settings });
const lamp = {
  type: "function",
  function: {
    name: "lamp",
    description: "Turns a lamp on or off",
    // Every value is short, whatever the model thinks of it: the JSON ends before the limit does.
    parameters: {
      type: "object", additionalProperties: false, required: ["room", "on"],
      properties: { room: { enum: ["hall", "attic"] }, on: { type: "boolean" } },
    },
  },
};

function check(holds, text) {
  if (holds) return;
  console.error(`FAILED: ${text}`);
  process.exit(1);
}

async function refused(kind, promise, words) {
  const error = await promise.then(() => null, (error) => error);
  check(error instanceof kind, `expected ${kind.name}, got ${error}`);
  check(error.message.includes(words), `the error does not say ${words}: ${error.message}`);
}

async function busy() {
  const text = await (await fetch(`${base}/metrics`)).text();
  const values = text.matchAll(/^torchless_(?:running|queued|pages_used) (\S+)$/gm);
  return [...values].map((match) => Number(match[1]));
}

const checks = {
  async chat() {
    const { choices: [choice], usage } = await ask();
    check(["stop", "length"].includes(choice.finish_reason), `finish_reason ${choice.finish_reason}`);
    check(usage.total_tokens === usage.prompt_tokens + usage.completion_tokens, JSON.stringify(usage));
  },

  async streaming() {
    const whole = await ask();
    const stream = client.chat.completions.stream({
      model, messages, temperature: 0, max_tokens: 24, stream_options: { include_usage: true },
    });
    let streamed = "";
    stream.on("content", (delta) => { streamed += delta; });
    check(await stream.finalContent() === whole.choices[0].message.content, "a streamed answer differs from a whole one");
    check(streamed === whole.choices[0].message.content, "the deltas differ from the whole");
    const usage = await stream.totalUsage();
    check(usage.completion_tokens === whole.usage.completion_tokens, JSON.stringify(usage));
  },

  async tools() {
    const settings = { tools: [lamp], tool_choice: "required", max_tokens: 200 };
    const [call] = (await ask(settings)).choices[0].message.tool_calls;
    const { room, on } = JSON.parse(call.function.arguments);
    check(["hall", "attic"].includes(room) && typeof on === "boolean", call.function.arguments);
    const stream = client.chat.completions.stream({ model, messages, temperature: 0, ...settings });
    const [streamed] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
    check(streamed.function.arguments === call.function.arguments, `streamed ${streamed.function.arguments}`);
    let rooms = [];
    const runner = client.chat.completions.runTools({
      model, messages, temperature: 0, max_tokens: 100,
      tool_choice: { type: "function", function: { name: "lamp" } },
      tools: [{ type: "function", function: { ...lamp.function, parse: JSON.parse, function: ({ room }) => { rooms.push(room); return "done"; } } }],
    });
    await runner.done();
    check(rooms.length === 1, `the lamp was called ${rooms.length} times`);
  },

  async schema() {
    const schema = { name: "pair", schema: { type: "array", items: { enum: ["a", "b"] }, minItems: 2, maxItems: 2 } };
    const answer = await ask({ response_format: { type: "json_schema", json_schema: schema }, max_tokens: 100 });
    check(JSON.parse(answer.choices[0].message.content).length === 2, answer.choices[0].message.content);
  },

  async logprobs() {
    const { content } = (await ask({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs;
    check(content.every((token) => token.logprob <= 0 && token.top_logprobs.length === 2), JSON.stringify(content[0]));
  },

  async errors() {
    const stranger = new OpenAI({ baseURL: `${base}/v1`, apiKey: "wrong", maxRetries: 0 });
    await refused(OpenAI.AuthenticationError, stranger.models.list(), "401");
    await refused(OpenAI.BadRequestError, ask({ invent: true }), "invent");
    const long = [{ role: "user", content: "word ".repeat(20000) }];
    const error = await ask({ messages: long }).catch((error) => error);
    check(error.code === "context_length_exceeded", `a prompt that is too long has the code ${error.code}`);
  },

  async cancel() {
    const stream = await ask({ stream: true, max_tokens: 2000, ignore_eos: true });
    let seen = 0;
    for await (const _ of stream) if (++seen === 5) break;    // which aborts the request
    for (let tries = 0; (await busy()).some(Boolean); tries += 1) {
      check(tries < 300, `a stream was left; the server still has ${await busy()}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },
};

const names = Object.keys(checks);
for (const name of names) {
  await checks[name]();
  console.log(`openai of npm: ${name}`);
}
console.log(`${names.length} passed, 0 failed`);
