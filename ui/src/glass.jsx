// The glass box: what the model read and wrote, token by token.
import { useMemo, useRef, useState } from "preact/hooks";
import { changeToken } from "./answers.js";
import { isRunning } from "./app.js";

const SOURCES = {
  sampled: "sampled",
  draft: "a speculative token that the model accepted",
  forced: "the only one that the grammar allowed",
  changed: "put here by you",
};
const SHOWN = 1500; // of a prompt, until asked for all

const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return p >= 99.95 ? "100%" : p >= 9.95 ? `${p.toFixed(0)}%` : p >= 0.095 ? `${p.toFixed(1)}%` : "< 0.1%";
};

/** A token's text with its white space and its missing bytes made visible. */
export const visible = (text) =>
  text === "" ? "∅" : text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\ufffd/g, "▯");

// Ten steps, the surest colourless. One step is a factor: 90% and 99% differ as much as 10% and 1%.
const step = (logprob) => Math.min(9, Math.floor(Math.max(0, -logprob) * 2));

const control = (text) => (/^<[^\s<>]+>$/.test(text) ? "control" : "");
const shown = (text) => (text === "" ? "∅" : text.replace(/\n/g, "↵\n"));

export function Glass({ node }) {
  const busy = isRunning();
  // Thousands of tokens: only those of the answer that grows are drawn again.
  return useMemo(
    () => (
      <div class="glass">
        <Prompt tokens={node.prompt} />
        <Answer node={node} busy={busy} />
      </div>
    ),
    [node, node.version, busy],
  );
}

function Prompt({ tokens }) {
  const [open, setOpen] = useState(false);
  const [all, setAll] = useState(false);
  if (!tokens.length) return null;
  const cached = tokens.filter((token) => token.cached).length;
  return (
    <details class="glass-prompt" open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>
        Prompt: {tokens.length} tokens{cached ? `, ${cached} from the cache` : ""}
      </summary>
      {open && (
        <div class="tokens" tabindex="0" role="group" aria-label="Tokens of the prompt">
          {(all ? tokens : tokens.slice(0, SHOWN)).map((token, i) => (
            <span
              key={i}
              class={`token prompt-token ${token.cached ? "cached" : ""} ${control(token.text)}`}
              title={`token ${token.id}${token.cached ? ", from the cache" : ""}`}
            >
              {shown(token.text)}
            </span>
          ))}
          {!all && tokens.length > SHOWN && (
            <button type="button" class="link" onClick={() => setAll(true)}>
              show all {tokens.length}
            </button>
          )}
        </div>
      )}
    </details>
  );
}

function Legend({ tokens }) {
  const count = (source) => tokens.filter((token) => token.source === source).length;
  const scored = tokens.filter((token) => Number.isFinite(token.logprob));
  const mean = scored.reduce((sum, token) => sum + token.logprob, 0) / (scored.length || 1);
  return (
    <p class="legend">
      <span class="scale" aria-hidden="true">
        {[0, 2, 4, 6, 8].map((n) => <i key={n} class={`p${n}`} />)}
      </span>
      <span>likely to unlikely; a token had {percent(mean)} on average</span>
      {count("draft") > 0 && <span><i class="key draft">a</i> speculative {count("draft")}</span>}
      {count("forced") > 0 && <span><i class="key forced">a</i> grammar {count("forced")}</span>}
    </p>
  );
}

/** One stop of the tab key: arrows walk from token to token, Enter goes to the alternatives. */
function Answer({ node, busy }) {
  const { tokens } = node;
  const box = useRef(null);
  const [at, setAt] = useState(-1);
  const [pinned, setPinned] = useState(false);
  const chosen = tokens[at];
  const focusToken = (i) => box.current.querySelector(`[data-at="${i}"]`)?.focus();
  const close = () => {
    setAt(-1);
    setPinned(false);
  };
  const keys = (event) => {
    if (event.key === "Escape" && at >= 0) {
      event.stopPropagation();
      focusToken(at);
      close();
    }
    const i = Number(event.target.dataset.at ?? NaN);
    if (Number.isNaN(i)) return;
    const next = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (next !== undefined) {
      event.preventDefault();
      focusToken(Math.min(Math.max(next, 0), tokens.length - 1));
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      setPinned(true);
      box.current.querySelector(".alternatives button")?.focus();
    }
  };
  const hover = (event) => {
    const i = event.target.dataset?.at;
    if (!pinned && i !== undefined) setAt(Number(i));
  };
  if (!tokens.length) return null;
  return (
    <>
      <Legend tokens={tokens} />
      <div
        ref={box} class="glass-answer" onKeyDown={keys} onMouseOver={hover}
        onMouseLeave={() => !pinned && !box.current.contains(document.activeElement) && close()}
      >
        <div class="tokens" role="group" aria-label="Tokens of the answer; arrow keys walk, Enter shows alternatives">
          {tokens.map((token, i) => (
            <span
              key={i} data-at={i} tabindex={i === Math.max(at, 0) ? 0 : -1} role="button"
              aria-label={`${visible(token.text)}, ${Number.isFinite(token.logprob) ? percent(token.logprob) : ""} ${SOURCES[token.source] ?? ""}`}
              aria-expanded={i === at}
              class={`token p${step(token.logprob ?? 0)} ${token.source ?? ""} ${control(token.text)} ${i === at ? "at" : ""}`}
              onFocus={() => setAt(i)}
              onClick={() => {
                setPinned(!(pinned && i === at));
                setAt(i);
              }}
            >
              {shown(token.text)}
            </span>
          ))}
        </div>
        {chosen && <Details key={at} node={node} at={at} token={chosen} box={box.current} pinned={pinned} busy={busy} close={close} />}
      </div>
    </>
  );
}

function Details({ node, at, token, box, pinned, busy, close }) {
  const place = (element) => {
    const target = box.querySelector(`[data-at="${at}"]`);
    if (!element || !target) return;
    const rect = [...target.getClientRects()].at(-1);
    const outer = box.getBoundingClientRect();
    element.style.top = `${rect.bottom - outer.top}px`;
    element.style.left = `${Math.max(0, Math.min(rect.left - outer.left, outer.width - element.offsetWidth))}px`;
    if (pinned) element.scrollIntoView({ block: "nearest" });
  };
  const top = token.top ?? [];
  return (
    <div class="details" ref={place} role="dialog" aria-label={`Token ${at + 1}`}>
      <p class="details-head">
        <code>{visible(token.text)}</code>
        <span class="muted">
          {Number.isFinite(token.logprob) && `${percent(token.logprob)} · `}token {token.id} · {SOURCES[token.source] ?? token.source}
        </span>
        <button type="button" class="icon-button small" aria-label="Close" onClick={close}>×</button>
      </p>
      {top.length > 0 && (
        <ul class="alternatives">
          {top.map((other) => {
            const same = other.id === token.id;
            return (
              <li key={other.id}>
                <button
                  type="button" disabled={same || busy} class={same ? "same" : ""}
                  title={same ? "what stands here" : "Put this token here and go on from it"}
                  onClick={() => {
                    close();
                    changeToken(node, at, { id: other.id, text: other.text, logprob: other.logprob });
                  }}
                >
                  <code>{visible(other.text)}</code>
                  <meter min="0" max="1" value={Math.exp(other.logprob)} aria-hidden="true" />
                  <span class="number">{percent(other.logprob)}</span>
                </button>
              </li>
            );
          })}
        </ul>
      )}
      <p class="hint">{busy ? "Stop the answer to change a token." : "Choose one to put it here and go on from it."}</p>
    </div>
  );
}
