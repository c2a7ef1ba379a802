// One run on the page: a worker that trains, and what is seen of it.

import { Chart } from "./chart.js";
import { keep } from "./store.js";

// What a person can do about an error, by the kind that the program gives it.
const ADVICE = {
  adapter: "This browser offers no GPU to pages. Look whether it is up to date, and whether hardware acceleration is switched on in its settings.",
  memory: "This device has too little memory for that. Choose a smaller width or batch, then press Start.",
  lost: "The GPU was taken away from the page. Reload the page and press “Continue the last run”.",
  driver: "The GPU's driver failed. Reload the page and press “Continue the last run”.",
  diverged: "Training has left the numbers that the GPU can hold. Choose a smaller learning rate, then press Start.",
  file: "These are no weights of this network. Choose the method and the width that they were trained with.",
  settings: "Change that setting, then press Start.",
  data: "Choose all six binary files of CIFAR-10, or a folder with train and test, in each a folder for every class; then try again.",
  bug: "This is a fault of the program. Reload the page and press “Continue the last run”.",
};
const AGAIN = "This run learns from your own files, which only you have. Choose them again, or drop them on this page; then go on with it once more.";
// Values of a record that are no curves.
const NO_CURVES = new Set(["step", "epoch", "split", "lr", "images_per_second", "elbo"]);
// What the others are, in the order in which they stand.
const TITLES = {
  loss: "Loss",
  log_pxz: "log p(x|z), nats",
  kl: "KL divergence, nats",
  bits_per_dim_elbo: "Bits per dimension, at most",
  mse: "Mean squared error",
  accuracy: "Accuracy of the contrast",
  alike: "Cosine of views",
  knn20: "Accuracy of 20 neighbours",
  knn200: "Accuracy of 200 neighbours",
};
const ORDER = Object.keys(TITLES);
// Passes of a linear probe over the training images.
const PROBE_EPOCHS = 10;
// Files that are sent to the worker at once: a few milliseconds.
const AT_ONCE = 200;
// Milliseconds between two states that are kept, and between two pictures.
const KEEP = 60_000;
const LOOK = 15_000;

// Two places, and no minus in front of nothing.
const places = (x) => x.toFixed(2).replace("-0.00", "0.00");
const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;

// A setting by its flag, as errors name it, in words.
const plain = (text) => text.replace(/--([a-z][a-z-]*)/g, (_, flag) => flag.replaceAll("-", " "));

// The color of a cosine from -1 to 1 as a byte: white is 0, blue alike, orange opposite.
const paint = (canvas, side, bytes) => {
  [canvas.width, canvas.height] = [side, side];
  const image = new ImageData(side, side);
  for (const [i, byte] of bytes.entries()) {
    const [t, far] = byte >= 128 ? [(byte - 128) / 127, [28, 74, 196]] : [(128 - byte) / 128, [196, 86, 12]];
    far.forEach((c, channel) => (image.data[4 * i + channel] = 255 + t * (c - 255)));
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
};

const download = (name, content) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
};

export class Lane {
  /**
   * @param {(lane: Lane) => void} changed called when its state is another.
   * @param {Worker} [worker] one of a run that has ended ([Lane.end]): its kernels are compiled.
   */
  constructor(title, changed, keeps, files = [], worker = null) {
    this.root = document.getElementById("lane").content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.root.querySelector(selector);
    this.find("h2").textContent = title;
    this.changed = changed;
    this.keeps = keeps;
    this.files = files;
    this.image = null;
    this.before = null;
    this.drawing = 0;
    this.charts = new Map();
    this.records = [];
    this.state = "new";
    this.times = { keep: performance.now(), look: performance.now(), drawing: 0 };
    this.find(".look").onclick = () => this.look();
    this.find(".measure").onclick = () => this.measure();
    this.find(".probe").onclick = () => this.probe();
    this.find(".redraw").onclick = () => this.tell({ do: "views", image: this.image, draw: ++this.drawing });
    this.find(".walk").onclick = () => this.tell({ do: "walk", from: this.before, to: this.image });
    this.find(".save").onclick = () => this.save(true);
    this.find(".metrics").onclick = () => this.saveMetrics();
    this.find(".plan").ontoggle = () => this.tell({ do: "plan" });
    this.begun = new Promise((resolve) => (this.hasBegun = resolve));
    this.worker = worker ?? new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.loaded = new Promise((resolve) => (this.worker.onmessage = ({ data }) => this.open(data, resolve)));
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.fail({ what: "bug", message: event.message ?? "The program could not be loaded." });
    };
  }

  async tell(command, bytes) {
    await this.loaded;
    this.worker.postMessage({ command, bytes }, bytes ? [bytes.buffer] : []);
  }

  async begin(settings, kernels, bytes) {
    this.continues = bytes !== undefined;
    this.find(".error").hidden = true;
    this.say("Opening the GPU.");
    this.set("preparing");
    await this.loaded;
    for (let first = 0; first < this.files.length; first += AT_ONCE) {
      this.worker.postMessage({ files: this.files.slice(first, first + AT_ONCE) });
      await new Promise((resolve) => setTimeout(resolve));
    }
    return this.tell({ do: "begin", settings, ...kernels }, bytes);
  }

  train(steps) {
    this.find(".error").hidden = true;
    this.set("training");
    return this.tell({ do: "train", steps: steps ?? null });
  }

  pause() {
    return this.tell({ do: "pause" });
  }

  rate(learning_rate) {
    return this.tell({ do: "rate", learning_rate });
  }

  look() {
    this.times.look = performance.now();
    // It takes as long as a step or two.
    if (this.step > 0 && this.times.look - (this.times.alike ?? -LOOK) >= LOOK) {
      this.times.alike = this.times.look;
      this.tell({ do: "similarity" });
    }
    this.tell({ do: "picture", of: "views" });
    this.tell({ do: "picture", of: "reconstructions" });
  }

  measure() {
    this.write("Measured", "looks at the held-out images and for their neighbours");
    return this.tell({ do: "measure" });
  }

  probe() {
    this.probes(true);
    this.write("Linear probe", "reads the features");
    return this.tell({ do: "probe", epochs: PROBE_EPOCHS });
  }

  probes(now) {
    this.probing = this.find(".probe").disabled = now;
  }

  // Training images that this device encodes in some seconds: it trains on a third as many.
  among() {
    const rate = this.records.findLast(({ split }) => split === "train")?.images_per_second ?? 0;
    return Math.round(Math.min(Math.max(30 * rate, 128), 4096));
  }

  // An image of the gallery was chosen.
  choose(image) {
    if (image !== this.image) this.before = this.image;
    this.image = image;
    for (const [i, button] of [...this.find(".gallery").children].entries()) {
      button.setAttribute("aria-pressed", String(i === image));
    }
    this.find(".chosen").hidden = false;
    this.find(".walking").hidden = this.before === null || !this.walks;
    this.near = this.among();
    this.tell({ do: "neighbours", image, among: this.near });
    this.tell({ do: "views", image, draw: this.drawing });
  }

  save(download) {
    this.times.keep = performance.now();
    this.download ||= download;
    return this.tell({ do: "save" });
  }

  /**
   * Ends the run. A worker that hears it soon is returned, for another run; any other is ended, and
   * with it all that it held.
   */
  end() {
    for (const chart of this.charts.values()) chart.end();
    this.root.remove();
    if (this.ready && !this.probing) {
      this.worker.postMessage({ command: { do: "end" } });
      return this.worker;
    }
    this.worker.terminate();
    return null;
  }

  /** Whether the program answers what a person asks. */
  get ready() {
    return ["training", "paused"].includes(this.state);
  }

  set(state) {
    this.state = state;
    this.root.dataset.state = state;
    for (const button of this.root.querySelectorAll("button")) {
      button.disabled = !this.ready;
    }
    this.changed(this);
  }

  say(text) {
    this.find(".status").textContent = text;
  }

  // Until a worker is loaded, or has ended the run before, it speaks of nothing that is of this one.
  open({ kind, value }, loaded) {
    if (kind === "error" && value.what === "bug") this.fail(value); // the program is gone
    if (kind !== "loaded" && kind !== "ended") return;
    this.worker.onmessage = ({ data }) => this.hear(data);
    loaded();
  }

  hear({ kind, value, bytes }) {
    const heard = {
      compiled: () => this.compiled(value),
      begun: () => this.start(value),
      record: () => this.record(value),
      paused: () => this.paused(value),
      picture: () => this.show(value, bytes),
      measured: () => this.measured(value),
      similarity: () => this.alike(value, bytes),
      probing: () => this.write("Linear probe", `pass ${value.epoch} of ${value.of}: ${percent(value.train)} of the training images`),
      probed: () => this.probed(value),
      rate: () => this.changedRate(value),
      refused: () => this.refuse(value),
      saved: () => this.saved(value, bytes),
      plan: () => (this.find("pre").textContent = value.text),
      kernels: () => this.kernels(value),
      error: () => this.fail(value),
    };
    heard[kind]?.();
  }

  compiled({ ready, of }) {
    const bar = this.find("progress");
    [bar.hidden, bar.max, bar.value] = [ready === of, of, ready];
    this.saidBefore ??= this.find(".status").textContent;
    this.say(`Preparing the GPU: ${ready} of ${of} programs of this part.`);
    if (ready < of) return;
    if (this.state !== "preparing") this.say(this.saidBefore);
    this.saidBefore = null;
  }

  start(value) {
    this.info = value;
    this.root.dataset.step = value.step;
    this.find("progress").hidden = true;
    this.find(".plan").hidden = false;
    this.describe(value.bytes);
    this.say(`Ready after ${value.step} steps.`);
    this.step = value.step;
    this.walks = value.settings.method !== "simclr";
    const what = value.settings.method === "vae" || value.settings.method === "ae" ? "the image" : "the image, what it sees of it";
    this.find(".rows").textContent = `From top to bottom: ${what}, and what it makes of that.`;
    this.set("paused");
    this.hasBegun();
    this.look();
  }

  describe(bytes) {
    const { device, describe } = this.info;
    const mib = (bytes / 2 ** 20).toFixed(0);
    this.find(".device").textContent = `${device}; ${mib} MiB on the GPU; ${describe}.`;
  }

  // Which kernels it runs; a plan that is looked at is that of now.
  kernels({ text, shaped, bytes }) {
    this.find(".kernels").textContent = `Kernels: ${text}.`;
    this.describe(bytes);
    if (this.find(".plan").open && this.root.dataset.shaped !== String(shaped)) this.tell({ do: "plan" });
    this.root.dataset.shaped = shaped;
  }

  chart(name, title = TITLES[name] ?? name, keys) {
    if (!this.charts.has(name)) {
      const chart = new Chart(name, title, keys);
      this.charts.set(name, chart);
      const place = (of) => (ORDER.includes(of) ? ORDER.indexOf(of) : ORDER.length);
      const next = [...this.find(".charts").children].find((other) => place(other.dataset.name) > place(name));
      this.find(".charts").insertBefore(chart.figure, next ?? null);
    }
    return this.charts.get(name);
  }

  record(record) {
    this.records.push(record);
    this.step = record.step;
    const split = record.split === "train" || record.split === "view" ? "train" : "val";
    for (const [name, y] of Object.entries(record)) {
      if (NO_CURVES.has(name)) continue;
      this.chart(name).add(split, record.step, y ?? NaN);
    }
    if (record.split !== "train") return;
    this.root.dataset.step = record.step;
    this.say(
      `Step ${record.step}, epoch ${record.epoch + 1}: ${record.images_per_second.toPrecision(3)} images a second.`,
    );
    const now = performance.now();
    // Where pictures take long, most of the time is still for training.
    if (now - this.times.look > Math.max(LOOK, 8 * this.times.drawing)) this.look();
    if (this.keeps && now - this.times.keep > KEEP) this.save(false);
  }

  paused({ step }) {
    this.set("paused");
    this.say(`Paused after ${step} steps.`);
    if (step > 0) this.look();
    if (this.keeps && step > 0) this.save(false);
  }

  show({ of, step, width, height, more }, bytes) {
    const address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    this.addresses ??= {};
    if (this.addresses[of]) URL.revokeObjectURL(this.addresses[of]);
    this.addresses[of] = address;
    const picture = { address, width, height };
    const drawn = {
      gallery: () => this.gallery(picture),
      many: () => this.tiles(".many", picture, (i) => (i === 0 ? "the image itself" : `alteration ${i}`)),
      walk: () => this.tiles(".way", picture, (i, of) => (i === 0 || i === of - 1 ? "one of the two images" : `${i} of ${of - 2} between`)),
      neighbours: () => this.neighbours(picture, more, step),
    };
    if (drawn[of]) return drawn[of]();
    this.times.drawing = performance.now() - this.times.look;
    const figure = this.find(`.${of}`);
    const image = figure.querySelector("img");
    image.src = address;
    [image.width, image.height] = [width, height];
    image.alt = of === "views"
      ? "Sixteen images and six altered versions of each"
      : `Sixteen images and their reconstructions after ${step} steps`;
    figure.hidden = false;
    return undefined;
  }

  // The images of a picture in a row, two pixels apart, each as an element of its own.
  cut({ address, width, height }, name) {
    const count = Math.round((width + 2) / (height + 2));
    return Array.from({ length: count }, (_, i) => {
      const image = document.createElement(name);
      image.style.backgroundImage = `url(${address})`;
      image.style.backgroundSize = `${(100 * width) / height}% 100%`;
      image.style.backgroundPosition = `${(100 * i * (height + 2)) / Math.max(width - height, 1)}% 0`;
      return image;
    });
  }

  tiles(selector, picture, describe, text = () => "") {
    const images = this.cut(picture, "i");
    this.find(selector).replaceChildren(
      ...images.map((image, i) => {
        const tile = document.createElement("figure");
        tile.className = "tile";
        image.setAttribute("role", "img");
        image.setAttribute("aria-label", describe(i, images.length));
        tile.append(image, text(i));
        return tile;
      }),
    );
  }

  gallery(picture) {
    this.find(".explore").hidden = false;
    this.find(".gallery").replaceChildren(
      ...this.cut(picture, "i").map((image, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "tile";
        button.setAttribute("aria-pressed", "false");
        button.disabled = !this.ready; // the images are there before what looks at them
        button.setAttribute("aria-label", `Image ${i + 1}`);
        button.append(image);
        button.onclick = () => this.choose(i);
        return button;
      }),
    );
  }

  neighbours(picture, { cosines }, step) {
    this.find(".near").textContent = `Nearest of up to ${this.near} training images after ${step} steps, by cosine of their features`;
    this.tiles(".neighbours", picture, (i) => `neighbour ${i + 1}`, (i) => cosines[i].toFixed(3));
  }

  alike({ step, of, within, across, side }, bytes) {
    this.find(".alike").hidden = false;
    const names = { h: "features h", mu: "means μ", z: "latents z" };
    let figure = this.find(`.maps [data-of=${of}]`);
    if (!figure) {
      figure = document.createElement("figure");
      figure.dataset.of = of;
      figure.append(document.createElement("canvas"), document.createElement("figcaption"));
      figure.firstChild.setAttribute("role", "img");
      this.find(".maps").append(figure);
    }
    paint(figure.firstChild, side, bytes);
    const text = `${names[of] ?? of}: ${places(within)} within, ${places(across)} across`;
    figure.firstChild.setAttribute("aria-label", `Similarity of views, ${text}`);
    figure.lastChild.textContent = text;
    if (of !== "z") return;
    const chart = this.chart("alike", TITLES.alike, ["of one image", "of others"]);
    chart.add("train", step, within);
    chart.add("val", step, across);
  }

  // A line of the list of measurements.
  write(name, text) {
    const list = this.find(".measured");
    let term = [...list.querySelectorAll("dt")].find((dt) => dt.textContent === name);
    if (!term) {
      term = document.createElement("dt");
      term.textContent = name;
      list.append(term, document.createElement("dd"));
    }
    term.nextElementSibling.textContent = text;
  }

  measured({ step, epoch, split, values }) {
    if (Object.keys(values).length === 0) return;
    this.write("Measured", `on held-out images after ${step} steps`);
    for (const [name, y] of Object.entries(values)) {
      if (NO_CURVES.has(name)) continue;
      this.write(TITLES[name] ?? name, y?.toPrecision(5) ?? "not a number");
      this.chart(name).add("val", step, y ?? NaN);
    }
    this.records.push({ step, epoch, split, ...values });
  }

  probed({ step, test, train }) {
    this.probes(false);
    this.write("Linear probe", `${percent(test)} of the held-out images, ${percent(train)} of the training images, after ${step} steps`);
    this.root.dataset.probed = step;
  }

  changedRate({ learning_rate }) {
    this.say(`Learning rate ${Number(learning_rate.toPrecision(6))} from the next step on.`);
  }

  // What was asked for cannot be had; the run goes on.
  refuse({ message }) {
    this.probes(false);
    const note = this.find(".error");
    note.textContent = plain(message.replace(/\.?$/, "."));
    note.hidden = false;
  }

  saveMetrics() {
    const lines = this.records.map((record) => `${JSON.stringify(record)}\n`);
    download("metrics.jsonl", lines.join(""));
  }

  async saved({ step }, bytes) {
    if (this.download) {
      this.download = false;
      download(`${this.info.settings.method}-${step}.safetensors`, bytes);
    }
    if (this.keeps) await keep(bytes);
    this.root.dataset.kept = step;
  }

  fail({ what, message, hint }) {
    const note = this.find(".error");
    // The browser keeps the state of a run and not the files that it learns from.
    this.asks = what === "data" && this.continues && this.files.length === 0;
    note.textContent = this.asks ? AGAIN : plain(`${message.replace(/\.?$/, ".")} ${ADVICE[what] ?? hint ?? ""}`);
    note.hidden = false;
    this.find("progress").hidden = true;
    this.say("Stopped.");
    this.set("failed");
  }
}
