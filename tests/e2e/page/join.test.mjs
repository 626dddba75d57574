// The join of copies of a conversation, as a function: laws, and random histories of three tabs.
// `node join.test.mjs FILE` with the path of conversation.js. Each import with another query is a
// module of its own, so a tab of its own.
import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const file = pathToFileURL(process.argv[2]).href;
const tabs = await Promise.all([1, 2, 3].map((n) => import(`${file}?tab=${n}`)));
assert.equal(new Set(tabs.map((tab) => tab.TAB)).size, 3);
const { join, joinHeads, later, path } = tabs[0];

// mulberry32: the same histories each time
let state = 20261127;
function random() {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
}
const choose = (list) => list[Math.floor(random() * list.length)];
const joined = (...copies) => copies.reduce((a, b) => join(a, b));

let checked = 0;
for (let history = 0; history < 100; history++) {
  const first = tabs[0].newConversation("system");
  const copies = [first, structuredClone(first), structuredClone(first)];
  const snapshots = [];
  const said = new Map(); // every message that was ever made, as it was last
  const send = (i) => {
    const copy = copies[i];
    const parent = random() < 0.7 ? copy.leaf : choose([null, ...Object.keys(copy.nodes)]);
    const node = tabs[i].addNode(copy, parent, { role: "user", content: `${i}: ${said.size}` });
    said.set(node.id, node.content);
  };
  const grow = (i) => {
    const own = Object.values(copies[i].nodes).filter((node) => node.by === tabs[i].TAB);
    if (!own.length) return;
    const node = choose(own);
    node.content += ".";
    tabs[i].touch(copies[i], node);
    said.set(node.id, node.content);
  };
  const name = (i) => tabs[i].setField(copies[i], choose(["title", "system"]), `by ${i}, ${random()}`);
  const hear = (i) => {
    const from = choose([...copies, ...snapshots]); // what is late is old
    const before = structuredClone(copies[i]);
    tabs[i].receive(copies[i], structuredClone(from));
    if (before.leaf) assert.ok(path(copies[i]).some((node) => node.id === before.leaf), "the view moved away");
    for (const node of Object.values(before.nodes)) assert.ok(copies[i].nodes[node.id].version >= node.version);
  };
  for (let step = 0; step < 30; step++) {
    choose([send, grow, grow, name, hear, hear])(Math.floor(random() * 3));
    if (random() < 0.3) snapshots.push(structuredClone(choose(copies)));
  }
  const all = [...copies, ...snapshots];
  for (let n = 0; n < 20; n++) {
    const [a, b, c] = [choose(all), choose(all), choose(all)];
    assert.deepEqual(join(a, a), { ...join(a, a), ...tabs[0].headOf(a), nodes: a.nodes }, "idempotent");
    assert.deepEqual(join(a, b), join(b, a), "commutative");
    assert.deepEqual(join(join(a, b), c), join(a, join(b, c)), "associative");
    assert.deepEqual(join(join(a, b), b), join(a, b), "absorbs what it has");
    checked++;
  }
  const shuffled = [...all].sort(() => random() - 0.5);
  const final = joined(...all);
  assert.deepEqual(joined(...shuffled), final, "the order does not matter");
  assert.deepEqual(Object.fromEntries(Object.values(final.nodes).map((node) => [node.id, node.content])), Object.fromEntries(said));
  assert.deepEqual(joinHeads(final, { id: final.id, removed: true }), { id: final.id, removed: true });
  assert.deepEqual(joinHeads({ id: final.id, removed: true }, final), { id: final.id, removed: true });
}
const old = { id: "n", content: "from before versions" };
assert.equal(later(old, { ...old, version: 1, by: "t" }).version, 1);
console.log(`${checked} triples`);
