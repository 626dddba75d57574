// OpenAI's Node client against a server: node suite.mjs URL
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const short = { model: "tiny", messages, max_tokens: 24, seed: 1 };
const schema = {
  type: "object",
  properties: { city: { enum: ["Paris", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};
const cities = ["Paris", "Oslo"];

async function chat() {
  const whole = await client.chat.completions.create(short);
  let content = "", reasoning = "", usage;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create({ ...short, ...options })) {
    const delta = chunk.choices[0]?.delta;
    content += delta?.content ?? "";
    reasoning += delta?.reasoning_content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(content, whole.choices[0].message.content);
  assert.equal(reasoning, whole.choices[0].message.reasoning_content ?? "");
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
}

async function structured() {
  const response_format = { type: "json_schema", json_schema: { name: "x", schema, strict: true } };
  const options = { response_format, reasoning_effort: "none", max_tokens: 200 };
  const answer = await client.chat.completions.create({ ...short, ...options });
  assert(cities.includes(JSON.parse(answer.choices[0].message.content).city));
}

async function tools() {
  const tool = { type: "function", function: { name: "weather", parameters: schema } };
  const options = {
    tools: [tool], tool_choice: "required", parallel_tool_calls: false, reasoning_effort: "none",
    max_tokens: 300,
  };
  const stream = client.chat.completions.stream({ ...short, ...options });
  const [call] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
  assert(cities.includes(JSON.parse(call.function.arguments).city));
}

async function responses() {
  const asked = { model: "tiny", input: "hi", max_output_tokens: 24, seed: 1 };
  const whole = await client.responses.create(asked);
  let text = "";
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole.output_text);
  const later = await client.responses.create({ ...asked, previous_response_id: whole.id });
  assert(later.usage.input_tokens > whole.usage.input_tokens);
}

async function others() {
  const text = await client.completions.create({ model: "tiny", prompt: "The", max_tokens: 5 });
  assert(text.usage.completion_tokens <= 5);
  assert.equal((await client.models.list()).data[0].id, "tiny");
  await assert.rejects(client.chat.completions.create({ ...short, temperature: 9 }), OpenAI.BadRequestError);
  await assert.rejects(client.chat.completions.create({ ...short, model: "x" }), OpenAI.NotFoundError);
}

async function stopped() {
  const stream = await client.chat.completions.create({ ...short, max_tokens: 1500, stream: true });
  for await (const _ of stream) break; // hangs up
}

for (const part of [chat, structured, tools, responses, others, stopped]) {
  await part();
  console.log(part.name);
}
