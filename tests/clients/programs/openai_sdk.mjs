// openai's client: chat completions and responses.

import { z } from "zod";
import * as t from "./trying.mjs";

const [api, library] = t.way.split(" ");
const { default: OpenAI } = await import(library);
const { zodResponseFormat, zodTextFormat } = await import(`${library}/helpers/zod`);
const client = new OpenAI({ baseURL: `${t.base}/v1`, apiKey: "none", maxRetries: 0 });
const Place = z.object({ city: z.string(), country: z.string() });
const user = (content) => ({ role: "user", content });
const declared = { name: "weather", description: "The weather.", parameters: t.SCHEMA, strict: true };

const tool = { type: "function", function: declared };
const asked = (messages, more) => ({ model: "tiny", messages, ...more });
const create = (messages, more) => client.chat.completions.create(asked(messages, more));
const text = (answer) => answer.choices[0].message.content;

const chat = {
  async chat() {
    t.same(text(await create([user(t.HELLO)], { reasoning_effort: "none" })), t.HELLO_SAID);
  },
  async streamed() {
    let said = "";
    for await (const chunk of await create([user(t.HELLO)], { stream: true }))
      said += chunk.choices[0]?.delta.content ?? "";
    t.same(said, t.HELLO_SAID);
  },
  async tools() {
    const { message } = (await create([user(t.WEATHER)], { tools: [tool] })).choices[0];
    await this.after(message);
  },
  async after(message) {
    const [call] = message.tool_calls;
    t.same(JSON.parse(call.function.arguments), { city: "Paris" });
    const result = { role: "tool", tool_call_id: call.id, content: t.RESULT };
    t.same(text(await create([user(t.WEATHER), message, result], { tools: [tool] })), t.WEATHER_SAID);
  },
  async streamed_tools() {
    const stream = client.chat.completions.stream(asked([user(t.WEATHER)], { tools: [tool] }));
    await this.after((await stream.finalChatCompletion()).choices[0].message);
  },
  async structured() {
    const form = { response_format: zodResponseFormat(Place, "place") };
    const answer = await client.chat.completions.parse(asked([user(t.PLACE)], form));
    t.same(answer.choices[0].message.parsed, t.PLACE_SAID);
  },
  async reasoning() {
    const { message } = (await create([user(t.HELLO)], { reasoning_effort: "high" })).choices[0];
    t.same(message.reasoning_content.trim(), t.THOUGHT);
  },
  async sent_back() {
    const form = { response_format: zodResponseFormat(Place, "place") };
    const first = await client.chat.completions.parse(asked([user(t.PLACE)], form));
    const said = first.choices[0].message;
    t.same(text(await create([user(t.PLACE), said, user(t.AGAIN)])), t.AGAIN_SAID);
    const runner = client.chat.completions.runTools(
      asked([user(t.WEATHER)], {
        tools: [{ type: "function", function: { ...declared, function: () => t.RESULT, parse: JSON.parse } }],
      }),
    );
    t.same(await runner.finalContent(), t.WEATHER_SAID);
  },
  async prediction() {
    const prediction = { type: "content", content: t.HELLO_SAID };
    const answer = await create([user(t.HELLO)], { prediction, reasoning_effort: "none" });
    t.same(text(answer), t.HELLO_SAID);
    t.holds(answer.usage.completion_tokens_details.accepted_prediction_tokens);
  },
  async custom_tools() {
    const grammar = { syntax: "lark", definition: t.GRAMMAR };
    const custom = { name: "weather", format: { type: "grammar", grammar } };
    const tools = [{ type: "custom", custom }];
    const tool_choice = { type: "custom", custom: { name: "weather" } };
    const { message } = (await create([user(t.WEATHER)], { tools, tool_choice })).choices[0];
    const [call] = message.tool_calls;
    t.holds(t.INPUT.test(call.custom.input));
    const result = { role: "tool", tool_call_id: call.id, content: t.RESULT };
    t.same(text(await create([user(t.WEATHER), message, result], { tools })), t.WEATHER_SAID);
    let said = "";
    for await (const chunk of await create([user(t.WEATHER)], { tools, tool_choice, stream: true }))
      for (const part of chunk.choices[0]?.delta.tool_calls ?? []) said += part.custom.input;
    t.holds(t.INPUT.test(said));
  },
  async embeddings() {
    const { data } = await client.embeddings.create({ model: "tiny", input: [t.HELLO, t.PLACE] });
    t.same(data.length, 2);
    t.holds(Math.abs(data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3);
  },
  async models() {
    t.same((await client.models.list()).data[0].id, "tiny");
    t.same((await client.models.retrieve("tiny")).id, "tiny");
  },
};

const flat = { type: "function", ...declared };
const respond = (input, more) => client.responses.create({ model: "tiny", input, ...more });

const responses = {
  async chat() {
    t.same((await respond(t.HELLO, { reasoning: { effort: "none" } })).output_text, t.HELLO_SAID);
  },
  async streamed() {
    let said = "";
    for await (const event of await respond(t.HELLO, { stream: true }))
      if (event.type === "response.output_text.delta") said += event.delta;
    t.same(said, t.HELLO_SAID);
  },
  async tools() {
    await this.after(await respond(t.WEATHER, { tools: [flat] }));
  },
  async after(first) {
    const call = first.output.find((item) => item.type === "function_call");
    t.same(JSON.parse(call.arguments), { city: "Paris" });
    const result = { type: "function_call_output", call_id: call.call_id, output: t.RESULT };
    const last = await respond([user(t.WEATHER), ...first.output, result], { tools: [flat] });
    t.same(last.output_text, t.WEATHER_SAID);
  },
  async streamed_tools() {
    const stream = client.responses.stream({ model: "tiny", input: t.WEATHER, tools: [flat] });
    await this.after(await stream.finalResponse());
  },
  async structured() {
    const text = { format: zodTextFormat(Place, "place") };
    const answer = await client.responses.parse({ model: "tiny", input: t.PLACE, text });
    t.same(answer.output_parsed, t.PLACE_SAID);
  },
  async custom_tools() {
    const format = { type: "grammar", syntax: "lark", definition: t.GRAMMAR };
    const tools = [{ type: "custom", name: "weather", format }];
    const asked = { tools, tool_choice: { type: "custom", name: "weather" } };
    const stream = client.responses.stream({ model: "tiny", input: t.WEATHER, ...asked });
    for (const first of [await respond(t.WEATHER, asked), await stream.finalResponse()]) {
      const call = first.output.find((item) => item.type === "custom_tool_call");
      t.holds(t.INPUT.test(call.input));
      const result = { type: "custom_tool_call_output", call_id: call.call_id, output: t.RESULT };
      const last = await respond([user(t.WEATHER), ...first.output, result], { tools });
      t.same(last.output_text, t.WEATHER_SAID);
    }
  },
  async reasoning() {
    const answer = await respond(t.HELLO, { reasoning: { effort: "high", summary: "auto" } });
    t.holds(JSON.stringify(answer.output[0]).includes(t.THOUGHT));
  },
  async sent_back() {
    const text = { format: zodTextFormat(Place, "place") };
    const first = await client.responses.parse({ model: "tiny", input: t.PLACE, text });
    const items = [user(t.PLACE), ...first.output, user(t.AGAIN)];
    t.same((await respond(items)).output_text, t.AGAIN_SAID);
    const last = await respond(t.AGAIN, { previous_response_id: first.id });
    t.same(last.output_text, t.AGAIN_SAID);
  },
};

await t.run({ chat, responses }[api]);
