// The trade-off: two measures of every variant, their intervals and the Pareto front. uPlot draws
// axes, grid and lines; the points are buttons, so that keyboard and screen reader have them too.

import { bytes, direction, element, interval, svg, written } from "./format.js";
import { eligible, pareto, standing, standingText } from "./select.js";

const RADIUS = [5, 15]; // pixels of the markers of the least and the largest peak memory
const SPREAD = 6; // an axis is logarithmic where its values are further apart than so many times
const LABELLED = 60; // points up to which names are written beside them
const SHAPES = {
  reference: "M0,-1.25 L.33,-.4 1.2,-.38 .53,.17 .75,1 0,.52 -.75,1 -.53,.17 -1.2,-.38 -.33,-.4Z",
  indistinguishable: "M-1,0 A1,1 0 1 1 1,0 A1,1 0 1 1 -1,0Z",
  drift: "M0,-1.2 L1.2,0 0,1.2 -1.2,0Z",
  degraded: "M0,-1.15 L1.1,.85 -1.1,.85Z",
  broken: "M-1,-.55 L-.55,-1 0,-.45 .55,-1 1,-.55 .45,0 1,.55 .55,1 0,.45 -.55,1 -1,.55 -.45,0Z",
  unverified: "M-.9,-.9 H.9 V.9 H-.9Z",
  none: "M0,-1 L.87,-.5 V.5 L0,1 L-.87,.5 V-.5Z",
};
const WORDS = {
  reference: "reference",
  indistinguishable: "indistinguishable",
  drift: "drift: other videos, no loss",
  degraded: "degraded",
  broken: "broken",
  unverified: "unverified",
  none: "no verdict",
};

/** The marker of a standing, in a box of so many pixels. */
export function marker(kind, size = 14, settled = true) {
  const shape = svg("path", { d: SHAPES[kind], class: `mark ${kind}${settled ? "" : " open"}`, "vector-effect": "non-scaling-stroke" });
  return svg("svg", { viewBox: "-1.35 -1.35 2.7 2.7", width: size, height: size, "aria-hidden": "true", class: "marker" }, shape);
}

/** Whether a verdict needs no question mark; markers of others are hollow. */
export function settled(variant) {
  return variant.reference || !variant.verdict?.text.endsWith("?");
}

export class Chart {
  constructor(host, legend, store, open) {
    this.host = host;
    this.key = legend;
    this.store = store;
    this.open = open;
    this.plot = null;
    this.buttons = new Map();
    this.tip = element("div", { class: "tip", role: "tooltip", hidden: true });
    this.observer = new ResizeObserver(() => this.resized());
    this.observer.observe(host);
    for (const event of ["axes", "theme"]) store.addEventListener(event, () => this.draw());
    store.addEventListener("select", () => this.mark());
    store.addEventListener("hover", () => this.mark());
    this.draw();
  }

  resized() {
    if (!this.plot || Math.abs(this.host.clientWidth - this.plot.width) < 2) return;
    this.draw();
  }

  /** Every variant that has both figures, as {variant, x, y}. */
  points() {
    const { x, y, board } = this.store;
    return board.variants
      .filter((variant) => variant.figures?.[x] && variant.figures?.[y])
      .map((variant) => ({ variant, x: variant.figures[x], y: variant.figures[y] }));
  }

  draw() {
    const { store } = this;
    const across = store.measures.get(store.x);
    const up = store.measures.get(store.y);
    this.plot?.destroy();
    this.plot = null;
    this.buttons.clear();
    this.host.replaceChildren();
    const points = across && up ? this.points() : [];
    if (!points.length) {
      this.host.append(element("p", { class: "quiet empty" }, "No variant has both of these figures."));
      return;
    }
    this.front = pareto(store.board.variants, across, up);
    const scales = { x: scale(points.map((p) => p.x), across), y: scale(points.map((p) => p.y), up) };
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--quiet").trim();
    const line = style.getPropertyValue("--line").trim();
    const axis = (measure, isX) => ({
      stroke: ink,
      grid: { stroke: line, width: 1 },
      ticks: { stroke: line, width: 1, size: 4 },
      font: "12px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif",
      label: `${measure.label}  (${direction(measure, isX)})`,
      labelSize: 22,
      size: isX ? 34 : 62,
      splits: (plot) => ticks(scales[isX ? "x" : "y"], measure, isX ? plot.bbox.width / devicePixelRatio / 80 : plot.bbox.height / devicePixelRatio / 40),
      filter: (_, splits) => splits, // else uPlot leaves most of a logarithmic axis without figures
      values: (_, splits) => splits.map((value) => written(axisForm(measure.form), value)),
    });
    const width = this.host.clientWidth;
    this.plot = new uPlot(
      {
        width,
        height: Math.max(300, Math.min(460, Math.round(width * 0.55))),
        legend: { show: false },
        cursor: { show: false },
        padding: [14, 16, 0, 4],
        scales: {
          x: { time: false, distr: scales.x.log ? 3 : 1, range: () => scales.x.range },
          y: { distr: scales.y.log ? 3 : 1, range: () => scales.y.range },
        },
        axes: [axis(across, true), axis(up, false)],
        series: [{}, { show: true, paths: () => null, points: { show: false } }],
        hooks: {
          draw: [(plot) => this.lines(plot, points, style)],
          ready: [(plot) => this.place(plot, points, across, up)], // sizes are known from here on
        },
      },
      [scales.x.range, scales.y.range],
      this.host,
    );
    this.host.append(this.tip);
  }

  /** Intervals, the front and the reference's own x, below the points. */
  lines(plot, points, style) {
    const { ctx } = plot;
    const at = (value, key) => plot.valToPos(value, key, true);
    ctx.save();
    ctx.beginPath();
    ctx.rect(plot.bbox.left, plot.bbox.top, plot.bbox.width, plot.bbox.height);
    ctx.clip();
    ctx.lineWidth = devicePixelRatio;
    const reference = this.store.reference?.figures?.[this.store.x];
    if (reference) {
      const x = at(reference.value, "x");
      ctx.strokeStyle = ctx.fillStyle = style.getPropertyValue("--quiet");
      ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
      stroke(ctx, [[x, plot.bbox.top], [x, plot.bbox.top + plot.bbox.height]]);
      ctx.setLineDash([]);
      ctx.textAlign = "left";
      ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
      const { name } = this.store.reference;
      const left = x + ctx.measureText(name).width + 8 * devicePixelRatio > plot.bbox.left + plot.bbox.width;
      if (left) ctx.textAlign = "right";
      ctx.fillText(name, x + (left ? -5 : 5) * devicePixelRatio, plot.bbox.top + plot.bbox.height - 7 * devicePixelRatio);
    }
    ctx.strokeStyle = style.getPropertyValue("--whisker");
    for (const { x, y } of points) {
      if (x.low !== undefined) stroke(ctx, [[at(x.low, "x"), at(y.value, "y")], [at(x.high, "x"), at(y.value, "y")]]);
      if (y.low !== undefined) stroke(ctx, [[at(x.value, "x"), at(y.low, "y")], [at(x.value, "x"), at(y.high, "y")]]);
    }
    const corners = [];
    for (const [i, variant] of this.front.entries()) {
      const x = at(variant.figures[this.store.x].value, "x");
      const y = at(variant.figures[this.store.y].value, "y");
      if (i) corners.push([x, corners.at(-1)[1]]);
      corners.push([x, y]);
    }
    ctx.strokeStyle = style.getPropertyValue("--front");
    ctx.lineWidth = 1.6 * devicePixelRatio;
    stroke(ctx, corners);
    ctx.restore();
  }

  /** The points as buttons over the plot, from left to right; names where there is room. */
  place(plot, points, across, up) {
    const { over } = plot;
    over.setAttribute("role", "group");
    over.setAttribute("aria-label", `${points.length} variants, ${across.label} across, ${up.label} up. Arrow keys move, Enter chooses, D opens one.`);
    const sizes = points.map(({ variant }) => variant.figures.peak_bytes?.value).filter(Boolean);
    const range = [Math.min(...sizes), Math.max(...sizes)];
    this.sizes = sizes.length > 1 && range[1] > range[0] ? range : null;
    const placed = points.map((point) => ({
      ...point,
      left: plot.valToPos(point.x.value, "x"),
      top: plot.valToPos(point.y.value, "y"),
      radius: this.radius(point.variant),
    }));
    placed.sort((a, b) => a.left - b.left);
    const front = new Set(this.front.map((variant) => variant.id));
    this.order = placed.map(({ variant }) => variant.id);
    // The largest first, so that none covers a smaller one.
    for (const point of [...placed].sort((a, b) => b.radius - a.radius)) {
      const { variant } = point;
      const told = [
        variant.name,
        standingText(variant),
        `${across.label} ${written(across.form, point.x.value)} ${interval(across.form, point.x)}`,
        `${up.label} ${written(up.form, point.y.value)} ${interval(up.form, point.y)}`,
        front.has(variant.id) ? "on the Pareto front" : "",
      ];
      const button = element("button", {
        type: "button",
        class: "point",
        tabindex: this.order[0] === variant.id ? 0 : -1,
        "aria-label": told.filter(Boolean).join(", "),
        "data-id": variant.id,
        onclick: () => this.store.toggle(variant.id),
        ondblclick: () => this.open(variant.id),
        onpointerenter: () => this.store.hover(variant.id),
        onpointerleave: () => this.store.hover(null),
        onfocus: () => this.store.hover(variant.id),
        onblur: () => this.store.hover(null),
        onkeydown: (event) => this.pressed(event, variant.id),
      });
      button.style.left = `${point.left}px`;
      button.style.top = `${point.top}px`;
      button.append(marker(standing(variant), point.radius * 2.7, settled(variant)));
      if (!eligible(variant) && !variant.reference) button.classList.add("out");
      this.buttons.set(variant.id, button);
      over.append(button);
    }
    if (placed.length <= LABELLED) label(over, placed, front);
    this.mark();
    this.legend();
  }

  radius(variant) {
    const size = variant.figures.peak_bytes?.value;
    if (!this.sizes || !size) return 7;
    const [least, most] = this.sizes.map(Math.sqrt);
    return RADIUS[0] + ((Math.sqrt(size) - least) / (most - least)) * (RADIUS[1] - RADIUS[0]);
  }

  pressed(event, id) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      const at = (this.order.indexOf(id) + step + this.order.length) % this.order.length;
      const next = this.buttons.get(this.order[at]);
      for (const button of this.buttons.values()) button.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    } else if (event.key.toLowerCase() === "d") {
      this.open(id);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  /** Which points are chosen, and what the one under the pointer says. */
  mark() {
    const { selected, hovered } = this.store;
    for (const [id, button] of this.buttons) {
      button.setAttribute("aria-pressed", selected.includes(id));
      button.classList.toggle("hovered", id === hovered);
    }
    const button = this.buttons.get(hovered);
    this.tip.hidden = !button;
    if (!button) return;
    this.tell(this.store.byId.get(hovered));
    const box = this.host.getBoundingClientRect();
    const spot = button.getBoundingClientRect();
    const left = spot.left - box.left + spot.width / 2;
    const right = left > box.width / 2;
    this.tip.style.left = right ? "" : `${Math.max(0, left + 16)}px`;
    this.tip.style.right = right ? `${Math.max(0, box.width - left + 16)}px` : "";
    this.tip.style.top = `${Math.max(0, spot.top - box.top - 20)}px`;
  }

  tell(variant) {
    const { measures, x, y } = this.store;
    const rows = [...new Set([x, y, "peak_bytes"])]
      .filter((key) => variant.figures[key] && measures.has(key))
      .map((key) => {
        const measure = measures.get(key);
        const figure = variant.figures[key];
        const n = figure.n ? `n = ${figure.n}` : "";
        return [
          element("dt", {}, measure.label),
          element("dd", {}, `${written(measure.form, figure.value)} `, element("small", {}, [interval(measure.form, figure), n].filter(Boolean).join(" "))),
        ];
      });
    this.tip.replaceChildren(
      element("strong", {}, variant.name),
      element("span", { class: "standing" }, marker(standing(variant), 13, settled(variant)), standingText(variant) || "no verdict"),
      element("dl", {}, rows.flat()),
    );
  }

  /** Which shapes are on the chart, and what their size means. */
  legend() {
    const kinds = Object.keys(SHAPES).filter((kind) => this.points().some((point) => standing(point.variant) === kind));
    const open = this.points().some((point) => !settled(point.variant));
    this.key.replaceChildren(
      ...kinds.map((kind) => element("li", {}, marker(kind), WORDS[kind])),
      ...(open ? [element("li", {}, marker("drift", 14, false), "hollow: not settled (?)")] : []),
      ...(this.points().some(({ variant }) => !eligible(variant) && !variant.reference) ? [element("li", {}, "pale: broken, or a noise floor")] : []),
      ...(this.front?.length ? [element("li", {}, element("span", { class: "front-key" }), "Pareto front")] : []),
      ...(this.sizes ? [element("li", {}, `size: peak memory, ${bytes(this.sizes[0])} to ${bytes(this.sizes[1])}`)] : []),
    );
  }
}

function stroke(ctx, points) {
  ctx.beginPath();
  for (const [x, y] of points) ctx.lineTo(x, y);
  ctx.stroke();
}

/** Range that holds figures with their intervals, and whether it is logarithmic. */
function scale(figures, measure) {
  const values = figures.map((figure) => figure.value);
  const all = figures.flatMap((figure) => [figure.value, figure.low ?? figure.value, figure.high ?? figure.value]);
  const middle = [...values].sort((a, b) => a - b);
  // One interval that is many times wider than all values together does not set the scale.
  const reach = 1.5 * (middle.at(-1) - middle[0]) || Math.abs(middle[0]) || 1;
  const ends = [Math.max(Math.min(...all), middle[0] - reach), Math.min(Math.max(...all), middle.at(-1) + reach)];
  const log = measure.kind !== "quality" && Math.min(...all) > 0 && middle.at(-1) / middle[0] > SPREAD;
  if (log) {
    const pad = Math.max(1.06, (ends[1] / ends[0]) ** 0.06);
    return { log, range: [Math.min(...all, ends[0]) / pad, ends[1] * pad] };
  }
  const pad = 0.07 * (ends[1] - ends[0]) || Math.abs(ends[0]) * 0.1 || 1;
  return { log, range: [ends[0] - pad, ends[1] + pad] };
}

/** Where the lines of a grid go: round numbers, in bytes of powers of two; about `most` of them. */
function ticks({ log, range }, measure, most) {
  const [low, high] = range;
  const count = Math.max(2, Math.min(8, Math.floor(most)));
  if (log) {
    const base = measure.form === "bytes" ? 2 : 10;
    for (const steps of base === 2 ? [[1, 1.5], [1]] : [[1, 1.5, 2, 3, 4, 5, 7], [1, 2, 3, 5], [1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let power = Math.floor(Math.log(low) / Math.log(base)); base ** power <= high; power += 1) {
        for (const step of steps) if (step * base ** power >= low && step * base ** power <= high) found.push(step * base ** power);
      }
      if (found.length <= count + 1) return found;
      if (steps.length === 1) return found.filter((_, i) => i % Math.ceil(found.length / count) === 0);
    }
  }
  const unit = measure.form === "bytes" ? 1024 ** Math.floor(Math.log(Math.max(Math.abs(high), 1)) / Math.log(1024)) : 1;
  const rough = (high - low) / unit / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough) * unit;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) found.push(i * step);
  return found;
}

/** Axes need no digits of a metric's own form. */
function axisForm(form) {
  if (form === "ratio") return "number";
  const [kind, , unit] = form.split(":");
  return kind === "fixed" && !unit ? "number" : kind === "fixed" ? `unit::${unit}` : form;
}

/** Names beside points where they cover neither a point nor another name. */
function label(over, points, front) {
  const ctx = document.createElement("canvas").getContext("2d");
  const limits = { right: over.clientWidth, bottom: over.clientHeight };
  const taken = points.map(({ left, top, radius }) => ({ left: left - radius, right: left + radius, top: top - radius, bottom: top + radius }));
  const rank = ({ variant }) => (variant.reference ? 0 : front.has(variant.id) ? 1 : 2);
  for (const point of [...points].sort((a, b) => rank(a) - rank(b))) {
    const text = point.variant.name.length > 34 ? `${point.variant.name.slice(0, 33)}…` : point.variant.name;
    ctx.font = `${front.has(point.variant.id) ? 600 : 400} 12px system-ui, sans-serif`; // as page.css has .name
    const width = ctx.measureText(text).width + 4;
    const gap = point.radius * 1.35 + 2;
    const spots = [
      [gap, -8], [-gap - width, -8], [-width / 2, -gap - 15], [-width / 2, gap],
      [gap * 0.8, -gap - 10], [gap * 0.8, gap - 6], [-gap * 0.8 - width, -gap - 10], [-gap * 0.8 - width, gap - 6],
    ];
    for (const [dx, dy] of spots) {
      const box = { left: point.left + dx, top: point.top + dy, right: point.left + dx + width, bottom: point.top + dy + 15 };
      const inside = box.left >= 0 && box.top >= 0 && box.right <= limits.right && box.bottom <= limits.bottom;
      if (!inside || taken.some((other) => overlap(box, other))) continue;
      taken.push(box);
      const name = element("span", { class: `name${front.has(point.variant.id) ? " front" : ""}`, "aria-hidden": "true" }, text);
      name.style.left = `${box.left}px`;
      name.style.top = `${box.top}px`;
      over.append(name);
      break;
    }
  }
}

function overlap(a, b) {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}
