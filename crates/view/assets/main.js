// Connects the page to the machine: looks come in as server-sent events, questions go out as requests.
import { Heat } from "./heat.js";
import { Panels } from "./panels.js";
import { Tables } from "./tables.js";
import { Watches } from "./watches.js";

export const $ = (id) => document.getElementById(id);

/** An element with classes and children; text is never taken as markup. */
export function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Asks; gives the answer, or throws what the machine says is wrong. */
export async function ask(what, at) {
  const response = await fetch(`api/${what}?at=${encodeURIComponent(at)}`);
  if (!response.ok) throw new Error((await response.text()).trim());
  return response.json();
}

/** Tells; gives the answer, if there is one. */
export async function tell(what, body) {
  const response = await fetch(`api/${what}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error((await response.text()).trim());
  return response.status === 204 ? null : response.json();
}

/** An address without its leading zeros. */
export const short = (hex) => hex.replace(/^0+(?=.)/, "");

const heat = new Heat();
const panels = new Panels();
const tables = new Tables();
const watches = new Watches((access) => panels.watched(access));
let source = null;

function status(state, text = state) {
  const pill = $("status");
  if (pill.dataset.state !== state) pill.dataset.state = state;
  if (pill.textContent !== text) pill.textContent = text;
  $("stop").disabled = state !== "running";
  $("cont").disabled = state !== "paused" && state !== "prelaunch";
}

function banner(text) {
  $("banner").hidden = !text;
  $("banner").textContent = text ?? "";
}

function look({ data }) {
  const { figures, error, heat: touched } = JSON.parse(data);
  banner(error);
  if (figures) {
    status(figures.status);
    panels.update(figures);
    tables.update(figures);
    watches.update(figures.watched);
    heat.extent(figures.memory);
  }
  if (touched) heat.add(touched);
}

function connect() {
  if (source) return;
  source = new EventSource("api/live");
  source.onmessage = look;
  source.onerror = () => {
    status("gone", "no connection");
    banner("Vitrine does not answer: the machine has ended, or is stopped. This page comes back with it.");
  };
}

function disconnect() {
  source?.close();
  source = null;
}

// A page that nobody sees costs the machine nothing.
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
for (const action of ["stop", "cont"]) {
  $(action).addEventListener("click", () => tell("run", { action }).catch((error) => banner(error.message)));
}
connect();
panels.follow($("chain-at").value, false);
tables.show("");
