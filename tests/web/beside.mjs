// Two runs side by side and two of the native program, and whether runs give back what they held.
// `scripts/test-web` calls it: node beside.mjs PAGE-FOLDER AAVAE OUT-FOLDER

import assert from "node:assert/strict";
import { join, resolve } from "node:path";

import { Browser, MINUTE, serve } from "./browser.mjs";
import { choose, failure, reach, trial } from "./clicks.mjs";
import { apart, lines, pretrain, steps } from "./native.mjs";

const [folder, aavae, out] = process.argv.slice(2).map((path) => resolve(path));
const site = await serve(folder);
const browser = await Browser.open(site);
const page = await browser.visit();
/** Steps of either run that are compared. */
const STEPS = 4;
const BATCH = 2;
const NEAR = 1e-3;

const native = async (method) => {
  const settings = { method, seed: 0, "batch-size": BATCH, "max-steps": STEPS };
  return (await pretrain(aavae, join(out, `native-${method}`), settings)).records;
};

/** Waits until all runs of the page are in one of these states and took so many steps. */
const all = async (states, step) => {
  const reached = ([states, step]) => {
    const lanes = [...document.querySelectorAll(".lane")].map(({ dataset }) => dataset);
    const there = ({ state, step: now }) => states.includes(state) && Number(now ?? 0) >= step;
    return lanes.some(({ state }) => state === "failed") || lanes.every(there);
  };
  await page.waitForFunction(reached, [states, step], { timeout: 5 * MINUTE });
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
  await choose(page, { batch_size: BATCH });
  await page.click("#beside");
  await page.waitForSelector(".lane:nth-child(2)");
  await all(["training"], STEPS);
  await page.click("#pause");
  await all(["paused"], STEPS);
  const titles = await page.locator(".lane h2").allTextContents();
  assert.deepEqual(titles, ["AAVAE", "VAE"]);
  const records = [];
  for (const [i, method] of ["aavae", "vae"].entries()) {
    const path = join(out, `${method}.jsonl`);
    const button = page.locator(".lane .metrics").nth(i);
    const [download] = await Promise.all([page.waitForEvent("download"), button.click()]);
    await download.saveAs(path);
    records.push(steps(await lines(path)).slice(0, STEPS));
  }
  const wanted = [await native("aavae"), await native("vae")];
  const [one, two] = records.map((here, i) => apart(here, wanted[i]));
  assert.ok(Math.max(one, two) < NEAR, `from the native runs they differ by ${one} and ${two}`);
  const between = apart(...records);
  assert.ok(between > NEAR, `they differ by ${between} only`);
  return `${one.toExponential(1)} and ${two.toExponential(1)} from the native runs`;
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
