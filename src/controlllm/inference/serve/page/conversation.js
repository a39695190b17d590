// What was said: each turn is { asked, base, tuned }, each answer { text, sidecar, alpha, ... }.
// Base and tuned each go on from their own answers.

export const SIDES = ["base", "tuned"];

/** In place of a sidecar's name: all of them, each at its own alpha. */
export const BLEND = "";

/** The body of a request for one side's answer to the last of `turns`. */
export function request(side, turns, settings, info) {
  const body = { ...voice(side, settings), ...prompt(side, turns, settings, info) };
  body.temperature = settings.temperature;
  body.max_tokens = settings.maxTokens;
  if (settings.seed !== null) body.seed = settings.seed;
  return body;
}

/** The body that asks how base and tuned see an answer to the last of `turns`. */
export function comparison(side, turns, settings, info, answer) {
  const { sidecar, alpha } = turns[turns.length - 1].tuned ?? settings;
  return { ...voice("tuned", { sidecar, alpha }), ...prompt(side, turns, settings, info), answer: answer.text };
}

function voice(side, settings) {
  if (side === "base") return { model: "base" };
  if (settings.sidecar === BLEND) return { model: "base", alpha: settings.alpha };
  const chosen = { model: settings.sidecar };
  if (settings.alpha !== null) chosen.alpha = settings.alpha;
  return chosen;
}

function prompt(side, turns, settings, info) {
  const last = turns[turns.length - 1];
  if (!info.can_chat) return { prompt: last.asked };
  const messages = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (const turn of turns) {
    messages.push({ role: "user", content: turn.asked });
    if (turn !== last && turn[side]) messages.push({ role: "assistant", content: turn[side].text });
  }
  return { messages };
}

/** alpha as it is shown. */
export function shownAlpha(alpha) {
  if (alpha === null) return "as trained";
  if (typeof alpha === "number") return `alpha ${alpha.toFixed(2)}`;
  const on = Object.entries(alpha).filter(([, value]) => value > 0);
  return on.map(([name, value]) => `${name} ${value.toFixed(2)}`).join(" + ") || "all off";
}

/** Who speaks, as it is shown. */
export function shownName(sidecar) {
  return sidecar === BLEND ? "blend" : sidecar;
}
