// Bundles the page into the Python package, or into the folder that is given.
//
// A page that is served meanwhile stays whole, and so does the folder if this is killed: the parts
// have their content's hash in their names, each file appears by a rename, the index last, and only
// then the parts of the page before go.
import { build } from "esbuild";
import { mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "../src/smollm3/serve/static");
const assets = join(out, "assets");
mkdirSync(assets, { recursive: true });

const kept = new Set();
function put(folder, name, content) {
  const part = join(assets, `.${process.pid}.part`);
  writeFileSync(part, content);
  renameSync(part, join(folder, name));
  kept.add(name);
}

const result = await build({
  absWorkingDir: here,
  entryPoints: { app: "src/main.jsx" },
  outdir: assets,
  entryNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  loader: { ".woff2": "file" },
  bundle: true,
  minify: true,
  metafile: true,
  write: false,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none", // the full texts are in licences.txt
  logLevel: "warning",
});
for (const { path, contents } of result.outputFiles) put(assets, basename(path), contents);

// The licence of every package that went into the bundle travels with it.
const inputs = Object.keys(result.metafile.inputs);
const names = new Set(
  inputs.map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]).filter(Boolean),
);
const texts = [...names].sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const files = readdirSync(folder).filter((file) => /^licen[cs]e(-mit)?(\.(md|txt))?$/i.test(file));
  if (!files.length) throw new Error(`${name}: no licence text found`);
  const text = files.map((file) => readFileSync(join(folder, file), "utf8")).join("\n");
  return `${name} ${version} (${license})\n\n${text.trim()}\n`;
});
put(assets, "licences.txt", texts.join(`\n${"-".repeat(72)}\n\n`));
put(assets, "icon.svg", readFileSync(join(here, "icon.svg")));

const index = readFileSync(join(here, "index.html"), "utf8").replace(/assets\/(app)\.(js|css)/g, (_, name, kind) => {
  const made = [...kept].find((file) => file.startsWith(`${name}-`) && file.endsWith(`.${kind}`));
  return `assets/${made}`;
});
put(out, "index.html", index);
for (const name of readdirSync(assets)) if (!kept.has(name)) rmSync(join(assets, name), { recursive: true });
