// Puts one ranking on the page, and another where there are several.

import { Chart } from "./chart.js";
import { element } from "./format.js";
import { Store } from "./select.js";
import { Table } from "./table.js";
import { openVariant } from "./variant.js";
import { KEYS, Videos } from "./videos.js";

const page = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
let store = null;
let videos = null;

function show(board) {
  store = new Store(board);
  $("title").textContent = board.title;
  $("answer").textContent = board.answer.replace(/\[[^\]]*\]/g, (span) => span.replaceAll(" ", "\u00a0"));
  $("how").textContent = board.how ?? "";
  $("notes").replaceChildren(...(board.notes ?? []).map((note) => element("li", {}, note)));
  const open = (id) => openVariant(store, id);
  $("tradeoff").hidden = board.measures.length < 2;
  axes(board);
  $("chart").replaceWith(element("div", { id: "chart", class: "chart" }));
  new Chart($("chart"), $("legend"), store, open);
  new Table(store, open);
  videos?.close();
  videos = board.prompts ? new Videos(store, open) : null;
  $("videos").hidden = !videos;
  store.addEventListener("select", chosen);
  // With videos there is something to look at from the start: the fastest beside the reference.
  const first = videos ? board.variants.filter((variant) => variant.clips && !variant.reference && !variant.floor).slice(0, 2) : [];
  for (const variant of first) store.toggle(variant.id);
  chosen();
}

/** The measures that the chart can have on its axes. */
function axes(board) {
  const kinds = { speed: "Speed", memory: "Memory", quality: "Quality" };
  const current = store;
  for (const [id, at] of [["axis-x", "x"], ["axis-y", "y"]]) {
    const groups = Object.entries(kinds).map(([kind, label]) => {
      const options = board.measures.filter((measure) => measure.kind === kind).map((measure) => element("option", { value: measure.key }, measure.label));
      return options.length ? element("optgroup", { label }, options) : null;
    });
    const select = $(id);
    select.replaceChildren(...groups.filter(Boolean));
    select.value = current[at];
    select.onchange = () => current.setAxes($("axis-x").value, $("axis-y").value);
  }
}

/** What is chosen, as chips that take it back. */
function chosen() {
  const chips = store.selected.map((id) => {
    const variant = store.byId.get(id);
    return element(
      "span",
      { class: "chip" },
      element("button", { type: "button", class: "link", onclick: () => openVariant(store, id) }, variant.name),
      element("button", { type: "button", class: "drop", "aria-label": `Take ${variant.name} back`, onclick: () => { store.toggle(id); ($("chosen").querySelector(".drop") ?? $("filter")).focus(); } }, "×"),
    );
  });
  $("chosen").hidden = !chips.length;
  $("chosen").replaceChildren(element("span", { class: "quiet" }, "Chosen"), ...chips, element("button", { type: "button", onclick: () => store.clear() }, "Clear"));
}

// Theme ---------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = `Theme: ${name}`;
  store?.dispatchEvent(new Event("theme"));
}

$("theme").onclick = () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => store?.dispatchEvent(new Event("theme")));
setTheme("auto");

// Keyboard ------------------------------------------------------------------------------------

const GENERAL = [
  ["Tab", "from part to part; arrows move between the points of the chart"],
  ["Enter", "on a point: choose it"],
  ["D", "on a point: open it"],
  ["/", "to the filter"],
  ["Esc", "close what is open"],
  ["?", "these keys"],
];

function help() {
  const list = (keys) => element("dl", { class: "facts" }, keys.flatMap(([key, what]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, what)]));
  const dialog = $("help");
  dialog.replaceChildren(
    element("header", {}, element("h2", {}, "Keyboard"), element("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×")),
    element("div", { class: "body" }, list(GENERAL), ...(videos ? [element("h3", {}, "Videos"), list(KEYS)] : [])),
  );
  dialog.showModal();
}

$("keys").onclick = help;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("select, textarea, input:not([type=range]):not([type=checkbox])")) return;
  if (event.key === "?") help();
  else if (event.key === "/") $("filter").focus();
  else return;
  event.preventDefault();
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

// Start ---------------------------------------------------------------------------------------

const boards = page.boards ?? [];
if (boards.length > 1) {
  $("boards").replaceChildren(...boards.map((board, i) => element("option", { value: i }, `${board.title} (${board.variants.length})`)));
  $("boards").onchange = () => show(boards[Number($("boards").value)]);
  document.querySelector(".boards").hidden = false;
}
if (boards.length) show(boards[0]);
else {
  $("answer").textContent = "No records.";
  for (const part of document.querySelectorAll("#tradeoff, #table, #chosen, .how")) part.hidden = true;
}
const foot = [`Made by qbench ${page.version}. Intervals are 95 %. Everything is in this file; it asks for nothing from elsewhere.`];
$("foot").replaceChildren(
  element("p", {}, foot),
  ...(page.unreadable ? [element("details", {}, element("summary", {}, `${page.unreadable.length} records could not be read`), element("ul", {}, page.unreadable.map((line) => element("li", {}, line))))] : []),
);
document.documentElement.dataset.ready = "true";
