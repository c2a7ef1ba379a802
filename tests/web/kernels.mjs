// A run that takes other kernels while it trains, by real clicks, beside the native program.
// `scripts/test-web` calls it: node kernels.mjs PAGE-FOLDER AAVAE OUT-FOLDER [first|all]

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";

import { Browser, MINUTE, save, serve } from "./browser.mjs";
import { failure, reach, trial } from "./clicks.mjs";
import { apart, lines, pretrain, steps } from "./native.mjs";

const [folder, aavae, out] = process.argv.slice(2, 5).map((path) => resolve(path));
/** Products whose kernels are sought; the software adapter takes ten seconds for each. */
const PRODUCTS = process.argv[5] === "all" ? undefined : 2;
/** An encoder alone has half as many as an autoencoder. */
const METHOD = "simclr";
const BATCH = 2;
/**
 * So low that rounding does not grow from step to step: there are as many as the search takes. A
 * kernel that is wrong gives another loss at once, or other weights than the run that goes on.
 */
const RATE = 1e-6;
const NEAR = 1e-3;
/** Seconds that a run may stand still for an exchange on a busy machine. */
const LONGEST = 30;
/** Steps after the exchange. */
const MORE = 2;

const site = await serve(folder);
const browser = await Browser.open(site);
const asked = { kernels: "shaped", method: METHOD, batch_size: BATCH, learning_rate: RATE };
if (PRODUCTS) asked.products = PRODUCTS;
const page = await browser.visit(`#${new URLSearchParams(asked)}`);

/** Waits until the page says something of its kernels; what it says. */
const says = async (what, minutes) => {
  const said = (what) => {
    const lane = document.querySelector(".lane");
    const { textContent } = lane?.querySelector(".kernels") ?? { textContent: "" };
    return (textContent.includes(what) || lane?.dataset.state === "failed") && textContent;
  };
  const text = await page.waitForFunction(said, what, { timeout: minutes * MINUTE });
  assert.equal(await failure(page), null, "the run goes on");
  return text.jsonValue();
};
/** The products of the plan that is shown, and those that have compact kernels. */
const products = async () => {
  const text = await page.textContent(".lane pre");
  return [/ tile \d+x/g, /, compact/g].map((what) => text.match(what)?.length ?? 0);
};
const shaped = () => page.getAttribute(".lane", "data-shaped").then(Number);
const step = async (number) => {
  await page.click("#step");
  await reach(page, "paused", number);
};
const [here, middle, end, again] = ["jsonl", "safetensors", "end", "again"].map((kind) =>
  join(out, `kernels.${kind}`),
);
let taken, paused;

/** Notes when a run tells of a step, and when of the kernels that it has exchanged. */
const watch = () => {
  globalThis.heard = { steps: [], exchanged: null };
  const look = () => {
    const now = performance.now();
    const lane = document.querySelector(".lane");
    const step = Number(lane?.dataset.step ?? 0);
    const { steps } = globalThis.heard;
    if (step > 0 && steps.at(-1)?.step !== step) steps.push({ step, now });
    if (lane?.querySelector(".kernels").textContent.includes("those for one shape for")) {
      globalThis.heard.exchanged ??= now;
    }
  };
  const all = { subtree: true, childList: true, attributes: true };
  new MutationObserver(look).observe(document.getElementById("lanes"), all);
};
/** Milliseconds of the exchange, and the median of a step before it and its part of the search. */
const pause = async () => {
  const { steps, exchanged } = await page.evaluate(() => globalThis.heard);
  const before = steps.filter(({ now }) => now <= exchanged).map(({ now }) => now);
  const waits = before.slice(1).map((now, i) => now - before[i]).sort((a, b) => a - b);
  return [exchanged - before.at(-1), waits[waits.length >> 1]].map(Math.round);
};

await trial(`kernels for one shape, while ${METHOD} trains`, async () => {
  await page.evaluate(watch);
  await page.click("#start");
  const first = await says("one for each shape is tried, 0 of", 5);
  await page.click(".plan summary");
  await page.waitForFunction(() => document.querySelector(".lane pre").textContent !== "");
  const [all, compact] = await products();
  assert.ok(all > 40 && compact === all, `${compact} of ${all} are compact`);
  const before = await page.textContent(".device");
  const began = Date.now();
  const text = await says("those for one shape for", 20);
  const seconds = ((Date.now() - began) / 1000).toFixed(0);
  let of;
  [, taken, of] = /for (\d+) of (\d+) products, 0 refused/.exec(text).map(Number);
  assert.ok(taken === of && (PRODUCTS ? of === PRODUCTS : of > 30), text);
  assert.ok(first.includes(`0 of ${of} so far`), first);
  // The plan that is looked at is another.
  const fewer = (compact) =>
    (document.querySelector(".lane pre").textContent.match(/, compact/g)?.length ?? 0) < compact;
  await page.waitForFunction(fewer, compact, { timeout: 15 * MINUTE });
  if (!PRODUCTS) assert.equal((await products())[1], 0);
  const mib = (text) => Number(/(\d+) MiB/.exec(text)[1]);
  const [held, holds] = [mib(before), mib(await page.textContent(".device"))];
  assert.ok(Math.abs(held - holds) <= 0.1 * held + 1, `${held} MiB before, ${holds} MiB after`);
  await page.click("#pause");
  await reach(page, "paused");
  paused = Number(await page.getAttribute(".lane", "data-step"));
  assert.equal(await shaped(), taken);
  const [exchange, usual] = await pause();
  assert.ok(exchange >= 0 && exchange < 1e3 * LONGEST, `the exchange took ${exchange} ms`);
  const took = `${exchange} ms; a step and its part of the search ${usual} ms`;
  return `${taken} products in ${seconds} s, in ${paused} steps; the exchange took ${took}`;
});

await trial("losses of the native program, before and after", async () => {
  await save(page, ".save", middle);
  for (let number = paused + 1; number <= paused + MORE; number++) await step(number);
  await save(page, ".save", end);
  await save(page, ".metrics", here);
  const settings = { method: METHOD, seed: 0, "batch-size": BATCH, "learning-rate": RATE };
  const all = { ...settings, "max-steps": paused + MORE };
  const there = await pretrain(aavae, join(out, "native-kernels"), all);
  const worst = apart(steps(await lines(here)), there.records);
  assert.ok(worst < NEAR, `they differ by ${worst}`);
  return `worst relative difference ${worst.toExponential(1)} in ${paused + MORE} steps`;
});

await trial("who goes on from there has the same kernels and bits", async () => {
  await page.goto("about:blank");
  await page.goto(site.address);
  await page.setInputFiles("#load", middle);
  await reach(page, "paused", paused);
  assert.match(await says("Kernels: ", 1), /those that the run started with/);
  assert.equal(await shaped(), taken);
  for (let number = paused + 1; number <= paused + MORE; number++) await step(number);
  await save(page, ".save", again);
  const [one, two] = await Promise.all([readFile(end), readFile(again)]);
  assert.ok(one.equals(two), "the files of weights and moments are the same, byte for byte");
});

assert.deepEqual(await browser.close(), [], "nothing said, nothing asked of others");
site.close();
