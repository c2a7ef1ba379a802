// Every kernel's trials in headless Chromium: a second WebGPU under all shaders.
// `scripts/test-web` calls it: node check.mjs PAGE-FOLDER OUT-FOLDER [first|all]

import assert from "node:assert/strict";
import { createWriteStream } from "node:fs";
import { join, resolve } from "node:path";

import { Browser, MINUTE, inaccessible, picture, serve } from "./browser.mjs";

const [folder, out] = process.argv.slice(2, 4).map((path) => resolve(path));
const all = process.argv[4] === "all";
/** Fewest trials of the first case of each op, and of all cases. */
const FEWEST = all ? 580 : 60;

const site = await serve(folder);
const browser = await Browser.open(site);
const page = await browser.visit(all ? "check.html" : "check.html?first");
assert.deepEqual(await inaccessible(page), []);
const began = Date.now();
const log = createWriteStream(join(out, "check.log"));
await page.exposeBinding("__tried", (_, name) => {
  log.write(`${((Date.now() - began) / 1000).toFixed(1)} s: ${name}\n`);
});
await page.evaluate(() => {
  const status = document.querySelector(".status");
  const told = () => globalThis.__tried(status.textContent);
  new MutationObserver(told).observe(status, { childList: true });
});
await page.click("#check button");
const done = await page.waitForSelector(".status[data-done]", { timeout: 120 * MINUTE });
const text = (selector) => page.locator(selector).allTextContents();
const failures = await text("#failures li");
await picture(page, join(out, "check.png"));
const { passed, failed } = await done.evaluate((status) => status.dataset);
console.log(`${await done.textContent()} (${((Date.now() - began) / 1000).toFixed(0)} s)`);
for (const why of await text("#left-out li")) console.log(`left out: ${why}`);
const faults = await browser.close();
site.close();
assert.deepEqual(failures, []);
assert.ok(failed === "0" && Number(passed) >= FEWEST, `${passed} passed, ${failed} failed`);
assert.deepEqual(faults, []);
