// Curves of one value over the steps: training as a line, held-out images dashed.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 100;
// A line needs no more points than it has pixels.
const MOST = 600;

export class Chart {
  constructor(name) {
    this.name = name;
    this.points = { train: [], val: [] };
    this.figure = document.createElement("figure");
    this.figure.className = "chart";
    this.caption = document.createElement("figcaption");
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.lines = {};
    for (const split of ["train", "val"]) {
      this.lines[split] = document.createElementNS(SVG, "polyline");
      this.lines[split].setAttribute("class", split);
      this.svg.append(this.lines[split]);
    }
    this.figure.append(this.caption, this.svg);
  }

  add(split, step, value) {
    const points = this.points[split];
    points.push([step, value]);
    // Every other point of a long line is dropped; the curve keeps its shape.
    if (points.length > MOST) this.points[split] = points.filter((_, i) => i % 2 === 1);
    this.drawn ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.drawn = null;
    const all = Object.values(this.points).flat();
    const finite = all.filter(([, y]) => Number.isFinite(y));
    if (finite.length === 0) return;
    const [xs, ys] = [finite.map(([x]) => x), finite.map(([, y]) => y)];
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const place = ([x, y]) => {
      const left = ((x - x0) / (x1 - x0 || 1)) * WIDTH;
      const top = 4 + (1 - (y - y0) / (y1 - y0 || 1)) * (HEIGHT - 8);
      return `${left.toFixed(1)},${top.toFixed(1)}`;
    };
    for (const [split, points] of Object.entries(this.points)) {
      const shown = points.filter(([, y]) => Number.isFinite(y));
      this.lines[split].setAttribute("points", shown.map(place).join(" "));
    }
    const last = (split) => this.points[split].at(-1)?.[1].toPrecision(4);
    const heldOut = last("val") ? `, held out ${last("val")}` : "";
    this.caption.textContent = `${this.name}: ${last("train") ?? "none"}${heldOut}`;
    this.svg.setAttribute("aria-label", `${this.caption.textContent}, from step ${x0} to ${x1}`);
  }
}
