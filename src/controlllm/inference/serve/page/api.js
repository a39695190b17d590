// What this page asks of the server that it came from, and of no other.

let key = sessionStorage.getItem("controlllm-key");

/** Keep the API key for this tab. */
export function useKey(value) {
  key = value.trim() || null;
  if (key === null) sessionStorage.removeItem("controlllm-key");
  else sessionStorage.setItem("controlllm-key", key);
}

/** What the server says is wrong. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers, signal, cache: "no-store", credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Is it still running?");
  }
  if (!response.ok) throw new ServerError(response.status, await told(response));
  return response;
}

async function told(response) {
  try {
    const message = (await response.json()).error?.message;
    if (typeof message === "string") return message;
  } catch { /* not JSON: the status has to do */ }
  return `The server answers ${response.status} ${response.statusText}`.trim() + ".";
}

/** Names, sidecars and limits: see `controlllm.inference.serve.browser`. */
export async function info() {
  return (await ask("controlllm/info")).json();
}

/** KL(base || tuned) of an answer, token by token. */
export async function compare(body, signal) {
  return (await ask("controlllm/compare", body, signal)).json();
}

/**
 * Stream an answer; `onPiece` gets each piece.
 * Returns { finish, tokens } as the server tells them.
 */
export async function stream(path, body, signal, onPiece) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await ask(path, asked, signal);
  let finish = null, tokens = null, ended = false;
  for await (const event of events(response.body)) {
    if (event === "[DONE]") { ended = true; break; }
    const chunk = JSON.parse(event);
    if (chunk.error) throw new ServerError(500, String(chunk.error.message));
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content ?? choice?.text;
    if (text) onPiece(text);
    finish = choice?.finish_reason ?? finish;
    tokens = chunk.usage?.completion_tokens ?? tokens;
  }
  if (!ended) throw new ServerError(0, "The server broke off before the end.");
  return { finish, tokens };
}

/** The data of server-sent events, one by one. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      waiting += value.replaceAll("\r", "");
      const parts = waiting.split("\n\n");
      waiting = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
