// Anthropic's client.

import * as t from "./trying.mjs";

const { default: Anthropic } = await import(t.way);
const client = new Anthropic({ baseURL: t.base, apiKey: "none", maxRetries: 0 });
const user = (content) => ({ role: "user", content });
const tool = { name: "weather", description: "The weather.", input_schema: t.SCHEMA };
const thinking = { type: "enabled", budget_tokens: 1024 };
const asked = (messages, more) => ({ model: "tiny", max_tokens: 2000, messages, ...more });
const create = (messages, more) => client.messages.create(asked(messages, more));
const text = (message) =>
  message.content.flatMap((block) => (block.type === "text" ? [block.text] : [])).join("");

async function after(first, more) {
  const use = first.content.find((block) => block.type === "tool_use");
  t.same(use.input, { city: "Paris" });
  const result = { type: "tool_result", tool_use_id: use.id, content: t.RESULT };
  const said = { role: "assistant", content: first.content };
  const last = await create([user(t.WEATHER), said, user([result])], { tools: [tool], ...more });
  t.same(text(last), t.WEATHER_SAID);
}

await t.run({
  async chat() {
    t.same(text(await create([user(t.HELLO)])), t.HELLO_SAID);
    t.holds((await client.messages.countTokens({ model: "tiny", messages: [user(t.HELLO)] })).input_tokens);
  },
  async streamed() {
    t.same(text(await client.messages.stream(asked([user(t.HELLO)])).finalMessage()), t.HELLO_SAID);
  },
  async tools() {
    await after(await create([user(t.WEATHER)], { tools: [tool] }));
  },
  async streamed_tools() {
    const given = { tools: [tool], thinking };
    const stream = client.messages.stream(asked([user(t.WEATHER)], given));
    let pieces = 0;
    stream.on("inputJson", () => pieces++);
    await after(await stream.finalMessage(), given);
    t.holds(pieces);
  },
  async structured() {
    const schema = {
      type: "object",
      properties: { city: { type: "string" }, country: { type: "string" } },
      required: ["city", "country"],
      additionalProperties: false,
    };
    const output_config = { format: { type: "json_schema", schema } };
    t.same(JSON.parse(text(await create([user(t.PLACE)], { output_config }))), t.PLACE_SAID);
  },
  async reasoning() {
    t.same((await create([user(t.HELLO)], { thinking })).content[0].thinking.trim(), t.THOUGHT);
  },
  async sent_back() {
    const { content } = await create([user(t.HELLO)], { thinking });
    const said = { role: "assistant", content };
    t.same(text(await create([user(t.HELLO), said, user(t.AGAIN)], { thinking })), t.AGAIN_SAID);
  },
  async models() {
    t.same((await client.models.list()).data[0].id, "tiny");
    t.same((await client.models.retrieve("tiny")).id, "tiny");
  },
});
