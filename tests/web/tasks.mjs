// How long a page keeps its main thread. What a task computes is the page's own, on any machine;
// how long it takes by the clock is also what else the machine does, of which an idle thread tells.

import { Worker } from "node:worker_threads";

/** Milliseconds of a task of the main thread after which a page feels stuck. */
export const LONGEST = 50;
/** How many times as late as an idle thread a task may be, which can be interrupted more often. */
const LATENESS = 10;
const CATEGORIES = ["disabled-by-default-devtools.timeline", "blink.user_timing"];
const [PAGE, ASIDE, BACK] = ["test: page", "test: aside", "test: back"];
const mark = (name) => void performance.mark(name);

/** A thread that only looks at the clock; its answer is how late it was at most, in ms. */
const IDLE = `
  const { parentPort } = require("node:worker_threads");
  const delay = require("node:perf_hooks").monitorEventLoopDelay({ resolution: 10 });
  delay.enable();
  parentPort.once("message", () => parentPort.postMessage(Math.max(delay.max / 1e6 - 10, 0)));
`;

/** Does what keeps a page's main thread by itself: these tasks are the test's, not the page's. */
export const aside = async (page, run) => {
  await page.evaluate(mark, ASIDE);
  const done = await run();
  await page.evaluate(mark, BACK);
  return done;
};

/** The tasks of all pages of a browser, from its beginning to its end. */
export class Tasks {
  /** @param control a session with the browser; `context` has the pages that are meant. */
  static async record(control, context) {
    const tasks = new Tasks();
    // The browser shows pages of its own, which tell nothing.
    await context.addInitScript(mark, PAGE);
    Object.assign(tasks, { control, events: [], idle: new Worker(IDLE, { eval: true }) });
    control.on("Tracing.dataCollected", ({ value }) => tasks.events.push(...value));
    const traceConfig = {
      recordMode: "recordContinuously",
      includedCategories: CATEGORIES,
      excludedCategories: ["*"],
    };
    await control.send("Tracing.start", { transferMode: "ReportEvents", traceConfig });
    return tasks;
  }

  /** Ends the recording: what took too long, and what is to be said of the longest. */
  async end() {
    const late = await new Promise((answer) => {
      this.idle.once("message", answer);
      this.idle.postMessage("end");
    });
    await this.idle.terminate();
    const complete = new Promise((done) => this.control.once("Tracing.tracingComplete", done));
    await this.control.send("Tracing.end");
    await complete;
    const all = this.ofPages();
    const clock = LONGEST + LATENESS * late;
    const most = (of) => Math.round(Math.max(0, ...all.map(of)));
    const [computed, took] = [most((task) => task.computed), most((task) => task.took)];
    const said =
      `of ${all.length} tasks of main threads the longest computed for ${computed} ms ` +
      `(at most ${LONGEST}) and took ${took} ms by the clock ` +
      `(at most ${Math.round(clock)}: an idle thread was ${Math.round(late)} ms late)`;
    const long = all.filter(({ computed, took }) => computed > LONGEST || took > clock);
    const faults = long.map(({ computed, took }) => {
      const times = `${Math.round(computed)} ms, ${Math.round(took)} ms by the clock`;
      return `a task of ${times}, on a main thread`;
    });
    return { faults, said };
  }

  /** Milliseconds that each task of a page's main thread took and computed, without the test's. */
  ofPages() {
    const marks = (of) =>
      this.events.filter(({ name }) => name === of).sort((a, b) => a.ts - b.ts);
    const main = new Set(marks(PAGE).map(({ pid, tid }) => `${pid} ${tid}`));
    const windows = marks(ASIDE).map(({ pid, ts }) => {
      const back = marks(BACK).find((end) => end.pid === pid && end.ts > ts);
      return { pid, from: ts, to: back?.ts ?? Infinity };
    });
    const tested = ({ pid, ts, dur }) =>
      windows.some((w) => w.pid === pid && ts + dur > w.from && ts < w.to);
    return this.events
      .filter((event) => event.name === "RunTask" && main.has(`${event.pid} ${event.tid}`))
      .filter(({ dur, tdur }) => dur !== undefined && tdur !== undefined)
      .filter((event) => event.dur < LONGEST * 1e3 || !tested(event))
      .map(({ dur, tdur }) => ({ took: dur / 1e3, computed: tdur / 1e3 }));
  }
}
