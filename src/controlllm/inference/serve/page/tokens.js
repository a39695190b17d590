// An answer as tokens, coloured by KL(base || tuned), with the numbers of the one that is looked at.

/** Where one colour ends and the next begins, in nats. */
export const STEPS = [0.02, 0.1, 0.5, 1, 2];

/** The class of a token's colour. */
export function colourOf(kl) {
  return `kl-${STEPS.filter((step) => kl >= step).length}`;
}

/** The legend's samples. */
export function legend() {
  return ["0", ...STEPS.map((step) => `${step}+`)].map((text, place) => {
    const sample = document.createElement("span");
    sample.className = `kl-${place}`;
    sample.textContent = text;
    return sample;
  });
}

/**
 * Show tokens in place of a text. The answer is one stop for Tab; arrow keys go from token to token.
 */
export function showTokens(box, tokens) {
  const spans = [];
  let text = "";
  for (const token of tokens) {
    text += token.text;
    if (token.text === "") continue; // its character ends in a later token
    const span = document.createElement("span");
    span.className = `token ${colourOf(token.kl)}`;
    span.textContent = token.text;
    span.tabIndex = spans.length ? -1 : 0;
    span.addEventListener("focus", () => showDetails(span, token));
    span.addEventListener("blur", hideDetails);
    span.addEventListener("pointerenter", () => showDetails(span, token));
    span.addEventListener("pointerleave", hideDetails);
    spans.push(span);
  }
  box.replaceChildren(...spans);
  box.onkeydown = (event) => {
    const place = spans.indexOf(event.target);
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (place < 0 || to === undefined || !spans[to]) return;
    event.preventDefault();
    spans[place].tabIndex = -1;
    spans[to].tabIndex = 0;
    spans[to].focus();
  };
  return text;
}

const details = document.createElement("div");
details.className = "details";
details.id = "details";
details.setAttribute("role", "tooltip");
details.hidden = true;
document.body.append(details);

function showDetails(span, token) {
  const strong = document.createElement("strong");
  strong.textContent = `KL ${token.kl.toFixed(3)} nats, log p ${signed(token.change)}`;
  const table = document.createElement("table");
  addRow(table, ["", "base", "tuned"], "th");
  addRow(table, ["log p", number(token.base_logprob), number(token.tuned_logprob)]);
  addRow(table, ["likeliest", likeliest(token.base_choice), likeliest(token.tuned_choice)]);
  details.replaceChildren(strong, code(token.text), table);
  details.hidden = false;
  span.setAttribute("aria-describedby", "details");
  place(span);
}

function addRow(table, cells, kind = "td") {
  const row = table.insertRow();
  for (const [place, cell] of cells.entries()) {
    const made = document.createElement(place ? kind : "th");
    made.append(cell);
    row.append(made);
  }
}

function likeliest(choice) {
  const made = document.createElement("span");
  made.append(code(choice.text), ` ${Math.round(100 * choice.probability)} %`);
  return made;
}

/** Below the token, or above it where there is no room; never beyond the window. */
function place(span) {
  const at = span.getClientRects()[0];
  const { offsetWidth: width, offsetHeight: height } = details;
  const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8));
  const above = at.bottom + height + 12 > window.innerHeight;
  const top = above ? at.top - height - 8 : at.bottom + 8;
  details.style.left = `${left + window.scrollX}px`;
  details.style.top = `${Math.max(top, 4) + window.scrollY}px`;
}

function hideDetails(event) {
  event.currentTarget.removeAttribute("aria-describedby");
  details.hidden = true;
}

function code(text) {
  const made = document.createElement("code");
  made.textContent = JSON.stringify(text);
  return made;
}

const number = (value) => (value === null ? "−∞" : value.toFixed(2).replace("-", "−"));
const signed = (value) => (value === null ? "+∞" : (value > 0 ? "+" : "") + number(value));
