// Videos of one prompt side by side: the reference and what is chosen, on one clock.

import { Blind } from "./blind.js";
import { element, number, svg, written } from "./format.js";
import { marker, settled } from "./chart.js";
import { Player } from "./player.js";
import { MOST, standing } from "./select.js";

const MODES = { side: "Side by side", wipe: "Wipe", blink: "Blink", difference: "Difference" };
const GAINS = [1, 2, 4, 8, 16, 32, 64];
const SPEEDS = [0.125, 0.25, 0.5, 1, 2];
export const KEYS = [
  ["Space", "play or pause"],
  ["← →", "one frame back or on"],
  ["Home End", "first or last frame"],
  ["[ ]", "previous or next prompt"],
  ["S W B D", "side by side, wipe, blink, difference"],
  ["+ −", "gain of the difference"],
  ["L", "loop or not"],
  ["N", "names hidden or shown (blind)"],
  ["1 2 0", "blind: A is better, B is better, no difference"],
];

export class Videos {
  constructor(store, open) {
    this.store = store;
    this.open = open;
    this.host = document.getElementById("videos");
    this.player = new Player();
    this.looked = false; // nothing is loaded before it is looked at
    this.order = "";
    this.prompt = store.board.prompts[0].number;
    this.plotted = [];
    this.blind = new Blind(store.board, () => this.fill());
    this.build();
    store.addEventListener("select", () => this.fill());
    this.player.addEventListener("frame", () => this.moved());
    this.player.addEventListener("state", () => this.state());
    this.player.addEventListener("fault", (event) => this.fault(event.detail));
    this.watch = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      this.looked = true;
      this.watch.disconnect();
      this.fill();
    }, { rootMargin: "200px" });
    this.watch.observe(this.host);
    this.resized = new ResizeObserver(() => this.drawn !== this.line.clientWidth && this.plot());
    this.resized.observe(this.line);
    this.keys = (event) => this.key(event);
    document.addEventListener("keydown", this.keys);
    this.fill();
  }

  close() {
    this.player.pause();
    this.player.setMode("side");
    this.player.load([], 8);
    this.watch.disconnect();
    this.resized.disconnect();
    document.removeEventListener("keydown", this.keys);
    this.host.replaceChildren();
  }

  build() {
    const button = (label, click, extra = {}) => element("button", { type: "button", onclick: click, ...extra }, label);
    const { player } = this;
    this.pick = element("select", { "aria-label": "Prompt", class: "prompts", onchange: () => this.go(Number(this.pick.value)) });
    this.by = element(
      "select",
      { "aria-label": "Order of the prompts", onchange: () => { this.order = this.by.value; this.ordered(true); } },
      element("option", { value: "" }, "in their order"),
      this.metrics().map((measure) => element("option", { value: measure.key }, `worst ${measure.label} first`)),
    );
    this.modes = Object.entries(MODES).map(([mode, label]) => button(label, () => this.setMode(mode), { "data-mode": mode }));
    this.gain = element("select", { "aria-label": "Gain", onchange: () => { player.gain = Number(this.gain.value); player.draw(); } }, GAINS.map((gain) => element("option", { value: gain }, `gain ${gain}×`)));
    this.gain.value = player.gain;
    this.edge = element("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Place of the wipe", oninput: () => { player.wipe = this.edge.value / 100; player.draw(); } });
    this.playing = button("Play", () => player.toggle(), { class: "play" });
    this.scrub = element("input", { type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": "Frame", class: "scrub", oninput: () => { player.pause(); player.show(Number(this.scrub.value)); } });
    this.clock = element("output", { class: "clock" });
    this.looping = element("input", { type: "checkbox", onchange: () => { player.loop = this.looping.checked; } });
    this.looping.checked = true;
    this.speed = element("select", { "aria-label": "Speed", onchange: () => player.setSpeed(Number(this.speed.value)) }, SPEEDS.map((speed) => element("option", { value: speed }, `${speed}×`)));
    this.speed.value = 1;
    this.cells = element("div", { class: "cells" });
    this.line = element("div", { class: "difference" });
    this.caption = element("p", { class: "prompt" });
    this.note = element("p", { class: "quiet" });
    this.hiding = button("Blind", () => this.setBlind(!this.blind.on), { "aria-pressed": "false", title: "Names are hidden until you have chosen (N)" });
    this.host.replaceChildren(
      element("h2", {}, "Videos"),
      element(
        "div",
        { class: "controls" },
        button("‹", () => this.next(-1), { "aria-label": "Previous prompt" }),
        this.pick,
        button("›", () => this.next(1), { "aria-label": "Next prompt" }),
        this.by,
        element("span", { class: "group modes", role: "group", "aria-label": "How they are shown" }, this.modes, this.gain, this.edge),
        this.hiding,
      ),
      this.caption,
      this.blind.host,
      this.cells,
      element(
        "div",
        { class: "transport" },
        this.playing,
        button("◂", () => player.step(-1), { "aria-label": "One frame back" }),
        button("▸", () => player.step(1), { "aria-label": "One frame on" }),
        this.scrub,
        this.clock,
        this.speed,
        element("label", {}, this.looping, " loop"),
      ),
      this.line,
      this.note,
    );
    this.host.hidden = false;
    this.setMode("side");
  }

  metrics() {
    const scored = new Set(this.store.board.variants.flatMap((variant) => Object.keys(variant.scores ?? {}).map((name) => `quality.${name}`)));
    return this.store.board.measures.filter((measure) => scored.has(measure.key));
  }

  /** The chosen variants that have a video of this prompt. */
  chosen(prompt = this.prompt) {
    return this.store.selected.map((id) => this.store.byId.get(id)).filter((variant) => variant.clips?.[prompt]);
  }

  /** How bad a prompt is by the metric of the order, over what is chosen; undefined where unknown. */
  badness(prompt) {
    const measure = this.store.measures.get(this.order);
    const name = this.order.replace(/^quality\./, "");
    const values = this.chosen(prompt).map((variant) => variant.scores?.[name]?.[prompt]).filter((value) => value !== undefined);
    if (!measure || !values.length) return undefined;
    const bad = (value) => ({ higher: -value, lower: value, zero: Math.abs(value) })[measure.better];
    return values.reduce((worst, value) => (bad(value) > bad(worst) ? value : worst));
  }

  /** Fills the list of prompts; first: go to the first of it. */
  ordered(first = false) {
    const measure = this.store.measures.get(this.order);
    const prompts = this.store.board.prompts.map((prompt) => ({ ...prompt, worst: this.badness(prompt.number) }));
    if (measure) {
      const bad = (value) => (value === undefined ? -Infinity : { higher: -value, lower: value, zero: Math.abs(value) }[measure.better]);
      prompts.sort((a, b) => bad(b.worst) - bad(a.worst) || a.number - b.number);
    }
    this.listed = prompts.map((prompt) => prompt.number);
    const told = (prompt) => (prompt.worst === undefined ? "" : ` (${measure.label} ${written(measure.form, prompt.worst)})`);
    this.pick.replaceChildren(...prompts.map((prompt) => element("option", { value: prompt.number }, `${prompt.number + 1}. ${prompt.text}${told(prompt)}`)));
    if (first) this.go(this.listed[0]);
    else this.pick.value = this.prompt;
  }

  go(prompt) {
    this.prompt = prompt;
    this.fill();
  }

  next(by) {
    const at = this.listed.indexOf(this.prompt) + by;
    this.go(this.listed[(at + this.listed.length) % this.listed.length]);
  }

  /** Puts the videos of the prompt that are chosen on the page. */
  fill() {
    this.ordered();
    const { store, player, blind } = this;
    const prompt = store.board.prompts.find((one) => one.number === this.prompt);
    this.caption.textContent = prompt.text;
    const reference = store.reference?.clips?.[this.prompt] ? store.reference : null;
    const chosen = this.chosen();
    const pair = blind.on ? blind.pair(this.prompt, reference, chosen) : null;
    blind.draw(this.prompt, prompt.text, pair);
    const shown = pair ?? [reference, ...chosen].filter(Boolean);
    const hidden = Boolean(pair) && !blind.revealed(this.prompt);
    const alone = !pair && player.mode !== "side" && player.mode !== "difference" && chosen.length && reference;
    const tracks = [];
    const figures = [];
    for (const [i, variant] of shown.entries()) {
      const clip = variant.clips[this.prompt];
      const compared = !pair && reference && variant !== reference;
      const letter = "AB"[i];
      const beside = compared && player.mode !== "side" ? element("span", { class: "quiet" }, this.beside(reference)) : null;
      const name = hidden ? letter : pair ? `${letter}: ${variant.name}` : variant.name;
      const canvas = element("canvas", { role: "img", "aria-label": name, width: clip.width, height: clip.height });
      const tell = (second) => beside && player.mode === "blink" && (beside.textContent = second ? `not ${reference.name} but` : `${reference.name}, not`);
      tracks.push({ id: variant.id, clip, canvas, name, tell, against: compared ? reference.id : null });
      const title = hidden || pair
        ? element("figcaption", {}, element("b", {}, name))
        : element("figcaption", {}, marker(standing(variant), 14, settled(variant)), beside, element("button", { type: "button", class: "link", onclick: () => this.open(variant.id) }, name), element("small", {}, this.score(variant)));
      const figure = element("figure", { "data-id": hidden ? undefined : variant.id }, title, canvas);
      if (clip.width <= 320) canvas.classList.add("small");
      canvas.onpointerdown = (event) => this.dragged(event, canvas);
      canvas.onpointermove = (event) => event.buttons && this.dragged(event, canvas);
      if (!(alone && variant === reference)) figures.push(figure);
    }
    this.cells.replaceChildren(...figures);
    this.cells.dataset.count = figures.length;
    const missing = store.selected.length - chosen.length;
    this.note.textContent = [
      chosen.length ? "" : `Choose up to ${MOST} variants in the chart or the table.`,
      missing ? `${missing} of the chosen have no video of this prompt.` : "",
      store.board.left_out ?? "",
    ].filter(Boolean).join(" ");
    this.plot(hidden ? [] : chosen.filter((variant) => variant.clips[this.prompt].difference));
    if (this.looked) player.load(tracks, store.board.fps);
    this.scrub.max = Math.max(0, ...tracks.slice(0, 1).map((track) => track.clip.frames - 1));
  }

  /** What stands before a variant's name where its cell shows more than its video. */
  beside(reference) {
    return { wipe: `${reference.name} |`, blink: `${reference.name}, not`, difference: `${reference.name} −` }[this.player.mode];
  }

  score(variant) {
    const keys = [this.order, "quality.psnr"].filter(Boolean);
    for (const key of keys) {
      const value = variant.scores?.[key.replace(/^quality\./, "")]?.[this.prompt];
      const measure = this.store.measures.get(key);
      if (value !== undefined && measure) return `${measure.label} ${written(measure.form, value)}`;
    }
    return variant.reference ? "reference" : "";
  }

  dragged(event, canvas) {
    if (this.player.mode !== "wipe") return;
    const box = canvas.getBoundingClientRect();
    this.player.wipe = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    this.edge.value = 100 * this.player.wipe;
    this.player.draw();
    event.preventDefault();
  }

  setMode(mode) {
    if (this.blind.on && mode !== "side") this.setBlind(false);
    this.player.setMode(mode);
    for (const button of this.modes) button.setAttribute("aria-pressed", button.dataset.mode === mode);
    this.gain.hidden = mode !== "difference";
    this.edge.hidden = mode !== "wipe";
    this.host.dataset.mode = mode;
    if (this.listed) this.fill();
  }

  setBlind(on) {
    this.blind.on = on;
    this.hiding.setAttribute("aria-pressed", on);
    if (on) this.setMode("side");
    else this.fill();
  }

  state() {
    this.playing.textContent = this.player.playing ? "Pause" : "Play";
  }

  moved() {
    const { player } = this;
    this.scrub.max = player.count - 1;
    this.scrub.value = player.at;
    this.scrub.setAttribute("aria-valuetext", `frame ${player.at + 1} of ${player.count}`);
    this.clock.textContent = `${player.at + 1} / ${player.count}`;
    this.host.dataset.frame = player.at;
    for (const track of player.tracks) track.canvas.setAttribute("aria-label", `${track.name}, frame ${player.at + 1} of ${player.count}`);
    this.cursor?.setAttribute("transform", `translate(${this.across(player.at)} 0)`);
  }

  fault(message) {
    this.note.textContent = message;
  }

  /** How far each frame is from the reference's, a line for each variant; a click goes to a frame. */
  plot(variants = this.plotted) {
    this.plotted = variants;
    this.cursor = null;
    this.drawn = this.line.clientWidth;
    if (!variants.length) {
      this.line.replaceChildren();
      return;
    }
    const lists = variants.map((variant) => variant.clips[this.prompt].difference);
    const count = Math.max(...lists.map((list) => list.length));
    const most = Math.max(...lists.flat()) || 1;
    const [wide, tall, left, right, bottom] = [this.line.clientWidth || 720, 120, 46, 10, 22];
    this.across = (k) => left + (k / Math.max(1, count - 1)) * (wide - left - right);
    const up = (value) => 8 + (1 - value / most) * (tall - bottom - 8);
    const chart = svg("svg", { viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": `Difference from the reference by frame: ${variants.map((variant, i) => `${variant.name} at most ${number(Math.max(...lists[i]))}`).join(", ")} of 255 levels` });
    for (const value of [0, most / 2, most]) {
      chart.append(svg("line", { x1: left, x2: wide - right, y1: up(value), y2: up(value), class: "grid" }));
      chart.append(svg("text", { x: left - 6, y: up(value) + 4, "text-anchor": "end" }, number(value, 2)));
    }
    for (const [k, anchor] of [[0, "start"], [count - 1, "end"]]) chart.append(svg("text", { x: this.across(k), y: tall - 4, "text-anchor": anchor }, `frame ${k + 1}`));
    lists.forEach((list, i) => {
      chart.append(svg("polyline", { points: list.map((value, k) => `${this.across(k).toFixed(1)},${up(value).toFixed(1)}`).join(" "), class: `series s${i}` }));
    });
    this.cursor = svg("line", { x1: 0, x2: 0, y1: 4, y2: tall - bottom, class: "cursor" });
    chart.append(this.cursor);
    chart.addEventListener("click", (event) => {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * wide;
      this.player.pause();
      this.player.show(Math.round(((x - left) / (wide - left - right)) * (count - 1)));
    });
    const exact = this.store.board.raw ? "raw frames" : "the encoded videos";
    this.line.replaceChildren(
      element("p", { class: "quiet legend" }, `Mean difference from the reference by frame, levels of 255, of ${exact}:`, variants.map((variant, i) => element("span", { class: `key s${i}` }, variant.name))),
      chart,
    );
    this.cursor.setAttribute("transform", `translate(${this.across(this.player.at)} 0)`);
  }

  /** Keys work while the videos have the focus, or are what is seen and nothing else has it. */
  key(event) {
    const target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (target.matches("select, textarea, input:not([type=range]):not([type=checkbox])")) return;
    const inside = this.host.contains(target);
    const box = this.host.getBoundingClientRect();
    const seen = box.top < innerHeight * 0.6 && box.bottom > innerHeight * 0.3;
    if (!inside && !(seen && (target === document.body || target === document.documentElement))) return;
    const { player } = this;
    if (target.matches("input[type=range]") && /^(Arrow|Home|End)/.test(event.key)) return;
    if (target.matches("button, input[type=checkbox]") && event.key === " ") return;
    const modes = { s: "side", w: "wipe", b: "blink", d: "difference" };
    const louder = (by) => {
      const at = GAINS.indexOf(player.gain) + by;
      player.gain = GAINS[Math.max(0, Math.min(GAINS.length - 1, at))];
      this.gain.value = player.gain;
      player.draw();
    };
    const acts = {
      " ": () => player.toggle(),
      ArrowLeft: () => player.step(-1),
      ArrowRight: () => player.step(1),
      ",": () => player.step(-1),
      ".": () => player.step(1),
      Home: () => player.step(-player.count),
      End: () => player.step(player.count),
      "[": () => this.next(-1),
      "]": () => this.next(1),
      "+": () => louder(1),
      "=": () => louder(1),
      "-": () => louder(-1),
      l: () => this.looping.click(),
      n: () => this.setBlind(!this.blind.on),
      1: () => this.blind.choose("A"),
      2: () => this.blind.choose("B"),
      0: () => this.blind.choose("same"),
    };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const act = modes[key] ? () => this.setMode(modes[key]) : acts[key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
