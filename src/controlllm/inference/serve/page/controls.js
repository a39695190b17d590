// The settings and the dial: what stands in the fields, and what they take.

import { shownAlpha } from "./conversation.js";

const $ = (id) => document.getElementById(id);
const fields = {
  system: $("system"), temperature: $("temperature"), seed: $("seed"), maxTokens: $("max-tokens"),
  sides: $("sides"), sidecar: $("sidecar"), alpha: $("alpha"),
};
const asTrained = $("as-trained");

/** Let the fields offer what the server has; `onChange` is called when one has changed. */
export function setUp(info, onChange) {
  const hasSidecars = info.sidecars.length > 0;
  fields.sidecar.replaceChildren(...info.sidecars.map((name) => new Option(name, name)));
  $("dial").hidden = !hasSidecars;
  $("legend").hidden = !hasSidecars;
  for (const part of [document.querySelector(".slide"), asTrained.parentElement]) part.hidden = !info.has_dial;
  $("system-field").hidden = !info.can_chat;
  fields.maxTokens.max = info.limits.max_tokens;
  if (!hasSidecars) fields.sides.value = "base";
  fields.sides.parentElement.hidden = !hasSidecars;
  fields.alpha.addEventListener("input", () => { asTrained.checked = false; });
  for (const field of [...Object.values(fields), asTrained]) {
    field.addEventListener("input", () => { showAlpha(); onChange(); });
  }
  const room = info.context === null ? 256 : Math.floor(info.context / 2);
  write({ temperature: 0, seed: null, maxTokens: Math.min(256, room, info.limits.max_tokens), alpha: null,
    sidecar: info.sidecars[0] ?? "", sides: fields.sides.value, system: "" });
}

/** What stands in the fields; throws an Error that says which one is wrong. */
export function read() {
  for (const [name, field] of [["Temperature", fields.temperature], ["Seed", fields.seed], ["Most tokens", fields.maxTokens]]) {
    if (!field.checkValidity()) throw new Error(`${name}: ${field.validationMessage}`);
  }
  const number = (field, otherwise) => (field.value === "" ? otherwise : Number(field.value));
  return {
    system: fields.system.value,
    temperature: number(fields.temperature, 0),
    seed: number(fields.seed, null),
    maxTokens: number(fields.maxTokens, Number(fields.maxTokens.max)),
    alpha: asTrained.checked ? null : Number(fields.alpha.value),
    sidecar: fields.sidecar.value,
    sides: fields.sides.value,
  };
}

/** Put settings into the fields; a sidecar that is not there stays as it is. */
export function write(settings) {
  const { alpha, seed, sidecar, maxTokens } = settings;
  fields.system.value = settings.system;
  fields.temperature.value = settings.temperature;
  fields.seed.value = seed ?? "";
  if (maxTokens !== null) fields.maxTokens.value = Math.min(maxTokens, Number(fields.maxTokens.max));
  if ([...fields.sidecar.options].some((option) => option.value === sidecar)) fields.sidecar.value = sidecar;
  if (fields.sidecar.options.length) fields.sides.value = settings.sides;
  asTrained.checked = alpha === null;
  fields.alpha.value = alpha ?? 1;
  showAlpha();
}

function showAlpha() {
  const alpha = asTrained.checked ? null : Number(fields.alpha.value);
  $("alpha-value").textContent = alpha === null ? "–" : alpha.toFixed(2);
  $("dial").classList.toggle("trained", alpha === null);
  const means = { 0: ", the base", 1: ", the trained branch alone" }[alpha] ?? "";
  fields.alpha.setAttribute("aria-valuetext", shownAlpha(alpha) + means);
}
