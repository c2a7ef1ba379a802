// A server of static files and headless Chromium on its software adapter, both watched: what a page
// says on the console, what it asks of whom, and how long it keeps its main thread.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { constants, setPriority } from "node:os";
import { extname, join } from "node:path";

const require = createRequire(join(process.env.NODE_MODULES ?? process.cwd(), "/"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export const MINUTE = 60_000;
/**
 * Milliseconds of a task of the main thread after which a page feels stuck. They pass on the clock:
 * where other work takes the processors, a task is as long as that lets it be.
 */
const LONGEST_TASK = Number(process.env.LONGEST_TASK ?? 50);
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

/** A browser whose pages are watched; `faults` lists what no page may do. */
export class Browser {
  /** @param options `webgpu`: false offers pages no adapter; `log`: file of the network's log. */
  static async open(site, { webgpu = true, log = null } = {}) {
    const browser = new Browser();
    Object.assign(browser, { site, log, faults: [] });
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
    browser.context = await browser.chromium.newContext({ viewport: DESKTOP });
    await browser.context.exposeBinding("__long", ({ page }, task) => {
      browser.faults.push(`a task of ${task.ms} ms on the main thread of ${page.url()}`);
    });
    await browser.context.addInitScript((most) => {
      globalThis.__tests = [];
      new PerformanceObserver((list) => {
        for (const { startTime, duration } of list.getEntries()) {
          const within = ([from, to]) => startTime + duration > from && startTime < to;
          if (duration <= most || globalThis.__tests.some(within)) continue;
          globalThis.__long({ ms: Math.round(duration) });
        }
      }).observe({ type: "longtask", buffered: true });
    }, LONGEST_TASK);
    return browser;
  }

  /** A new page at a place of the site. */
  async visit(place = "") {
    const page = await this.context.newPage();
    page.on("console", (message) => this.faults.push(`console: ${message.text()}`));
    page.on("pageerror", (error) => this.faults.push(`error: ${error}`));
    page.on("request", (request) => this.asks(request.url()));
    await page.goto(this.site.address + place);
    await this.favour();
    return page;
  }

  /**
   * Lets the main threads of pages run before what else computes on this machine, where it may: no
   * GPU takes time of the processor as the software adapter does.
   */
  async favour() {
    const { processInfo } = await this.control.send("SystemInfo.getProcessInfo");
    for (const { id } of processInfo.filter(({ type }) => type === "renderer")) {
      try {
        setPriority(id, constants.priority.PRIORITY_HIGHEST);
      } catch {
        // Only an administrator may.
      }
    }
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

  /** Seconds that all processes of the browser have computed. */
  async seconds() {
    const { processInfo } = await this.control.send("SystemInfo.getProcessInfo");
    return processInfo.reduce((sum, { cpuTime }) => sum + cpuTime, 0);
  }

  /** Bytes that the process of the GPU has written and holds, as Linux counts them. */
  async gpuBytes() {
    const text = readFileSync(`/proc/${await this.gpuProcess()}/smaps_rollup`, "utf8");
    return 1024 * Number(/^Private_Dirty: *(\d+) kB$/m.exec(text)[1]);
  }

  /** Ends the browser and tells what its pages did that they may not. */
  async close() {
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

/** Does what keeps a page's main thread by itself: these tasks are the test's, not the page's. */
export const aside = async (page, run) => {
  await page.evaluate(() => globalThis.__tests.push([performance.now(), Infinity]));
  const done = await run();
  await page.evaluate(() => {
    globalThis.__tests.at(-1)[1] = performance.now();
  });
  return done;
};

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
