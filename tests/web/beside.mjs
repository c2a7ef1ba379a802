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
const STEPS = 3;
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

/**
 * The lowest count of bytes within some seconds, or the first that is low enough: memory comes back
 * when Chromium gets round to it, also when it has compiled what the next run asks for.
 */
const settled = async (most, seconds = 10) => {
  let least = Infinity;
  for (let i = 0; i < 5 * seconds; i++) {
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

/** Bytes that each run of the page says that it holds. */
const holds = async () => {
  const all = await page.locator(".lane .device").allTextContents();
  return all.map((device) => 2 ** 20 * Number(/(\d+) MiB on the GPU/.exec(device)[1]));
};
const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

await trial("a run that ends leaves nothing, or its kernels to the next", async () => {
  const [pair, both] = [await browser.gpuBytes(), await holds()];
  const ofBoth = both.reduce((sum, of) => sum + of, 0);
  await page.click("#reset");
  assert.equal(await page.locator(".lane").count(), 0);
  // These two leave what Chromium keeps for the next: compiled kernels, and room.
  const before = await settled(0);
  await choose(page, { method: "ae", width: 32 });
  await page.click("#step");
  await reach(page, "paused", 1);
  const during = await browser.gpuBytes();
  const [held] = await holds();
  // The other run takes a third of that, in the worker of this one, which keeps its kernels.
  await choose(page, { method: "simclr", width: 8 });
  await page.click("#step");
  const compiles = () => {
    const [title, bar] = ["h2", "progress"].map((of) => document.querySelector(`.lane ${of}`));
    return title.textContent === "SimCLR" && bar.value > 0;
  };
  await page.waitForFunction(compiles, null, { timeout: 15 * MINUTE });
  assert.equal(await page.locator(".lane").count(), 1);
  const least = during - held / 4;
  const replaced = await settled(least, 300);
  await page.click("#reset");
  const after = await settled(before);
  const said =
    `${mib(pair)} in two runs of ${both.map(mib).join(" and ")}, ${mib(before)} after them; ` +
    `${mib(during)} in one of ${mib(held)}, ${mib(replaced)} when another took its place, ` +
    `${mib(after)} after that`;
  assert.ok(pair - before > ofBoth / 2, `the two give back what they held: ${said}`);
  assert.ok(held > 2 ** 26 && during - before > held / 2, `the measure sees a run: ${said}`);
  assert.ok(replaced <= least && after - before < held / 2, said);
  return said;
});

assert.deepEqual(await browser.close(), [], "nothing said, nothing asked of others");
site.close();
