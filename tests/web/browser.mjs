// A server of static files and headless Chromium on its software adapter, both watched: what a page
// says on the console, what it asks of whom, and how long it keeps its main thread.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join } from "node:path";

import { Tasks, aside } from "./tasks.mjs";

const require = createRequire(join(process.env.NODE_MODULES ?? process.cwd(), "/"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const SECOND = 1_000;
export const MINUTE = 60 * SECOND;
/** What the server answers after a second. */
export const SLOW = "slow";
const TYPES = {
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".wasm": "application/wasm",
};

/**
 * Serves a folder. `before` is put in front of the worker's program, so that a trial can spoil what
 * the worker finds; `missing` lists what was asked for in vain.
 */
export const serve = async (folder) => {
  const site = { before: "", missing: [] };
  const server = createServer(async (request, response) => {
    const name = new URL(request.url, "http://page").pathname.slice(1) || "index.html";
    if (name === SLOW) {
      setTimeout(() => response.writeHead(204).end(), SECOND);
      return;
    }
    try {
      let body = await readFile(join(folder, name));
      if (name === "worker.js") body = `${site.before}\n${body}`;
      response.writeHead(200, { "content-type": TYPES[extname(name)] ?? "text/plain" });
      response.end(body);
    } catch {
      site.missing.push(name);
      response.writeHead(404).end();
    }
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  site.address = `http://127.0.0.1:${server.address().port}/`;
  site.close = () => server.close();
  return site;
};

/** Browsers that were opened. */
const opened = [];
/** Seconds that all of them have computed. */
export const computed = async () => {
  const seconds = await Promise.all(opened.map((browser) => browser.seconds()));
  return seconds.reduce((sum, of) => sum + of, 0);
};

/** A browser whose pages are watched; `faults` lists what no page may do. */
export class Browser {
  /**
   * @param options `webgpu`: false offers pages no adapter; `log`: file of the network's log;
   *   `timed`: whether long tasks of pages are faults.
   */
  static async open(site, { webgpu = true, log = null, timed = false } = {}) {
    const browser = new Browser();
    Object.assign(browser, { site, log, faults: [], times: new Map() });
    opened.push(browser);
    const gpu = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
    browser.chromium = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: [
        "--no-sandbox",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        ...(log ? [`--log-net-log=${log}`] : []),
        ...(webgpu ? gpu : []),
      ],
    });
    browser.control = await browser.chromium.newBrowserCDPSession();
    browser.context = await browser.chromium.newContext({ viewport: DESKTOP, hasTouch: true });
    browser.context.setDefaultTimeout(5 * MINUTE); // other work may be beside it
    if (timed) browser.tasks = await Tasks.record(browser.control, browser.context);
    return browser;
  }

  /** A new page at a place of the site. */
  async visit(place = "") {
    const page = await this.context.newPage();
    page.on("console", (message) => this.faults.push(`console: ${message.text()}`));
    page.on("pageerror", (error) => this.faults.push(`error: ${error}`));
    page.on("request", (request) => this.asks(request.url()));
    await page.goto(this.site.address + place);
    return page;
  }

  asks(url) {
    const own = /^(data|blob):/.test(url) || url.startsWith(this.site.address);
    if (!own) this.faults.push(`asked for ${url}`);
  }

  /** The process that carries out WebGPU. */
  async gpuProcess() {
    const { processInfo } = await this.control.send("SystemInfo.getProcessInfo");
    return processInfo.find(({ type }) => type === "GPU")?.id;
  }

  /** Seconds that the browser's processes have computed; of those that ended, as last seen. */
  async seconds() {
    if (!this.closed) {
      const { processInfo } = await this.control.send("SystemInfo.getProcessInfo");
      for (const { id, cpuTime } of processInfo) this.times.set(id, cpuTime);
    }
    return [...this.times.values()].reduce((sum, time) => sum + time, 0);
  }

  /** Bytes that the process of the GPU has written and holds, as Linux counts them. */
  async gpuBytes() {
    const text = readFileSync(`/proc/${await this.gpuProcess()}/smaps_rollup`, "utf8");
    return 1024 * Number(/^Private_Dirty: *(\d+) kB$/m.exec(text)[1]);
  }

  /** Ends the browser and tells what its pages did that they may not. */
  async close() {
    if (this.tasks) {
      const { faults, said } = await this.tasks.end();
      this.faults.push(...faults);
      this.said = said;
    }
    console.log(`the browser computed for ${(await this.seconds()).toFixed(0)} s`);
    this.closed = true;
    await this.chromium.close();
    if (this.log) {
      const log = JSON.parse(await readFile(this.log, "utf8"));
      const began = log.constants.logEventTypes.URL_REQUEST_START_JOB;
      const origin = this.site.address.slice(0, -1);
      // What the browser asks of its maker by itself has no origin.
      const urls = log.events
        .filter(({ type, params }) => type === began && params?.initiator === origin)
        .map(({ params }) => params.url);
      assert.ok(urls.length > 5, `the network's log knows of the page: ${urls}`);
      urls.forEach((url) => this.asks(url));
    }
    return this.faults;
  }
}

export const DESKTOP = { width: 1280, height: 900 };
export const PHONE = { width: 390, height: 844 };

/** A picture of the whole page, as long as it is. */
export const picture = (page, path) => aside(page, () => page.screenshot({ path, fullPage: true }));

/** Serious faults of accessibility. */
export const inaccessible = async (page) => {
  const look = () => page.evaluate(() => globalThis.axe.run());
  const { violations, passes } = await aside(page, async () => {
    await page.evaluate(axe);
    return look();
  });
  assert.ok(passes.length > 10, "axe-core has looked at the page");
  return violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
};

/** What a button of the page offers for download, saved. */
export const save = async (page, button, path) => {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
  await download.saveAs(path);
};
