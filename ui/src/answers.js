// Answers: asking for them, taking what comes, having the server make the model's calls.
import { answerQuestion, ApiError, callTool, chatBody, completionBody, detokenize, stream } from "./api.js";
import { beatIfDue, begin, connect, end, keep } from "./app.js";
import { addNode, parseRaw, path, toMessages, touch } from "./conversation.js";
import { setDraft } from "./drafts.js";
import { app, NO_TOOLS, redraw, redrawSoon, say, toast } from "./state.js";
import { writeJournal } from "./store.js";

const MOST_STEPS = 10; // answers in a row that call the server's tools

/** Messages of the user, in a row. What was a draft is in the journal before the draft goes. */
function add(conversation, parent, messages) {
  let last = parent;
  for (const { fields } of messages) last = addNode(conversation, last, fields).id;
  const safe = writeJournal(conversation);
  for (const { place } of messages) setDraft(place, null);
  if (!safe) writeJournal(conversation); // the drafts made room
  return answer(conversation, last);
}

/** `place` is where it was written: see drafts.js. */
export const send = (text, place = app.conversation.id, parent = app.conversation.leaf) =>
  add(app.conversation, parent, [{ place, fields: { role: "user", content: text } }]);

/** Another answer to the same messages. */
export const retry = (node) => answer(app.conversation, node.parent);

export const placeOfResult = (node, i) => `${app.conversation.id}/${node.id}/${i}`;

/** The results of calls that no one else makes. */
export const giveResults = (node, results) =>
  add(app.conversation, node.id, node.calls.map((call, i) => ({
    place: placeOfResult(node, i),
    fields: { role: "tool", name: call.name, callId: call.id, content: results[i] },
  })));

/** The server's tools, where they are switched on. */
const offered = () => (app.settings.server_tools ? app.server : NO_TOOLS);

/** Have the server make the calls of an answer, and answer their results, unless some are not its. */
async function serve(conversation, node, steps) {
  const { calls } = node;
  if (!calls.length || node.state !== "done" || node.finish === "length") return;
  if (!calls.every((call) => offered().names.includes(call.name))) return;
  const job = { conversation, node, controller: new AbortController(), call: null, question: null };
  begin(job);
  let parent = node.id;
  let stopped = "";
  try {
    for (const call of calls) {
      job.call = call.id;
      say(`Running ${call.name}.`);
      const { content, ok } = await result(job, call);
      parent = addNode(conversation, parent, { role: "tool", name: call.name, callId: call.id, content, ok }).id;
    }
  } catch (error) {
    stopped = error.name === "AbortError" ? "The call was stopped." : error.message;
  }
  node.unserved = stopped;
  touch(conversation, node);
  end(job);
  await keep(conversation);
  if (!stopped && steps < MOST_STEPS) await answer(conversation, parent, steps + 1);
}

async function result(job, call) {
  const { conversation, controller } = job;
  let args;
  try {
    args = JSON.parse(call.arguments);
  } catch {
    args = null;
  }
  if (typeof args !== "object" || !args) return { content: "Error: the arguments are not a JSON object", ok: false };
  for await (const event of callTool(call, conversation.id, app.settings.key, controller.signal)) {
    if (event.type === "result") return event;
    if (app.allowed.has(`${conversation.id} ${event.name}`)) {
      await answerQuestion(event.id, true, app.settings.key);
      continue;
    }
    job.question = event;
    say(`May ${event.name} be called?`);
  }
  throw new ApiError("The server did not say what the call gave.");
}

/** What the user says to a question; "always" holds for this tool in this conversation. */
export async function decide(job, decision) {
  const { id, name } = job.question;
  if (decision === "always") app.allowed.add(`${job.conversation.id} ${name}`);
  job.question = null;
  redraw();
  try {
    await answerQuestion(id, decision !== false, app.settings.key);
  } catch (error) {
    toast(`${name}: ${error.message}`, { bad: true }); // it waits no longer
  }
}

function newAnswer(conversation, parent, fields) {
  return addNode(conversation, parent, {
    role: "assistant", model: app.model?.id, reasoning: "", calls: [], tokens: [], prompt: [],
    state: "waiting", ...fields,
  });
}

async function answer(conversation, parent, steps = 1) {
  const node = newAnswer(conversation, parent, {});
  const body = () => chatBody(app.settings, app.model, toMessages(conversation, parent), offered());
  await run(conversation, node, "v1/chat/completions", body, takeChat);
  await serve(conversation, node, steps);
}

/** Go on from token `at` of an answer with another token in its place: a new version of the answer. */
export function changeToken(old, at, token) {
  const { conversation } = app;
  const kept = old.tokens.slice(0, at);
  const changed = { ...token, source: "changed", top: old.tokens[at].top };
  const node = newAnswer(conversation, old.parent, {
    prompt: old.prompt.map((piece) => ({ ...piece })), tokens: [...kept, changed], changedAt: at,
  });
  takeText({ node });
  const ids = [...old.prompt, ...node.tokens].map((piece) => piece.id);
  return run(conversation, node, "v1/completions", () => completionBody(app.settings, app.model, ids), takeText);
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const id = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(id);
      reject(new DOMException("stopped", "AbortError"));
    });
  });

async function run(conversation, node, url, makeBody, take) {
  const controller = new AbortController();
  const job = { conversation, node, controller, clock: { asked: performance.now(), first: 0, last: 0, pieces: 0 } };
  begin(job);
  say("Answering.");
  try {
    if (!app.model) await connect();
    if (!app.model) throw app.problem;
    const body = makeBody();
    for (let tries = 0; ; tries++) {
      try {
        for await (const chunk of stream(url, body, app.settings.key, controller.signal)) {
          takeUsage(job, chunk);
          take(job, chunk);
          touch(conversation, node);
          redrawSoon();
          beatIfDue();
        }
        if (take === takeText) await joinCharacters(job);
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
      node.problem = error.status === undefined ? `The page failed: ${error.message}` : error.message;
      node.status = error.status;
      if (error.status === 404) connect(); // the server has another model now
    }
    finish(job, stopped ? "stopped" : "failed");
  }
}

async function waitInQueue(job, error) {
  const { node, controller } = job;
  node.state = "queued";
  for (let left = error.wait; left > 0; left--) {
    job.wait = left;
    redraw();
    await pause(1, controller.signal);
  }
  node.state = "waiting";
}

function finish(job, state) {
  const { conversation, node, clock } = job;
  node.state = state;
  const seconds = (clock.last - clock.first) / 1000;
  node.stats = { ...node.stats, seconds, pieces: clock.pieces };
  if (clock.pieces > 1) node.stats.rate = ((node.stats.completion ?? clock.pieces) - 1) / seconds;
  conversation.updated = Date.now();
  touch(conversation, node);
  const words = { done: node.content || "The model calls a tool.", stopped: "Stopped.", failed: node.problem };
  say(words[state]);
  keep(conversation);
  end(job);
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
async function joinCharacters({ node }) {
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
