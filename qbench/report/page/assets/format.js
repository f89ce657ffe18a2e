// How figures are written, and how text leaves the page. All text is put on the page by
// `element`, as text and never as markup.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** A new element with attributes and children; strings become text nodes. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Three significant digits without an exponent where that is readable. */
export function number(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e7 || size < 1e-4) return value.toExponential(digits - 1);
  if (size >= 10 ** digits) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

export function seconds(value) {
  return value >= 1 || value === 0 ? `${number(value)} s` : `${number(value * 1000)} ms`;
}

export function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit < 2 ? Math.round(value) : number(value)} ${UNITS[unit]}`;
}

/** A value in the form that its measure names. `bare`: without the unit, as in an interval. */
export function written(form, value, bare = false) {
  const [kind, digits, unit] = form.split(":");
  if (kind === "seconds") return seconds(value);
  if (kind === "bytes") return bytes(value);
  if (kind === "ratio") return value.toFixed(2) + (bare ? "" : "×");
  if (kind === "share") return `${Math.round(value * 100)}${bare ? "" : "\u202f%"}`;
  if (kind === "unit") return number(value) + unit; // a metric's unit after as few digits as tell
  if (kind === "fixed") return value.toFixed(Number(digits)) + (bare ? "" : unit);
  return number(value);
}

/** "[low, high]" of a figure, or nothing where it has no interval. */
export function interval(form, figure) {
  if (figure.low === undefined || figure.high === undefined) return "";
  return `[${written(form, figure.low, true)}, ${written(form, figure.high, true)}]`;
}

/** A word for which way of a measure is better. */
export function direction(measure, across) {
  if (measure.better === "zero") return "best at 0";
  const more = measure.better === "higher";
  return across ? (more ? "right is better" : "left is better") : more ? "up is better" : "down is better";
}

// Text for other programs ---------------------------------------------------------------------

export function markdown(head, rows) {
  const cell = (text) =>
    text.replace(/[\\`*_[\]|~$<>&]/g, (c) => ({ "<": "&lt;", ">": "&gt;", "&": "&amp;" })[c] ?? `\\${c}`).replace(/\s+/g, " ");
  const line = (cells) => `| ${cells.join(" | ")} |`;
  const struck = (row) => row.cells.map((text) => (row.struck && text ? `~~${cell(text)}~~` : cell(text)));
  return [line(head.map(cell)), line(head.map(() => "---")), ...rows.map((row) => line(struck(row)))].join("\n") + "\n";
}

/** RFC 4180; no cell begins what a spreadsheet takes for a formula. */
export function csv(head, rows) {
  const cell = (text) => {
    const safe = /^\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]/.test(text) && !/^-?[\d.]+(e[-+]?\d+)?$/i.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [head, ...rows.map((row) => row.cells)].map((cells) => cells.map(cell).join(",")).join("\n") + "\n";
}

const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "×": "$\\times$", "\u202f": "\\," };

export function latex(head, rows) {
  const cell = (text) => text.replace(/[\\~^×\u202f]|[&%$#_{}]/g, (c) => LATEX[c] ?? `\\${c}`).replace(/\s+/g, " ");
  const line = (cells) => `  ${cells.join(" & ")} \\\\`;
  const struck = (row) => row.cells.map((text) => (row.struck && text ? `\\sout{${cell(text)}}` : cell(text)));
  return [
    `\\begin{tabular}{l${"r".repeat(head.length - 1)}}  % needs booktabs${rows.some((row) => row.struck) ? " and ulem" : ""}`,
    "  \\toprule",
    line(head.map(cell)),
    "  \\midrule",
    ...rows.map((row) => line(struck(row))),
    "  \\bottomrule",
    "\\end{tabular}",
  ].join("\n") + "\n";
}

/** Offers text as a file to save. */
export function save(name, text, type = "text/csv") {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Puts text on the clipboard, in pages opened from a disk too. Resolves to whether it is there. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", { class: "unseen", readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

let toastTimer = 0;

/** Says something for a moment, to the eye and to a screen reader. */
export function say(text) {
  const toast = document.getElementById("toast");
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => toast.classList.remove("shown"), 4000);
}
