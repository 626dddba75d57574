// The list of conversations, the settings and the help.
import { useEffect, useRef, useState } from "preact/hooks";
import { adopt, connect, openConversation, removeConversation, rename, setSystem, startConversation } from "./app.js";
import { fromJSON, toMarkdown } from "./conversation.js";
import { nextMessages } from "./drafts.js";
import { Icon, IconButton } from "./icons.jsx";
import { app, redraw, set, toast } from "./state.js";

export function openPanel(name) {
  app.panel = app.panel === name ? null : name;
  redraw();
}

const SHORTCUTS = [
  ["Enter", "send"],
  ["Shift + Enter", "new line"],
  ["Esc", "stop the answer, close a panel"],
  ["Alt + N", "new conversation"],
  ["Alt + T", "think or not"],
  ["Alt + G", "glass box on or off"],
  ["Alt + ,", "settings"],
  ["Alt + /", "this list"],
  ["← →", "in the glass box: from token to token; Enter: its alternatives"],
];

/** A modal dialog: the browser keeps the focus inside and gives it back. */
function Dialog({ title, children }) {
  const element = useRef(null);
  useEffect(() => {
    const dialog = element.current;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  const close = () => openPanel(null);
  return (
    <dialog ref={element} aria-label={title} onCancel={(event) => { event.preventDefault(); close(); }} onClick={(event) => event.target === element.current && close()}>
      <div class="dialog-body">
        <header>
          <h2>{title}</h2>
          <IconButton icon="close" label="Close" onClick={close} />
        </header>
        {children}
      </div>
    </dialog>
  );
}

export const Help = () => (
  <Dialog title="Keyboard">
    <dl class="shortcuts">
      {SHORTCUTS.map(([keys, what]) => (
        <div key={keys}><dt><kbd>{keys}</kbd></dt><dd>{what}</dd></div>
      ))}
    </dl>
    <p class="muted">
      Conversations stay in this browser. Nothing is loaded from other sites. <a href="assets/licences.txt">Licences</a> · <a href="docs">API</a>
    </p>
  </Dialog>
);

function Field({ name, label, hint, ...rest }) {
  const [wrong, setWrong] = useState(null); // what is written, and why it does not do
  const onInput = ({ currentTarget: input }) => {
    if (input.validity.valid) set(name, input.value);
    setWrong(input.validity.valid ? null : { text: input.value, why: input.validationMessage });
  };
  return (
    <label class="field">
      <span>{label}</span>
      <input name={name} value={wrong?.text ?? app.settings[name]} onInput={onInput} {...rest} />
      {wrong ? <small class="bad" role="alert">{wrong.why} Until then {app.settings[name] || "none"} is used.</small> : hint && <small>{hint}</small>}
    </label>
  );
}

function toolsProblem(text) {
  if (!text.trim()) return "";
  try {
    return Array.isArray(JSON.parse(text)) ? "" : "This is not a list.";
  } catch (error) {
    return error.message;
  }
}

export function Settings() {
  const { settings, conversation } = app;
  const wrong = toolsProblem(settings.tools);
  return (
    <Dialog title="Settings">
      {app.models.length > 1 && (
        <label class="field wide">
          <span>Model</span>
          <select value={app.model.id} onChange={(event) => { set("model", event.currentTarget.value); connect(); }}>
            {app.models.map(({ id }) => <option key={id}>{id}</option>)}
          </select>
        </label>
      )}
      <label class="field wide">
        <span>System prompt</span>
        <textarea name="system" rows="3" value={conversation.system} placeholder="None: the model's own" onInput={(event) => setSystem(event.currentTarget.value)} />
        <small>For this conversation, and new ones</small>
      </label>
      <div class="fields">
        <Field name="temperature" label="Temperature" type="number" min="0" max="2" step="0.05" required />
        <Field name="top_p" label="Top-p" type="number" min="0.01" max="1" step="0.01" required />
        <Field name="max_tokens" label="Maximum tokens" type="number" min="1" step="1" required />
        <Field name="thinking_budget" label="Thinking budget" type="number" min="0" step="1" placeholder="none" hint="tokens, then it answers" />
        <Field name="seed" label="Seed" type="number" min="0" step="1" placeholder="random" hint="the same answer again" />
        <label class="field">
          <span>Colours</span>
          <select name="theme" value={settings.theme} onChange={(event) => set("theme", event.currentTarget.value)}>
            <option value="system">as the system</option>
            <option value="light">light</option>
            <option value="dark">dark</option>
          </select>
        </label>
      </div>
      <label class="field wide">
        <span>Tools</span>
        <textarea name="tools" class="mono" rows="4" spellcheck={false} value={settings.tools} aria-invalid={Boolean(wrong)} placeholder='[{"type": "function", "function": {"name": ...}}]' onInput={(event) => set("tools", event.currentTarget.value)} />
        <small class={wrong ? "bad" : ""}>{wrong || 'A JSON list: tools as in OpenAI\'s API, or texts like "def area(radius: float) -> float" for the model\'s own Python. You give the results.'}</small>
      </label>
      <Field name="key" label="API key" type="password" autocomplete="off" placeholder="none" hint="Only if the server asks for one; kept in this browser" onChange={connect} />
    </Dialog>
  );
}

function save(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileName = () => app.conversation.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "conversation";

async function take(event) {
  const [file] = event.currentTarget.files;
  event.currentTarget.value = "";
  if (!file) return;
  try {
    const conversation = fromJSON(await file.text());
    await adopt(conversation);
    toast(`Imported ${file.name}.`);
  } catch (error) {
    toast(`${file.name} was not imported: ${error.message}.`, { bad: true });
  }
}

function Head({ head }) {
  const [title, setTitle] = useState(null);
  const here = head.id === app.conversation.id;
  if (title !== null) {
    const done = () => {
      setTitle(null);
      if (title.trim()) rename(head.id, title.trim());
    };
    return (
      <li>
        <input class="rename" aria-label="Title" value={title} ref={(input) => input?.focus()} onInput={(event) => setTitle(event.currentTarget.value)} onBlur={done} onKeyDown={(event) => event.key === "Enter" && done()} />
      </li>
    );
  }
  return (
    <li class={here ? "here" : ""}>
      <button type="button" class="head" aria-current={here ? "true" : undefined} onClick={() => openConversation(head.id)}>
        {head.title || "Untitled"}
      </button>
      <IconButton icon="edit" label={`Rename ${head.title}`} onClick={() => setTitle(head.title)} />
      <IconButton icon="bin" label={`Delete ${head.title}`} onClick={() => confirm(`Delete “${head.title}”?`) && removeConversation(head.id)} />
    </li>
  );
}

export function List() {
  const { conversation } = app;
  const known = new Set(app.heads.map((head) => head.id));
  const drafts = nextMessages().filter(([id]) => !known.has(id)).map(([id, text]) => ({ id, title: `Draft: ${text.trim().slice(0, 60)}` }));
  const heads = [...drafts, ...app.heads];
  const empty = !conversation.leaf;
  return (
    <nav class={`list ${app.panel === "list" ? "open" : ""}`} aria-label="Conversations">
      <div class="list-top">
        <button type="button" class="new" onClick={startConversation}><Icon name="plus" /> New conversation</button>
        <IconButton icon="close" label="Close the list" class="icon-button phone-only" onClick={() => openPanel(null)} />
      </div>
      <ul>
        {heads.map((head) => <Head key={head.id} head={head} />)}
      </ul>
      {!heads.length && <p class="muted list-empty">What you ask is kept here, in this browser only.</p>}
      <div class="list-foot">
        <button type="button" disabled={empty} onClick={() => save(toMarkdown(conversation), `${fileName()}.md`, "text/markdown")}>Export Markdown</button>
        <button type="button" disabled={empty} onClick={() => save(JSON.stringify(conversation, null, 1), `${fileName()}.json`, "application/json")}>Export JSON</button>
        <label class="button">
          Import JSON
          <input type="file" accept="application/json,.json" class="hidden" onChange={take} />
        </label>
      </div>
    </nav>
  );
}
