// What the page shows. Components read `app`; whoever changes it calls `redraw`, or `redrawSoon`
// (at most twelve times a second) while an answer streams.

const SETTINGS = "smollm3.settings";
const DEFAULTS = {
  temperature: 0.6,
  top_p: 0.95,
  max_tokens: 2048,
  seed: "",
  thinking_budget: "",
  thinking: true,
  glass: false,
  tools: "",
  server_tools: true,
  system: "",
  theme: "system",
  key: "",
};
export const NO_TOOLS = { tools: [], functions: [], names: [] };

export const app = {
  settings: DEFAULTS,
  models: [],
  model: null,
  server: NO_TOOLS, // what the server runs itself
  allowed: new Set(), // "conversation name" of calls that are not asked about again
  problem: null, // why there is no model
  heads: [], // of all conversations, the newest first
  conversation: null,
  running: new Map(), // id of a conversation -> the job that answers in it
  elsewhere: new Map(), // id of a conversation -> when another tab last said that it answers there
  said: "", // for screen readers
  toasts: [],
  unkept: false, // the browser does not store conversations
  started: false,
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
export const redrawSoon = () => (timer ||= setTimeout(redraw, 80));

/** For those who listen; what is to be seen, too, is a toast. */
export function say(text) {
  app.said = text;
  redrawSoon();
}

/** A few words over the page. Good news goes by itself; a problem stays until it is closed. */
export function toast(text, { bad = false } = {}) {
  const id = Symbol(text);
  app.toasts = [...app.toasts.filter((other) => other.text !== text), { id, text, bad }].slice(-4);
  if (!bad) {
    app.said = text; // a problem is an alert, which screen readers tell by themselves
    setTimeout(() => closeToast(id), 4000);
  }
  redraw();
}

export function closeToast(id) {
  app.toasts = app.toasts.filter((other) => other.id !== id);
  redraw();
}

// The settings are in localStorage, which the tabs share.

function readSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") };
  } catch {
    return app.settings;
  }
}

export function set(name, value) {
  app.settings = { ...readSettings(), ...(keepsNothing ? app.settings : {}), [name]: value };
  write(SETTINGS, JSON.stringify(app.settings));
  showSettings();
}

export function showSettings() {
  const { theme } = app.settings;
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  redraw();
}

let keepsNothing = false;

/** To localStorage; null removes. Says once, and returns, when the browser refuses. */
export function write(key, text) {
  try {
    if (text === null) localStorage.removeItem(key);
    else localStorage.setItem(key, text);
    keepsNothing = false;
    return true;
  } catch {
    if (!keepsNothing) toast("This browser keeps nothing now: settings and what you write are gone on reload.", { bad: true });
    keepsNothing = true;
    return false;
  }
}

/** [key, text] of what localStorage has under a prefix; nothing where there is none. */
export function entries(prefix) {
  try {
    return Object.entries(localStorage).filter(([key]) => key.startsWith(prefix));
  } catch {
    return []; // write() tells
  }
}

export function watchSettings() {
  app.settings = readSettings();
  addEventListener("storage", ({ key }) => {
    if (key !== SETTINGS) return;
    app.settings = readSettings();
    showSettings();
  });
  showSettings();
}
