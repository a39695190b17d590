// A conversation as a link: all of it stands behind the #, which browsers send to no server.
// What comes out of a link is a stranger's: it is checked field by field, and shown as text.

import { SIDES } from "./conversation.js";

const MOST_TEXT = 1 << 20;
const MOST_TURNS = 256;
const MOST_SIDECARS = 64;

/** The fragment that holds settings and conversation. */
export async function toFragment(settings, turns) {
  const bytes = new TextEncoder().encode(JSON.stringify(plain(settings, turns)));
  const packed = await all(new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw")));
  let text = "";
  for (const byte of packed) text += String.fromCharCode(byte);
  return "#c=" + btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** What a fragment holds, checked; null where there is nothing. Throws where it cannot be read. */
export async function fromFragment(fragment) {
  if (!fragment.startsWith("#c=")) return null;
  const packed = Uint8Array.from(
    atob(fragment.slice(3).replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return checked(JSON.parse(new TextDecoder().decode(await all(stream))));
}

/** Settings and conversation without what only this page knows. */
export function plain(settings, turns) {
  const answer = (side, { text, sidecar, alpha }) => (side === "base" ? { text } : { text, sidecar, alpha });
  return {
    version: 1,
    settings: { ...settings },
    turns: turns.map((turn) => Object.fromEntries([
      ["asked", turn.asked],
      ...SIDES.filter((side) => turn[side]).map((side) => [side, answer(side, turn[side])]),
    ])),
  };
}

async function all(stream) {
  const parts = [];
  let size = 0;
  for (const reader = stream.getReader(); ;) {
    const { value, done } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > MOST_TEXT) throw new Error("it is too long");
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function checked(data) {
  const text = (value) => { if (typeof value !== "string") throw new Error("a text is missing"); return value; };
  const number = (value, low, high) => {
    if (value === null || value === undefined) return null;
    if (typeof value !== "number" || !(value >= low && value <= high)) throw new Error("a number is out of range");
    return value;
  };
  if (data?.version !== 1 || !Array.isArray(data.turns) || data.turns.length > MOST_TURNS) {
    throw new Error("it is no conversation of this page");
  }
  const alpha = (value) => {
    if (value === null || typeof value !== "object") return number(value, 0, 1);
    return Object.fromEntries(Object.entries(value).slice(0, MOST_SIDECARS).map(([name, one]) => [name, number(one, 0, 1) ?? 0]));
  };
  const said = data.settings ?? {};
  const answer = (side, value) => (side === "base" ? { text: text(value?.text) }
    : { text: text(value?.text), sidecar: text(value.sidecar), alpha: alpha(value.alpha) });
  return {
    settings: {
      system: text(said.system ?? ""),
      temperature: number(said.temperature, 0, 2) ?? 0,
      seed: number(said.seed, 0, Number.MAX_SAFE_INTEGER),
      maxTokens: number(said.maxTokens, 1, 1e6),
      alpha: alpha(said.alpha),
      sidecar: text(said.sidecar ?? ""),
      sides: ["both", ...SIDES].includes(said.sides) ? said.sides : "both",
    },
    turns: data.turns.map((turn) => Object.fromEntries([
      ["asked", text(turn?.asked)],
      ...SIDES.filter((side) => turn[side]).map((side) => [side, answer(side, turn[side])]),
    ])),
  };
}
