// The page: what happens when something is said, moved, stopped or shared.

import * as api from "./api.js";
import * as controls from "./controls.js";
import { comparison, request, shownAlpha, shownName, SIDES } from "./conversation.js";
import { fromFragment, plain, toFragment } from "./share.js";
import { legend, showTokens } from "./tokens.js";
import { announce, keepEndInSight, noticeButton, showError, showNotice } from "./telling.js";
import { copied, element, showAnswer, showFacts, showMore, showTurn } from "./view.js";

const $ = (id) => document.getElementById(id);
const say = $("say"), talk = $("talk");
let info = null;
let turns = [];
let running = null; // of the answers being written
let conversation = new AbortController(); // of the comparisons, until the next conversation

// ---------------------------------------------------------------------------- beginning

async function start() {
  $("steps").replaceChildren(...legend());
  try {
    info = await api.info();
  } catch (error) {
    return show(error);
  }
  $("key-box").hidden = true;
  showError("");
  controls.setUp(info, offerAgain);
  $("model-name").textContent = ["base", ...info.sidecars].join(" + ");
  $("say-label").textContent = info.can_chat ? "What you say" : "The text to go on from";
  say.placeholder = info.can_chat ? "Say something" : "Begin a text";
  $("send").textContent = info.can_chat ? "Send" : "Go on";
  $("welcome-text").textContent = welcome();
  $("welcome").hidden = false;
  idle();
  await openLink();
  say.focus();
}

function welcome() {
  if (!info.sidecars.length) return "This model has nothing trained beside it, so there is one answer.";
  const dial = info.has_dial ? " Turn alpha from 0, the base, to 1, the trained branch." : "";
  const kind = info.can_chat ? "" : " Without a chat template the models go on from your text.";
  return `The base and the tuned model answer side by side.${dial}${kind} Colours show where they part.`;
}

async function openLink() {
  let found;
  try {
    found = await fromFragment(location.hash);
  } catch (error) {
    return showError(`The link cannot be read: ${error.message}.`);
  }
  if (!found) return;
  turns = found.turns;
  controls.write(found.settings);
  talk.replaceChildren();
  for (const turn of turns) showTurn(talk, turn);
  $("welcome").hidden = turns.length > 0;
  showNotice("This conversation came with the link. Nothing of it has been sent to the server.");
  if (info.sidecars.length) noticeButton("Colour its tokens", compareAll);
  offerAgain();
}

// ---------------------------------------------------------------------------- answers

async function send() {
  const asked = say.value;
  if (!asked.trim() || running || !info) return;
  const settings = settled();
  if (!settings) return;
  const turn = { asked };
  turns.push(turn);
  $("welcome").hidden = true;
  showNotice("");
  showTurn(talk, turn);
  say.value = "";
  fit();
  await answer(turn, settings.sides === "both" ? SIDES : [settings.sides], settings);
  if (SIDES.every((side) => !turn[side] || (turn[side].wrong && !turn[side].text))) {
    turns = turns.filter((one) => one !== turn); // nobody answered: what was said is not lost
    turn.box.remove();
    if (!say.value) say.value = asked;
    $("welcome").hidden = turns.length > 0;
    fit();
  }
  offerAgain();
}

async function again() {
  const turn = turns.at(-1), settings = settled();
  if (!turn || running || !settings) return;
  if (turn.base?.compared) {
    turn.base.compared = null;
    showAnswer(turn, "base");
  }
  await answer(turn, ["tuned"], settings);
  offerAgain();
}

async function answer(turn, sides, settings) {
  running = new AbortController();
  busy();
  showError("");
  announce("Answers are being written.");
  await Promise.all(sides.map((side) => write(turn, side, settings, running.signal)));
  running = null;
  idle();
  const told = sides.map((side) => `${side}: ${turn[side].text || turn[side].wrong || "nothing"}`);
  announce(`Done. ${told.join(". ")}`);
  if ($("colour").checked) compareTurn(turn);
}

async function write(turn, side, settings, signal) {
  const made = { text: "", sidecar: settings.sidecar, alpha: settings.alpha };
  const body = request(side, turns, settings, info);
  turn[side] = made;
  showAnswer(turn, side);
  made.box.classList.add("writing");
  keepEndInSight(true);
  try {
    const path = info.can_chat ? "v1/chat/completions" : "v1/completions";
    Object.assign(made, await api.stream(path, body, signal, (text) => {
      showMore(made, text);
      keepEndInSight(false);
    }));
  } catch (error) {
    if (error.name === "AbortError") made.finish = "stopped";
    else {
      made.wrong = error.message;
      show(error);
    }
  }
  made.box.classList.remove("writing");
  showFacts(made);
}

// ---------------------------------------------------------------------------- comparison

function compareAll() {
  showNotice("");
  for (const turn of turns) compareTurn(turn);
}

async function compareTurn(turn) {
  if (!info.sidecars.length) return;
  const place = turns.indexOf(turn);
  const { signal } = conversation;
  for (const side of SIDES) {
    const made = turn[side];
    if (place < 0 || !made?.text || made.compared || made.comparing) continue;
    made.comparing = true;
    try {
      const body = comparison(side, turns.slice(0, place + 1), controls.read(), info, made);
      made.compared = await api.compare(body, signal);
      if (turn[side] !== made) continue; // answered again meanwhile
      showTokens(made.said, made.compared.tokens);
      showFacts(made);
    } catch (error) {
      if (error.name === "AbortError") return;
      show(error);
    } finally {
      made.comparing = false;
    }
  }
}

/** A button below the last answer, where the dial says something else than it was made with. */
function offerAgain() {
  document.querySelector(".again")?.remove();
  const turn = turns.at(-1);
  if (!turn || running || !info.sidecars.length) return;
  let settings;
  try { settings = controls.read(); } catch { return; }
  const { tuned } = turn;
  const voice = ({ sidecar, alpha }) => JSON.stringify([sidecar, alpha]);
  if (tuned && voice(tuned) === voice(settings)) return;
  const button = element("button", "again", `Answer again: ${shownName(settings.sidecar)}, ${shownAlpha(settings.alpha)}`);
  button.type = "button";
  button.addEventListener("click", again);
  turn.box.append(button);
  keepEndInSight(false);
}

// ---------------------------------------------------------------------------- what is told

function settled() {
  try {
    return controls.read();
  } catch (error) {
    $("settings").hidden = false;
    showError(error.message);
    return null;
  }
}

function show(error) {
  if (error.status === 401) {
    $("key-box").hidden = false;
    $("key").focus();
  }
  showError(error.status === 401 && !sessionStorage.getItem("controlllm-key") ? "" : error.message);
}

function busy() {
  document.querySelector(".again")?.remove();
  talk.setAttribute("aria-busy", "true");
  $("send").hidden = true;
  $("stop").hidden = false;
}

function idle() {
  talk.removeAttribute("aria-busy");
  $("stop").hidden = true;
  $("send").hidden = false;
}

function fit() {
  say.style.height = "auto";
  say.style.height = `${say.scrollHeight + 2}px`;
}

// ---------------------------------------------------------------------------- what people do

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
say.addEventListener("input", fit);
say.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
addEventListener("hashchange", () => {
  if (!info) return;
  forget();
  openLink();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("stop").addEventListener("click", () => { running?.abort(); say.focus(); });

$("new-chat").addEventListener("click", () => {
  forget();
  history.replaceState(null, "", location.pathname);
  say.focus();
});

/** What was said before has no more to do with what comes. */
function forget() {
  running?.abort();
  conversation.abort();
  conversation = new AbortController();
  turns = [];
  talk.replaceChildren();
  showNotice("");
  showError("");
  $("welcome").hidden = false;
}

$("share").addEventListener("click", async () => {
  const settings = settled();
  if (!settings) return;
  history.replaceState(null, "", location.pathname + await toFragment(settings, turns));
  showNotice("The address of this page now holds the conversation and its settings; the server does not get to see them.");
  await copied($("share"), location.href);
});

$("download").addEventListener("click", () => {
  const settings = settled();
  if (!settings) return;
  const data = plain(settings, turns);
  data.turns.forEach((turn, place) => {
    for (const side of SIDES) if (turn[side]) turn[side].compared = turns[place][side].compared ?? null;
  });
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});

$("show-settings").addEventListener("click", () => {
  const isHidden = $("settings").toggleAttribute("hidden");
  $("show-settings").setAttribute("aria-expanded", String(!isHidden));
});

$("colour").addEventListener("change", () => {
  talk.classList.toggle("coloured", $("colour").checked);
  if ($("colour").checked) compareAll();
});
talk.classList.add("coloured");

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey($("key").value);
  $("key").value = "";
  if (info) $("key-box").hidden = true;
  else start();
});

start();
