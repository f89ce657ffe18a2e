// Which of two is better, asked before their names are told. The tally stays in the page.

import { csv, element, number, save } from "./format.js";

const CHOICES = { A: "A is better", B: "B is better", same: "No difference" };

export class Blind {
  constructor(board, changed) {
    this.board = board;
    this.changed = changed;
    this.on = false;
    this.answers = []; // {prompt, text, a, b, choice}
    this.sides = new Map(); // "prompt id id" -> whether they are swapped
    this.current = null;
    this.host = element("div", { class: "blind", hidden: true, role: "region", "aria-label": "Blind comparison" });
  }

  /** The two that are compared, in an order that says nothing; null where there are not two. */
  pair(prompt, reference, chosen) {
    const two = chosen.length > 1 ? chosen.slice(0, 2) : [reference, ...chosen].filter(Boolean);
    if (two.length < 2) return null;
    const key = `${prompt} ${two[0].id} ${two[1].id}`;
    if (!this.sides.has(key)) this.sides.set(key, crypto.getRandomValues(new Uint8Array(1))[0] % 2 === 1);
    return this.sides.get(key) ? [two[1], two[0]] : two;
  }

  answered(prompt, pair) {
    return this.answers.find((one) => one.prompt === prompt && one.a === pair[0] && one.b === pair[1]);
  }

  revealed(prompt) {
    return Boolean(this.current?.prompt === prompt && this.answered(prompt, this.current.pair));
  }

  draw(prompt, text, pair) {
    this.current = pair ? { prompt, text, pair } : null;
    this.host.hidden = !this.on;
    if (!this.on) return;
    const told = pair && this.answered(prompt, pair);
    const ask = !pair
      ? [element("p", {}, "Choose a variant first: it is compared with the reference, or two with each other.")]
      : told
        ? [element("p", {}, `You said: ${told.choice === "same" ? "no difference" : `${(told.choice === "A" ? told.a : told.b).name} is better`}.`)]
        : [
            element("p", {}, "Which is better?"),
            ...Object.entries(CHOICES).map(([choice, label], i) => element("button", { type: "button", onclick: () => this.choose(choice) }, label, element("kbd", {}, "120"[i]))),
          ];
    this.host.replaceChildren(element("div", { class: "group" }, ask), this.tally());
  }

  choose(choice) {
    if (!this.on || !this.current || this.answered(this.current.prompt, this.current.pair)) return;
    const { prompt, text, pair } = this.current;
    this.answers.push({ prompt, text, a: pair[0], b: pair[1], choice });
    this.changed();
  }

  /** How often each of a pair was said to be better, and how likely that is by chance alone. */
  tally() {
    const pairs = new Map();
    for (const { a, b, choice } of this.answers) {
      const [first, second] = [a, b].sort((one, other) => (one.id < other.id ? -1 : 1));
      const key = `${first.id} ${second.id}`;
      const count = pairs.get(key) ?? { first, second, wins: [0, 0], same: 0 };
      if (choice === "same") count.same += 1;
      else count.wins[(choice === "A" ? a : b) === first ? 0 : 1] += 1;
      pairs.set(key, count);
    }
    const lines = [...pairs.values()].map(({ first, second, wins, same }) =>
      element("li", {}, `${first.name} ${wins[0]}, ${second.name} ${wins[1]}, no difference ${same}`, element("small", {}, ` p = ${number(signTest(...wins), 2)} (sign test)`)),
    );
    const export_ = element("button", { type: "button", onclick: () => save("blind.csv", this.csv()) }, "CSV");
    return element("div", { class: "tally" }, element("ul", {}, lines), this.answers.length ? export_ : null);
  }

  csv() {
    const name = (variant) => variant.name;
    const rows = this.answers.map(({ prompt, text, a, b, choice }) => ({
      cells: [this.board.title, String(prompt), text, name(a), name(b), choice === "same" ? "no difference" : name(choice === "A" ? a : b)],
    }));
    return csv(["ranking", "number", "prompt", "A", "B", "better"], rows);
  }
}

/** Two-sided p of so many wins each where both are as good; those without a difference tell nothing. */
export function signTest(a, b) {
  const n = a + b;
  let tail = 0;
  let ways = 1; // n over k
  for (let k = 0; k <= Math.min(a, b); k += 1) {
    tail += ways;
    ways = (ways * (n - k)) / (k + 1);
  }
  return Math.min(1, (2 * tail) / 2 ** n);
}
