// The page: settings, buttons, and one or two runs.

import { Lane } from "./lane.js";
import { chosen as filesOf, dropped, kindOf } from "./data.js";
import { forget, keeps, kept } from "./store.js";

const by = (id) => document.getElementById(id);
const form = by("settings");
let lanes = [];

const unsupported = () => {
  if (!window.isSecureContext) return "WebGPU works only on pages from https:// or from this machine (localhost). Open the page from there.";
  if (!navigator.gpu) return "This browser has no WebGPU. Recent versions of Chrome, Edge, Firefox and Safari have it; update the browser, or open the page in one of these.";
  if (!WebAssembly.Suspending) return "This browser cannot pause a WebAssembly program (JavaScript Promise Integration). Update it, or open the page in a recent Chrome or Edge.";
  return null;
};

// The files that were given to the page.
let given = [];
const OWN = "files";
const title = (method) => form.elements.method.querySelector(`[value=${method}]`).textContent;
// Whether a field's setting is read by a method.
const reads = (field, method) => {
  const methods = field.closest("[data-reads]")?.dataset.reads;
  return !methods || methods.split(" ").includes(method);
};

// Settings by the names of `config.toml`; a field that is empty has the program's default.
const settings = (method = form.elements.method.value) => {
  const numbers = [...form.elements]
    .filter((field) => field.type === "number" && field.value !== "" && reads(field, method))
    .map((field) => [field.name, Number(field.value)]);
  return {
    dataset: form.elements.dataset.value === OWN ? kindOf(given) : "shapes",
    method,
    ...Object.fromEntries(numbers),
    epochs: 1000,
    warmup_epochs: 0,
    log_every: 1,
    eval_every: 1,
    importance_samples: 0,
  };
};

// Which kernels a run takes after those that it starts with, and for how many products: the address
// may say it.
const kernels = () => {
  const { kernels, products } = form.elements;
  return { kernels: kernels.value, products: Number(products.value) || null };
};

// Fields are shown for the methods that read them.
const arrange = () => {
  const method = form.elements.method.value;
  for (const label of form.querySelectorAll("[data-reads]")) {
    label.hidden = !reads(label.firstElementChild, method);
    label.firstElementChild.disabled = label.hidden;
  }
  by("data").hidden = form.elements.dataset.value !== OWN;
  by("beside").textContent = method === "vae" ? "Compare with an AAVAE" : "Compare with a VAE";
};

// A run can be shared by its address.
const remember = () => {
  const fields = [...new FormData(form)].filter(([, value]) => typeof value === "string" && value !== "");
  const text = new URLSearchParams(fields).toString();
  history.replaceState(null, "", `#${text}`);
};
const recall = () => {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = form.elements[name];
    if (!field || field.type === "file") continue;
    field.value = value;
    if (field.selectedIndex === -1) field.selectedIndex = 0; // no such option
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
  by("intro").hidden = lanes.length > 0;
  if (lanes.some((lane) => lane.asks)) {
    form.elements.dataset.value = OWN;
    arrange();
  }
};

// Runs in place of those that there are, whose workers they take: kernels are compiled there.
const replace = (methods) => {
  const free = lanes.map((lane) => lane.end()).filter(Boolean);
  const files = form.elements.dataset.value === OWN ? given : [];
  lanes = methods.map((method, i) => new Lane(title(method), update, i === 0, files, free.shift()));
  for (const worker of free) worker.terminate();
  by("lanes").append(...lanes.map((lane) => lane.root));
  update();
};

// Whether the runs that there are were made with what the form says.
let made = null;
const prepare = async (methods) => {
  if (!form.reportValidity()) return false;
  if (form.elements.dataset.value === OWN && given.length === 0) {
    by("given").textContent = "First choose files, or drop them on this page.";
    by("folder").focus();
    return false;
  }
  remember();
  const wanted = JSON.stringify(methods.map((method) => settings(method)));
  if (made !== wanted || lanes.length === 0 || lanes.some((lane) => lane.state === "failed")) {
    replace(methods);
    made = wanted;
    lanes.forEach((lane, i) => lane.begin(settings(methods[i]), kernels()));
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
  replace([]);
  forget();
  by("continue").hidden = true;
};
by("beside").onclick = async () => {
  const other = form.elements.method.value === "vae" ? "aavae" : "vae";
  if (await prepare([form.elements.method.value, other])) for (const lane of lanes) lane.train();
};
// The shortest text of a number that was stored in 32 bits.
const number = (value) => (value === undefined || value === null ? "" : String(Number(Number(value).toPrecision(7))));
// A run from a file: on from where it was, with its settings.
const resume = async (bytes) => {
  replace([form.elements.method.value]);
  const [lane] = lanes;
  made = JSON.stringify([settings()]);
  const files = given;
  lane.begin(settings(), kernels(), bytes); // settings of a file that has none
  await lane.begun;
  // The form says what the run is, so that Start goes on with it.
  const { settings: of } = lane.info;
  for (const field of form.elements) {
    if (field.type === "number") field.value = number(of[field.name]);
  }
  form.elements.method.value = of.method;
  form.elements.dataset.value = of.dataset === "shapes" ? "shapes" : OWN;
  lane.root.querySelector("h2").textContent = title(of.method);
  arrange();
  remember();
  // Files that were given meanwhile are for another run.
  made = given === files ? JSON.stringify([settings()]) : null;
};
by("continue").onclick = async () => {
  const bytes = await kept();
  if (!bytes) return;
  await resume(bytes);
  by("continue").hidden = true;
};
by("load").onchange = async ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (file) await resume(new Uint8Array(await file.arrayBuffer()));
};
form.oninput = () => {
  arrange();
  remember();
};
// The learning rate is the one setting that a run may change.
form.elements.learning_rate.onchange = ({ target }) => {
  if (!target.checkValidity() || !made) return;
  const now = JSON.parse(made).map((of) => ({ ...of, learning_rate: Number(target.value) }));
  const same = JSON.stringify(now) === JSON.stringify(methods().map((method) => settings(method)));
  if (!same || made === JSON.stringify(now)) return;
  made = JSON.stringify(now);
  for (const lane of lanes) lane.rate(Number(target.value));
};

const give = (files) => {
  if (files.length === 0) return;
  given = files;
  form.elements.dataset.value = OWN;
  made = null;
  arrange();
  remember();
  const what = kindOf(files) === "cifar10" ? "CIFAR-10" : "images in folders";
  by("given").textContent = `${files.length} files (${what}). They stay on this device.`;
};
for (const id of ["folder", "files"]) by(id).onchange = ({ target }) => give(filesOf(target));
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dropping");
};
document.ondrop = async (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  give(await dropped(event.dataTransfer));
};

const obstacle = unsupported();
if (obstacle) {
  by("unsupported").textContent = obstacle;
  by("unsupported").hidden = false;
  arrange();
  for (const element of form.elements) element.disabled = true;
} else {
  recall();
  arrange();
  update();
  by("continue").hidden = !(await keeps());
}
