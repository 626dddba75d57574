// The server, the conversations, and the other tabs of this page.
import { ApiError, models, serverTools } from "./api.js";
import { fork, headOf, newConversation, receive, renew, setField, showVersion, siblings, unsavedOf } from "./conversation.js";
import { draftOf, forgetDrafts, watchDrafts } from "./drafts.js";
import { app, redraw, set, toast, watchSettings } from "./state.js";
import * as store from "./store.js";

export async function connect() {
  try {
    app.models = await models(app.settings.key);
    app.model = app.models.find((model) => model.id === app.settings.model) ?? app.models[0] ?? null;
    app.problem = app.model ? null : new ApiError("The server has no model.");
    app.server = await serverTools(app.settings.key);
  } catch (error) {
    app.problem = error;
  }
  document.title = app.model?.id ?? "SmolLM3";
  redraw();
}

export async function start() {
  watchSettings();
  watchDrafts();
  watchPage();
  app.conversation = newConversation(app.settings.system);
  connect();
  try {
    await store.replayJournals();
    app.heads = await store.loadHeads();
  } catch (error) {
    notKept(error);
  }
  await openAddress();
  app.started = true;
  redraw();
}

// Conversations ------------------------------------------------------------------------------

/** The address names what is shown once there is something in it, so that a reload finds it. */
export function showAddress() {
  if (!app.started) return;
  const { id, leaf } = app.conversation;
  const hash = leaf || draftOf(id) ? `#${id}` : "";
  if (location.hash !== hash) history.replaceState(null, "", location.pathname + hash);
}

async function openAddress() {
  const id = location.hash.slice(1);
  if (!id || id === app.conversation.id) return;
  if (!(await openConversation(id))) toast("The conversation of this address is not in this browser.");
}

function show(conversation) {
  app.conversation = conversation;
  app.panel = null;
  redraw();
}

export function startConversation() {
  show(newConversation(app.settings.system));
  document.querySelector("#prompt")?.focus();
}

let opening = 0;

/** Shows a conversation; false where there is none. */
export async function openConversation(id) {
  const turn = ++opening;
  let conversation = app.running.get(id)?.conversation;
  try {
    conversation ??= await store.load(id);
  } catch (error) {
    notKept(error);
  }
  if (!conversation && draftOf(id) !== null) conversation = newConversation(app.settings.system, id);
  if (turn !== opening) return true; // another was asked for meanwhile
  if (conversation) show(conversation);
  tell({ type: "ask" });
  return Boolean(conversation);
}

const removed = new Set();

/** Into the list and into the store. */
export async function keep(conversation = app.conversation) {
  const { id } = conversation;
  if (removed.has(id)) return;
  app.heads = [headOf(conversation), ...app.heads.filter((head) => head.id !== id)];
  app.heads.sort((a, b) => b.updated - a.updated);
  redraw();
  try {
    const names = await store.save(conversation);
    if (names === null) return goOnAnew(conversation);
    if (app.unkept) toast("What you write is kept again.");
    app.unkept = false;
    tell({ type: "changed", id, names });
  } catch (error) {
    notKept(error);
  }
  return undefined;
}

/** Another tab deleted it and this one did not hear of it: what is written since is not lost. */
function goOnAnew(conversation) {
  const job = app.running.get(conversation.id);
  app.running.delete(conversation.id);
  app.heads = app.heads.filter((head) => head.id !== conversation.id);
  renew(conversation);
  if (job) app.running.set(conversation.id, job);
  toast("This conversation was deleted in another tab; it goes on as a new one.");
  return keep(conversation);
}

function notKept(error) {
  if (app.unkept) return;
  app.unkept = true;
  const why = error?.name === "QuotaExceededError" ? "This browser has no more room." : "This browser keeps no conversations.";
  toast(`${why} What you write from now on is lost with this page: export what you need.`, { bad: true });
}

async function copyOf(id) {
  if (id === app.conversation.id) return app.conversation;
  return app.running.get(id)?.conversation ?? store.load(id);
}

export async function rename(id, title) {
  const conversation = (await copyOf(id)) ?? newConversation(app.settings.system, id); // only a draft so far
  setField(conversation, "title", title);
  await keep(conversation);
}

function forget(id) {
  removed.add(id);
  app.running.get(id)?.controller.abort();
  app.heads = app.heads.filter((head) => head.id !== id);
  if (app.conversation.id === id) startConversation();
  redraw();
}

export async function removeConversation(id) {
  forget(id);
  forgetDrafts(id);
  tell({ type: "removed", id }); // first, so that a tab that answers in it stops
  try {
    await store.remove(id);
  } catch {
    toast("The browser did not delete this conversation; it is back after a reload.", { bad: true });
  }
}

export async function adopt(conversation) {
  show(conversation);
  await keep();
}

export async function forkAt(node) {
  await adopt(fork(app.conversation, node.id));
  toast("This is a new conversation, with the messages up to there.");
}

export function setSystem(text) {
  setField(app.conversation, "system", text);
  set("system", text);
  if (app.conversation.leaf) keep();
}

export function showSibling(node, step) {
  const all = siblings(app.conversation, node);
  showVersion(app.conversation, all[all.indexOf(node) + step]);
  keep();
}

// The other tabs: what is stored is the truth, a message says when to look -----------------------

const SILENCE = 5000; // milliseconds after which a tab that answered is taken for gone
const channel = new BroadcastChannel("smollm3");
const tell = (message) => channel.postMessage(message);

const heard = {
  async changed({ id, names }) {
    app.heads = await store.loadHeads();
    if (id === app.conversation.id && !document.hidden) await refresh(names);
    redraw();
  },
  removed({ id }) {
    if (app.conversation.id === id) toast("This conversation was deleted in another tab.");
    forget(id);
  },
  answering({ id }) {
    app.elsewhere.set(id, Date.now());
    setTimeout(redraw, SILENCE + 100);
    redraw();
  },
  ended({ id }) {
    app.elsewhere.delete(id);
    redraw();
  },
  stop: ({ id }) => app.running.get(id)?.controller.abort(),
  ask: beat,
};

/** Takes in what other tabs have stored of the conversation that is shown. */
async function refresh(names = null) {
  const { conversation } = app;
  const stored = await store.load(conversation.id, names);
  if (stored) receive(conversation, stored);
}

const running = () => app.running.get(app.conversation.id);

/** Whether an answer is made in the conversation that is shown, by this tab or by another. */
export const isRunning = () => Boolean(running()) || isElsewhere();
export const isElsewhere = () => Date.now() - (app.elsewhere.get(app.conversation.id) ?? 0) < SILENCE;

export function stop() {
  const { id } = app.conversation;
  running()?.controller.abort();
  if (app.elsewhere.delete(id)) tell({ type: "stop", id });
  redraw();
}

let lastBeat = 0;
let pulse = 0;

/** Each second while answers come: what is new is stored, and the other tabs know who answers. */
function beat() {
  lastBeat = Date.now();
  for (const { conversation } of app.running.values()) {
    tell({ type: "answering", id: conversation.id });
    if (unsavedOf(conversation).length) keep(conversation);
  }
}

/** For each piece of an answer: the timers of a tab in the background are slow, its pieces are not. */
export function beatIfDue() {
  if (Date.now() - lastBeat >= 1000) beat();
}

export function begin(job) {
  app.running.set(job.conversation.id, job);
  pulse ||= setInterval(beat, 1000);
  beat();
}

export function end({ conversation: { id } }) {
  app.running.delete(id);
  tell({ type: "ended", id });
  if (app.running.size) return;
  clearInterval(pulse);
  pulse = 0;
}

// The page may end without another word.
function watchPage() {
  channel.onmessage = ({ data }) => heard[data.type]?.(data);
  addEventListener("hashchange", openAddress);
  document.addEventListener("visibilitychange", async () => {
    if (document.hidden) return beat();
    app.heads = await store.loadHeads();
    await refresh();
    return redraw();
  });
  addEventListener("pagehide", () => {
    for (const { conversation } of app.running.values()) store.writeJournal(conversation);
    beat();
    for (const id of app.running.keys()) tell({ type: "ended", id });
  });
  addEventListener("beforeunload", (event) => {
    if (app.unkept && unsavedOf(app.conversation).length) event.preventDefault();
  });
  const failed = (error) => toast(`The page failed: ${error?.message ?? error}`, { bad: true });
  addEventListener("error", ({ error }) => failed(error));
  addEventListener("unhandledrejection", ({ reason }) => failed(reason));
}
