// What the page does where it cannot go on, and whether it gives back what it held, by real clicks.
// `scripts/test-web` calls it: node faults.mjs PAGE-FOLDER

import assert from "node:assert/strict";
import { resolve } from "node:path";

import { Browser, MINUTE, inaccessible, serve } from "./browser.mjs";
import { choose, failure, reach, trial } from "./clicks.mjs";

const site = await serve(resolve(process.argv[2]));
const browser = await Browser.open(site);
const page = await browser.visit();
const faults = [];

/** A run of cheap steps. */
const SMALL = { method: "ae", batch_size: 2 };

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

/** Two runs side by side that take a step each and are ended; the bytes that one held. */
const two = async () => {
  await page.click("#beside");
  const stepped = () => {
    const lanes = [...document.querySelectorAll(".lane")];
    const failed = lanes.some((lane) => lane.dataset.state === "failed");
    return failed || (lanes.length === 2 && lanes.every((lane) => Number(lane.dataset.step) >= 1));
  };
  await page.waitForFunction(stepped, null, { timeout: 5 * MINUTE });
  assert.equal(await failure(page), null, "both take a step");
  const held = /(\d+) MiB on the GPU/.exec(await page.textContent(".lane .device"))[1];
  await page.click("#reset");
  assert.equal(await page.locator(".lane").count(), 0);
  return Number(held) * 2 ** 20;
};

await trial("runs that end leave nothing", async () => {
  // The first two leave what Chromium keeps for the next: compiled kernels, and room.
  await choose(page, { ...SMALL, width: 32 });
  await two();
  const before = await settled(0);
  const held = await two();
  const after = await settled(before);
  const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  const said = `${mib(before)} before two runs of ${mib(held)}, ${mib(after)} after them`;
  assert.ok(held > 2 ** 26, said);
  assert.ok(after - before < held, said);
  return said;
});

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
