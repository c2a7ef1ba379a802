// One run on the page: a worker that trains, and what is seen of it.

import { Chart } from "./chart.js";
import { keep } from "./store.js";

// What a person can do about an error, by the kind that the program gives it.
const ADVICE = {
  adapter: "This browser offers no GPU to pages. Look whether it is up to date, and whether hardware acceleration is switched on in its settings.",
  memory: "This device has too little memory for that. Choose a smaller width or batch, then press Start.",
  lost: "The GPU was taken away from the page. Reload the page and press “Continue the last run”.",
  diverged: "Training has left the numbers that the GPU can hold. Choose a smaller learning rate, then press Start.",
  file: "These are no weights of this network. Choose the method and the width that they were trained with.",
  settings: "Change that setting, then press Start.",
  bug: "This is a fault of the program. Reload the page and press “Continue the last run”.",
};
// Values of a record that are no curves.
const NO_CURVES = new Set(["step", "epoch", "split", "lr", "images_per_second"]);
// Milliseconds between two states that are kept, and between two pictures.
const KEEP = 60_000;
const LOOK = 15_000;

const download = (name, content) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
};

export class Lane {
  /** @param {(lane: Lane) => void} changed called when its state is another. */
  constructor(title, changed, keeps) {
    this.root = document.getElementById("lane").content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.root.querySelector(selector);
    this.find("h2").textContent = title;
    this.changed = changed;
    this.keeps = keeps;
    this.charts = new Map();
    this.records = [];
    this.state = "new";
    this.times = { keep: performance.now(), look: performance.now() };
    this.find(".look").onclick = () => this.look();
    this.find(".measure").onclick = () => this.tell({ do: "measure" });
    this.find(".save").onclick = () => this.save(true);
    this.find(".metrics").onclick = () => this.saveMetrics();
    this.find("input[type=file]").onchange = (event) => this.open(event.target);
    this.find(".plan").ontoggle = () => this.tell({ do: "plan" });
    this.begun = new Promise((resolve) => (this.hasBegun = resolve));
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.loaded = new Promise((resolve) => (this.hasLoaded = resolve));
    this.worker.onmessage = ({ data }) => this.hear(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.fail({ what: "bug", message: event.message ?? "The program could not be loaded." });
    };
  }

  async tell(command, bytes) {
    await this.loaded;
    this.worker.postMessage({ command, bytes }, bytes ? [bytes.buffer] : []);
  }

  begin(settings, bytes) {
    this.find(".error").hidden = true;
    this.say("Opening the GPU.");
    this.set("preparing");
    return this.tell({ do: "begin", settings }, bytes);
  }

  train(steps) {
    this.set("training");
    return this.tell({ do: "train", steps: steps ?? null });
  }

  pause() {
    return this.tell({ do: "pause" });
  }

  look() {
    this.times.look = performance.now();
    this.tell({ do: "picture", of: "views" });
    this.tell({ do: "picture", of: "reconstructions" });
  }

  save(download) {
    this.times.keep = performance.now();
    this.download ||= download;
    return this.tell({ do: "save" });
  }

  async open(input) {
    const [file] = input.files;
    if (!file) return;
    input.value = "";
    this.forgetCurves();
    await this.begin({}, new Uint8Array(await file.arrayBuffer()));
  }

  /** Ends the worker and with it all that it held on the GPU. */
  end() {
    this.worker.terminate();
    this.root.remove();
  }

  set(state) {
    this.state = state;
    this.root.dataset.state = state;
    for (const button of this.root.querySelectorAll("button")) {
      button.disabled = !["training", "paused"].includes(state);
    }
    this.changed(this);
  }

  say(text) {
    this.find(".status").textContent = text;
  }

  hear({ kind, value, bytes }) {
    const heard = {
      loaded: () => this.hasLoaded(),
      compiled: () => this.compiled(value),
      begun: () => this.start(value),
      record: () => this.record(value),
      paused: () => this.paused(value),
      picture: () => this.show(value, bytes),
      measured: () => this.measured(value),
      saved: () => this.saved(value, bytes),
      plan: () => (this.find("pre").textContent = value.text),
      error: () => this.fail(value),
    };
    heard[kind]?.();
  }

  compiled({ ready, of }) {
    const bar = this.find("progress");
    [bar.hidden, bar.max, bar.value] = [ready === of, of, ready];
    this.say(`Preparing the GPU: ${ready} of ${of} programs of this part.`);
  }

  start(value) {
    this.info = value;
    this.find("progress").hidden = true;
    this.find(".plan").hidden = false;
    const mib = (value.bytes / 2 ** 20).toFixed(0);
    this.find(".device").textContent = `${value.device}; ${mib} MiB on the GPU; ${value.describe}.`;
    this.say(`Ready after ${value.step} steps.`);
    this.set("paused");
    this.hasBegun();
    if (value.step === 0) this.look();
  }

  record(record) {
    this.records.push(record);
    const split = record.split === "train" || record.split === "view" ? "train" : "val";
    for (const [name, y] of Object.entries(record)) {
      if (NO_CURVES.has(name)) continue;
      if (!this.charts.has(name)) {
        this.charts.set(name, new Chart(name));
        this.find(".charts").append(this.charts.get(name).figure);
      }
      this.charts.get(name).add(split, record.step, y ?? NaN);
    }
    if (record.split !== "train") return;
    this.say(
      `Step ${record.step}, epoch ${record.epoch + 1}: ${record.images_per_second.toPrecision(3)} images a second.`,
    );
    const now = performance.now();
    if (now - this.times.look > LOOK) this.look();
    if (this.keeps && now - this.times.keep > KEEP) this.save(false);
  }

  paused({ step }) {
    this.set("paused");
    this.say(`Paused after ${step} steps.`);
    if (step > 0) this.look();
    if (this.keeps && step > 0) this.save(false);
  }

  show({ of, step, width, height }, bytes) {
    const figure = this.find(`.${of}`);
    const image = figure.querySelector("img");
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    [image.width, image.height] = [width, height];
    image.alt = of === "views"
      ? "Sixteen images and six altered versions of each"
      : `Sixteen images and their reconstructions after ${step} steps`;
    figure.hidden = false;
  }

  measured({ step, values }) {
    const list = this.find(".measured");
    const entries = [["measured after", `${step} steps`], ...Object.entries(values)];
    list.replaceChildren(
      ...entries.flatMap(([name, y]) => {
        const [term, value] = [document.createElement("dt"), document.createElement("dd")];
        [term.textContent, value.textContent] = [name, typeof y === "number" ? y.toPrecision(5) : y];
        return [term, value];
      }),
    );
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
    note.textContent = `${message.replace(/\.?$/, ".")} ${ADVICE[what] ?? hint ?? ""}`;
    note.hidden = false;
    this.find("progress").hidden = true;
    this.say("Stopped.");
    this.set("failed");
  }

  forgetCurves() {
    this.charts.clear();
    this.records = [];
    this.find(".charts").replaceChildren();
  }
}
