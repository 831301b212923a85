import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { client, complete, connect, encoder, model, prompt } from "./clients.mjs";

test("models are listed and retrieved", async () => {
  const names = [];
  for await (const each of client.models.list()) names.push(each.id);
  assert.deepEqual(names, [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("an answer has OpenAI's shape", async () => {
  const answer = await complete();
  assert.equal(answer.object, "text_completion");
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 16);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 16);
});

test("streamed text joined is the text", async () => {
  for (const seed of [1, 2, 3]) {
    const fields = { temperature: 2, seed, max_tokens: 48 };
    let text = "";
    for await (const chunk of await complete({ stream: true, ...fields })) {
      text += chunk.choices[0].text;
    }
    assert.equal(text, (await complete(fields)).choices[0].text);
  }
});

test("a last chunk tells the usage", async () => {
  const fields = { stream: true, stream_options: { include_usage: true } };
  let last;
  for await (const chunk of await complete(fields)) last = chunk;
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, 16);
});

test("token ids, lists and n", async () => {
  const { choices } = await complete({ prompt: [prompt, "The king"], n: 2 });
  assert.deepEqual(choices.map((choice) => choice.index), [0, 1, 2, 3]);
  assert.equal(choices[0].text, choices[1].text);
  assert.notEqual(choices[1].text, choices[2].text);
  const byIds = await complete({ prompt: [[5, 6, 7], [8]] });
  assert.equal(byIds.choices.length, 2);
});

test("echo with logprobs scores a prompt", async () => {
  const { choices } = await complete({ echo: true, logprobs: 1, max_tokens: 0 });
  assert.equal(choices[0].text, prompt);
  const [first, ...rest] = choices[0].logprobs.token_logprobs;
  assert.equal(first, null);
  assert.ok(rest.length > 0 && rest.every((logprob) => logprob < 0));
});

test("stop and seed", async () => {
  const whole = (await complete()).choices[0].text;
  const stop = whole.slice(8, 12);
  const { text, finish_reason } = (await complete({ stop })).choices[0];
  assert.equal(text, whole.slice(0, whole.indexOf(stop)));
  assert.equal(finish_reason, "stop");
  const sampled = () => complete({ temperature: 1, seed: 5 });
  assert.equal((await sampled()).choices[0].text, (await sampled()).choices[0].text);
});

test("embeddings are the same in every format", async () => {
  const fields = { model: "encoder", input: ["hello", "the cat"] };
  const asDefault = await encoder.embeddings.create(fields);
  const asFloat = await encoder.embeddings.create({ ...fields, encoding_format: "float" });
  assert.equal(asFloat.data.length, 2);
  for (const [index, { embedding }] of asFloat.data.entries()) {
    assert.ok(embedding.length > 0);
    const rounded = [...new Float32Array(embedding)];
    assert.deepEqual([...asDefault.data[index].embedding], rounded);
  }
});

test("errors have their types", async () => {
  const refused = (type, param) => (error) => error instanceof type && error.param === param;
  for (const [param, value] of [["temperature", 3], ["top_p", 0], ["bogus", 1]]) {
    const isNamed = refused(OpenAI.BadRequestError, param);
    await assert.rejects(complete({ [param]: value }), isNamed);
  }
  await assert.rejects(complete({ model: "nobody" }), refused(OpenAI.NotFoundError, "model"));
  await assert.rejects(connect("wrong").models.list(), OpenAI.AuthenticationError);
  await assert.rejects(client.files.list(), OpenAI.NotFoundError);
});

test("a stream that is given up leaves the server healthy", async () => {
  const fields = { stream: true, max_tokens: 480, ignore_eos: true };
  for await (const chunk of await complete(fields)) {
    assert.ok(chunk.id);
    break;
  }
  assert.equal((await complete()).usage.completion_tokens, 16);
});
