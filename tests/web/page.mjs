// The page in headless Chromium on its software adapter, by real clicks, beside the native program.
// `scripts/test-web` calls it: node page.mjs PAGE-FOLDER AAVAE OUT-FOLDER

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const [folder, aavae, out] = process.argv.slice(2).map((path) => resolve(path));
const require = createRequire(join(process.env.NODE_MODULES ?? process.cwd(), "/"));
const { chromium } = require("playwright-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");

const STEPS = Number(process.env.STEPS ?? 30);
const METHOD = process.env.METHOD ?? "aavae";
const MINUTES = 60_000;
const TYPES = { html: "text/html", css: "text/css", js: "text/javascript", wasm: "application/wasm" };

const server = createServer(async (request, response) => {
  const name = new URL(request.url, "http://page").pathname.slice(1) || "index.html";
  try {
    const body = await readFile(join(folder, name));
    response.writeHead(200, { "content-type": TYPES[name.split(".").at(-1)] ?? "text/plain" });
    response.end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const address = `http://127.0.0.1:${server.address().port}/`;

const launch = (webgpu) =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync",
      ...(webgpu ? ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] : ["--disable-features=WebGPU"]),
    ],
  });

const said = [];
const watch = (page) => {
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  page.on("request", (request) => {
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(address)) said.push(`asked ${request.url()}`);
  });
};

const state = (page, wanted, timeout = 10 * MINUTES) =>
  page.waitForSelector(wanted.map((s) => `.lane[data-state=${s}]`).join(","), { timeout });
const lines = (text) => text.trim().split("\n").map((line) => JSON.parse(line));
const steps = (records) => records.filter((record) => record.split === "train");

const faults = async (page) => {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
};

const save = async (page, button, path) => {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
  await download.saveAs(path);
};

const browser = await launch(true);
const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
const page = await context.newPage();
watch(page);
await page.goto(address);
assert.deepEqual(await faults(page), [], "axe-core finds no serious fault");
await page.selectOption("[name=method]", METHOD);
const began = Date.now();
for (let step = 1; step <= STEPS; step++) {
  await page.click("#step");
  await state(page, ["training", "preparing"]).catch(() => {});
  await page.waitForFunction(
    (step) => {
      const lane = document.querySelector(".lane");
      return lane.dataset.state === "failed" || lane.querySelector(".status").textContent.startsWith(`Paused after ${step} steps`);
    },
    step,
    { timeout: 10 * MINUTES },
  );
  const failed = await page.$(".lane[data-state=failed] .error");
  assert.equal(failed && (await failed.textContent()), null, "the run goes on");
  if (step === 1) console.log(`first step after ${(Date.now() - began) / 1000} s`);
}
console.log(`${STEPS} steps after ${(Date.now() - began) / 1000} s: ${await page.textContent(".status")}`);
await save(page, ".metrics", join(out, "metrics.jsonl"));
await save(page, ".save", join(out, "page.safetensors"));
await page.click("details.plan summary");
await page.waitForFunction(() => document.querySelector("pre").textContent.includes("plan"));
await page.screenshot({ path: join(out, "desktop.png"), fullPage: true });
assert.deepEqual(await faults(page), [], "axe-core finds no serious fault while a run is there");
await page.setViewportSize({ width: 390, height: 844 });
await page.screenshot({ path: join(out, "phone.png"), fullPage: true });
const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
assert.ok(overflow <= 0, `the page is ${overflow} pixels wider than a phone`);

// The same run natively.
const info = ["--device", "cpu", "--dataset", "shapes", "--method", METHOD, "--width", "8", "--batch-size", "32",
  "--seed", "0", "--learning-rate", "0.001", "--warmup-epochs", "0", "--log-every", "1", "--max-steps", String(STEPS)];
execFileSync(aavae, ["pretrain", ...info, "--out", join(out, "native")], { stdio: ["ignore", "ignore", "inherit"] });
const here = steps(lines(await readFile(join(out, "metrics.jsonl"), "utf8")));
const there = steps(lines(await readFile(join(out, "native", "metrics.jsonl"), "utf8")));
assert.equal(here.length, STEPS);
let worst = 0;
for (const [i, record] of here.entries()) {
  const off = Math.abs(record.loss - there[i].loss) / Math.abs(there[i].loss);
  worst = Math.max(worst, off);
  assert.ok(off < 1e-3, `step ${record.step}: ${record.loss} here, ${there[i].loss} natively`);
}
console.log(`losses of ${STEPS} steps: worst relative difference ${worst.toExponential(1)}`);
const knn = execFileSync(aavae, ["knn", join(out, "page.safetensors"), "--device", "cpu", "--json"], { encoding: "utf8" });
await writeFile(join(out, "knn.json"), knn);

// A reload continues where the run was.
await page.reload();
await page.click("#continue");
await state(page, ["paused"]);
assert.match(await page.textContent(".status"), new RegExp(`after ${STEPS} steps`));
await browser.close();

// A browser without WebGPU.
const old = await launch(false);
const plain = await old.newPage();
watch(plain);
await plain.goto(address);
assert.match(await plain.textContent("#unsupported"), /no WebGPU/);
assert.ok(await plain.isDisabled("#start"));
await old.close();

assert.deepEqual(said, [], "nothing on the console, and no request to elsewhere");
server.close();
console.log("the page: passed");
