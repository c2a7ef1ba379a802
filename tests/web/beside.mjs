// Two runs side by side and two of the native program, and whether runs give back what they held.
// `scripts/test-web` calls it: node beside.mjs PAGE-FOLDER AAVAE OUT-FOLDER

import assert from "node:assert/strict";
import { join, resolve } from "node:path";

import { Browser, MINUTE, serve } from "./browser.mjs";
import { choose, failure, reach, trial } from "./clicks.mjs";
import { apart, distance, features, last, lines, pretrain, steps } from "./native.mjs";

const [folder, aavae, out] = process.argv.slice(2).map((path) => resolve(path));
const site = await serve(folder);
const browser = await Browser.open(site);
const page = await browser.visit();
const runs = [];
/** Steps of either run, at least. */
const STEPS = 4;
const BATCH = 2;
/**
 * So low that rounding does not grow from step to step: at this rate features by weights that
 * llvmpipe and `cpu` have trained for 10 steps are 1.5e-6 apart, at 1e-3 they are 6e-2 apart.
 */
const RATE = 1e-5;
const NEAR = 1e-3;

const native = (method, steps, seed = 0) => {
  const settings = { method, seed, "batch-size": BATCH, "max-steps": steps, "learning-rate": RATE };
  return pretrain(aavae, join(out, `native-${method}-${seed}`), settings);
};
/** What a button of a run offers for download, saved. */
const saved = async (lane, button, name) => {
  const path = join(out, name);
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.locator(`.lane ${button}`).nth(lane).click(),
  ]);
  await download.saveAs(path);
  return path;
};

/** Waits until all runs of the page are in one of these states and took so many steps. */
const all = async (states, step) => {
  const reached = ([states, step]) => {
    const lanes = [...document.querySelectorAll(".lane")].map(({ dataset }) => dataset);
    const there = ({ state, step: now }) => states.includes(state) && Number(now ?? 0) >= step;
    return lanes.some(({ state }) => state === "failed") || lanes.every(there);
  };
  await page.waitForFunction(reached, [states, step], { timeout: 15 * MINUTE });
  assert.equal(await failure(page), null, "both go on");
};

/** The lowest count of bytes within a while: memory comes back when Chromium gets round to it. */
const settled = async (most) => {
  let least = Infinity;
  for (let i = 0; i < 50; i++) {
    least = Math.min(least, await browser.gpuBytes());
    if (least <= most) break;
    await page.waitForTimeout(200);
  }
  return least;
};

await trial("AAVAE beside VAE, on the same images", async () => {
  await choose(page, { batch_size: BATCH, learning_rate: RATE });
  await page.click("#beside");
  await page.waitForSelector(".lane:nth-child(2)");
  await all(["training"], STEPS);
  await page.click("#pause");
  await all(["paused"], STEPS);
  const titles = await page.locator(".lane h2").allTextContents();
  assert.deepEqual(titles, ["AAVAE", "VAE"]);
  for (const [lane, method] of ["aavae", "vae"].entries()) {
    const records = steps(await lines(await saved(lane, ".metrics", `${method}.jsonl`)));
    const weights = await saved(lane, ".save", `${method}.safetensors`);
    runs.push({ method, records, weights, native: await native(method, records.length) });
  }
  const off = runs.map(({ records, native }) => apart(records, native.records));
  assert.ok(Math.max(...off) < NEAR, `from the native runs they differ by ${off}`);
  const [one, two] = runs.map(({ records }) => records.slice(0, STEPS));
  const between = apart(one, two);
  assert.ok(between > NEAR, `they differ by ${between} only`);
  return `${off.map((x) => x.toExponential(1)).join(" and ")} from the native runs`;
});

await trial("features by their weights are those of the native runs", async () => {
  const by = (weights, name) => features(aavae, weights, join(out, `${name}.features`));
  const said = [];
  for (const { method, records, weights, native: there } of runs) {
    const here = await by(weights, method);
    const off = distance(here, await by(last(there.path), `${method}-native`));
    const other = await native(method, records.length, 1);
    const wrong = distance(here, await by(last(other.path), `${method}-other`));
    assert.ok(off < NEAR && wrong > 100 * NEAR, `${off} apart, another seed's ${wrong}`);
    said.push(`${method} ${off.toExponential(1)} after ${records.length} steps`);
  }
  return said.join(", ");
});

await trial("runs that end, and one that another takes the place of, leave nothing", async () => {
  await page.click("#reset");
  assert.equal(await page.locator(".lane").count(), 0);
  // The first two leave what Chromium keeps for the next: compiled kernels, and room.
  const before = await settled(0);
  await choose(page, { method: "ae", width: 32 });
  await page.click("#step");
  await reach(page, "paused", 1);
  await choose(page, { method: "vae" });
  await page.click("#step");
  await page.waitForFunction(() => document.querySelector(".lane h2").textContent === "VAE");
  await reach(page, "paused", 1);
  assert.equal(await page.locator(".lane").count(), 1);
  const during = await browser.gpuBytes();
  const device = await page.textContent(".lane .device");
  const held = 2 ** 20 * Number(/(\d+) MiB on the GPU/.exec(device)[1]);
  await page.click("#reset");
  const after = await settled(before);
  const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  const said =
    `${mib(before)} before two runs of ${mib(held)} each, ${mib(during)} in the second, ` +
    `${mib(after)} after them`;
  assert.ok(during - before > held / 2, `the measure sees what a run holds: ${said}`);
  assert.ok(held > 2 ** 26 && during - before < 2 * held, said);
  assert.ok(after - before < held / 2, said);
  return said;
});

assert.deepEqual(await browser.close(), [], "nothing said, nothing asked of others");
site.close();
