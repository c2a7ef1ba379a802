// The native program, and what its runs and the page's have in common: their records.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

/**
 * Runs the native program, and what it printed; the browser is answered meanwhile. With one thread:
 * browsers keep all cores busy, and threads that are interrupted in turn wait for each other.
 */
export const run = async (aavae, words) => {
  const env = { ...process.env, RAYON_NUM_THREADS: "1" };
  return (await promisify(execFile)(aavae, words, { env })).stdout;
};

/**
 * What a program in Python says, or null where `python3` has no PyTorch to load weights with, which
 * fails where that is required.
 */
export const torch = async (words) => {
  const python = (words) => promisify(execFile)("python3", words);
  const has = await python(["-c", "import torch, safetensors.torch"]).catch((error) => error);
  if (!(has instanceof Error)) return (await python(words)).stdout;
  assert.ok(!process.env.REQUIRE_TORCH, `PyTorch is required: ${has.message}`);
  return null;
};

export const lines = async (path) =>
  (await readFile(path, "utf8")).trim().split("\n").map((line) => JSON.parse(line));
export const steps = (records) => records.filter((record) => record.split === "train");

/** A run of the native program with the settings that the page has at first, and others. */
export const pretrain = async (aavae, path, others) => {
  const settings = {
    device: "cpu", dataset: "shapes", method: "aavae", width: 8, "learning-rate": 0.001,
    "warmup-epochs": 0, "log-every": 1, "importance-samples": 0, out: path, ...others,
  };
  const flags = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
  await run(aavae, ["pretrain", "--no-eval", "--overwrite", ...flags]);
  return { path, records: steps(await lines(join(path, "metrics.jsonl"))) };
};

/** The floats of a safetensors file by their names. */
export const tensors = async (path) => {
  const bytes = await readFile(path);
  const header = Number(bytes.readBigUInt64LE(0));
  const { __metadata__: _, ...named } = JSON.parse(bytes.subarray(8, 8 + header).toString());
  const floats = ([begin, end]) =>
    new Float32Array(new Uint8Array(bytes.subarray(8 + header + begin, 8 + header + end)).buffer);
  const all = Object.entries(named).filter(([, { dtype }]) => dtype === "F32");
  return new Map(all.map(([name, { data_offsets }]) => [name, floats(data_offsets)]));
};

/** How weights are evaluated: with many images at once, whatever a run's batch was. */
export const EVALUATED = ["--device", "cpu", "--batch-size", "250"];

/** The checkpoint that a run of the native program ends with. */
export const last = (path) => join(path, "checkpoints/last.safetensors");

/**
 * Features of a part of the images by the weights of a file or a run; `path` keeps them, and
 * `others` are more flags.
 */
export const features = async (aavae, weights, path, split = "test", others = []) => {
  const flags = ["--split", split, "--out", path, ...others];
  await run(aavae, ["embed", weights, ...EVALUATED, ...flags]);
  return (await tensors(path)).get("features");
};

/** Relative difference of two lists of numbers, as vectors. */
export const distance = (a, b) => {
  assert.ok(a.length === b.length && a.length > 0, `${a.length} and ${b.length} numbers`);
  const square = (sum, x, i) => sum + (x - b[i]) ** 2;
  return Math.sqrt(a.reduce(square, 0) / (b.reduce((sum, x) => sum + x * x, 0) || 1));
};

/** The largest relative difference of the losses of two runs, step by step. */
export const apart = (here, there) => {
  assert.deepEqual(here.map((r) => r.step), there.map((r) => r.step), "the same steps");
  return Math.max(...here.map((r, i) => Math.abs(r.loss / there[i].loss - 1)));
};
