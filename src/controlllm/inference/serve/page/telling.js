// What the page tells besides the conversation: errors, notices, and to screen readers what happens.

import { element } from "./view.js";

const $ = (id) => document.getElementById(id);

/** What went wrong; "" = nothing. */
export function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

/** What is good to know; "" = nothing. */
export function showNotice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

/** A button behind the notice. */
export function noticeButton(text, onClick) {
  const button = element("button", "plain", text);
  button.type = "button";
  button.addEventListener("click", onClick);
  $("notice").append(" ", button);
}

/** For those who cannot see it. */
export function announce(text) {
  $("status").textContent = text;
}

/** Scroll to the end; without `always` only where it nearly was in sight. */
export function keepEndInSight(always) {
  const page = document.scrollingElement;
  const isNear = page.scrollHeight - page.scrollTop - page.clientHeight < 160;
  if (always || isNear) page.scrollTop = page.scrollHeight;
}
