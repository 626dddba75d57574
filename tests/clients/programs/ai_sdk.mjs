// The Vercel AI SDK, by its providers.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import * as t from "./trying.mjs";

const at = { baseURL: `${t.base}/v1`, apiKey: "none" };
const compatible = createOpenAICompatible({
  ...at, name: "ours", includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI(at);
const model = {
  "openai": () => openai("tiny"),
  "openai chat": () => openai.chat("tiny"),
  "openai-compatible": () => compatible("tiny"),
  "anthropic": () => createAnthropic(at)("tiny"),
}[t.way]();
const providerOptions = {
  anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } },
  ours: { reasoningEffort: "high" },
  openai: { reasoningEffort: "high", reasoningSummary: "auto", forceReasoning: true },
};
const weather = tool({
  description: "The weather.",
  inputSchema: jsonSchema(t.SCHEMA),
  execute: async ({ city }) => (t.same(city, "Paris"), t.RESULT),
});
const asked = (prompt, more) => ({ model, prompt, maxRetries: 0, ...more });
const looped = { tools: { weather }, stopWhen: stepCountIs(3) };
const output = Output.object({ schema: z.object({ city: z.string(), country: z.string() }) });
const answers = (messages) =>
  generateText({ model, maxRetries: 0, messages: [...messages, { role: "user", content: t.AGAIN }] });

await t.run({
  async chat() {
    t.same((await generateText(asked(t.HELLO))).text, t.HELLO_SAID);
  },
  async streamed() {
    t.same(await streamText(asked(t.HELLO)).text, t.HELLO_SAID);
  },
  async tools() {
    t.same((await generateText(asked(t.WEATHER, looped))).text, t.WEATHER_SAID);
  },
  async streamed_tools() {
    const kinds = new Set();
    const result = streamText(asked(t.WEATHER, looped));
    for await (const part of result.fullStream) {
      if (part.type === "error") throw part.error;
      kinds.add(part.type);
    }
    t.holds(kinds.has("tool-input-delta") && kinds.has("tool-result"));
    t.same(await result.text, t.WEATHER_SAID);
  },
  async structured() {
    t.same((await generateText(asked(t.PLACE, { output }))).output, t.PLACE_SAID);
    t.same(await streamText(asked(t.PLACE, { output })).output, t.PLACE_SAID);
  },
  async reasoning() {
    const result = await generateText(asked(t.HELLO, { providerOptions }));
    t.same(result.text, t.HELLO_SAID);
    // The provider of chats reads no reasoning.
    if (t.way !== "openai chat") t.holds(result.reasoningText.includes(t.THOUGHT));
  },
  async sent_back() {
    for (const [prompt, more] of [[t.HELLO, {}], [t.WEATHER, looped]]) {
      const first = await generateText(asked(prompt, { ...more, providerOptions }));
      const said = [{ role: "user", content: prompt }, ...first.response.messages];
      t.same((await answers(said)).text, t.AGAIN_SAID);
    }
  },
  async embeddings() {
    const embedding = (t.way === "openai" ? openai : compatible).textEmbeddingModel("tiny");
    t.same((await embedMany({ model: embedding, values: [t.HELLO, t.PLACE] })).embeddings.length, 2);
  },
});
