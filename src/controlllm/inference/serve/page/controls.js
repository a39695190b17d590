// The settings and the dial: what stands in the fields, and what they take.

import { BLEND, shownAlpha } from "./conversation.js";

const $ = (id) => document.getElementById(id);
const fields = {
  system: $("system"), temperature: $("temperature"), seed: $("seed"), maxTokens: $("max-tokens"),
  sides: $("sides"), sidecar: $("sidecar"), alpha: $("alpha"),
};
const asTrained = $("as-trained");
let hasDial = false;
let blend = {}; // a slider for each of several sidecars

/** Let the fields offer what the server has; `onChange` is called when one has changed. */
export function setUp(info, onChange) {
  const hasSidecars = info.sidecars.length > 0;
  hasDial = info.has_dial;
  fields.sidecar.replaceChildren(...info.sidecars.map((name) => new Option(name, name)));
  blend = {};
  if (hasDial && info.sidecars.length > 1) {
    fields.sidecar.append(new Option("a blend", BLEND));
    $("blend").replaceChildren(...info.sidecars.map(blendSlide));
  }
  $("dial").hidden = !hasSidecars;
  $("legend").hidden = !hasSidecars;
  $("system-field").hidden = !info.can_chat;
  fields.maxTokens.max = info.limits.max_tokens;
  if (!hasSidecars) fields.sides.value = "base";
  fields.sides.parentElement.hidden = !hasSidecars;
  fields.alpha.addEventListener("input", () => { asTrained.checked = false; });
  for (const field of [...Object.values(fields), ...Object.values(blend), asTrained]) {
    field.addEventListener("input", () => { showDial(); onChange(); });
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
    alpha: alpha(),
    sidecar: fields.sidecar.value,
    sides: fields.sides.value,
  };
}

/** Put settings into the fields; sidecars that are not there are passed over. */
export function write({ system, temperature, seed, maxTokens, alpha, sidecar, sides }) {
  fields.system.value = system;
  fields.temperature.value = temperature;
  fields.seed.value = seed ?? "";
  if (maxTokens !== null) fields.maxTokens.value = Math.min(maxTokens, Number(fields.maxTokens.max));
  if ([...fields.sidecar.options].some((option) => option.value === sidecar)) fields.sidecar.value = sidecar;
  if (fields.sidecar.options.length) fields.sides.value = sides;
  const single = typeof alpha === "number" ? alpha : null;
  asTrained.checked = single === null || !hasDial;
  fields.alpha.value = single ?? 1;
  for (const [name, slider] of Object.entries(blend)) slider.value = alpha?.[name] ?? 0.5;
  showDial();
}

function alpha() {
  if (isBlend()) return Object.fromEntries(Object.entries(blend).map(([name, slider]) => [name, Number(slider.value)]));
  return asTrained.checked ? null : Number(fields.alpha.value);
}

function isBlend() {
  return fields.sidecar.options.length > 1 && fields.sidecar.value === BLEND;
}

function showDial() {
  const now = alpha();
  $("blend").hidden = !isBlend();
  for (const part of [fields.alpha.parentElement, asTrained.parentElement]) part.hidden = !hasDial || isBlend();
  $("alpha-value").textContent = asTrained.checked ? "–" : Number(fields.alpha.value).toFixed(2);
  $("dial").classList.toggle("trained", now === null);
  for (const slider of Object.values(blend)) slider.nextElementSibling.textContent = Number(slider.value).toFixed(2);
  const means = { 0: ", the base", 1: ", the trained branch alone" }[now] ?? "";
  fields.alpha.setAttribute("aria-valuetext", shownAlpha(now) + means);
}

function blendSlide(name) {
  const box = document.createElement("label");
  box.className = "slide";
  const slider = fields.alpha.cloneNode();
  slider.removeAttribute("id");
  slider.setAttribute("aria-label", `alpha of ${name}`);
  blend[name] = slider;
  const label = document.createElement("span");
  label.textContent = name;
  box.append(label, slider, document.createElement("output"));
  return box;
}
