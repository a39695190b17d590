// From turns to what is seen. All text of models, people and links goes in as text, never as HTML.

import { SIDES, shownAlpha, shownName } from "./conversation.js";
import { showTokens } from "./tokens.js";

/** An element with a class and a text. */
export function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A turn: what was asked, and a place for the answers. */
export function showTurn(talk, turn) {
  turn.box = element("section", "turn");
  turn.answers = element("div", "answers");
  turn.box.append(element("p", "asked", turn.asked), turn.answers);
  talk.append(turn.box);
  for (const side of SIDES) if (turn[side]) showAnswer(turn, side);
}

/** One side's answer, in place of what that side said before. */
export function showAnswer(turn, side) {
  const answer = turn[side];
  const box = element("article", `answer ${side}`);
  box.setAttribute("aria-label", side === "base" ? "Base" : `Tuned, ${shownName(answer.sidecar)}, ${shownAlpha(answer.alpha)}`);
  const head = element("header");
  head.append(element("h3", "", side === "base" ? "base" : shownName(answer.sidecar)));
  if (side === "tuned") head.append(element("span", "at", shownAlpha(answer.alpha)));
  const copy = element("button", "plain", "Copy");
  copy.type = "button";
  copy.addEventListener("click", () => copied(copy, answer.text));
  head.append(copy);
  answer.said = element("p", "said", answer.text);
  answer.facts = element("p", "facts");
  box.append(head, answer.said, answer.facts);
  const old = turn.answers.querySelector(`.answer.${side}`);
  if (old) old.replaceWith(box);
  else if (side === "base") turn.answers.prepend(box);
  else turn.answers.append(box);
  answer.box = box;
  showFacts(answer);
  if (answer.compared) showTokens(answer.said, answer.compared.tokens);
}

/** More of an answer. */
export function showMore(answer, text) {
  answer.text += text;
  answer.said.append(text);
}

/** The line below an answer: tokens, mean KL, and what went wrong. */
export function showFacts(answer) {
  const { facts, tokens, finish, compared, wrong } = answer;
  facts.replaceChildren();
  if (tokens) facts.append(element("span", "", `${tokens} ${tokens === 1 ? "token" : "tokens"}`));
  if (compared && compared.mean_kl !== null) {
    facts.append(element("span", "kl", `mean KL ${compared.mean_kl.toFixed(3)} nats`));
  }
  if (finish === "length") facts.append(element("span", "", "reached the most tokens"));
  if (finish === "stopped") facts.append(element("span", "", "stopped"));
  if (wrong) facts.append(element("span", "wrong", wrong));
}

/** Put a text on the clipboard, and say so on the button. */
export async function copied(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Cannot copy here";
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}
