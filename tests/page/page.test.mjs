// The server's page in Chromium: what it sends, what it shows, and that it asks nobody else.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { PAGE, withHashes } from "./policy.mjs";

const ORIGIN = process.env.BROLLY_URL && new URL(process.env.BROLLY_URL).origin;
const KEY = process.env.BROLLY_KEY;
const PICTURES = process.env.BROLLY_SCREENSHOTS;
const WAIT_MS = 30_000;

test("the policy names the hashes of style and script", () => {
  const page = readFileSync(PAGE, "utf8");
  assert.equal(page, withHashes(page), "run policy.mjs");
});

describe("the page", { skip: !ORIGIN && "BROLLY_URL names no server" }, () => {
  let browser;

  before(async () => {
    const args = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
    const executablePath = process.env.BROLLY_CHROMIUM ?? "/usr/bin/chromium";
    browser = await chromium.launch({ executablePath, args });
  });
  after(() => browser?.close());

  /** Opens the page, hands it to `body`, and holds it to what is true of every visit. */
  async function visit(body, { key = KEY, expected = [], ...options } = {}) {
    const context = await browser.newContext({ viewport: { width: 1360, height: 860 }, ...options });
    const page = await context.newPage();
    page.setDefaultTimeout(WAIT_MS);
    const outside = [], problems = [];
    page.on("request", (request) => {
      const url = new URL(request.url());
      if (url.origin !== ORIGIN && !["data:", "blob:"].includes(url.protocol)) outside.push(url.href);
    });
    page.on("console", (message) => {
      if (!["error", "warning"].includes(message.type())) return;
      const text = `${message.text()} (${message.location().url})`;
      if (!expected.some((pattern) => pattern.test(text))) problems.push(text);
    });
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("dialog", (dialog) => { problems.push(`a dialog: ${dialog.message()}`); dialog.dismiss(); });
    // The page itself is behind the key too; a person's browser asks for it.
    if (KEY) {
      await page.route(`${ORIGIN}/`, (route) =>
        route.continue({ headers: { ...route.request().headers(), authorization: `Bearer ${KEY}` } }));
    }
    if (key) {
      await context.addInitScript((key) => sessionStorage.setItem("brolly.key", JSON.stringify(key)), key);
    }
    await page.goto(`${ORIGIN}/`);
    if (key || !KEY) await page.waitForSelector("#model option", { state: "attached" });
    await body(page);
    assert.deepEqual(outside, [], "requests to other origins");
    assert.deepEqual(problems, [], "console");
    await context.close();
  }

  // Chromium reports the refusal after which the page takes the other route.
  const NO_TEMPLATE = /status of 400 .*\/v1\/chat\/completions/;

  const say = async (page, text) => {
    await page.fill("#prompt", text);
    await page.press("#prompt", "Enter");
  };
  const set = async (page, values) => {
    await page.click("#show-settings");
    for (const [name, value] of Object.entries(values)) await page.fill(`#field-${name}`, String(value));
    await page.click("#show-engine");
  };
  const ended = (page) => page.waitForSelector("#send:visible");
  const picture = async (page, name) => {
    if (!PICTURES) return;
    mkdirSync(PICTURES, { recursive: true });
    await page.screenshot({ path: join(PICTURES, `${name}.png`) });
  };
  /** Answers both routes in the server's place. */
  const pretend = (page, answer) => page.route(/\/v1\/(chat\/)?completions$/, answer);
  const sse = (...chunks) => ({
    contentType: "text/event-stream",
    body: chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("") + "data: [DONE]\n\n",
  });
  const delta = (delta, finish_reason = null) => ({ choices: [{ index: 0, delta, finish_reason }] });

  for (const colorScheme of ["light", "dark"]) {
    test(`an answer streams in (${colorScheme})`, () => visit(async (page) => {
      await page.evaluate(() => {
        window.lengths = new Set();
        new MutationObserver(() => {
          const body = document.querySelector(".assistant .body");
          if (body?.textContent) window.lengths.add(body.textContent.length);
        }).observe(document.getElementById("log"), { childList: true, subtree: true, characterData: true });
      });
      await set(page, { max_tokens: 96 });
      await say(page, "Once upon a time there was a little girl who");
      await ended(page);
      const steps = await page.evaluate(() => window.lengths.size);
      assert.ok(steps > 1, `the answer was seen in ${steps} lengths`);
      const foot = await page.textContent(".assistant .foot span");
      assert.match(foot, /\d+ prompt tokens.* \d+ new · TTFT [\d.]+ m?s · [\d.,]+ tokens\/s/);
      await page.waitForTimeout(1200);
      await picture(page, `answer-${colorScheme}`);
    }, { colorScheme, expected: [NO_TEMPLATE] }));
  }

  test("stop ends the answer and keeps what came", () => visit(async (page) => {
    const stats = await page.evaluate(() => call("stats").then((response) => response.json()));
    await page.route("**/stats", (route) => route.fulfill({ json: stats }));
    // A small model would be done before anybody could stop it.
    const client = await page.context().newCDPSession(page);
    await client.send("Network.enable");
    await client.send("Network.emulateNetworkConditions",
      { offline: false, latency: 0, downloadThroughput: 3000, uploadThroughput: -1 });
    await set(page, { max_tokens: 400 });
    await say(page, "Once upon a time");
    await page.waitForFunction(() => document.querySelector(".assistant .body")?.textContent.length > 3);
    const failed = page.waitForEvent("requestfailed", (request) => request.url().endsWith("completions"));
    await Promise.all([failed, page.click("#stop")]);
    await ended(page);
    assert.ok((await page.textContent(".assistant .body")).length > 3);
    assert.match(await page.textContent(".assistant .foot span"), /stopped/);
  }, { expected: [NO_TEMPLATE] }));

  test("settings are sent as set, and what is empty is left out", () => visit(async (page) => {
    const bodies = [];
    await pretend(page, (route) => {
      bodies.push(route.request().postDataJSON());
      return route.fulfill(sse(delta({ content: "Yes." }, "stop")));
    });
    await say(page, "First");
    await ended(page);
    const model = await page.inputValue("#model");
    const stream = { model, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
    assert.deepEqual(bodies.pop(), { ...stream, messages: [{ role: "user", content: "First" }] });
    const values = { temperature: 0.7, top_p: 0.9, top_k: -1, min_p: 0.05, max_tokens: 33, seed: 42,
      repetition_penalty: 1.1, presence_penalty: -0.5, frequency_penalty: 2 };
    await set(page, { ...values, system: "Be brief.", stop: "END\n\\n\\n" });
    await page.click("#show-settings");
    await picture(page, "settings");
    await say(page, "Second");
    await ended(page);
    assert.deepEqual(bodies.pop(), { ...stream, ...values, stop: ["END", "\n\n"], messages: [
      { role: "system", content: "Be brief." }, { role: "user", content: "First" },
      { role: "assistant", content: "Yes." }, { role: "user", content: "Second" }] });
    for (const [name, value] of [["temperature", "2.5"], ["top_p", "0"], ["min_p", "-1"], ["top_k", "1.5"]]) {
      await page.fill(`#field-${name}`, value);
      await say(page, "Third");
      await page.waitForTimeout(100);
      assert.equal(bodies.length, 0, `${name} = ${value} was sent`);
      await page.fill(`#field-${name}`, "");
    }
  }));

  test("the last message can be edited, the last answer made anew, and all of it saved", () => visit(async (page) => {
    const asked = [];
    await pretend(page, (route) => {
      asked.push(route.request().postDataJSON().messages.map((m) => m.content).join("|"));
      return route.fulfill(sse(delta({ content: `Answer ${asked.length}` }, "stop")));
    });
    await say(page, "One");
    await ended(page);
    await page.click("text=Regenerate");
    await ended(page);
    await page.click("text=Edit");
    await page.fill(".edit >> xpath=../textarea", "Two");
    await page.click(".edit button.main");
    await ended(page);
    assert.deepEqual(asked, ["One", "One", "Two"]);
    assert.equal(await page.textContent(".assistant .body"), "Answer 3");
    await page.reload();
    assert.equal(await page.textContent(".assistant .body"), "Answer 3", "kept by the tab");
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
    const saved = JSON.parse(readFileSync(await download.path(), "utf8"));
    assert.deepEqual(saved.messages.map(({ role, content }) => [role, content]), [["user", "Two"], ["assistant", "Answer 3"]]);
    await page.click("#new");
    assert.equal(await page.locator(".message").count(), 0);
  }));

  test("text of models is never markup", () => visit(async (page) => {
    const bad = "<img src=x onerror=alert(1)><script>alert(2)</script> [a](javascript:alert(3)) **b** `<i>c</i>` ![p](https://example.com/p.png)\n\n```html\n<b>d</b>\n```\n\n- e\n  - f\n\n| <u>g</u> | h |\n|---|---|\n| 1 | 2 |";
    await pretend(page, (route) => route.fulfill(sse(delta({ reasoning_content: "<b>why</b>" }), delta({ content: bad }, "stop"))));
    await say(page, "<b>me</b>");
    await ended(page);
    const count = (tag) => page.locator(`.message ${tag}`).count();
    for (const tag of ["img", "script", "b", "u", "i", "a[href^=javascript]"]) assert.equal(await count(tag), 0, tag);
    for (const tag of ["strong", "pre", "table", "li li", "a[href='https://example.com/p.png']"]) assert.equal(await count(tag), 1, tag);
    assert.equal(await page.locator(".reasoning").getAttribute("open"), null, "reasoning is folded");
    assert.equal(await page.textContent(".reasoning div"), "<b>why</b>");
    assert.equal(await page.textContent(".user .body"), "<b>me</b>");
    const isRefused = await page.evaluate(() => {
      try { document.createElement("p").innerHTML = "x"; return false; } catch { return true; }
    });
    assert.ok(isRefused, "the policy forbids markup from text");
    await picture(page, "markdown");
  }, { expected: [/TrustedHTML/] }));

  test("a model without a chat template has its text continued", () => visit(async (page) => {
    const prompts = [];
    await page.route("**/v1/chat/completions", (route) => route.fulfill({ status: 400, json: { error: {
      message: "the model has no chat template, so it takes no messages; use `/v1/completions`",
      type: "invalid_request_error", param: null, code: "model_not_supported" } } }));
    await page.route("**/v1/completions", (route) => {
      prompts.push(route.request().postDataJSON().prompt);
      return route.fulfill(sse({ choices: [{ index: 0, text: " b", finish_reason: "length" }] }));
    });
    await say(page, "a");
    await ended(page);
    await page.waitForSelector("#mode:visible");
    await say(page, "");
    await ended(page);
    assert.deepEqual(prompts, ["a", "a b"]);
  }, { expected: [NO_TEMPLATE] }));

  test("errors of the server are shown as they are", () => visit(async (page) => {
    const error = { message: "256 requests wait <already>", type: "rate_limit_error", param: null, code: "queue_full" };
    await pretend(page, (route) => route.fulfill({ status: 429, headers: { "Retry-After": "3" }, json: { error } }));
    await say(page, "a");
    await ended(page);
    const shown = ["429 rate_limit_error", error.message, "code: queue_full · try again after 3 s"];
    assert.equal(await page.textContent(".assistant .error"), shown.join(""));
    await page.unroute(/\/v1\/(chat\/)?completions$/);
    await pretend(page, (route) => route.fulfill(sse(delta({ content: "part" }), { error: { message: "it broke", type: "server_error" } })));
    await page.click("button:text-is('Try again')");
    await ended(page);
    assert.equal(await page.textContent(".assistant .body"), "part");
    assert.match(await page.textContent(".assistant .error"), /server_error.*it broke/);
    await picture(page, "error");
  }, { expected: [/status of 429/] }));

  test("a 401 opens the field for the key, and the key goes with every call", () => visit(async (page) => {
    const isRight = (request) => request.headers().authorization === "Bearer se cret";
    const guard = (route) => isRight(route.request()) ? route.fallback() : route.fulfill({ status: 401,
      json: { error: { message: "an API key is needed", type: "invalid_request_error", code: "invalid_api_key" } } });
    await page.evaluate(() => sessionStorage.removeItem("brolly.key"));
    for (const path of ["**/stats", "**/v1/**"]) {
      await page.route(path, (route) => route.continue({ headers: { ...route.request().headers(), ...(KEY && { authorization: `Bearer ${KEY}` }) } }));
      await page.route(path, guard);
    }
    await page.waitForSelector("#key-input:visible");
    assert.equal(await page.textContent("#key .told"), "an API key is needed");
    assert.equal(await page.evaluate(() => document.activeElement.id), "key-input");
    await picture(page, "key");
    await page.keyboard.type("se cret");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#state.ready");
    assert.equal(await page.isVisible("#key"), false);
  }, { expected: [/status of 401/] }));

  test("the engine is seen at work", () => visit(async (page) => {
    await page.waitForSelector("#live:visible");
    const cell = (name) => page.locator(`#numbers tr:has(th:text-is("${name}")) td`).last().textContent();
    const tokens = async () => Number((await cell("new tokens")).replaceAll(",", ""));
    const before = await tokens();
    let polls = 0;
    page.on("request", (request) => { polls += request.url().endsWith("/stats"); });
    await page.waitForTimeout(3000);
    assert.ok(polls >= 3 && polls <= 7, `${polls} polls in three seconds`);
    await set(page, { max_tokens: 32 });
    await say(page, "The sun was");
    await ended(page);
    await page.waitForTimeout(1500);
    assert.ok(await tokens() > before);
    assert.match(await cell("TTFT p50"), /s$/);
    const stats = await page.evaluate(() => call("stats").then((response) => response.json()));
    const label = await page.getAttribute("#blocks", "aria-label");
    assert.ok(label.startsWith(`${stats.block_uses.length.toLocaleString("en")} blocks: `), label);
    const legend = await page.locator("#legend b").allTextContents();
    const sum = legend.reduce((sum, text) => sum + Number(text.replaceAll(",", "")), 0);
    assert.equal(sum, stats.block_uses.length);
  }, { expected: [NO_TEMPLATE] }));

  for (const [name, blocks] of [["few", 16], ["many", 100_000]]) {
    test(`${name} blocks are a map in their colours`, () => visit(async (page) => {
      const stats = await page.evaluate(() => call("stats").then((response) => response.json()));
      const uses = "suc".split("").map((letter) => letter.repeat(blocks / 4)).join("").padEnd(blocks, "f");
      await page.route("**/stats", (route) => route.fulfill({ json: { ...stats, block_uses: uses } }));
      await page.waitForFunction((n) => document.getElementById("scale").textContent.startsWith(n), blocks.toLocaleString("en"));
      const colors = await page.evaluate(() => {
        const canvas = document.getElementById("blocks");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const seen = new Map();
        for (let i = 0; i < data.length; i += 4) {
          if (data[i + 3] === 255) seen.set(data.slice(i, i + 3).join(), (seen.get(data.slice(i, i + 3).join()) ?? 0) + 1);
        }
        const names = ["shared", "used", "cached", "free"];
        const style = getComputedStyle(document.documentElement);
        return names.map((name) => {
          const hex = style.getPropertyValue(`--${name}`).trim();
          return seen.get([1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join()) ?? 0;
        });
      });
      const most = Math.max(...colors);
      assert.ok(colors.every((n) => n > 0.9 * most), `pixels by colour: ${colors}`);
      await picture(page, `blocks-${name}`);
    }));
  }

  test("a phone has room for each part", () => visit(async (page) => {
    await pretend(page, (route) => route.fulfill(sse(delta({ content: `${"word ".repeat(60)}\n\n\`\`\`\n${"x".repeat(200)}\n\`\`\`` }, "stop"))));
    await page.fill("#prompt", "Hello");
    await page.click("#send");
    await ended(page);
    for (const part of ["chat", "engine", "settings"]) {
      await page.click(`#show-${part}`);
      await page.waitForTimeout(700);
      const [content, width] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.equal(content, width, `${part} is wider than the screen`);
      await picture(page, `phone-${part}`);
    }
  }, { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true }));
});
