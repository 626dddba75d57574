// Text from the model to HTML that can neither run nor load anything.
//
// Three layers: markdown-it escapes raw HTML and refuses javascript: links; DOMPurify lets through
// only text markup and MathML; the server's CSP allows no inline script and no foreign image.
import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import MarkdownIt from "markdown-it";
import temml from "temml/dist/temml.mjs";

const languages = {
  bash, c, cpp, css, diff, java, javascript, json, python, rust, sql, typescript, xml, yaml,
};
for (const [name, language] of Object.entries(languages)) hljs.registerLanguage(name, language);

const LONGEST_FORMULA = 4000; // characters; longer ones stay source

const md = new MarkdownIt({ html: false, linkify: true, typographer: false });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
const { escapeHtml } = md.utils;

export function highlight(code, language) {
  if (!hljs.getLanguage(language)) return escapeHtml(code);
  return hljs.highlight(code, { language, ignoreIllegals: true }).value;
}

md.renderer.rules.fence = (tokens, i) => {
  const language = tokens[i].info.trim().split(/\s+/)[0].toLowerCase();
  const label = escapeHtml(language || "text");
  return (
    `<figure class="code"><figcaption>${label}<button type="button" class="copy-code">Copy</button>` +
    `</figcaption><pre tabindex="0"><code>${highlight(tokens[i].content, language)}</code></pre></figure>`
  );
};

// An image would tell its host that it was looked at, and what its address says: it is a link.
md.renderer.rules.image = (tokens, i) => {
  const src = escapeHtml(tokens[i].attrGet("src") ?? "");
  const alt = escapeHtml(tokens[i].content || "image");
  return `<a class="image-link" href="${src}" title="${src}">${alt} (image, not loaded)</a>`;
};

md.renderer.rules.table_open = () => '<div class="table" tabindex="0"><table>';
md.renderer.rules.table_close = () => "</table></div>";

function formula(source, displayMode) {
  const plain = `<code class="formula">${escapeHtml(source)}</code>`;
  if (source.length > LONGEST_FORMULA) return plain;
  try {
    const html = temml.renderToString(source, { displayMode, throwOnError: true, trust: false, maxExpand: 200 });
    const moved = html.replace(/ style="/g, ' data-css="'); // in text Temml writes &quot;
    return displayMode ? `<span class="display">${moved}</span>` : moved;
  } catch {
    return plain;
  }
}
md.renderer.rules.formula = (tokens, i) => formula(tokens[i].content, tokens[i].block);

const CLOSING = { "\\(": "\\)", "\\[": "\\]", $$: "$$", $: "$" };

function inlineFormula(state, silent) {
  const { src, pos } = state;
  const open = ["\\(", "\\[", "$$", "$"].find((mark) => src.startsWith(mark, pos));
  if (!open) return false;
  const from = pos + open.length;
  let end = src.indexOf(CLOSING[open], from);
  while (end > 0 && open.startsWith("$") && src[end - 1] === "\\") {
    end = src.indexOf(CLOSING[open], end + 1); // \$ is a dollar inside the formula
  }
  if (end <= from || end >= state.posMax) return false;
  // As pandoc: "$5 and $6" is money, "$x$" is a formula.
  if (open === "$" && (/\s/.test(src[from]) || /\s/.test(src[end - 1]) || /\d/.test(src[end + 1] ?? ""))) {
    return false;
  }
  if (!silent) {
    const token = state.push("formula", "math", 0);
    token.content = src.slice(from, end);
    token.block = open === "$$" || open === "\\[";
  }
  state.pos = end + CLOSING[open].length;
  return true;
}

function blockFormula(state, startLine, endLine, silent) {
  const lineOf = (line) =>
    state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]).trim();
  const first = lineOf(startLine);
  const open = ["\\[", "$$"].find((mark) => first.startsWith(mark));
  if (!open) return false;
  const close = CLOSING[open];
  const lines = [first.slice(open.length)];
  let line = startLine;
  while (!lines.at(-1).endsWith(close)) {
    if (++line >= endLine || state.sCount[line] < state.blkIndent) return false;
    lines.push(lineOf(line));
  }
  if (silent) return true;
  const token = state.push("formula", "math", 0);
  token.content = lines.join("\n").slice(0, -close.length).trim();
  token.block = true;
  token.map = [startLine, line + 1];
  state.line = line + 1;
  return true;
}

md.inline.ruler.before("escape", "formula", inlineFormula);
md.block.ruler.before("fence", "formula", blockFormula, { alt: ["paragraph", "blockquote", "list"] });

// Temml's layout is in style attributes, which the CSP forbids in markup: they travel as data-css
// and are set through the CSSOM once the nodes are in the page (`applyStyles`).
const STYLES = /^(color|background-color|padding|border|width|height|min-width|text-align|vertical-align|display|margin|position|line-height|font|math|justify|-webkit|mathvariant|float|overflow|content|letter|transform)/;
DOMPurify.addHook("uponSanitizeAttribute", (_, data) => {
  if (data.attrName !== "data-css") return;
  data.attrValue = data.attrValue
    .split(";")
    .filter((rule) => STYLES.test(rule.trim()) && !/url|image|position:\s*(fixed|absolute)/i.test(rule))
    .join(";");
});
DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A" || !node.hasAttribute("href")) return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

const CLEAN = {
  USE_PROFILES: { html: true, mathMl: true },
  FORBID_TAGS: [
    "img", "picture", "source", "video", "audio", "track", "svg", "style", "link", "form", "input",
    "textarea", "select", "area", "map", "iframe", "object", "embed", "dialog",
  ],
  FORBID_ATTR: ["style", "id", "name", "src", "srcset", "background", "poster"],
  ADD_ATTR: ["tabindex", "target"],
  // Of what has a scheme these two; the rest is for values that are no address (width="2em").
  ALLOWED_URI_REGEXP: /^(?:(?:https?|mailto):|[^a-z]|[a-z+.-]+(?:[^a-z+.:-]|$))/i,
};

export const clean = (html) => DOMPurify.sanitize(html, CLEAN);

const made = new Map(); // source of a block -> its HTML; the oldest go first
const KEPT = 400;

/** The text as one HTML text for each top-level block, so that a streamed answer redraws only its last. */
export function blocks(text) {
  const env = {};
  const tokens = md.parse(text, env);
  const lines = text.split("\n");
  const result = [];
  for (let i = 0; i < tokens.length; ) {
    let end = i + 1;
    if (tokens[i].nesting === 1) {
      while (tokens[end].level !== tokens[i].level || tokens[end].nesting !== -1) end++;
      end++;
    }
    const [from, to] = tokens[i].map ?? [0, lines.length];
    const source = lines.slice(from, to).join("\n");
    const key = `${source}\0${Object.keys(env.references ?? {})}`; // a later definition makes links
    let html = made.get(key);
    if (html === undefined) {
      html = clean(md.renderer.render(tokens.slice(i, end), md.options, env));
      made.set(key, html);
      if (made.size > KEPT) made.delete(made.keys().next().value);
    }
    result.push(html);
    i = end;
  }
  return result;
}

export function applyStyles(element) {
  for (const node of element.querySelectorAll("[data-css]")) {
    node.style.cssText = node.getAttribute("data-css");
    node.removeAttribute("data-css");
  }
}
