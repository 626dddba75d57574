// The page: a list of conversations, the messages of one, and where the next is written.
import { render } from "preact";
import { useEffect, useLayoutEffect, useReducer, useRef } from "preact/hooks";
import "./style.css";
import { context, send } from "./answers.js";
import { connect, isRunning, showAddress, start, startConversation, stop } from "./app.js";
import { canThink } from "./api.js";
import { path } from "./conversation.js";
import { useDraft } from "./drafts.js";
import { Icon, IconButton } from "./icons.jsx";
import { AssistantMessage, Growing, UserMessage } from "./message.jsx";
import { Help, List, openPanel, Settings } from "./panels.jsx";
import { app, closeToast, onRedraw, set } from "./state.js";

const EXAMPLES = [
  "Explain rotary position embeddings to a ten-year-old.",
  "Write a Python function that merges two sorted lists.",
  "How many weekdays lie between 3 March and 19 May 2025?",
  "Traduis en anglais : « Rien ne sert de courir, il faut partir à point. »",
];

function Empty() {
  return (
    <div class="empty">
      <h1>{app.model ? app.model.id : "SmolLM3"}</h1>
      <p class="muted">What you write goes to this server and nowhere else. Ask, or begin with one of these.</p>
      <ul>
        {EXAMPLES.map((text) => (
          <li key={text}><button type="button" disabled={!app.model} onClick={() => send(text)}>{text}</button></li>
        ))}
      </ul>
    </div>
  );
}

function NoModel() {
  const { problem } = app;
  return (
    <div class="problem banner" role="alert">
      <p>{problem.message}</p>
      {problem.status === 401 && <button type="button" onClick={() => openPanel("settings")}>Enter the key</button>}
      <button type="button" onClick={connect}>Try again</button>
    </div>
  );
}

function Messages() {
  const nodes = path(app.conversation);
  const end = useRef(null);
  const box = useRef(null);
  const follow = useRef(true);
  useLayoutEffect(() => {
    if (follow.current) end.current?.scrollIntoView({ block: "end" });
  });
  useEffect(() => {
    follow.current = true;
  }, [app.conversation.id, nodes.length]);
  const onScroll = () => {
    const { scrollHeight, scrollTop, clientHeight } = box.current;
    follow.current = scrollHeight - scrollTop - clientHeight < 60;
  };
  return (
    <main id="messages" ref={box} onScroll={onScroll} tabindex="-1">
      <div class="column">
        {app.problem && <NoModel />}
        {nodes.length === 0 && <Empty />}
        {nodes.map((node, i) => {
          if (node.role === "user") return <UserMessage key={node.id} node={node} />;
          if (node.role === "tool") return null; // shown with its call
          const rest = nodes.slice(i + 1);
          const next = rest.findIndex((other) => other.role !== "tool");
          const results = next < 0 ? rest : rest.slice(0, next);
          return <AssistantMessage key={node.id} node={node} results={results} last={i === nodes.length - 1} />;
        })}
        <div ref={end} />
      </div>
    </main>
  );
}

function Toggle({ name, icon, label, title }) {
  const on = app.settings[name];
  return (
    <button type="button" class="toggle" aria-pressed={on} title={title} onClick={() => set(name, !on)}>
      <Icon name={icon} />
      <span>{label}</span>
    </button>
  );
}

function Context() {
  const now = context();
  if (!now) return null;
  const share = now.used / now.room;
  return (
    <span class={`context ${share > 0.9 ? "full" : ""}`} title="Tokens of the context used">
      <meter min="0" max="1" value={share} aria-label="Context used" />
      <span>{now.used.toLocaleString("en")} / {now.room.toLocaleString("en")}</span>
    </span>
  );
}

function Composer() {
  const [draft, setDraft] = useDraft(app.conversation.id);
  const text = draft ?? "";
  const busy = isRunning();
  const ready = app.model && !busy && text.trim();
  const submit = () => {
    if (ready) send(text.trim());
  };
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  };
  return (
    <form class="composer" onSubmit={(event) => { event.preventDefault(); submit(); }}>
      <Growing id="prompt" value={text} placeholder="Write a message" aria-label="Message" onInput={(event) => setDraft(event.currentTarget.value || null)} onKeyDown={keys} />
      <div class="row">
        {canThink(app.model) && <Toggle name="thinking" icon="think" label="Think" title="Reason before answering (Alt + T)" />}
        {app.server.names.length > 0 && <Toggle name="server_tools" icon="tool" label="Tools" title={`The server may run: ${app.server.names.join(", ")}`} />}
        <Toggle name="glass" icon="glass" label="Glass box" title="Show tokens and their probabilities (Alt + G)" />
        <Context />
        {busy ? (
          <button type="button" class="send" aria-label="Stop" title="Stop (Esc)" onClick={stop}><Icon name="stop" /></button>
        ) : (
          <button class="send" aria-label="Send" title="Send (Enter)" disabled={!ready}><Icon name="send" /></button>
        )}
      </div>
    </form>
  );
}

const ACTIONS = {
  n: startConversation,
  t: () => set("thinking", !app.settings.thinking),
  g: () => set("glass", !app.settings.glass),
  ",": () => openPanel("settings"),
  "/": () => openPanel("help"),
};

function onKey(event) {
  if (event.key === "Escape") {
    if (app.panel === "list") openPanel(null);
    else if (!app.panel) stop();
  } else if (event.altKey && !event.ctrlKey && !event.metaKey) {
    // event.code: with Alt some layouts write another character
    const key = { Comma: ",", Slash: "/" }[event.code] ?? event.code.replace("Key", "").toLowerCase();
    if (!ACTIONS[key]) return;
    event.preventDefault();
    ACTIONS[key]();
  }
}

/** Above all else, dialogs too. */
function Toasts() {
  const box = useRef(null);
  const close = (event, id) => {
    closeToast(id);
    if (event.detail === 0) document.querySelector("#prompt")?.focus(); // by keyboard: its focus would be lost
  };
  useLayoutEffect(() => {
    box.current.hidePopover?.();
    if (app.toasts.length) box.current.showPopover?.();
  }, [app.toasts]);
  return (
    <div class="toasts" ref={box} popover="manual">
      {app.toasts.map(({ id, text, bad }) => (
        <div key={id} class={`toast ${bad ? "bad" : ""}`} role={bad ? "alert" : undefined}>
          <p>{text}</p>
          <IconButton icon="close" label="Close this message" onClick={(event) => close(event, id)} />
        </div>
      ))}
    </div>
  );
}

function Page() {
  const [, draw] = useReducer((n) => n + 1, 0);
  useLayoutEffect(() => {
    if (app.conversation) showAddress();
  });
  useLayoutEffect(() => {
    onRedraw(draw);
    document.addEventListener("keydown", onKey);
    start();
  }, []);
  if (!app.conversation) return null;
  return (
    <div class="page">
      <a class="skip" href="#prompt" onClick={(event) => { event.preventDefault(); document.querySelector("#prompt").focus(); }}>To the message field</a>
      <List />
      {app.panel === "list" && <div class="shade" onClick={() => openPanel(null)} />}
      <div class="talk">
        <header class="top">
          <IconButton icon="menu" label="Conversations" class="icon-button phone-only" aria-expanded={app.panel === "list"} onClick={() => openPanel("list")} />
          <span class="title">{app.conversation.title || app.model?.id || ""}</span>
          <IconButton icon="help" label="Keyboard shortcuts" onClick={() => openPanel("help")} />
          <IconButton icon="gear" label="Settings" onClick={() => openPanel("settings")} />
        </header>
        <Messages />
        <Composer />
      </div>
      {app.panel === "settings" && <Settings />}
      {app.panel === "help" && <Help />}
      <Toasts />
      <div class="hidden" role="status" aria-live="polite">{app.said}</div>
    </div>
  );
}

render(<Page />, document.getElementById("app"));
