// The table of every record: what could not run is a row too, and what is invalid is struck through.

import { copy, csv, direction, element, interval, latex, markdown, say, written } from "./format.js";
import { marker, settled } from "./chart.js";
import { standing, standingText } from "./select.js";

const WRITERS = { markdown, csv, latex };
const NAMES = { markdown: "Markdown", csv: "CSV", latex: "LaTeX" };
const ORDER = ["reference", "indistinguishable", "drift", "unverified", "degraded", "broken", "none"];
const COMPARISON = /^(.+?)(<=|>=|<|>|=)(-?[\d.]+)(k|m|g|ms)?$/i;
const SCALES = { ms: 1e-3, k: 1024, m: 1024 ** 2, g: 1024 ** 3 };

export class Table {
  constructor(store, open) {
    this.store = store;
    this.open = open;
    this.host = document.getElementById("rows");
    this.filter = document.getElementById("filter");
    this.sort = { key: null, descending: false };
    this.hidden = new Set(store.board.measures.filter((measure) => !measure.shown).map((measure) => measure.key));
    this.rows = new Map(store.board.variants.map((variant) => [variant.id, this.row(variant)]));
    this.filter.value = "";
    this.filter.oninput = () => this.fill();
    for (const button of document.querySelectorAll("[data-copy]")) button.onclick = () => this.copied(button.dataset.copy);
    store.addEventListener("select", () => this.mark());
    store.addEventListener("hover", () => this.mark());
    this.menu();
    this.head();
    this.fill();
  }

  columns() {
    return this.store.board.measures.filter((measure) => !this.hidden.has(measure.key));
  }

  menu() {
    const kinds = { speed: "Speed", memory: "Memory", quality: "Quality" };
    const groups = Object.entries(kinds).map(([kind, title]) => {
      const some = this.store.board.measures.filter((measure) => measure.kind === kind);
      const boxes = some.map((measure) => {
        const box = element("input", { type: "checkbox" });
        box.checked = !this.hidden.has(measure.key);
        box.onchange = () => {
          if (box.checked) this.hidden.delete(measure.key);
          else this.hidden.add(measure.key);
          for (const [id, row] of this.rows) row.replaceWith(this.rows.set(id, this.row(this.store.byId.get(id))).get(id));
          this.head();
          this.fill();
        };
        return element("label", { title: measure.what }, box, measure.label);
      });
      return some.length ? element("fieldset", {}, element("legend", {}, title), boxes) : null;
    });
    document.querySelector("#columns > div").replaceChildren(...groups.filter(Boolean));
  }

  head() {
    const header = (key, text, measure) => {
      const button = element("button", { type: "button", onclick: () => this.sorted(key), title: measure ? `${measure.what} (${direction(measure, true).replace("right", "more").replace("left", "less")})` : undefined }, element("span", {}, text), element("span", { class: "arrow", "aria-hidden": "true" }));
      return element("th", { scope: "col", "data-key": key, class: measure ? "figure" : "" }, button);
    };
    const cells = [
      header("name", "variant"),
      ...(this.store.board.variants.some((variant) => variant.verdict) ? [header("verdict", "verdict")] : []),
      ...this.columns().map((measure) => header(measure.key, measure.label, measure)),
    ];
    this.host.replaceChildren(
      element("caption", { class: "unseen" }, this.store.board.title),
      element("thead", {}, element("tr", {}, cells)),
      element("tbody"),
    );
  }

  row(variant) {
    const judged = this.store.board.variants.some((one) => one.verdict);
    const ran = Boolean(variant.figures);
    const struck = variant.status === "invalid";
    const box = variant.reference
      ? element("span", { class: "box", title: "the reference is always beside what is chosen" }, marker("reference", 15))
      : !ran
        ? element("span", { class: "box" })
        : element("input", { type: "checkbox", "aria-label": `Choose ${variant.name}`, onchange: () => this.store.toggle(variant.id) });
    const name = element("button", { type: "button", class: "link", onclick: () => this.open(variant.id) }, struck ? element("s", {}, variant.name) : variant.name);
    const reason = variant.reason ? element("div", { class: "reason" }, `${variant.status}: ${variant.reason}`) : null;
    const wide = !ran ? this.columns().length + Number(judged) : 0;
    const row = element(
      "tr",
      {
        "data-id": variant.id,
        class: [struck && "struck", !ran && "absent", variant.floor && "floor"].filter(Boolean).join(" "),
        onpointerenter: () => this.store.hover(variant.id),
        onpointerleave: () => this.store.hover(null),
      },
      element("th", { scope: "row" }, element("div", { class: "who" }, box, name), struck ? reason : null),
    );
    if (!ran) {
      row.append(element("td", { colspan: wide, class: "absence" }, element("b", {}, variant.status), variant.reason ? ` ${variant.reason}` : ""));
      return row;
    }
    if (judged) {
      const said = variant.verdict?.because ? { title: variant.verdict.because } : {};
      row.append(element("td", { class: "verdict", ...said }, element("div", {}, marker(standing(variant), 14, settled(variant)), element("span", {}, standingText(variant) || "–"))));
    }
    for (const measure of this.columns()) row.append(this.cell(variant, measure, struck));
    return row;
  }

  cell(variant, measure, struck) {
    const figure = variant.figures[measure.key];
    if (!figure) return element("td", { class: "figure none" }, "–");
    if (measure.key === "speed_up" && variant.reference) return element("td", { class: "figure quiet" }, "reference");
    const value = written(measure.form, figure.value);
    const word = measure.key === "speed_up" ? variant.speed_word : "";
    const bounds = interval(measure.form, figure).split(/(?<=,) /); // where the window is narrow, a line each
    const more = [figure.n ? `n\u202f=\u202f${figure.n}` : "", measure.kind !== "quality" ? figure.note : "", word].filter(Boolean).join(" ");
    const parts = [...bounds.filter(Boolean).flatMap((bound) => [element("span", {}, bound), " "]), more];
    return element("td", { class: "figure" }, element(struck ? "s" : "span", { class: "value" }, value), parts.some(Boolean) ? element("small", { title: figure.note || undefined }, parts) : null);
  }

  sorted(key) {
    const measure = this.store.measures.get(key);
    const first = measure?.better === "higher";
    if (this.sort.key !== key) this.sort = { key, descending: first };
    else if (this.sort.descending === first) this.sort = { key, descending: !first };
    else this.sort = { key: null, descending: false };
    this.fill();
  }

  /** The variants as they are shown: filtered, sorted, and what did not run at the end. */
  shown() {
    const { key, descending } = this.sort;
    const found = this.store.board.variants.filter((variant) => matches(variant, this.filter.value, this.store.board.measures));
    if (!key) return found;
    const rank = (variant) => {
      if (key === "name") return variant.name;
      if (key === "verdict") return ORDER.indexOf(standing(variant));
      return variant.figures?.[key]?.value;
    };
    const known = found.filter((variant) => variant.figures && rank(variant) !== undefined);
    const rest = found.filter((variant) => !known.includes(variant));
    known.sort((a, b) => (descending ? -1 : 1) * (rank(a) < rank(b) ? -1 : rank(a) > rank(b) ? 1 : 0));
    return [...known, ...rest];
  }

  fill() {
    const shown = this.shown();
    const all = this.store.board.variants.length;
    this.host.tBodies[0].replaceChildren(...shown.map((variant) => this.rows.get(variant.id)));
    for (const header of this.host.querySelectorAll("thead th")) {
      const own = header.dataset.key === this.sort.key;
      header.setAttribute("aria-sort", own ? (this.sort.descending ? "descending" : "ascending") : "none");
    }
    document.getElementById("count").textContent = shown.length < all ? `${shown.length} of ${all} rows` : `${all} rows`;
    this.mark();
  }

  mark() {
    for (const [id, row] of this.rows) {
      const chosen = this.store.selected.includes(id);
      row.classList.toggle("chosen-row", chosen);
      row.classList.toggle("hovered", id === this.store.hovered);
      const box = row.querySelector("input");
      if (box) box.checked = chosen;
    }
  }

  /** The table as it is shown, as text in cells. */
  text() {
    const judged = this.store.board.variants.some((variant) => variant.verdict);
    const columns = this.columns();
    const head = ["variant", ...(judged ? ["verdict"] : []), ...columns.map((measure) => measure.label)];
    const rows = this.shown().map((variant) => {
      const told = variant.figures ? standingText(variant) : `${variant.status}: ${variant.reason ?? ""}`;
      const cells = columns.map((measure, i) => {
        const figure = variant.figures?.[measure.key];
        if (!figure) return !judged && i === 0 && !variant.figures ? told : "";
        if (measure.key === "speed_up" && variant.reference) return "reference";
        return [written(measure.form, figure.value), interval(measure.form, figure), figure.n ? `(n = ${figure.n})` : ""].filter(Boolean).join(" ");
      });
      return { cells: [variant.name, ...(judged ? [told] : []), ...cells], struck: variant.status === "invalid" };
    });
    return [head, rows];
  }

  async copied(form) {
    const done = await copy(WRITERS[form](...this.text()));
    say(done ? `The table is on the clipboard as ${NAMES[form]}.` : "The clipboard is closed to this page.");
  }
}

/**
 * Whether a variant passes a filter: every word is in its name, verdict or status, and every
 * comparison (`psnr>40`, `peak memory<600m`, `step<20ms`) holds.
 */
export function matches(variant, filter, measures) {
  const text = [variant.name, variant.about, standingText(variant), variant.status, variant.speed_word].join(" ").toLowerCase();
  const bare = (word) => word.toLowerCase().replace(/[\s_-]/g, "");
  let glued = filter.trim().toLowerCase().replace(/\s*(<=|>=|<|>|=)\s*/g, "$1");
  // Names of several words are one: "peak memory<12g".
  for (const { label } of measures) glued = glued.replaceAll(label.toLowerCase(), bare(label));
  for (const word of glued.split(/\s+/).filter(Boolean)) {
    const found = COMPARISON.exec(word);
    const measure = found && measures.find((one) => bare(one.label) === bare(found[1]) || bare(one.key) === bare(found[1]));
    if (measure) {
      const value = variant.figures?.[measure.key]?.value;
      const edge = Number(found[3]) * (SCALES[found[4]?.toLowerCase()] ?? 1);
      const holds = { "<": value < edge, ">": value > edge, "<=": value <= edge, ">=": value >= edge, "=": value === edge }[found[2]];
      if (value === undefined || !holds) return false;
    } else if (!text.includes(word)) {
      return false;
    }
  }
  return true;
}
