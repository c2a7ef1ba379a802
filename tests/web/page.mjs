// The page in headless Chromium on its software adapter, by real clicks, beside the native program.
// `scripts/test-web` calls it: node page.mjs PAGE-FOLDER AAVAE OUT-FOLDER

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";

import {
  Browser, DESKTOP, MINUTE, PHONE, SLOW, inaccessible, picture, save, serve,
} from "./browser.mjs";
import { choose, failure, reach, trial } from "./clicks.mjs";
import {
  EVALUATED, apart, distance, features, last, lines, pretrain, run, steps, tensors,
} from "./native.mjs";
import { aside } from "./tasks.mjs";

const [folder, aavae, out] = process.argv.slice(2).map((path) => resolve(path));
const program = (words) => run(aavae, words);
const native = (seed) =>
  pretrain(aavae, join(out, `native-${seed}`), { seed, "batch-size": BATCH, "max-steps": STEPS });
const site = await serve(folder);

/** Steps of the run that is compared with the native one, and of the one that is resumed. */
const STEPS = Number(process.env.STEPS ?? 30);
const RESUMED = 2;
/** Steps that it may take between a click on Pause and the pause. */
const SLACK = 4;
/** Images of a step, of which the software adapter computes about two a second. */
const BATCH = process.env.BATCH;
/** Seconds until the first step on the software adapter. */
const READY = 100;
/** What losses and features may differ by, relative to what they are. */
const NEAR = 1e-3;

/** The step whose state the page has kept, once it has kept the one that it paused at. */
const kept = async (page) => {
  const now = () => {
    const { step, kept } = document.querySelector(".lane").dataset;
    return step === kept && Number(step);
  };
  return (await page.waitForFunction(now, null, { timeout: 15 * MINUTE })).jsonValue();
};

/** The median of the relative differences of the parameters in two files. */
const moved = async (here, there) => {
  const [a, b] = [await tensors(here), await tensors(last(there))];
  const names = [...a.keys()].filter((name) => !name.startsWith("optim."));
  assert.ok(names.length > 100, `${names.length} tensors`);
  return median(names.map((name) => distance(a.get(name), b.get(name))));
};

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

const reference = await native(0);
const other = await native(1);

await trial("what no page may do is seen", async () => {
  const browser = await Browser.open(site, { timed: true });
  const page = await browser.visit("check.html");
  const thrown = page.waitForEvent("pageerror");
  await page.evaluate((slow) => {
    console.log("said");
    const request = new XMLHttpRequest();
    request.open("GET", slow, false); // the thread waits for the answer
    request.send();
    setTimeout(() => {
      // It computes as long on a busy machine, where it takes longer.
      let x = 1;
      for (let i = 0; i < 6e6; i++) x = Math.sin(x + i);
      throw new Error(x < 2 ? "thrown" : "no sine");
    });
    return fetch("http://127.0.0.1:9/").catch(() => {});
  }, SLOW);
  await thrown;
  const seen = (await browser.close()).join("\n");
  const wanted = [
    /console: said/, /error: Error: thrown/, /asked for/,
    /a task of \d{3,} ms/, /stood still for \d{3,} ms/,
  ];
  for (const what of wanted) assert.match(seen, what);
});

// A trial destroys the device.
site.before = `{
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = async function (...how) {
    return (self.device = await request.apply(this, how));
  };
}`;
const browser = await Browser.open(site, { log: join(out, "network.json"), timed: true });
const page = await browser.visit();

await trial("an empty page", async () => {
  assert.deepEqual(await inaccessible(page), []);
  await picture(page, join(out, "empty-desktop.png"));
});

/** The states that a browser keeps of the page, of all kinds. */
const stored = () =>
  new Promise((resolve, reject) => {
    const request = indexedDB.open("aavae");
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const database = request.result;
      const names = [...database.objectStoreNames];
      const transaction = database.transaction(names, "readonly");
      const all = names.map((name) => [name, transaction.objectStore(name)]);
      const read = all.map(([name, store]) => [name, store.getAllKeys(), store.getAll()]);
      transaction.oncomplete = () => {
        database.close();
        resolve(read.map(([name, keys, values]) => [name, keys.result, values.result]));
      };
    };
  });
/** Puts such states in place of those that there are. */
const restore = (all) =>
  new Promise((resolve, reject) => {
    const request = indexedDB.open("aavae");
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const database = request.result;
      const transaction = database.transaction(all.map(([name]) => name), "readwrite");
      for (const [name, keys, values] of all) {
        const store = transaction.objectStore(name);
        store.clear();
        keys.forEach((key, i) => store.put(values[i], key));
      }
      transaction.oncomplete = () => {
        database.close();
        resolve(keys(all));
      };
    };
    const keys = (all) => all.reduce((sum, [, keys]) => sum + keys.length, 0);
  });

const metrics = join(out, "metrics.jsonl");
const weights = join(out, "page.safetensors");
const beside = await browser.visit("check.html");
let broken;

await trial(`${STEPS} steps of AAVAE, batch ${BATCH}`, async () => {
  await choose(page, { batch_size: BATCH });
  const [began, computed] = [Date.now(), await browser.seconds()];
  await page.click("#start");
  // Images are looked at while kernels are still compiled.
  const early = () => {
    const [lane, bar] = [".lane", ".lane progress"].map((of) => document.querySelector(of));
    const seen = lane?.querySelectorAll(".gallery button:disabled").length > 1;
    return lane?.dataset.state === "failed" || (seen && !bar.hidden && bar.value < bar.max);
  };
  await page.waitForFunction(early, null, { timeout: 15 * MINUTE });
  await reach(page, "training", 1);
  const [wall, ready] = [(Date.now() - began) / 1000, (await browser.seconds()) - computed];
  // On a busy machine only what the browser computed says how long it takes on another.
  assert.ok(Math.min(wall, ready) < READY, `the first step is done after ${ready} of ${wall} s`);
  // A run takes a few more steps before it hears that it should pause.
  await reach(page, "training", STEPS - RESUMED - SLACK);
  await page.click("#pause");
  await reach(page, "paused");
  const trained = await kept(page);
  assert.ok(trained <= STEPS - RESUMED, `it paused after ${trained} steps`);
  for (let step = trained + 1; step <= STEPS - RESUMED; step++) {
    await page.click("#step");
    await reach(page, "paused", step);
  }
  const paused = await kept(page);
  assert.equal(paused, STEPS - RESUMED);
  broken = { paused, state: await beside.evaluateHandle(stored) };
  for (let step = paused + 1; step <= STEPS; step++) {
    await page.click("#step");
    await reach(page, "paused", step);
  }
  await save(page, ".metrics", metrics);
  await save(page, ".save", weights);
  const here = steps(await lines(metrics));
  assert.equal(here.length, STEPS);
  const rate = median(here.slice(1, trained).map((record) => record.images_per_second));
  const seconds = `${wall.toFixed(1)} s (${ready.toFixed(1)} s computed)`;
  return `ready after ${seconds}, ${rate.toFixed(1)} images/s`;
});

await trial("losses of the native program", async () => {
  const here = steps(await lines(metrics));
  const worst = apart(here, reference.records);
  assert.ok(worst < NEAR, `they differ by ${worst}`);
  const wrong = apart(here, other.records);
  assert.ok(wrong > NEAR, `those of another seed differ by ${wrong} only`);
  return `worst relative difference ${worst.toExponential(1)}, of another seed ${wrong.toFixed(2)}`;
});

await trial("weights that the native program reads", async () => {
  // Adam divides a gradient by its size: where that is rounding, devices go different ways, and at
  // this rate features do after a few steps (`beside.mjs` compares them at another). A tensor that
  // is missing, turned or of another run is further off.
  const parameters = await moved(weights, reference.path);
  const others = await moved(weights, other.path);
  assert.ok(parameters < 0.15 && others > 1, `parameters: ${parameters}, another seed ${others}`);
  const by = (weights, name) => features(aavae, weights, join(out, `${name}.features`));
  const here = await by(weights, "page");
  const apart = distance(here, await by(last(reference.path), "native"));
  const wrong = distance(here, await by(last(other.path), "other"));
  assert.ok(apart < wrong / 1.5, `features: ${apart}, of another seed ${wrong}`);
  const words = ["knn", weights, ...EVALUATED, "--limit-train", "1000", "--json"];
  const [{ accuracy }] = JSON.parse(await program(words)).knn;
  const [tensors, vectors] = [parameters, apart].map((x) => x.toExponential(1));
  const far = wrong.toFixed(2);
  return `parameters ${tensors}, features ${vectors} (another seed ${far}), kNN ${accuracy}`;
});

await trial("a page that is looked at", async () => {
  await page.click("details.plan summary");
  await page.waitForFunction(() => document.querySelector(".plan pre").textContent !== "");
  // Here a kernel takes a second, and a step would wait for it.
  const kernels = await page.textContent(".kernels");
  assert.match(kernels, /compact ones.* in all, would take \d+\.\d+ s each to compile here/);
  await picture(page, join(out, "desktop.png"));
  assert.deepEqual(await inaccessible(page), []);
  await aside(page, () => page.setViewportSize(PHONE));
  await picture(page, join(out, "phone.png"));
  assert.deepEqual(await inaccessible(page), []);
  const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wider <= 0, `the page is ${wider} pixels wider than a phone`);
  await aside(page, () => page.setViewportSize(DESKTOP));
});

/** The run that is paused goes on and is stopped by something, which the page explains. */
const interrupted = async (page, stop) => {
  const step = await kept(page);
  await page.click("#start");
  await reach(page, "training", step + 1);
  await stop();
  await reach(page, "failed");
  assert.match(await failure(page), /was taken away.*Reload the page/);
};

await trial("a device that is destroyed, a reload that goes on with the same bits", async () => {
  await interrupted(page, () => page.workers()[0].evaluate(() => self.device.destroy()));
  await page.goto("about:blank");
  assert.ok(await beside.evaluate(restore, broken.state) > 0, "a state was kept");
  await page.goto(site.address);
  await page.click("#continue");
  await reach(page, "paused", broken.paused);
  assert.equal(Number(await page.getAttribute(".lane", "data-step")), broken.paused);
  for (let step = broken.paused + 1; step <= STEPS; step++) {
    await page.click("#step");
    await reach(page, "paused", step);
  }
  await save(page, ".metrics", `${metrics}.resumed`);
  await save(page, ".save", `${weights}.resumed`);
  const values = ({ images_per_second: _, ...record }) => record;
  const whole = (await lines(metrics)).filter(({ step }) => step > broken.paused).map(values);
  const again = (await lines(`${metrics}.resumed`)).filter(({ step }) => step > broken.paused);
  assert.deepEqual(again.map(values), whole);
  assert.ok(steps(whole).length >= RESUMED, `${whole.length} records`);
  const [one, two] = await Promise.all([readFile(weights), readFile(`${weights}.resumed`)]);
  assert.ok(one.equals(two), "the files of weights and moments are the same, byte for byte");
});

await trial("a GPU's process that ends, and another that begins", async () => {
  await interrupted(page, async () => process.kill(await browser.gpuProcess(), "SIGKILL"));
  await page.reload();
  await page.click("#continue");
  // That it ends well is seen above.
  const compiles = () => {
    const { hidden, value } = document.querySelector(".lane progress") ?? { hidden: true };
    return (!hidden && value > 0) || document.querySelector(".lane[data-state=failed]") !== null;
  };
  await page.waitForFunction(compiles, null, { timeout: 15 * MINUTE });
  assert.equal(await failure(page), null, "the new process compiles");
});

await trial("nothing said, nothing asked of others, never stuck", async () => {
  assert.deepEqual(await browser.close(), []);
  assert.deepEqual(site.missing, []);
  return browser.said;
});
site.close();
