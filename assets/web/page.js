// The page: settings, buttons, and one or two runs.

import { Lane } from "./lane.js";
import { forget, kept } from "./store.js";

const by = (id) => document.getElementById(id);
const form = by("settings");
let lanes = [];

const unsupported = () => {
  if (!window.isSecureContext) return "WebGPU works only on pages from https:// or from this machine (localhost). Open the page from there.";
  if (!navigator.gpu) return "This browser has no WebGPU. Recent versions of Chrome, Edge, Firefox and Safari have it; update the browser, or open the page in one of these.";
  if (!WebAssembly.Suspending) return "This browser cannot pause a WebAssembly program (JavaScript Promise Integration). Update it, or open the page in a recent Chrome or Edge.";
  return null;
};

// Settings by the names of `config.toml`. The data and its order are the program's.
const settings = (method) => {
  const value = Object.fromEntries(new FormData(form));
  const numbers = ["width", "batch_size", "learning_rate", "seed"].map((name) => [name, Number(value[name])]);
  return {
    dataset: "shapes",
    method: method ?? value.method,
    ...Object.fromEntries(numbers),
    epochs: 1000,
    warmup_epochs: 0,
    log_every: 1,
    eval_every: 1,
  };
};

// A run can be shared by its address.
const remember = () => {
  const text = new URLSearchParams(new FormData(form)).toString();
  history.replaceState(null, "", `#${text}`);
};
const recall = () => {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (form.elements[name]) form.elements[name].value = value;
  }
};

const update = () => {
  const some = (...states) => lanes.some((lane) => states.includes(lane.state));
  const working = some("training", "preparing");
  by("start").disabled = working;
  by("step").disabled = working;
  by("beside").disabled = working;
  by("pause").disabled = !some("training");
  by("reset").disabled = lanes.length === 0;
};

const title = (method) => form.elements.method.querySelector(`[value=${method}]`).textContent;

const add = (method) => {
  const lane = new Lane(title(method), update, lanes.length === 0);
  lanes.push(lane);
  by("lanes").append(lane.root);
  return lane;
};

const reset = () => {
  for (const lane of lanes) lane.end();
  lanes = [];
  update();
};

// Whether the runs that there are were made with what the form says.
let made = null;
const prepare = async (methods) => {
  if (!form.reportValidity()) return false;
  remember();
  const wanted = JSON.stringify(methods.map(settings));
  if (made !== wanted || lanes.length === 0 || lanes.some((lane) => lane.state === "failed")) {
    reset();
    made = wanted;
    for (const method of methods) add(method).begin(settings(method));
  }
  await Promise.all(lanes.map((lane) => lane.begun));
  return true;
};

const chosen = () => (lanes.length === 2 && made ? JSON.parse(made).map((s) => s.method) : [form.elements.method.value]);
const methods = () => {
  const now = chosen();
  now[0] = form.elements.method.value;
  return now;
};

form.onsubmit = async (event) => {
  event.preventDefault();
  if (await prepare(methods())) for (const lane of lanes) lane.train();
};
by("step").onclick = async () => {
  if (await prepare(methods())) for (const lane of lanes) lane.train(1);
};
by("pause").onclick = () => lanes.forEach((lane) => lane.pause());
by("reset").onclick = () => {
  reset();
  forget();
  by("continue").hidden = true;
};
by("beside").onclick = async () => {
  const other = form.elements.method.value === "vae" ? "aavae" : "vae";
  if (await prepare([form.elements.method.value, other])) for (const lane of lanes) lane.train();
};
by("continue").onclick = async () => {
  const bytes = await kept();
  if (!bytes) return;
  by("continue").hidden = true;
  reset();
  const lane = add(form.elements.method.value);
  made = JSON.stringify([settings()]);
  lane.begin({}, bytes);
};

const obstacle = unsupported();
if (obstacle) {
  by("unsupported").textContent = obstacle;
  by("unsupported").hidden = false;
  for (const element of form.elements) element.disabled = true;
} else {
  recall();
  update();
  by("continue").hidden = !(await kept());
}
