// Clients of the servers that `cargo xtask clients` has started.

import OpenAI from "openai";

const { BROLLY_URL, BROLLY_ENCODER_URL, BROLLY_API_KEY } = process.env;

export const model = "stories";
export const prompt = "Once upon a time";
// Against bare "\t", "\n", "\r" and " ", with which the model likes to fill JSON.
export const terse = { 199: -100, 200: -100, 203: -100, 222: -100 };
export const messages = [{ role: "user", content: "Tell me of a king." }];

export function connect(apiKey = BROLLY_API_KEY, url = BROLLY_URL) {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
}

export const client = connect();
export const encoder = connect(BROLLY_API_KEY, BROLLY_ENCODER_URL);

/** Completes `prompt`, greedily unless told otherwise. */
export function complete(fields = {}) {
  return client.completions.create({ model, prompt, max_tokens: 16, temperature: 0, ...fields });
}

/** The fields of a chat, greedy unless told otherwise. */
export function chat(fields = {}) {
  return { model, messages, max_completion_tokens: 16, temperature: 0, ...fields };
}
