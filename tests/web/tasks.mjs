// How long a page keeps its main thread. What a task computes is the page's own, on any machine.
// How long it takes by the clock is also how long it waited for a core, or for another thread that
// waited for one, which Linux counts.

import { readFileSync, readdirSync } from "node:fs";

/** Milliseconds that a task of the main thread may compute, or stand still. */
export const LONGEST = 50;
/** Milliseconds between two looks at how long threads have waited for a core. */
const LOOK = 100;
const CATEGORIES = ["disabled-by-default-devtools.timeline", "blink.user_timing"];
const [PAGE, ASIDE, BACK] = ["test: page", "test: aside", "test: back"];
const mark = (name) => void performance.mark(name);

/** How long the threads of processes have waited for a core, looked at again and again. */
class Waits {
  constructor() {
    this.looks = new Map();
  }

  /** Looks at these processes now; what Linux does not count, or no longer, has no look. */
  look(pids) {
    const now = Number(process.hrtime.bigint() / 1000n); // by the clock of the browser's traces
    for (const pid of pids) {
      try {
        const threads = readdirSync(`/proc/${pid}/task`);
        const text = (of) => readFileSync(`/proc/${pid}/task/${of}/schedstat`, "utf8");
        const counts = threads.map((of) => Number(text(of).split(" ")[1]));
        const waited = counts.reduce((sum, count) => sum + count, 0) / 1e3;
        if (!this.looks.has(pid)) this.looks.set(pid, []);
        this.looks.get(pid).push({ now, waited });
      } catch {
        // The process, or one of its threads, has ended.
      }
    }
  }

  /** Microseconds that a process may have waited in such a span, or what is unknown of that. */
  within(pid, from, to) {
    const looks = this.looks.get(pid) ?? [];
    const before = looks.findLast(({ now }) => now <= from)?.waited ?? 0;
    const after = looks.find(({ now }) => now >= to)?.waited ?? Infinity;
    return Math.max(after - before, 0);
  }
}

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
    Object.assign(tasks, { control, events: [], waits: new Waits(), pids: [] });
    tasks.timers = [
      setInterval(() => tasks.waits.look(tasks.pids), LOOK),
      setInterval(() => tasks.list(), 10 * LOOK),
    ];
    control.on("Tracing.dataCollected", ({ value }) => tasks.events.push(...value));
    const traceConfig = {
      recordMode: "recordContinuously",
      includedCategories: CATEGORIES,
      excludedCategories: ["*"],
    };
    await control.send("Tracing.start", { transferMode: "ReportEvents", traceConfig });
    return tasks;
  }

  /** Lists the processes that pages may be in. */
  async list() {
    const { processInfo } = await this.control.send("SystemInfo.getProcessInfo");
    this.pids = processInfo.filter(({ type }) => type === "renderer").map(({ id }) => id);
  }

  /** Ends the recording: what took too long, and what is to be said of the longest. */
  async end() {
    await this.list();
    this.waits.look(this.pids);
    this.timers.forEach(clearInterval);
    const complete = new Promise((done) => this.control.once("Tracing.tracingComplete", done));
    await this.control.send("Tracing.end");
    await complete;
    const all = this.ofPages();
    const most = (of) => Math.round(Math.max(0, ...all.map(of)));
    const [computed, took, still] =
      ["computed", "took", "still"].map((of) => most((task) => task[of]));
    const said =
      `of ${all.length} tasks of main threads the longest computed for ${computed} ms, ` +
      `took ${took} ms by the clock and stood still for ${still} ms`;
    const long = all.filter(({ computed, still }) => Math.max(computed, still) > LONGEST);
    const faults = long.map(({ computed, still }) => {
      const [ran, stood] = [computed, still].map(Math.round);
      return `a task of ${ran} ms, which stood still for ${stood} ms, on a main thread`;
    });
    return { faults, said };
  }

  /** Milliseconds that each task of a page's main thread took, and doing what; none of the test. */
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
      .map(({ pid, ts, dur, tdur }) => {
        // Neither computing nor waiting for a core: it waits for something else.
        const still = Math.max(dur - tdur - this.waits.within(pid, ts, ts + dur), 0);
        return { took: dur / 1e3, computed: tdur / 1e3, still: still / 1e3 };
      });
  }
}
