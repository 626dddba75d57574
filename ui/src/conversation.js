// A conversation is a tree of messages; what is shown is the path from its root to `leaf`.
//
// Several tabs may have copies of one conversation. Every message, and of the conversation itself
// the title, the system prompt and the leaf, carries the version it has and the tab that made it.
// No two changes have the same pair, so "the later one" is well defined whatever the order in
// which copies meet: `join` is commutative, associative and idempotent, and forgets no message.

export const uid = () => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("");
// randomUUID is missing on plain http other than localhost

export const TAB = uid(); // this load of the page
const FIELDS = ["title", "system", "leaf"];

const isLater = ([n = 0, by = ""] = [], [m = 0, other = ""] = []) => n > m || (n === m && by > other);

/** The later of two states of one message. */
export const later = (a, b) => (isLater([b.version, b.by], [a.version, a.by]) ? b : a);

/** A conversation without its messages. A deleted one stays deleted. */
export function joinHeads(a, b) {
  if (a.removed || b.removed) return { id: a.id, removed: true };
  const head = headOf(a);
  head.updated = Math.max(a.updated, b.updated);
  for (const name of FIELDS) {
    if (!isLater(b.stamps[name], a.stamps[name])) continue;
    head[name] = b[name];
    head.stamps[name] = b.stamps[name];
  }
  return head;
}

/** What two copies of a conversation know together. */
export function join(a, b) {
  const nodes = { ...a.nodes };
  for (const node of Object.values(b.nodes)) nodes[node.id] = nodes[node.id] ? later(nodes[node.id], node) : node;
  return { ...joinHeads(a, b), nodes };
}

export const headOf = ({ id, title, system, leaf, updated, stamps }) => ({ id, title, system, leaf, updated, stamps: { ...stamps } });

const unsaved = new WeakMap(); // conversation -> the messages that changed since they were stored

/** The messages that are to be stored, once: who takes them stores them or puts them back. */
export function takeUnsaved(conversation) {
  const nodes = unsavedOf(conversation);
  unsaved.delete(conversation);
  return nodes;
}

export const unsavedOf = (conversation) => [...(unsaved.get(conversation) ?? [])];

export function putBack(conversation, nodes) {
  unsaved.set(conversation, new Set([...unsavedOf(conversation), ...nodes]));
}

/** A message was changed here. */
export function touch(conversation, node) {
  node.version = (node.version ?? 0) + 1;
  node.by = TAB;
  putBack(conversation, [node]);
}

export function setField(conversation, name, value) {
  conversation.stamps[name] = [(conversation.stamps[name]?.[0] ?? 0) + 1, TAB];
  conversation[name] = value;
}

export function newConversation(system, id = uid()) {
  const conversation = { id, title: "", system: "", leaf: null, updated: Date.now(), stamps: {}, nodes: {} };
  if (system) setField(conversation, "system", system);
  return conversation;
}

export function addNode(conversation, parent, fields) {
  const node = { id: uid(), parent, time: Date.now(), content: "", ...fields };
  conversation.nodes[node.id] = node;
  touch(conversation, node);
  setField(conversation, "leaf", node.id);
  conversation.updated = Date.now();
  if (!conversation.title && node.role === "user") {
    const title = node.content.trim().replace(/\s+/g, " ");
    setField(conversation, "title", title.length > 60 ? `${title.slice(0, 59)}…` : title);
  }
  return node;
}

/** The messages from the first to `leaf`. */
export function path({ nodes, leaf: shown }, leaf = shown) {
  const found = [];
  for (let id = leaf; nodes[id]; id = nodes[id].parent) found.push(nodes[id]);
  return found.reverse();
}

const byTime = (a, b) => a.time - b.time || (a.id < b.id ? -1 : 1);

const children = (conversation, parent) =>
  Object.values(conversation.nodes).filter((node) => node.parent === parent).sort(byTime);

/** The versions of a message; an attempt that gave nothing is none once there is another. */
export function siblings(conversation, node) {
  const all = children(conversation, node.parent);
  return all.filter((other) => other === node || !isEmptyFailure(other));
}

/** What another tab knows. The view stays where it is, unless the talk went on from there. */
export function receive(conversation, other) {
  const { leaf } = conversation;
  Object.assign(conversation, join(conversation, other));
  if (leaf && !path(conversation).some((node) => node.id === leaf)) setField(conversation, "leaf", leaf);
}

/** Show another version of a message, and what followed it last. */
export function showVersion(conversation, node) {
  let id = node.id;
  for (let next; (next = children(conversation, id).at(-1)); ) id = next.id;
  setField(conversation, "leaf", id);
}

/** A conversation of its own that has the messages up to this one. */
export function fork(conversation, leaf) {
  return withNodes(conversation, structuredClone(path(conversation, leaf)), leaf);
}

/** Under a new name, with all that it has still to be stored. */
export function renew(conversation) {
  conversation.id = uid();
  putBack(conversation, Object.values(conversation.nodes));
}

/** A new conversation that has these messages, all of them still to be stored. */
function withNodes({ title, system }, nodes, leaf) {
  const copy = newConversation(system);
  for (const node of nodes) copy.nodes[node.id] = node;
  putBack(copy, nodes);
  setField(copy, "title", title);
  setField(copy, "leaf", leaf);
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
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("this is not JSON");
  }
  const nodes = value?.nodes;
  if (typeof nodes !== "object" || !nodes || (value.leaf && !Object.hasOwn(nodes, value.leaf))) {
    throw new Error("this is not a conversation exported from this page");
  }
  for (const [id, node] of Object.entries(nodes)) {
    const known = ["user", "assistant", "tool"].includes(node?.role) && typeof node.content === "string";
    const placed = known && node.id === id && Number.isFinite(node.time) && reachesRoot(nodes, node);
    const lists = placed && ["calls", "tokens", "prompt"].every((name) => Array.isArray((node[name] ??= [])));
    if (!lists) throw new Error("a message in this file is damaged");
    Object.assign(node, { version: 1, by: TAB });
  }
  const { title = "", system = "", leaf = null } = value;
  return withNodes({ title: String(title), system: String(system) }, Object.values(nodes), leaf);
}

function reachesRoot(nodes, node) {
  let steps = Object.keys(nodes).length;
  let id = node.parent;
  while (id !== null && Object.hasOwn(nodes, id) && steps-- > 0) id = nodes[id].parent;
  return id === null;
}
