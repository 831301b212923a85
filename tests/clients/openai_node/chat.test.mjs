import assert from "node:assert/strict";
import test from "node:test";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { chat, client, terse } from "./clients.mjs";

const { completions } = client.chat;
const Person = z.object({ role: z.enum(["king", "queen"]), age: z.literal([7, 70]) });
const Zone = z.object({ zone: z.enum(["UTC", "CET"]) });
const named = { type: "function", function: { name: "clock" } };
const sampled = { max_completion_tokens: 100, temperature: 1, seed: 1, logit_bias: terse };
const calling = { parallel_tool_calls: false, ...sampled };

test("a message is answered", async () => {
  const answer = await completions.create(chat());
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.choices[0].message.role, "assistant");
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.usage.completion_tokens, 16);
});

test("logprobs tell alternatives", async () => {
  const answer = await completions.create(chat({ logprobs: true, top_logprobs: 2 }));
  const { content } = answer.choices[0].logprobs;
  assert.equal(content.map((each) => each.token).join(""), answer.choices[0].message.content);
  assert.ok(content.every((each) => each.top_logprobs.length === 2));
});

test("the streaming helper puts the answer together", async () => {
  const want = (await completions.create(chat())).choices[0].message.content;
  const stream = completions.stream(chat({ stream_options: { include_usage: true } }));
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const whole = await stream.finalChatCompletion();
  assert.equal(text, want);
  assert.equal(whole.choices[0].message.content, want);
  assert.equal((await stream.totalUsage()).completion_tokens, 16);
});

test("schemas are followed and parsed", async () => {
  const response_format = zodResponseFormat(Person, "person");
  const answer = await completions.parse(chat({ response_format, ...sampled }));
  const { message } = answer.choices[0];
  assert.deepEqual(Person.parse(message.parsed), JSON.parse(message.content));
});

test("JSON objects", async () => {
  const response_format = { type: "json_object" };
  const answer = await completions.create(chat({ response_format }));
  assert.ok(answer.choices[0].message.content.trimStart().startsWith("{"));
});

test("calls are parsed", async () => {
  const tools = [zodFunction({ name: "clock", parameters: Zone })];
  for (const tool_choice of [named, "required"]) {
    const answer = await completions.parse(chat({ tools, tool_choice, ...calling }));
    const { finish_reason, message } = answer.choices[0];
    assert.equal(finish_reason, "tool_calls");
    assert.equal(message.tool_calls.length, 1);
    assert.ok(Zone.parse(message.tool_calls[0].function.parsed_arguments));
  }
});

test("calls stream", async () => {
  const tools = [zodFunction({ name: "clock", parameters: Zone })];
  const fields = chat({ tools, tool_choice: named, ...calling });
  const whole = await completions.stream(fields).finalChatCompletion();
  const want = await completions.create(fields);
  const [call, wanted] = [whole, want].map((each) => each.choices[0].message.tool_calls[0]);
  assert.equal(whole.choices[0].finish_reason, "tool_calls");
  assert.equal(call.function.arguments, wanted.function.arguments);
});

test("the tool runner calls and tells the result", async () => {
  const asked = [];
  const clock = { name: "clock", parse: JSON.parse, parameters: z.toJSONSchema(Zone) };
  clock.function = (given) => {
    asked.push(Zone.parse(given));
    return "half past nine";
  };
  const tools = [{ type: "function", function: clock }];
  const runner = completions.runTools(chat({ tools, tool_choice: named, ...calling }));
  await runner.done();
  assert.equal(asked.length, 1);
  const results = runner.messages.filter((message) => message.role === "tool");
  assert.deepEqual(results.map((message) => message.content), ["half past nine"]);
});
