// The page's state and what can be done to it. Components read `app` and call these functions;
// `redraw` draws what has changed, at most twelve times a second while an answer streams.
import { answerQuestion, ApiError, callTool, chatBody, completionBody, detokenize, models, serverTools, stream } from "./api.js";
import { addNode, fork, isEmptyFailure, newConversation, parseRaw, path, showVersion, siblings, toMessages } from "./conversation.js";
import * as store from "./store.js";

const NO_TOOLS = { tools: [], functions: [], names: [] };
const MOST_STEPS = 10; // answers in a row that call the server's tools

export const app = {
  settings: store.loadSettings(),
  models: [],
  model: null,
  server: NO_TOOLS, // what the server runs itself
  allowed: new Set(), // "conversation name" of calls that are not asked about again
  problem: null, // why there is no model
  heads: [],
  conversation: null,
  running: new Map(), // id of a conversation -> {node, controller}
  said: "", // for screen readers
  panel: null, // "settings", "help" or "list" (the list on a phone)
};

let draw = () => {};
let timer = 0;
export const onRedraw = (callback) => (draw = callback);
export function redraw() {
  clearTimeout(timer);
  timer = 0;
  draw();
}
const redrawSoon = () => (timer ||= setTimeout(redraw, 80));

const touch = (node) => (node.version = (node.version ?? 0) + 1);
const running = () => app.running.get(app.conversation.id);
export const isRunning = () => Boolean(app.conversation && running());

export function set(name, value) {
  app.settings = { ...app.settings, [name]: value };
  store.saveSettings(app.settings);
  if (name === "theme") showTheme();
  redraw();
}

export function showTheme() {
  const { theme } = app.settings;
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export function say(text) {
  app.said = text;
  redrawSoon();
}

export async function connect() {
  app.problem = null;
  redraw();
  try {
    app.models = await models(app.settings.key);
    app.model = app.models.find((model) => model.id === app.settings.model) ?? app.models[0] ?? null;
    if (!app.model) app.problem = { message: "The server has no model." };
    app.server = await serverTools(app.settings.key);
  } catch (error) {
    app.problem = error;
  }
  document.title = app.model?.id ?? "SmolLM3";
  redraw();
}

export async function start() {
  document.addEventListener("visibilitychange", () => {
    // The page may be closed without another word: what came so far is kept.
    if (document.hidden) for (const { conversation } of app.running.values()) keep(conversation);
  });
  showTheme();
  app.conversation = newConversation(app.settings.system);
  connect();
  try {
    app.heads = await store.heads();
    const id = location.hash.slice(1);
    if (id && app.heads.some((head) => head.id === id)) await openConversation(id);
  } catch {
    say("This browser keeps no conversations; export what you need.");
  }
  redraw();
}

// Conversations ------------------------------------------------------------------------------

export function startConversation() {
  app.conversation = newConversation(app.settings.system);
  history.replaceState(null, "", location.pathname);
  app.panel = null;
  redraw();
  document.querySelector("#prompt")?.focus();
}

export async function openConversation(id) {
  const live = app.running.get(id)?.conversation;
  app.conversation = live ?? (await store.load(id)) ?? app.conversation;
  history.replaceState(null, "", `#${app.conversation.id}`);
  app.panel = null;
  redraw();
}

export async function keep(conversation = app.conversation) {
  const { id, title, updated } = conversation;
  app.heads = [{ id, title, updated }, ...app.heads.filter((head) => head.id !== id)];
  app.heads.sort((a, b) => b.updated - a.updated);
  if (conversation === app.conversation) history.replaceState(null, "", `#${id}`);
  redraw();
  try {
    await store.save(conversation);
  } catch {
    say("This conversation could not be kept in the browser.");
  }
}

export async function rename(id, title) {
  const conversation = id === app.conversation.id ? app.conversation : await store.load(id);
  conversation.title = title;
  await keep(conversation);
}

export async function removeConversation(id) {
  app.running.get(id)?.controller.abort();
  app.heads = app.heads.filter((head) => head.id !== id);
  if (app.conversation.id === id) startConversation();
  redraw();
  await store.remove(id);
}

export async function adopt(conversation) {
  app.conversation = conversation;
  app.panel = null;
  await keep();
}

export const forkAt = (node) => adopt(fork(app.conversation, node.id));

export function setSystem(text) {
  app.conversation.system = text;
  set("system", text);
  if (app.conversation.leaf) keep();
}

export function showSibling(node, step) {
  const all = siblings(app.conversation, node);
  showVersion(app.conversation, all[all.indexOf(node) + step]);
  keep();
}

// Answers ------------------------------------------------------------------------------------

export function send(text, parent = app.conversation.leaf) {
  const node = addNode(app.conversation, parent, { role: "user", content: text });
  return answer(node.id);
}

/** Another answer to the same messages. */
export function retry(node) {
  if (isEmptyFailure(node)) delete app.conversation.nodes[node.id];
  return answer(node.parent);
}

/** The result of a call that no one else makes. */
export function giveResult(assistant, results) {
  let parent = assistant.id;
  assistant.calls.forEach((call, i) => {
    parent = addNode(app.conversation, parent, {
      role: "tool", name: call.name, callId: call.id, content: results[i],
    }).id;
  });
  return answer(parent);
}

/** The server's tools, where they are switched on. */
const offered = () => (app.settings.server_tools ? app.server : NO_TOOLS);

/** Have the server make the calls of an answer, and answer their results, unless some are not its. */
async function serve(conversation, node, steps) {
  const { calls } = node;
  if (!calls.length || node.state !== "done" || node.finish === "length") return;
  if (!calls.every((call) => offered().names.includes(call.name))) return;
  const controller = new AbortController();
  app.running.set(conversation.id, { conversation, node, controller });
  delete node.unserved;
  let parent = node.id;
  try {
    for (const call of calls) {
      node.running = call.id;
      say(`Running ${call.name}.`);
      const { content, ok } = await result(conversation, node, call, controller.signal);
      parent = addNode(conversation, parent, { role: "tool", name: call.name, callId: call.id, content, ok }).id;
    }
  } catch (error) {
    node.unserved = error.name === "AbortError" ? "The call was stopped." : error.message;
  }
  delete node.running;
  delete node.question;
  app.running.delete(conversation.id);
  touch(node);
  await keep(conversation);
  if (!node.unserved && steps < MOST_STEPS) await answer(parent, conversation, steps + 1);
}

async function result(conversation, node, call, signal) {
  let args;
  try {
    args = JSON.parse(call.arguments);
  } catch {
    args = null;
  }
  if (typeof args !== "object" || !args) return { content: "Error: the arguments are not a JSON object", ok: false };
  for await (const event of callTool(call, conversation.id, app.settings.key, signal)) {
    if (event.type === "result") return event;
    if (app.allowed.has(`${conversation.id} ${event.name}`)) {
      await answerQuestion(event.id, true, app.settings.key);
      continue;
    }
    node.question = event;
    touch(node);
    say(`May ${event.name} be called?`);
  }
  throw new ApiError("The server did not say what the call gave.");
}

/** What the user says to a question; "always" holds for this tool in this conversation. */
export async function decide(node, decision) {
  const { id, name } = node.question;
  if (decision === "always") app.allowed.add(`${app.conversation.id} ${name}`);
  delete node.question;
  touch(node);
  redraw();
  try {
    await answerQuestion(id, decision !== false, app.settings.key);
  } catch (error) {
    say(error.message); // it waits no longer
  }
}

export const stop = () => running()?.controller.abort();

function newAnswer(conversation, parent, fields) {
  return addNode(conversation, parent, {
    role: "assistant", model: app.model.id, reasoning: "", calls: [], tokens: [], prompt: [],
    state: "waiting", ...fields,
  });
}

async function answer(parent, conversation = app.conversation, steps = 1) {
  const messages = toMessages(conversation, parent);
  const node = newAnswer(conversation, parent, {});
  let body;
  try {
    body = chatBody(app.settings, app.model, messages, offered());
  } catch {
    node.state = "failed";
    node.problem = "The tools in the settings are not valid JSON.";
    return keep(conversation);
  }
  await run(conversation, node, "v1/chat/completions", body, takeChat);
  await serve(conversation, node, steps);
}

/** Go on from token `at` of an answer with another token in its place: a new version of the answer. */
export function changeToken(old, at, token) {
  const conversation = app.conversation;
  const kept = old.tokens.slice(0, at);
  const changed = { ...token, source: "changed", top: old.tokens[at].top };
  const node = newAnswer(conversation, old.parent, {
    prompt: old.prompt.map((piece) => ({ ...piece })), tokens: [...kept, changed], changedAt: at,
  });
  takeText({ node });
  const ids = [...old.prompt, ...node.tokens].map((piece) => piece.id);
  return run(conversation, node, "v1/completions", completionBody(app.settings, app.model, ids), takeText);
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const id = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(id);
      reject(new DOMException("stopped", "AbortError"));
    });
  });

async function run(conversation, node, url, body, take) {
  const controller = new AbortController();
  app.running.set(conversation.id, { conversation, node, controller });
  const job = { conversation, node, controller, clock: { asked: performance.now(), first: 0, last: 0, thought: 0, pieces: 0 } };
  say("Answering.");
  keep(conversation);
  try {
    for (let tries = 0; ; tries++) {
      try {
        for await (const chunk of stream(url, body, app.settings.key, controller.signal)) {
          takeUsage(job, chunk);
          take(job, chunk);
          touch(job.node);
          redrawSoon();
        }
        if (take === takeText) await mendText(job);
        break;
      } catch (error) {
        if (error.status !== 429 || tries >= 8) throw error;
        await waitInQueue(job, error);
      }
    }
    finish(job, "done");
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (!stopped) {
      job.node.problem = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
      job.node.status = error.status;
    }
    finish(job, stopped ? "stopped" : "failed");
  }
}

async function waitInQueue({ node, controller }, error) {
  node.state = "queued";
  for (let left = error.wait; left > 0; left--) {
    node.wait = left;
    touch(node);
    redraw();
    await pause(1, controller.signal);
  }
  node.state = "waiting";
}

function finish({ conversation, node, clock }, state) {
  node.state = state;
  const seconds = (clock.last - clock.first) / 1000;
  node.stats = { ...node.stats, seconds, pieces: clock.pieces };
  if (clock.pieces > 1) node.stats.rate = ((node.stats.completion ?? clock.pieces) - 1) / seconds;
  conversation.updated = Date.now();
  app.running.delete(conversation.id);
  touch(node);
  const words = { done: node.content || "The model calls a tool.", stopped: "Stopped.", failed: node.problem };
  say(words[state]);
  keep(conversation);
}

function takeUsage({ node, clock }, chunk) {
  const now = performance.now();
  if (chunk.prompt_tokens_detail) {
    // What was kept of a changed answer is prompt to the server and answer to the reader.
    const length = node.changedAt === undefined ? undefined : node.prompt.length;
    node.prompt = chunk.prompt_tokens_detail.slice(0, length);
  }
  if (chunk.tokens?.length) node.tokens.push(...chunk.tokens);
  if (chunk.usage) {
    node.stats = {
      prompt: chunk.usage.prompt_tokens,
      completion: chunk.usage.completion_tokens,
      cached: chunk.usage.prompt_tokens_details?.cached_tokens,
      reasoning: chunk.usage.completion_tokens_details?.reasoning_tokens,
    };
  }
  if (chunk.choices?.[0]?.finish_reason) node.finish = chunk.choices[0].finish_reason;
  const delta = chunk.choices?.[0]?.delta;
  if (delta?.content || delta?.reasoning_content || delta?.tool_calls || chunk.choices?.[0]?.text) {
    clock.first ||= now;
    clock.last = now;
    clock.pieces++;
    node.state = "streaming";
  }
}

function takeChat({ node, clock }, chunk) {
  const delta = chunk.choices?.[0]?.delta;
  if (!delta) return;
  if (delta.reasoning_content) {
    node.reasoning += delta.reasoning_content;
    node.thoughtPieces = (node.thoughtPieces ?? 0) + 1;
    node.thoughtSeconds = (performance.now() - clock.first) / 1000;
  }
  if (delta.content) node.content += delta.content;
  for (const part of delta.tool_calls ?? []) {
    const call = (node.calls[part.index] ??= { id: part.id, name: "", arguments: "" });
    call.id ??= part.id;
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
}

// Of an answer that went on as plain text the tokens say all, markup included.
function takeText({ node }) {
  Object.assign(node, parseRaw(node.tokens.map((piece) => piece.text).join("")));
}

/** Characters that were split between tokens are whole again. */
async function mendText({ node }) {
  if (!node.tokens.some((piece) => piece.text.includes("\ufffd"))) return;
  const ids = node.tokens.map((piece) => piece.id);
  Object.assign(node, parseRaw(await detokenize(app.model, ids, app.settings.key)));
}

/** The last answer's share of the context, and the room there is. */
export function context() {
  const last = path(app.conversation).findLast((node) => node.stats?.prompt);
  if (!last || !app.model?.max_model_len) return null;
  return { used: last.stats.prompt + last.stats.completion, room: app.model.max_model_len };
}
