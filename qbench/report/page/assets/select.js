// What is chosen, shared by chart, table, videos and the variant's view: they listen to `store`.

export const MOST = 3; // variants beside the reference

/** The state of one ranking on the page. Events: "select", "hover", "axes", "theme". */
export class Store extends EventTarget {
  constructor(board) {
    super();
    this.board = board;
    this.byId = new Map(board.variants.map((variant) => [variant.id, variant]));
    this.reference = board.variants.find((variant) => variant.reference) ?? null;
    this.measures = new Map(board.measures.map((measure) => [measure.key, measure]));
    [this.x, this.y] = board.axes;
    this.selected = [];
    this.hovered = null;
  }

  /** Chosen or not any more; of too many the one chosen first goes. */
  toggle(id) {
    if (this.reference?.id === id) return;
    if (this.selected.includes(id)) this.selected = this.selected.filter((one) => one !== id);
    else this.selected = [...this.selected, id].slice(-MOST);
    this.dispatchEvent(new Event("select"));
  }

  clear() {
    this.selected = [];
    this.dispatchEvent(new Event("select"));
  }

  hover(id) {
    if (this.hovered === id) return;
    this.hovered = id;
    this.dispatchEvent(new Event("hover"));
  }

  setAxes(x, y) {
    this.x = x;
    this.y = y;
    this.dispatchEvent(new Event("axes"));
  }
}

/** How a variant stands: its verdict, or why there is none. */
export function standing(variant) {
  if (variant.reference) return "reference";
  if (variant.status === "invalid") return "broken";
  return variant.verdict?.word ?? "none";
}

export function standingText(variant) {
  if (variant.reference) return "reference";
  if (variant.status !== "ok") return variant.status;
  if (!variant.verdict) return "";
  const told = variant.verdict.distance === "close" || variant.verdict.distance === "as far as another seed";
  return told ? `${variant.verdict.text}, ${variant.verdict.distance}` : variant.verdict.text;
}

/** Whether it may win anything: it ran, its videos are videos, and it is no noise floor. */
export function eligible(variant) {
  return variant.status === "ok" && variant.verdict?.word !== "broken" && !variant.floor;
}

/**
 * The variants that none beats in both measures, from the best in x to the best in y. With equal x
 * the better y counts.
 */
export function pareto(variants, x, y) {
  if (x.better === "zero" || y.better === "zero") return [];
  const sign = (measure) => (measure.better === "higher" ? 1 : -1);
  const value = (variant, measure) => sign(measure) * variant.figures[measure.key].value;
  const order = variants
    .filter((variant) => eligible(variant) && variant.figures?.[x.key] && variant.figures?.[y.key])
    .sort((a, b) => value(b, x) - value(a, x) || value(b, y) - value(a, y));
  const front = [];
  let best = -Infinity;
  for (const variant of order) {
    if (value(variant, y) > best) {
      front.push(variant);
      best = value(variant, y);
    }
  }
  return front;
}
