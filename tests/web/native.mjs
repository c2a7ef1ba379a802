// The native program, and what its runs and the page's have in common: their records.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

/** Runs the native program, and what it printed; the browser is answered meanwhile. */
export const run = async (aavae, words) => (await promisify(execFile)(aavae, words)).stdout;

export const lines = async (path) =>
  (await readFile(path, "utf8")).trim().split("\n").map((line) => JSON.parse(line));
export const steps = (records) => records.filter((record) => record.split === "train");

/** A run of the native program with the settings that the page has at first, and others. */
export const pretrain = async (aavae, path, others) => {
  const settings = {
    device: "cpu", dataset: "shapes", method: "aavae", width: 8, "learning-rate": 0.001,
    "warmup-epochs": 0, "log-every": 1, out: path, ...others,
  };
  const flags = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
  await run(aavae, ["pretrain", "--no-eval", "--overwrite", ...flags]);
  return { path, records: steps(await lines(join(path, "metrics.jsonl"))) };
};

/** The largest relative difference of the losses of two runs, step by step. */
export const apart = (here, there) => {
  assert.deepEqual(here.map((r) => r.step), there.map((r) => r.step), "the same steps");
  return Math.max(...here.map((r, i) => Math.abs(r.loss / there[i].loss - 1)));
};
