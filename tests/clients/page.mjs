// The page at / in a real Chromium: node page.mjs BASE_URL API_KEY
// The server asks for the key, and its model is one that answers in sentences. PAGE_PNG=FILE keeps a picture.
import axe from "axe-core";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [base, key] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), "page-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: "/usr/bin/chromium",
  headless: true,
  viewport: { width: 1000, height: 760 },
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
const page = context.pages()[0];
page.setDefaultTimeout(60_000);
const broken = [];
page.on("pageerror", (error) => broken.push(`an exception: ${error.message}`));
page.on("console", (message) => { if (message.type() === "error") broken.push(`the console says: ${message.text()}`); });
page.on("request", (request) => { if (!request.url().startsWith(base) && !request.url().startsWith("data:")) broken.push(`it asks for ${request.url()}`); });

class Failure extends Error {}
function check(holds, text) {
  if (!holds) throw new Failure(text);
}

const message = page.getByRole("textbox", { name: "Message" });
const go = page.locator("#go");
const answers = page.locator("article.assistant");
const status = page.locator("#status");
const idle = () => page.waitForFunction(() => document.getElementById("go").textContent === "Send");
const writing = () => page.waitForFunction(() => document.getElementById("go").textContent === "Stop");
const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.name || document.activeElement.tagName);

/// What the server would have to send for this answer; `cut` breaks it at every byte.
async function answering(events, cut = false) {
  await page.evaluate(([events, cut]) => {
    const real = window.realFetch ??= window.fetch;
    const text = events.map((event) => `data: ${event}\n\n`).join("");
    const bytes = new TextEncoder().encode(cut ? `: a comment\r\n\r\n${text.replaceAll("\n", "\r\n")}` : text);
    const size = cut ? 1 : bytes.length;
    window.fetch = async (path, options) => {
      if (!path.endsWith("/chat/completions")) return real(path, options);
      window.asked = JSON.parse(options.body);
      let at = 0;
      return new Response(new ReadableStream({
        pull(controller) {
          if (at >= bytes.length) return controller.close();
          controller.enqueue(bytes.slice(at, at += size));
        },
      }));
    };
  }, [events, cut]);
}
const delta = (delta, reason = null) => JSON.stringify({ choices: [{ index: 0, delta, finish_reason: reason }] });
const usage = JSON.stringify({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 3, prompt_tokens_details: { cached_tokens: 5 } } });
const real = () => page.evaluate(() => { window.fetch = window.realFetch ?? window.fetch; });

async function accessible(what) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => window.axe.run());
  const found = violations.map(({ id, nodes }) => `${id} (${nodes[0].html})`);
  check(!found.length, `${what}: ${found.join("; ")}`);
}

async function say(text) {
  await message.fill(text);
  await message.press("Enter");
}

const checks = {
  async "one file, its policy names its own style and script"() {
    const response = await context.request.get(base);
    const html = await response.text();
    for (const name of ["script", "style"]) {
      const inside = html.split(`<${name}>`)[1].split(`</${name}>`)[0];
      const hash = `'sha256-${createHash("sha256").update(inside).digest("base64")}'`;
      check(html.includes(`${name}-src ${hash};`), `src/serve/page.html: its policy must say ${name}-src ${hash}`);
    }
    check(response.headers()["content-type"] === "text/html; charset=utf-8", `the page is ${response.headers()["content-type"]}`);
  },

  async "the key: asked for in plain words, kept in this tab only"() {
    await page.goto(base);
    await page.getByText("The server asks for an API key").waitFor();
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByLabel("API key").fill(key);
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.getElementById("model").textContent);
    check(await page.locator("#error").isHidden(), "the complaint stays");
    await page.reload();
    await page.waitForFunction(() => document.getElementById("model").textContent);
    check(!JSON.stringify(await page.evaluate(() => ({ ...localStorage }))).includes(key), "the key is in localStorage");
    // Chromium reports the 401 that was wanted.
    broken.splice(0, Infinity, ...broken.filter((text) => !text.includes("401")));
  },

  async "an answer comes piece by piece, and is measured"() {
    await page.evaluate(() => {
      window.lengths = new Set();
      new MutationObserver(() => window.lengths.add(document.querySelector("article.assistant")?.textContent.length))
        .observe(document.getElementById("log"), { childList: true, subtree: true, characterData: true });
    });
    await page.getByRole("button", { name: "Settings" }).click();
    await page.getByLabel("Temperature").fill("0");
    await page.getByLabel("Most tokens").fill("300");
    await page.getByRole("button", { name: "Done" }).click();
    await say("Write a long story about the sea.");
    await writing();
    check(await page.locator("#log").getAttribute("aria-busy") === "true", "a screen reader would read every piece");
    await idle();
    check(await page.evaluate(() => window.lengths.size) > 4, "the answer came at once");
    const measured = await status.textContent();
    check(/^\d+ tokens · [\d.]+ tokens\/s · first after [\d.]+ s · question of \d+ tokens/.test(measured), `measured: ${measured}`);
    check(await answers.count() === 1 && (await answers.textContent()).length > 20, "no answer");
  },

  async "what was said before is told to the model"() {
    await answering([delta({ content: "Yes." }, "stop"), usage, "[DONE]"]);
    await say("Are you sure?");
    await idle();
    const { messages, stream_options } = await page.evaluate(() => window.asked);
    check(messages.map(({ role }) => role).join() === "user,assistant,user", `told: ${JSON.stringify(messages)}`);
    check(stream_options.include_usage, "no usage is asked for");
    check((await status.textContent()).includes("question of 7 tokens, 5 of them known"), `measured: ${await status.textContent()}`);
    await real();
  },

  async "a new conversation forgets the old one"() {
    await page.getByRole("button", { name: "New conversation" }).click();
    check(await page.locator("article").count() === 0, "the old one is still there");
    check(await focused() === "message", "the cursor is not where one writes");
  },

  async "Escape stops, and what came stays"() {
    await page.evaluate(() => { document.getElementById("settings").querySelector("[name=max_tokens]").value = 2000; });
    await say("Count from one to a thousand, in words.");
    await page.waitForFunction(() => document.querySelector("article.assistant p"));
    await page.keyboard.press("Escape");
    await idle();
    check((await answers.textContent()).endsWith("Stopped."), "it does not say that it was stopped");
    for (let tries = 0; ; tries += 1) {
      const metrics = await (await context.request.get(`${base}/metrics`)).text();
      if (/^torchless_running 0$/m.test(metrics)) break;
      check(tries < 200, "the server still writes what nobody reads");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await page.getByRole("button", { name: "New conversation" }).click();
  },

  async "Markdown, and nothing that it could smuggle in"() {
    const text = "# Title\n\nSome **bold**, *italic*, `code` and [a link](https://example.org/a_(b)).\n"
      + "<img src=x onerror=alert(1)> [bad](javascript:alert(1)) snake_case_name 2 * 3 * 4\n\n"
      + "1. one\n   - inner\n2. two\n\n- a\n- b\n\n```html\n<script>alert(1)</script>\n\n**not bold**\n```\nThe end: é, 漢字, 🔥.";
    const pieces = [...text].map((content) => delta({ content }));
    for (const cut of [false, true]) {
      await answering([delta({ role: "assistant", content: "" }), ...pieces, delta({}, "stop"), usage, "[DONE]"], cut);
      await say("Markdown, please.");
      await idle();
      const shown = answers.last();
      const count = (selector) => shown.locator(selector).count();
      check(await count("img, script, [onerror]") === 0, "the model's HTML became HTML");
      check(await count("a") === 1 && await shown.locator("a").getAttribute("href") === "https://example.org/a_(b)", "the link");
      check((await shown.textContent()).includes("[bad](javascript:alert(1)) snake_case_name 2 * 3 * 4"), "text that is no markup");
      for (const [selector, expected] of [["strong", "bold"], ["em", "italic"], ["p code", "code"], ["[role=heading]", "Title"],
        ["pre", "<script>alert(1)</script>\n\n**not bold**"], ["ol > li > ul > li", "inner"], ["p >> nth=-1", "The end: é, 漢字, 🔥."]]) {
        const found = await shown.locator(selector).textContent();
        check(found === expected, `${selector}: ${found}`);
      }
      check(await count("ol > li") === 2 && await count("div > ul > li") === 2, "the lists");
    }
    const copy = answers.last().locator(".code button");
    await copy.click();
    await copy.filter({ hasText: /Copied|Selected/ }).waitFor();
    await accessible("an answer with Markdown");
  },

  async "reasoning is folded"() {
    await answering([delta({ reasoning_content: "Hm, " }), delta({ reasoning_content: "well." }), delta({ content: "No." }, "length"), usage, "[DONE]"], true);
    await say("Think.");
    await idle();
    const details = answers.last().locator("details");
    check(!await details.evaluate((box) => box.open), "it is open");
    check(await details.locator("div").textContent() === "Hm, well.", "what was thought");
    check((await answers.last().textContent()).includes("the limit of tokens"), "an answer that is cut off does not say so");
  },

  async "errors in plain words, and the question is not lost"() {
    for (const [events, words] of [
      [[delta({ content: "Half" })], "in the middle of the answer"],
      [[JSON.stringify({ error: { message: "The lamp is out." } })], "The lamp is out."],
    ]) {
      await answering(events);
      await say("Is it dark?");
      await idle();
      check((await page.locator("#error").textContent()).includes(words), `it says: ${await page.locator("#error").textContent()}`);
    }
    check(await message.inputValue() === "Is it dark?", "the question is lost");
    for (const [code, words] of [[429, "Try again in 9 seconds"], [503, "does not answer"], [400, "says (400): The lamp"]]) {
      await page.evaluate((status) => {
        window.fetch = async () => new Response('{"error": {"message": "The lamp is out."}}', { status, headers: { "Retry-After": "9" } });
      }, code);
      await say("Is it dark?");
      await idle();
      check((await page.locator("#error").textContent()).includes(words), `${code}: ${await page.locator("#error").textContent()}`);
    }
    await page.evaluate(() => { window.fetch = () => Promise.reject(new TypeError("Failed to fetch")); });
    await say("Is it dark?");
    await idle();
    check(await page.locator("#error").textContent() === "The server cannot be reached.", await page.locator("#error").textContent());
    await real();
  },

  async "by keyboard alone"() {
    await page.reload();
    await page.waitForFunction(() => document.getElementById("model").textContent);
    check(await focused() === "message", "one cannot write at once");
    await page.keyboard.type("one");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("two");
    check(await message.inputValue() === "one\ntwo", "Shift and Enter");
    const order = [];
    for (let i = 0; i < 5; i += 1) {
      await page.keyboard.press("Tab");
      order.push(await focused());
      const ring = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
      check(order.at(-1) === "BODY" || ring === "solid", `no ring around ${order.at(-1)}`);
    }
    check(["go", "new", "open", "log"].every((id) => order.includes(id)), `Tab goes to ${order}`);
    await page.locator("#open").focus();
    await page.keyboard.press("Enter");
    check(await focused() === "system", "the settings do not get the cursor");
    await page.keyboard.type("Be brief.");
    await accessible("the settings");
    await page.keyboard.press("Escape");
    check(await focused() === "open", "the cursor does not come back");
    await answering([delta({ content: "Yes." }, "stop"), usage, "[DONE]"]);
    await message.press("Enter");
    await idle();
    check((await page.evaluate(() => window.asked.messages[0])).content === "Be brief.", "the system prompt is not sent");
    await real();
  },

  async "on a phone, in the light and in the dark"() {
    await answering([delta({ content: `\`\`\`\n${"wide ".repeat(80)}\n\`\`\`\n${"w".repeat(300)}` }, "stop"), usage, "[DONE]"]);
    await say("Something wide.");
    await idle();
    await real();
    for (const size of [{ width: 320, height: 560 }, { width: 640, height: 320 }]) {
      await page.setViewportSize(size);
      const [wide, high] = await page.evaluate(() => [document.scrollingElement.scrollWidth, document.scrollingElement.scrollHeight]);
      check(wide <= size.width && high <= size.height, `the page is ${wide} x ${high} on ${size.width} x ${size.height}`);
      const box = await go.boundingBox();
      check(box.y + box.height <= size.height && box.height >= 40, "the button is out of sight, or small");
    }
    const colours = [];
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      colours.push(await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).reduce((sum, n) => sum + Number(n), 0)));
      await accessible(colorScheme);
    }
    check(colours[0] > 600 && colours[1] < 150, `backgrounds: ${colours}`);
  },
};

async function picture(file) {
  await page.evaluate(() => {
    localStorage.clear();
    localStorage.setItem("torchless.temperature", 0);
  });
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 900, height: 620 });
  await page.reload();
  await page.waitForFunction(() => document.getElementById("model").textContent);
  for (const question of ["Name the capital of France.", "Write a Python function that adds two numbers."]) {
    await say(question);
    await writing();
    await idle();
  }
  await page.screenshot({ path: file });
}

let failed = 0;
try {
  for (const [name, run] of Object.entries(checks)) {
    await run();
    check(!broken.length, broken.join("; "));
    console.log(`the page: ${name}`);
  }
  if (process.env.PAGE_PNG) await picture(process.env.PAGE_PNG);
  console.log(`${Object.keys(checks).length} passed, 0 failed`);
} catch (error) {
  console.error(`FAILED: ${error instanceof Failure ? error.message : error.stack}`);
  failed = 1;
}
await context.close();
rmSync(profile, { recursive: true, force: true });
process.exit(failed);
