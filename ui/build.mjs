// Bundles the page into the Python package. `npm ci && npm run build`, or `make ui`.
import { build } from "esbuild";
import { cpSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "../src/smollm3/serve/static");
const assets = join(out, "assets");

rmSync(out, { recursive: true, force: true });
mkdirSync(assets, { recursive: true });
const result = await build({
  absWorkingDir: here,
  entryPoints: { app: "src/main.jsx" },
  outdir: assets,
  assetNames: "[name]",
  loader: { ".woff2": "file" },
  bundle: true,
  minify: true,
  metafile: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none", // the full texts are in licences.txt
  logLevel: "warning",
});

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
writeFileSync(join(assets, "licences.txt"), texts.join(`\n${"-".repeat(72)}\n\n`));

cpSync(join(here, "icon.svg"), join(assets, "icon.svg"));
cpSync(join(here, "index.html"), join(out, "index.html")); // last: where it is, the page is whole
