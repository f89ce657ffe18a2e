// A variant's own view: where its time and memory go, how sure that is, and how to repeat it.

import { bytes, copy, element, interval, number, say, seconds, svg, written } from "./format.js";
import { marker, settled } from "./chart.js";
import { standing, standingText } from "./select.js";

/** Pixels that a chart in the dialog has, whose letters are then as large as those of the text. */
const room = () => Math.min(860, innerWidth - 24) - 38;

const TIMED = ["load", "quantize", "compile", "text_encode", "denoise", "decode", "save", "quality"];
const VIDEO = ["text_encode", "denoise", "decode"];

/** Opens a variant. focus: the button that has the focus when another was open. */
export function openVariant(store, id, focus = "") {
  const variant = store.byId.get(id);
  const dialog = document.getElementById("variant");
  const close = element("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  const order = store.board.variants.map((one) => one.id);
  const step = (by, label) => openVariant(store, order[(order.indexOf(id) + by + order.length) % order.length], label);
  const choose = variant.reference || !variant.figures
    ? null
    : element("button", { type: "button", "data-focus": "choose", "aria-pressed": String(store.selected.includes(id)), onclick: () => { store.toggle(id); openVariant(store, id, "choose"); } }, store.selected.includes(id) ? "Chosen" : "Choose");
  dialog.replaceChildren(
    element(
      "header",
      {},
      element("h2", { id: "variant-name" }, variant.name),
      choose,
      element("button", { type: "button", "aria-label": "Previous variant", "data-focus": "previous", onclick: () => step(-1, "previous") }, "‹"),
      element("button", { type: "button", "aria-label": "Next variant", "data-focus": "next", onclick: () => step(1, "next") }, "›"),
      close,
    ),
    element("div", { class: "body" }, ...parts(store, variant)),
  );
  if (!dialog.open) dialog.showModal();
  if (focus) dialog.querySelector(`[data-focus="${focus}"]`)?.focus();
}

function parts(store, variant) {
  const { board } = store;
  return [
    element("p", { class: "quiet" }, [variant.about, variant.started && `measured ${variant.started.slice(0, 16).replace("T", " ")} UTC`].filter(Boolean).join(" · ")),
    verdict(variant),
    variant.reason ? element("p", { class: "note" }, `${variant.status}: ${variant.reason}`) : null,
    figures(store, variant),
    section("What explains it", variant.explained?.map((text) => element("p", { class: "lines" }, text))),
    section("Time by stage", stages(variant, store, "seconds", seconds)),
    section("Memory by stage", stages(variant, store, "bytes", bytes)),
    section(`Each timed ${variant.unit ?? "video"}`, strip(variant)),
    section("Error by step", growth(variant)),
    section("Repeat it", repeat(variant)),
    section("Recipe as resolved", copied(variant.recipe, "The recipe")),
    section("Environment", definitions(board.environments?.[variant.environment ?? 0])),
    section("Fingerprints", definitions(variant.prints)),
  ].filter(Boolean);
}

function section(title, content) {
  const children = [content].flat().filter(Boolean);
  return children.length ? element("section", {}, element("h3", {}, title), children) : null;
}

function verdict(variant) {
  const text = standingText(variant);
  if (!text) return null;
  const told = [variant.verdict?.because, ...(variant.verdict?.missing ?? []).map((one) => `Not measured: ${one}`)].filter(Boolean);
  return element(
    "div",
    { class: "judged" },
    element("p", {}, marker(standing(variant), 16, settled(variant)), " ", element("b", {}, text)),
    told.map((line) => element("p", { class: "quiet" }, line)),
  );
}

function figures(store, variant) {
  const rows = store.board.measures.filter((measure) => variant.figures?.[measure.key]).map((measure) => {
    const figure = variant.figures[measure.key];
    const more = [interval(measure.form, figure), figure.n ? `n = ${figure.n}` : ""].filter(Boolean).join(" ");
    return element("div", { title: measure.what }, element("dt", {}, measure.label), element("dd", {}, written(measure.form, figure.value), element("small", {}, more)));
  });
  return rows.length ? element("dl", { class: "figures" }, rows) : null;
}

/** One bar of the stages that every video pays for and a line for each stage, beside the reference's. */
function stages(variant, store, key, text) {
  const known = (one) => (one?.stages ?? []).filter((stage) => stage[key] !== undefined && TIMED.includes(stage.name));
  const own = known(variant);
  if (!own.length) return null;
  const reference = variant.reference ? [] : known(store.reference);
  const paid = (some) => some.filter((stage) => VIDEO.includes(stage.name));
  const length = (some) => paid(some).reduce((sum, stage) => sum + stage[key], 0);
  const most = key === "seconds" ? Math.max(length(own), length(reference)) : Math.max(...[...own, ...reference].map((stage) => stage[key]));
  const bars = [[variant.name, own], ...(reference.length ? [[store.reference.name, reference]] : [])];
  const made = [];
  if (key === "seconds") {
    for (const [name, some] of bars) {
      const bar = element("div", { class: "stack", role: "img", "aria-label": `${name}: ${paid(some).map((stage) => `${stage.name} ${text(stage[key])}`).join(", ")}` });
      for (const stage of paid(some)) bar.append(part(stage, stage[key] / most, `${stage.name} ${text(stage[key])}`));
      made.push(element("div", { class: "line" }, element("span", { class: "label" }, name), bar, element("span", { class: "end" }, text(length(some)))));
    }
  }
  const listed = element("table", { class: "stages" }, element("thead", {}, element("tr", {}, ["stage", ...bars.map(([name]) => name)].map((name) => element("th", { scope: "col" }, name)))));
  const body = element("tbody");
  for (const stage of TIMED) {
    const cells = bars.map(([, some]) => some.find((one) => one.name === stage));
    if (!cells.some(Boolean)) continue;
    body.append(element("tr", {}, element("th", { scope: "row" }, element("i", { class: `swatch ${stage}` }), stage.replace("_", " ")), cells.map((cell) => {
      const made = element("td", {}, cell ? text(cell[key]) : "–", cell && key === "seconds" ? element("small", {}, ` n = ${cell.n}`) : null);
      if (cell && key === "bytes") made.append(meter(cell[key] / most, stage));
      return made;
    })));
  }
  listed.append(body);
  made.push(listed);
  return made;
}

function part(stage, share, title) {
  const made = element("span", { class: `part ${stage.name}`, title });
  made.style.width = `${100 * share}%`;
  return made;
}

function meter(share, stage) {
  const made = element("span", { class: "meter", "aria-hidden": "true" }, element("span", { class: `part ${stage}` }));
  made.firstChild.style.width = `${100 * share}%`;
  return made;
}

/** Every timed unit as a dot, the reference's turns beside them. */
function strip(variant) {
  const own = variant.samples ?? [];
  const theirs = variant.paired ?? [];
  if (!own.length) return null;
  const all = [...own, ...theirs];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const reach = high - low || high || 1;
  const [wide, tall] = [room(), theirs.length ? 92 : 62];
  const x = (value) => 12 + ((value - low) / reach) * (wide - 24);
  const chart = svg("svg", { viewBox: `0 0 ${wide} ${tall}`, class: "strip", role: "img", "aria-label": `${own.length} samples from ${seconds(Math.min(...own))} to ${seconds(Math.max(...own))}` });
  const row = (values, y, kind) => values.forEach((value, i) => chart.append(svg("circle", { cx: x(value), cy: y + ((i * 7) % 5) * 3 - 6, r: 4, class: kind }, svg("title", {}, `${i + 1}: ${seconds(value)}`))));
  if (theirs.length) row(theirs, 50, "theirs");
  row(own, 20, "own");
  chart.append(svg("line", { x1: 12, x2: wide - 12, y1: tall - 20, y2: tall - 20, class: "rule" }));
  for (const [value, anchor] of [[low, "start"], [low + reach / 2, "middle"], [high, "end"]]) chart.append(svg("text", { x: x(value), y: tall - 5, "text-anchor": anchor }, seconds(value)));
  const note = theirs.length ? "Filled: this variant. Hollow: the reference, which took its turn beside each. In the order measured, from top to bottom and over again." : "In the order measured, from top to bottom and over again.";
  return [chart, element("p", { class: "quiet" }, note)];
}

/** How errors accumulate, and the error of each step alone, on a logarithmic axis. */
function growth(variant) {
  const found = variant.growth;
  if (!found) return null;
  const values = [...found.free, ...found.forced].filter((value) => value > 0);
  if (!values.length) return element("p", {}, "No error at any step.");
  const [wide, tall, left] = [room(), 220, 64];
  const [low, high] = [Math.floor(Math.log10(Math.min(...values))), Math.ceil(Math.log10(Math.max(...values)))];
  const y = (value) => 10 + ((high - Math.log10(value)) / (high - low || 1)) * (tall - 45);
  const x = (i) => left + (i / Math.max(1, found.free.length - 1)) * (wide - left - 14);
  const chart = svg("svg", { viewBox: `0 0 ${wide} ${tall}`, class: "lines-chart", role: "img", "aria-label": `Relative error of the latents after ${found.free.length} steps: ${number(found.free.at(-1))}` });
  for (let power = low; power <= high; power += 1) {
    chart.append(svg("line", { x1: left, x2: wide - 14, y1: y(10 ** power), y2: y(10 ** power), class: "grid" }));
    chart.append(svg("text", { x: left - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, number(10 ** power)));
  }
  for (const [kind, list] of [["free", found.free], ["forced", found.forced]]) {
    const path = list.map((value, i) => (value > 0 ? `${i && list[i - 1] > 0 ? "L" : "M"}${x(i).toFixed(1)},${y(value).toFixed(1)}` : "")).join("");
    if (path) chart.append(svg("path", { d: path, class: kind }));
  }
  for (const [i, anchor] of [[0, "start"], [found.free.length - 1, "end"]]) chart.append(svg("text", { x: x(i), y: tall - 8, "text-anchor": anchor }, `step ${i + 1}`));
  return [chart, element("p", { class: "quiet" }, `Relative error of the latents, ${found.videos} videos. Solid: as it accumulates. Dotted: of each step alone, from the reference's latents.`)];
}

function repeat(variant) {
  const file = variant.command.split(" ")[2] ?? "";
  const note = file.endsWith(".yaml") ? element("p", { class: "quiet" }, "After the recipe below was saved under this name.") : null;
  return [copied(variant.command, "The command"), note];
}

function copied(text, what) {
  if (!text) return null;
  const button = element("button", { type: "button", onclick: async () => say((await copy(text)) ? `${what} is on the clipboard.` : "The clipboard is closed to this page.") }, "Copy");
  return element("div", { class: "code" }, element("pre", { tabindex: 0 }, text), button);
}

function definitions(facts) {
  if (!facts) return null;
  return element("dl", { class: "facts" }, Object.entries(facts).flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]));
}
