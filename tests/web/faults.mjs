// What the page does where it cannot go on, by real clicks.
// `scripts/test-web` calls it: node faults.mjs PAGE-FOLDER

import assert from "node:assert/strict";
import { resolve } from "node:path";

import { Browser, inaccessible, serve } from "./browser.mjs";
import { choose, failure, reach, trial } from "./clicks.mjs";

const site = await serve(resolve(process.argv[2]));
const browser = await Browser.open(site);
const page = await browser.visit();
const faults = [];

/** A run of cheap steps. */
const SMALL = { method: "aaae", batch_size: 2 };

await trial("buffers that are too small", async () => {
  site.before =
    'Object.defineProperty(GPUSupportedLimits.prototype, "maxBufferSize", { get: () => 1 << 16 });';
  await page.reload();
  await choose(page, SMALL);
  await page.click("#start");
  await reach(page, "failed");
  assert.match(await failure(page), /too little memory.*smaller width or batch/);
  assert.deepEqual(await inaccessible(page), []);
});

await trial("no adapter", async () => {
  site.before = "navigator.gpu.requestAdapter = async () => null;";
  await page.reload();
  await choose(page, SMALL);
  await page.click("#start");
  await reach(page, "failed");
  assert.match(await failure(page), /offers no GPU to pages/);
  site.before = "";
});

await trial("another run has the kernels of the one before, if its device is there", async () => {
  site.before = `{
    const request = GPUAdapter.prototype.requestDevice;
    GPUAdapter.prototype.requestDevice = async function (...how) {
      return (self.device = await request.apply(this, how));
    };
    self.compiled = 0;
    const compile = GPUDevice.prototype.createComputePipeline;
    GPUDevice.prototype.createComputePipeline = function (...how) {
      self.compiled += 1;
      return compile.apply(this, how);
    };
  }`;
  await page.reload();
  let worker = null; // one for all these runs
  const compiled = () => worker.evaluate(() => self.compiled);
  const begin = async (seed) => {
    await choose(page, { ...SMALL, seed });
    await page.click("#step");
  };
  /** What the worker has compiled when a run with this seed has taken a step and is kept. */
  const step = async (seed) => {
    await begin(seed);
    await reach(page, "paused", 1);
    await page.waitForSelector(".lane[data-kept='1']");
    worker ??= page.workers()[0];
    return compiled();
  };
  const [first, second] = [await step(0), await step(1)];
  assert.ok(first > 20 && second === first, `${first} kernels, then ${second - first} more`);
  await worker.evaluate(() => self.device.destroy());
  await begin(2);
  await page.waitForFunction(() => document.querySelector(".lane progress").value > 0);
  assert.equal(await failure(page), null, "it compiles for a new device");
  assert.ok((await compiled()) > first && page.workers().length === 1, "in the same worker");
  await Promise.all([worker.waitForEvent("close"), page.click("#reset")]);
  site.before = "";
  return `${first} kernels`;
});

faults.push(...(await browser.close()));

await trial("a browser without WebGPU, switched off or unknown", async () => {
  const old = await Browser.open(site, { webgpu: false });
  const off = await old.visit();
  await choose(off, SMALL);
  await off.click("#start");
  await reach(off, "failed");
  assert.match(await failure(off), /offers no GPU to pages/);
  await off.close();
  await old.context.addInitScript(() => delete Navigator.prototype.gpu);
  const unknown = await old.visit();
  assert.match(await unknown.textContent("#unsupported"), /has no WebGPU.*update the browser/);
  assert.ok(await unknown.isDisabled("#start"));
  assert.deepEqual(await inaccessible(unknown), []);
  faults.push(...(await old.close()));
});

await trial("nothing said, nothing asked of others", async () => {
  assert.deepEqual(faults, []);
  assert.deepEqual(site.missing, []);
});
site.close();
