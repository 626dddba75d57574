// One message of each role.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { decide, giveResults, placeOfResult, retry, send } from "./answers.js";
import { forkAt, isElsewhere, isRunning, showSibling } from "./app.js";
import { readable, siblings } from "./conversation.js";
import { draftOf, setDraft, useDraft, useDrafts } from "./drafts.js";
import { Glass } from "./glass.jsx";
import { Icon, IconButton } from "./icons.jsx";
import { applyStyles, blocks, clean, highlight } from "./markdown.js";
import { app, toast } from "./state.js";

async function copy(text) {
  const copied = (await copyByClipboard(text)) || copyBySelection(text);
  if (copied) toast("Copied.");
  else toast("The browser did not allow copying: select the text and copy it yourself.", { bad: true });
}

async function copyByClipboard(text) {
  try {
    await navigator.clipboard.writeText(text); // there is none on plain http other than localhost
    return true;
  } catch {
    return false;
  }
}

function copyBySelection(text) {
  const before = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "hidden";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus();
  return copied;
}

function Block({ html }) {
  const element = useRef(null);
  useLayoutEffect(() => applyStyles(element.current), [html]);
  return <div ref={element} dangerouslySetInnerHTML={{ __html: html }} />;
}

function Markdown({ text }) {
  const parts = useMemo(() => blocks(text), [text]);
  const onClick = (event) => {
    const button = event.target.closest?.(".copy-code");
    if (button) copy(button.closest("figure").querySelector("code").textContent);
  };
  return (
    <div class="markdown" onClick={onClick}>
      {parts.map((html, i) => <Block key={i} html={html} />)}
    </div>
  );
}

function Versions({ node }) {
  const all = siblings(app.conversation, node);
  if (all.length < 2) return null;
  const at = all.indexOf(node);
  return (
    <span class="versions" role="group" aria-label="Versions of this message">
      <IconButton icon="left" label="Earlier version" disabled={at === 0} onClick={() => showSibling(node, -1)} />
      <span aria-label={`version ${at + 1} of ${all.length}`}>{at + 1}/{all.length}</span>
      <IconButton icon="right" label="Later version" disabled={at === all.length - 1} onClick={() => showSibling(node, 1)} />
    </span>
  );
}

/** A text area as high as its text. */
export function Growing({ value, focus, ...rest }) {
  const area = useRef(null);
  useEffect(() => {
    if (focus) area.current.focus();
  }, []);
  useLayoutEffect(() => {
    area.current.style.height = "auto";
    area.current.style.height = `${area.current.scrollHeight + 2}px`;
  }, [value]);
  return <textarea ref={area} rows="1" value={value} {...rest} />;
}

export function UserMessage({ node }) {
  const place = `${app.conversation.id}/${node.id}`;
  const [draft, setDraft] = useDraft(place);
  const button = useRef(null);
  const close = () => {
    setDraft(null);
    setTimeout(() => button.current?.focus()); // once the editor is gone
  };
  const save = () => {
    if (isRunning()) return;
    if (draft.trim()) send(draft, place, node.parent);
    else close();
  };
  const keys = (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      save();
    }
  };
  return (
    <article class="message user" aria-label="You">
      {draft === null ? (
        <div class="bubble">{node.content}</div>
      ) : (
        <div class="editor">
          <Growing value={draft} aria-label="Edit your message" focus onInput={(event) => setDraft(event.currentTarget.value)} onKeyDown={keys} />
          <div class="row">
            <button type="button" onClick={close}>Cancel</button>
            <button type="button" class="primary" disabled={isRunning()} onClick={save}>Send</button>
          </div>
        </div>
      )}
      <div class="actions">
        <Versions node={node} />
        <IconButton icon="copy" label="Copy" onClick={() => copy(node.content)} />
        <IconButton icon="edit" label="Edit" buttonRef={button} disabled={isRunning()} onClick={() => setDraft(node.content)} />
      </div>
    </article>
  );
}

function Reasoning({ node }) {
  const [open, setOpen] = useState(false);
  const busy = node.state === "streaming" && !node.content && !node.calls.length;
  const count = node.stats?.reasoning ?? node.thoughtPieces;
  const seconds = node.thoughtSeconds === undefined ? "" : ` for ${node.thoughtSeconds < 10 ? node.thoughtSeconds.toFixed(1) : Math.round(node.thoughtSeconds)} s`;
  return (
    <details class="reasoning" open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary class={busy ? "busy" : ""}>
        <Icon name="think" />
        <span>{busy ? "Thinking" : "Thought"}{seconds}</span>
        {count > 0 && <span class="muted">{count} tokens</span>}
      </summary>
      {open && <Markdown text={node.reasoning} />}
    </details>
  );
}

function Code({ text, language }) {
  const html = useMemo(() => clean(highlight(text, language)), [text, language]);
  return <pre tabindex="0"><code dangerouslySetInnerHTML={{ __html: html }} /></pre>;
}

/** A call that may change something waits until the user has said whether it may. */
function Question({ job }) {
  const { name, arguments: given, from_code: fromCode } = job.question;
  const first = useRef(null);
  useEffect(() => first.current.focus(), []);
  return (
    <div class="question" role="alertdialog" aria-label={`May ${name} be called?`}>
      <p>{fromCode ? "The model's code" : "The model"} wants to call <b>{name}</b>, which may change something.</p>
      <pre tabindex="0">{JSON.stringify(given, null, 1)}</pre>
      <div class="row">
        <button type="button" ref={first} onClick={() => decide(job, false)}>Do not</button>
        <button type="button" onClick={() => decide(job, "always")}>Always in this conversation</button>
        <button type="button" class="primary" onClick={() => decide(job, true)}>Allow once</button>
      </div>
    </div>
  );
}

function Call({ call, result, running, value, onInput }) {
  const { language, text } = readable(call);
  const python = call.name === "python";
  return (
    <section class="call" aria-label={python ? "Python run" : `Call of ${call.name}`}>
      <h3>
        <Icon name="tool" />
        {python ? "Python" : call.name}
        <span class="muted">{result ? (result.ok === false ? "failed" : "done") : running ? "running" : "waiting"}</span>
      </h3>
      <Code text={text} language={language} />
      {result && (
        <>
          <h4>Result</h4>
          <pre class={`result ${result.ok === false ? "bad" : ""}`} tabindex="0">{result.content || "(nothing)"}</pre>
        </>
      )}
      {onInput && (
        <label class="result-entry">
          Result
          <Growing value={value} placeholder="What the tool gave" onInput={(event) => onInput(event.currentTarget.value)} />
        </label>
      )}
    </section>
  );
}

function Calls({ node, results, last, job }) {
  useDrafts();
  const open = last && node.state === "done" && !isRunning() && results.length === 0;
  return (
    <form
      class="calls"
      onSubmit={(event) => {
        event.preventDefault();
        giveResults(node, node.calls.map((_, i) => draftOf(placeOfResult(node, i)) ?? ""));
      }}
    >
      {node.calls.map((call, i) => (
        <Call
          key={call.id ?? i} call={call} running={job && job.call === call.id} result={results.find((result) => result.callId === call.id)}
          value={draftOf(placeOfResult(node, i)) ?? ""}
          onInput={open && ((text) => setDraft(placeOfResult(node, i), text))}
        />
      ))}
      {job?.question && <Question key={job.question.id} job={job} />}
      {node.unserved && <p class="note">{node.unserved}</p>}
      {open && <button class="primary">Send {node.calls.length > 1 ? "results" : "result"}</button>}
    </form>
  );
}

function Problem({ node }) {
  return (
    <div class="problem" role="alert">
      <p>{node.problem}</p>
      <button type="button" disabled={isRunning()} onClick={() => retry(node)}>Try again</button>
    </div>
  );
}

const NOTES = {
  length: "The answer reached the maximum of tokens in the settings.",
  stopped: "Stopped.",
};

const AWAY = {
  true: "This answer arrives in another tab.",
  false: "The page was closed before this answer ended.",
};

function Figures({ node }) {
  const { stats } = node;
  const parts = [];
  if (stats?.rate && Number.isFinite(stats.rate)) parts.push(`${stats.rate.toFixed(1)} tokens/s`);
  if (stats?.completion) parts.push(`${stats.completion} tokens`);
  if (stats?.cached) parts.push(`${stats.cached} of ${stats.prompt} prompt tokens cached`);
  if (node.changedAt !== undefined) parts.push(`token ${node.changedAt + 1} changed`);
  return parts.length ? <span class="figures">{parts.join(" · ")}</span> : null;
}

export function AssistantMessage({ node, results, last }) {
  const [glass, setGlass] = useState(app.settings.glass);
  const seen = node.tokens?.length > 0;
  const busy = ["waiting", "queued", "streaming"].includes(node.state);
  const running = app.running.get(app.conversation.id);
  const job = running?.node === node ? running : null;
  const live = job !== null;
  const note = NOTES[node.state] ?? NOTES[node.finish] ?? (busy && !live && AWAY[isElsewhere()]);
  return (
    <article class="message assistant" aria-label={node.model || "Assistant"} aria-busy={live}>
      {glass && seen ? (
        <Glass node={node} />
      ) : (
        <>
          {node.reasoning && <Reasoning node={node} />}
          {node.content && <Markdown text={node.content} />}
        </>
      )}
      {node.calls?.length > 0 && <Calls node={node} results={results} last={last} job={job} />}
      {live && node.state === "waiting" && <p class="pending"><span class="dots" aria-hidden="true"><i /><i /><i /></span><span class="hidden">Waiting for the model</span></p>}
      {live && node.state === "queued" && <p class="pending queued" role="status">The server is busy. Asking again in {job.wait} s.</p>}
      {node.state === "failed" && <Problem node={node} />}
      {note && <p class="note">{note}</p>}
      {!live && (
        <div class="actions">
          <Versions node={node} />
          <IconButton icon="copy" label="Copy" onClick={() => copy(node.content)} />
          <IconButton icon="retry" label="Another answer" disabled={isRunning()} onClick={() => retry(node)} />
          <IconButton icon="fork" label="Branch into a new conversation" onClick={() => forkAt(node)} />
          {seen && <IconButton icon="glass" label="Glass box" aria-pressed={glass} onClick={() => setGlass(!glass)} />}
          <Figures node={node} />
        </div>
      )}
    </article>
  );
}
