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
const SMALL = { method: "ae", batch_size: 2 };

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
