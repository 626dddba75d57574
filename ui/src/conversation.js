// A conversation is a tree of messages; what is shown is the path from its root to `leaf`.

export const uid = () => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("");
// randomUUID is missing on plain http other than localhost

export const newConversation = (system) => ({
  id: uid(), title: "", updated: Date.now(), system, nodes: {}, leaf: null,
});

export function addNode(conversation, parent, fields) {
  const node = { id: uid(), parent, time: Date.now(), content: "", ...fields };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  conversation.updated = Date.now();
  if (!conversation.title && node.role === "user") {
    const title = node.content.trim().replace(/\s+/g, " ");
    conversation.title = title.length > 60 ? `${title.slice(0, 59)}…` : title;
  }
  return node;
}

export function path(conversation, leaf = conversation.leaf) {
  const nodes = [];
  for (let id = leaf; id; id = conversation.nodes[id].parent) nodes.push(conversation.nodes[id]);
  return nodes.reverse();
}

const children = (conversation, parent) =>
  Object.values(conversation.nodes).filter((node) => node.parent === parent);

export const siblings = (conversation, node) => children(conversation, node.parent);

/** Show another version of a message, and what followed it last. */
export function showVersion(conversation, node) {
  let id = node.id;
  for (let next; (next = children(conversation, id).at(-1)); ) id = next.id;
  conversation.leaf = id;
}

/** A conversation of its own that has the messages up to this one. */
export function fork(conversation, leaf) {
  const copy = { ...newConversation(conversation.system), title: conversation.title };
  for (const node of path(conversation, leaf)) copy.nodes[node.id] = structuredClone(node);
  copy.leaf = leaf;
  return copy;
}

export const isEmptyFailure = (node) =>
  node.role === "assistant" && node.state !== "done" && !node.content && !node.calls.length;

/** The messages up to `leaf` as the API takes them. */
export function toMessages(conversation, leaf) {
  const messages = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  for (const node of path(conversation, leaf)) {
    if (isEmptyFailure(node)) continue;
    const message = { role: node.role, content: node.content };
    if (node.reasoning) message.reasoning_content = node.reasoning;
    if (node.calls?.length) {
      message.tool_calls = node.calls.map(({ id, name, arguments: text }) => ({
        id, type: "function", function: { name, arguments: text },
      }));
    }
    if (node.role === "tool") message.tool_call_id = node.callId;
    messages.push(message);
  }
  return messages;
}

/** The model's own text, markup included, into the parts of a message. */
export function parseRaw(raw) {
  let content = raw.replace(/<\|(im_end|end_of_text|endoftext)\|>\s*$/, "");
  let reasoning = "";
  const thought = content.match(/^\s*<think>([\s\S]*?)(?:<\/think>|$)/);
  if (thought) {
    reasoning = thought[1].trim();
    content = content.slice(thought[0].length);
  }
  const calls = [];
  content = content.replace(/<tool_call>([\s\S]*?)<\/tool_call>|<code>([\s\S]*?)<\/code>/g, (_, json, code) => {
    const call = code === undefined ? fromJson(json) : { name: "python", arguments: JSON.stringify({ code: code.trim() }) };
    calls.push({ id: `call${calls.length}`, ...call });
    return "";
  });
  return { reasoning, content: content.trim(), calls };
}

function fromJson(text) {
  try {
    const call = JSON.parse(text);
    return { name: String(call.name), arguments: JSON.stringify(call.arguments ?? {}) };
  } catch {
    return { name: "(not a valid call)", arguments: text.trim() };
  }
}

/** The arguments of a call for people: code as code, JSON indented, anything else as it is. */
export function readable(call) {
  try {
    const value = JSON.parse(call.arguments);
    if (call.name === "python" && typeof value.code === "string") return { language: "python", text: value.code };
    return { language: "json", text: JSON.stringify(value, null, 2) };
  } catch {
    return { language: "text", text: call.arguments };
  }
}

export function toMarkdown(conversation) {
  const parts = [`# ${conversation.title || "Conversation"}`];
  if (conversation.system) parts.push(`**System**\n\n${conversation.system}`);
  for (const node of path(conversation)) {
    if (node.role === "user") parts.push(`## You\n\n${node.content}`);
    else if (node.role === "tool") parts.push(`Result of ${node.name}:\n\n${fenced(node.content, "text")}`);
    else {
      parts.push(`## ${node.model || "Assistant"}`);
      if (node.reasoning) parts.push(`<details><summary>Reasoning</summary>\n\n${node.reasoning}\n\n</details>`);
      if (node.content) parts.push(node.content);
      for (const call of node.calls ?? []) {
        const { language, text } = readable(call);
        parts.push(`Call of ${call.name}:\n\n${fenced(text, language)}`);
      }
    }
  }
  return `${parts.join("\n\n")}\n`;
}

function fenced(text, language) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}${language}\n${text}\n${fence}`;
}

/** A conversation from a file that this page exported; throws an Error that says what is wrong. */
export function fromJSON(text) {
  const value = JSON.parse(text);
  const nodes = value?.nodes;
  if (typeof nodes !== "object" || !nodes || (value.leaf && !nodes[value.leaf])) {
    throw new Error("this is not a conversation exported from this page");
  }
  for (const [id, node] of Object.entries(nodes)) {
    const known = ["user", "assistant", "tool"].includes(node.role) && typeof node.content === "string";
    // A parent is made before its child, so a path cannot go round in circles.
    const placed = node.id === id && (node.parent === null || nodes[node.parent]?.time <= node.time);
    const lists = ["calls", "tokens", "prompt"].every((name) => Array.isArray((node[name] ??= [])));
    if (!known || !placed || !lists || node.parent === id) {
      throw new Error("a message in this file is damaged");
    }
  }
  return { ...newConversation(String(value.system ?? "")), title: String(value.title ?? ""), nodes, leaf: value.leaf ?? null };
}
