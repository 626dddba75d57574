// The server's OpenAI API, read as a stream.

export class ApiError extends Error {
  constructor(message, status = 0, wait = 0) {
    super(message);
    this.status = status; // 0: no answer at all
    this.wait = wait; // seconds after which the server would be asked again
  }
}

const headers = (key) => ({
  "Content-Type": "application/json",
  ...(key ? { Authorization: `Bearer ${key}` } : {}),
});

async function request(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    const body = await response.json();
    message = body.error?.message ?? body.detail ?? message;
  } catch {
    // Not JSON: a proxy's page says less than the status.
  }
  const wait = response.status === 429 ? Math.max(1, Number(response.headers.get("Retry-After")) || 2) : 0;
  throw new ApiError(String(message), response.status, wait);
}

export async function models(key) {
  const { data } = await (await request("v1/models", { headers: headers(key) })).json();
  return data;
}

const NO_FUNCTIONS = "(none but Python's own)"; // templates want some text

/** What the server runs itself: tools called as JSON, functions of the model's Python. */
export async function serverTools(key) {
  const { data, python } = await (await request("v1/tools", { headers: headers(key) })).json();
  const tools = data.map(({ type, function: declared }) => ({ type, function: declared }));
  const functions = python ? (python.functions.length ? python.functions : [NO_FUNCTIONS]) : [];
  const names = tools.map((tool) => tool.function.name);
  return { tools, functions, names: python ? [...names, "python"] : names };
}

/** A call that the server makes: questions, then the result. */
export const callTool = (call, conversation, key, signal) =>
  stream("v1/tools/call", { name: call.name, arguments: JSON.parse(call.arguments), conversation, stream: true }, key, signal);

export const answerQuestion = (id, allow, key) =>
  request("v1/tools/answer", { method: "POST", headers: headers(key), body: JSON.stringify({ id, allow }) });

/** The text of tokens: one alone may be a part of a character. */
export async function detokenize(model, tokens, key) {
  const body = JSON.stringify({ model: model.id, tokens });
  const response = await request("detokenize", { method: "POST", headers: headers(key), body });
  return (await response.json()).content;
}

/** The chunks of a streamed answer. */
export async function* stream(url, body, key, signal) {
  const response = await request(url, {
    method: "POST", headers: headers(key), body: JSON.stringify(body), signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError("The connection broke before the answer ended.");
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message ?? "The server stopped this answer.");
        yield chunk;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The connection broke before the answer ended.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

export const canThink = (model) => model?.smollm3?.thinking !== false;

/** What both endpoints take. */
function sampling(settings, model) {
  const body = {
    model: model.id,
    stream: true,
    stream_options: { include_usage: true },
    temperature: Number(settings.temperature),
    top_p: Number(settings.top_p),
    max_tokens: Number(settings.max_tokens),
  };
  if (settings.seed !== "") body.seed = Number(settings.seed);
  return body;
}

function ownTools(text) {
  let tools = null;
  try {
    tools = JSON.parse(text.trim() || "[]");
  } catch {
    // Not JSON is no list either.
  }
  if (!Array.isArray(tools)) throw new ApiError("The tools in the settings are not a JSON list.");
  return tools;
}

export function chatBody(settings, model, messages, server) {
  const body = { ...sampling(settings, model), messages };
  if (canThink(model)) {
    body.chat_template_kwargs = { enable_thinking: settings.thinking };
    if (settings.thinking && settings.thinking_budget !== "") {
      body.thinking_budget = Number(settings.thinking_budget);
    }
  }
  // Objects are tools called as JSON; texts are functions for the model's own Python.
  const tools = ownTools(settings.tools);
  const python = [...tools.filter((tool) => typeof tool === "string"), ...server.functions];
  const declared = [...tools.filter((tool) => typeof tool !== "string"), ...server.tools];
  if (declared.length) body.tools = declared;
  if (python.length) body.chat_template_kwargs = { ...body.chat_template_kwargs, python_tools: python };
  if (settings.glass) body.glass_box = true;
  return body;
}

export const completionBody = (settings, model, prompt) => ({
  ...sampling(settings, model), prompt, glass_box: true,
});
