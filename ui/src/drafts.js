// What is written and not yet sent: a text for each conversation, for each message that is edited
// and each result that is typed in. localStorage has it after every key, so neither a reload nor a
// crash loses it, and all tabs that show the same place show the same text.
import { useEffect, useReducer } from "preact/hooks";
import { entries, redraw, write } from "./state.js";

const PREFIX = "smollm3.draft.";
const drafts = new Map(); // as localStorage has them, and what it could not take
const watchers = new Set();

export const draftOf = (place) => drafts.get(place) ?? null;

/** Null forgets the draft. */
export function setDraft(place, text) {
  write(PREFIX + place, text);
  hold(place, text);
}

function hold(place, text) {
  const isNew = drafts.has(place) !== (text !== null);
  if (text === null) drafts.delete(place);
  else drafts.set(place, text);
  if (isNew) redraw(); // the list shows conversations that have only a draft
  else for (const draw of watchers) draw();
}

/** Drawn again when a draft changes, here or in another tab. */
export function useDrafts() {
  const [, draw] = useReducer((n) => n + 1, 0);
  useEffect(() => {
    watchers.add(draw);
    return () => watchers.delete(draw);
  }, []);
}

/** [text or null, set] of the draft at a place: "conversation", "conversation/message" or "conversation/message/call". */
export function useDraft(place) {
  useDrafts();
  return [draftOf(place), (text) => setDraft(place, text)];
}

/** Ids of conversations with a draft of their next message, and its text. */
export const nextMessages = () => [...drafts].filter(([place, text]) => !place.includes("/") && text.trim());

/** With a conversation go its drafts. */
export function forgetDrafts(conversation) {
  for (const place of [...drafts.keys()]) {
    if (place.split("/")[0] === conversation) setDraft(place, null);
  }
}

export function watchDrafts() {
  for (const [key, text] of entries(PREFIX)) drafts.set(key.slice(PREFIX.length), text);
  addEventListener("storage", ({ key, newValue }) => {
    if (key?.startsWith(PREFIX)) hold(key.slice(PREFIX.length), newValue);
  });
}
