// Conversations in IndexedDB, message by message. A save joins what is stored with what this tab
// knows, in one transaction, so tabs that save at the same time lose nothing of each other.
//
// IndexedDB answers later, and a page may end sooner. What must not wait (a message that was just
// sent, the last words of an answer when the page ends) is first written to localStorage, which
// answers at once, and joined into the store by whichever page opens next.
import { headOf, joinHeads, later, putBack, TAB, takeUnsaved, unsavedOf } from "./conversation.js";
import { entries, toast } from "./state.js";

const JOURNAL = "smollm3.journal.";

let opened;
function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("smollm3", 2);
    request.onupgradeneeded = ({ oldVersion }) => upgrade(request, oldVersion);
    request.onblocked = () => toast("Close the other tabs of this page: an older one holds the conversations.", { bad: true });
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const db = request.result;
      db.onclose = () => (opened = undefined);
      db.onversionchange = () => {
        db.close(); // a newer page waits for it
        opened = undefined;
      };
      resolve(db);
    };
  });
  opened.catch(() => (opened = undefined));
  return opened;
}

function upgrade({ result: db, transaction }, oldVersion) {
  const messages = db.createObjectStore("messages"); // by [conversation, message]
  if (oldVersion === 0) {
    db.createObjectStore("heads", { keyPath: "id" }); // a conversation without its messages
    return;
  }
  // Version 1 had a conversation in one piece.
  transaction.objectStore("conversations").getAll().onsuccess = ({ target }) => {
    for (const conversation of target.result) {
      transaction.objectStore("heads").put({ ...headOf(conversation), stamps: {} });
      for (const node of Object.values(conversation.nodes)) messages.put(node, [conversation.id, node.id]);
    }
    db.deleteObjectStore("conversations");
  };
}

const all = (id) => IDBKeyRange.bound([id], [id, []]); // an array sorts after every text

/** `work` asks of the two stores; what the requests gave comes once it is all done. */
async function within(mode, work) {
  const transaction = (await open()).transaction(["heads", "messages"], mode);
  const found = work(transaction.objectStore("heads"), transaction.objectStore("messages"));
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
  return found;
}

/** The conversations, the newest first. */
export async function loadHeads() {
  const request = await within("readonly", (heads) => heads.getAll());
  return request.result.filter((head) => !head.removed).sort((a, b) => b.updated - a.updated);
}

/** A conversation, or of its messages only those named; null where there is none. */
export async function load(id, names = null) {
  const [head, nodes] = await within("readonly", (heads, messages) => [
    heads.get(id),
    names ? names.map((name) => messages.get([id, name])) : [messages.getAll(all(id))],
  ]);
  if (!head.result || head.result.removed) return null;
  const found = nodes.flatMap((request) => request.result ?? []);
  return { ...head.result, nodes: Object.fromEntries(found.map((node) => [node.id, node])) };
}

/** False where the conversation was deleted. */
async function put(head, nodes) {
  let there = true;
  await within("readwrite", (heads, messages) => {
    heads.get(head.id).onsuccess = ({ target: { result: old } }) => {
      there = !old?.removed;
      if (!there) return;
      heads.put(old ? joinHeads(old, head) : head);
      for (const node of nodes) {
        const key = [head.id, node.id];
        messages.get(key).onsuccess = ({ target: { result: known } }) => {
          if (!known || later(known, node) === node) messages.put(node, key);
        };
      }
    };
  });
  return there;
}

/**
 * Store what changed. Returns the ids of those messages, or null where the conversation was deleted;
 * what could not be stored stays to be.
 */
export async function save(conversation) {
  const nodes = takeUnsaved(conversation);
  let there;
  try {
    there = await put(headOf(conversation), nodes);
  } catch (error) {
    putBack(conversation, nodes);
    throw error;
  }
  if (!unsavedOf(conversation).length) removeJournal(`${JOURNAL}${TAB}.${conversation.id}`);
  return there ? nodes.map((node) => node.id) : null;
}

export const remove = (id) =>
  within("readwrite", (heads, messages) => {
    heads.put({ id, removed: true }); // so that a tab that still has it does not bring it back
    messages.delete(all(id));
  });

/** At once to localStorage what is not stored yet. */
export function writeJournal(conversation) {
  const nodes = unsavedOf(conversation);
  if (!nodes.length) return true;
  try {
    localStorage.setItem(`${JOURNAL}${TAB}.${conversation.id}`, JSON.stringify({ head: headOf(conversation), nodes }));
    return true;
  } catch {
    return false; // no room: IndexedDB will have it in a moment
  }
}

function removeJournal(key, text = null) {
  try {
    // What another tab wrote since it was read stays.
    if (text === null || localStorage.getItem(key) === text) localStorage.removeItem(key);
  } catch {
    // Nothing is there that could be removed.
  }
}

/** Into the store with what pages that ended wrote last. To do so twice does no harm. */
export async function replayJournals() {
  for (const [key, text] of entries(JOURNAL)) {
    const { head, nodes } = JSON.parse(text);
    await put(head, nodes);
    removeJournal(key, text);
  }
}
