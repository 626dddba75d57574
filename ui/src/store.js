// Conversations in IndexedDB (answers with their tokens are large), settings in localStorage.

const SETTINGS = "smollm3.settings";

export const DEFAULTS = {
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

export function loadSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    // A browser that keeps nothing: the settings live as long as the page.
  }
}

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

let opened;
function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("smollm3", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("heads", { keyPath: "id" }); // what the list shows
      request.result.createObjectStore("conversations", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function change(work) {
  const transaction = (await open()).transaction(["heads", "conversations"], "readwrite");
  work(transaction.objectStore("heads"), transaction.objectStore("conversations"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
}

export async function heads() {
  const all = await done((await open()).transaction("heads").objectStore("heads").getAll());
  return all.sort((a, b) => b.updated - a.updated);
}

export const load = async (id) =>
  done((await open()).transaction("conversations").objectStore("conversations").get(id));

export const save = (conversation) =>
  change((headStore, store) => {
    const { id, title, updated } = conversation;
    headStore.put({ id, title, updated });
    store.put(conversation);
  });

export const remove = (id) =>
  change((headStore, store) => {
    headStore.delete(id);
    store.delete(id);
  });
