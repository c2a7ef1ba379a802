// Curves over the steps: one as a line, one dashed. Charts of one name have one scale, so that two
// runs beside each other can be compared by eye.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 100;
// A line needs no more points than it has pixels.
const MOST = 600;
const peers = new Map();

const short = (y) => {
  if (!Number.isFinite(y)) return "";
  const size = Math.abs(y);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) return y.toExponential(1);
  return y.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
};

const element = (name, classes, text = "") => {
  const made = document.createElement(name);
  made.className = classes;
  made.textContent = text;
  return made;
};

export class Chart {
  /** @param {[string, string]} keys what the two lines are. */
  constructor(name, title, keys = ["training", "held out"]) {
    this.name = name;
    this.title = title;
    this.points = { train: [], val: [] };
    this.figure = element("figure", "chart");
    this.figure.dataset.name = name;
    const caption = element("figcaption", "");
    this.keys = Object.fromEntries(["train", "val"].map((split, i) => [split, element("span", `key ${split}`)]));
    this.words = { train: keys[0], val: keys[1] };
    caption.append(element("strong", "", title), this.keys.train, this.keys.val);
    this.keys.train.hidden = this.keys.val.hidden = true;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    const make = (kind, attributes) => {
      const made = document.createElementNS(SVG, kind);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      this.svg.append(made);
      return made;
    };
    for (const y of [0, HEIGHT / 2]) make("line", { x1: 0, x2: WIDTH, y1: y, y2: y });
    const split = (kind) => Object.fromEntries(["train", "val"].map((of) => [of, make(kind, { class: of })]));
    this.lines = split("polyline");
    // A value that was measured once is a dot.
    this.dots = split("path");
    this.ys = element("div", "ys");
    this.xs = element("div", "xs");
    this.figure.append(caption, this.ys, this.svg, this.xs);
    peers.set(name, [...(peers.get(name) ?? []), this]);
  }

  end() {
    const others = peers.get(this.name).filter((chart) => chart !== this);
    peers.set(this.name, others);
    for (const chart of others) chart.soon();
  }

  add(split, step, value) {
    const points = this.points[split];
    if (points.at(-1)?.[0] === step) points.pop();
    points.push([step, value]);
    // Every other point of a long line is dropped; the curve keeps its shape.
    if (points.length > MOST) this.points[split] = points.filter((_, i) => i % 2 === 1);
    for (const chart of peers.get(this.name)) chart.soon();
  }

  soon() {
    this.drawn ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.drawn = null;
    const all = peers.get(this.name).flatMap((chart) => Object.values(chart.points).flat());
    const finite = all.filter(([, y]) => Number.isFinite(y));
    if (finite.length === 0) return;
    const [xs, ys] = [finite.map(([x]) => x), finite.map(([, y]) => y)];
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    if (y0 === y1) [y0, y1] = [y0 - Math.abs(y0) * 0.05 - 1e-6, y1 + Math.abs(y1) * 0.05 + 1e-6];
    const place = ([x, y]) => {
      const left = ((x - x0) / (x1 - x0 || 1)) * WIDTH;
      return `${left.toFixed(1)},${((1 - (y - y0) / (y1 - y0)) * HEIGHT).toFixed(1)}`;
    };
    const said = [];
    for (const [split, points] of Object.entries(this.points)) {
      const shown = points.filter(([, y]) => Number.isFinite(y));
      this.lines[split].setAttribute("points", shown.map(place).join(" "));
      this.dots[split].setAttribute("d", shown.length === 1 ? `M${place(shown[0])}h0` : "");
      this.keys[split].hidden = shown.length === 0;
      if (shown.length === 0) continue;
      this.keys[split].textContent = `${this.words[split]} ${short(shown.at(-1)[1])}`;
      said.push(this.keys[split].textContent);
    }
    this.ys.replaceChildren(...[y1, (y0 + y1) / 2, y0].map((y) => element("span", "", short(y))));
    this.xs.replaceChildren(...(x0 === x1 ? [`step ${x0}`] : [`step ${x0}`, `${x1}`]).map((x) => element("span", "", x)));
    this.svg.setAttribute("aria-label", `${this.title}, ${said.join(", ")}, from step ${x0} to ${x1}`);
  }
}
