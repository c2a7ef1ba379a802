// What the page offers besides training, by real clicks on one small run of images of one's own.
// `scripts/test-web` calls it: node features.mjs PAGE-FOLDER AAVAE OUT-FOLDER

import assert from "node:assert/strict";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";

import { Browser, DESKTOP, MINUTE, PHONE, inaccessible, picture, save, serve } from "./browser.mjs";
import { trial } from "./clicks.mjs";
import { distance, features, last, pretrain, run, tensors, torch } from "./native.mjs";

const [folder, aavae, out] = process.argv.slice(2).map((path) => resolve(path));
const site = await serve(folder);
const browser = await Browser.open(site);
const BATCH = 4;
/** Images that are trained on: as few as kNN needs. */
const TRAIN = 20;
/** Images in the folder, of which a tenth is held out. */
const IMAGES = 40;
const HELD_OUT = IMAGES / 10;
/** Steps of an epoch. */
const EPOCH = TRAIN / BATCH;
/** What the page and the native program may differ by. */
const NEAR = 1e-3;
const CLASSES = { dark: 60, light: 190 };
const SIDE = 32;

/** A bitmap of vertical stripes about one level. */
const bitmap = (level, seed) => {
  const file = Buffer.alloc(54 + SIDE * SIDE * 3);
  file.write("BM");
  for (const [at, value] of [[2, file.length], [10, 54], [14, 40], [18, SIDE], [22, SIDE]]) {
    file.writeUInt32LE(value, at);
  }
  file.writeUInt16LE(1, 26);
  file.writeUInt16LE(24, 28);
  for (let i = 54; i < file.length; i++) file[i] = level + ((i * (seed + 1)) % 41);
  return file;
};

/** A folder of images, as a person may have one. */
const images = async (name, splits) => {
  for (const [split, count] of Object.entries(splits)) {
    for (const [of, level] of Object.entries(CLASSES)) {
      const path = join(out, name, split, of);
      await mkdir(path, { recursive: true });
      for (let i = 0; i < count; i++) await writeFile(join(path, `${i}.bmp`), bitmap(level, i));
    }
  }
  return join(out, name);
};

/** Drops files and folders on the page, as a person's hand does. */
const drop = async (files) => {
  const mouse = await browser.context.newCDPSession(page);
  const data = { items: [], files, dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await mouse.send("Input.dispatchDragEvent", { type, x: 200, y: 200, data });
  }
  await mouse.detach();
};

/** The six binary files of CIFAR-10, with images that are all alike but for their classes. */
const cifar = async () => {
  const [RECORDS, RECORD] = [10_000, 1 + 3 * SIDE * SIDE];
  const file = Buffer.alloc(RECORDS * RECORD, 90);
  for (let i = 0; i < RECORDS; i++) file[i * RECORD] = i % 10;
  await mkdir(join(out, "cifar"), { recursive: true });
  const names = [1, 2, 3, 4, 5].map((i) => `data_batch_${i}.bin`).concat("test_batch.bin");
  const paths = names.map((name) => join(out, "cifar", name));
  for (const path of paths) await writeFile(path, file);
  return paths;
};

/** What the page's workers say of neighbours, to the last digit. */
await browser.context.addInitScript(() => {
  globalThis.neighbours = [];
  globalThis.Worker = class extends Worker {
    constructor(...how) {
      super(...how);
      this.addEventListener("message", ({ data: { value } }) => {
        if (value?.of === "neighbours") globalThis.neighbours.push(value.more);
      });
    }
  };
});
const page = await browser.visit(`#width=8&batch_size=${BATCH}&method=aavae&limit_train=${TRAIN}`);
const state = (states) =>
  page.waitForSelector(states.map((s) => `.lane[data-state=${s}]`).join(","), {
    timeout: 8 * MINUTE,
  });
const error = async () => {
  await state(["failed"]);
  return page.textContent(".lane .error");
};
/** The step that a click on "One step" ends at; what went wrong is said. */
const step = async (number) => {
  await page.click("#step");
  await page.waitForFunction(
    (number) => {
      const { state, step } = document.querySelector(".lane")?.dataset ?? {};
      return state === "failed" || (state === "paused" && Number(step) === number);
    },
    number,
    { timeout: 8 * MINUTE },
  );
  const said = await page.textContent(".lane .error");
  assert.equal(await page.getAttribute(".lane", "data-state"), "paused", said);
};
/** Waits until an element says something. */
const says = (selector, text) =>
  page.waitForFunction(
    ([selector, text]) => document.querySelector(selector)?.textContent.includes(text),
    [selector, text],
    { timeout: 8 * MINUTE },
  );
/**
 * Waits until kernels are compiled, which is after the files have been read and compared with those
 * that the run began with. That it goes on with the same bits is seen in `page.mjs`.
 */
const compiles = async () => {
  await page.waitForFunction(
    () => {
      const lane = document.querySelector(".lane");
      return lane?.dataset.state === "failed" || lane?.querySelector("progress").value > 0;
    },
    null,
    { timeout: 8 * MINUTE },
  );
  const said = await page.textContent(".lane .error");
  assert.equal(await page.getAttribute(".lane", "data-state"), "preparing", said);
};
const count = (selector) => page.locator(selector).count();
const arrives = (selector) => page.waitForSelector(selector, { timeout: 8 * MINUTE });

await trial("settings of a method, in the address", async () => {
  const shown = async (method) => {
    await page.selectOption("[name=method]", method);
    const fields = ["kl_coeff", "log_scale", "temperature"];
    return Promise.all(fields.map((name) => page.isVisible(`[name=${name}]`)));
  };
  assert.deepEqual(await shown("simclr"), [false, false, true]);
  assert.deepEqual(await shown("ae"), [false, false, false]);
  assert.deepEqual(await shown("vae"), [true, true, false]);
  await page.fill("[name=kl_coeff]", "0.5");
  await page.fill("[name=seed]", "7");
  // As somebody opens it who was sent it. (A reload may ask for the address before the last change.)
  const address = await page.evaluate(() => location.href);
  await page.goto("about:blank");
  await page.goto(address);
  const values = Object.entries({ method: "vae", kl_coeff: "0.5", seed: "7", width: "8" });
  for (const [name, value] of values) assert.equal(await page.inputValue(`[name=${name}]`), value);
  await page.fill("[name=kl_coeff]", "");
  await shown("aavae");
});

await trial("files that are no data are named", async () => {
  const short = { name: "data_batch_1.bin", mimeType: "", buffer: Buffer.alloc(3073) };
  await page.selectOption("[name=dataset]", "files");
  await page.click("#start");
  assert.match(await page.textContent("#given"), /First choose files/);
  await page.setInputFiles("#files", [short]);
  await page.click("#start");
  assert.match(await error(), /data_batch_2\.bin.*Choose all six binary files/);
  await page.setInputFiles("#folder", await images("half", { train: 12 }));
  await page.click("#start");
  assert.match(await error(), /half\/test.*a folder with train and test/);
});

await trial("one step on images of one's own", async () => {
  await page.setInputFiles("#folder", await images("mine", { train: IMAGES / 2, test: 2 }));
  assert.match(await page.textContent("#given"), /44 files.*stay on this device/);
  await step(1);
});

await trial("another learning rate, in the same run, to the end of an epoch", async () => {
  await page.fill("[name=learning_rate]", "0.0005");
  await page.press("[name=learning_rate]", "Enter"); // the change, and Start
  // Held-out images and neighbours are measured then by themselves.
  await arrives(".chart[data-name=knn20]");
  await page.click("#pause");
  await state(["paused"]);
  await save(page, ".metrics", join(out, "rates.jsonl"));
  const lines = (await readFile(join(out, "rates.jsonl"), "utf8")).trim().split("\n");
  const records = lines.map((line) => JSON.parse(line));
  const of = (split) => records.filter((record) => record.split === split);
  const rates = of("train");
  assert.ok(rates.length >= EPOCH, `${rates.length} steps`);
  for (const [split, name] of [["val", "loss"], ["eval", "knn20"]]) {
    const [{ step, [name]: value }] = of(split);
    assert.ok(step === EPOCH && Number.isFinite(value), `${split}: ${value} at ${step}`);
  }
  const near = (lr, want) => Math.abs(lr / want - 1) < 1e-6;
  assert.ok(rates.every(({ lr, step }) => near(lr, step === 1 ? 1e-3 : 5e-4)), lines.join("\n"));
  assert.match(page.url(), /learning_rate=0\.0005/);
});

/** Goes on by Tab until an element has the focus; each one on the way shows that it has it. */
const tab = async (selector) => {
  for (let i = 0; i < 100; i++) {
    await page.keyboard.press("Tab");
    const [shown, there, what] = await page.evaluate((selector) => {
      const now = document.activeElement;
      const ring = getComputedStyle(now.closest(".file") ?? now).outlineStyle;
      return [ring === "solid", now.matches(selector), now.outerHTML.slice(0, 80)];
    }, selector);
    assert.ok(shown, `it does not show that it has the focus: ${what}`);
    if (there) return;
  }
  assert.fail(`${selector} has no focus after 100 times Tab`);
};

await trial("one image, by keyboard on a phone: neighbours, alterations, a walk", async () => {
  await page.setViewportSize(PHONE);
  await page.focus("[name=dataset]");
  await tab(".gallery button:nth-child(2)");
  await page.keyboard.press("Enter");
  await arrives(".neighbours .tile");
  await arrives(".many .tile");
  assert.equal(await count(".gallery button"), HELD_OUT);
  assert.equal(await count(".many .tile"), 24);
  const cosines = (await page.locator(".neighbours .tile").allTextContents()).map(Number);
  assert.equal(cosines.length, 10);
  assert.ok(cosines.every((c, i) => c <= 1 && (i === 0 || c <= cosines[i - 1])), `${cosines}`);
  const address = () => page.$eval(".many i", (image) => image.style.backgroundImage);
  const first = await address();
  await tab(".redraw");
  await page.keyboard.press("Space");
  const others = (first) => document.querySelector(".many i").style.backgroundImage !== first;
  await page.waitForFunction(others, first);
  assert.ok(!(await page.isVisible(".walk")), "a walk has two ends");
  await page.tap(".gallery button:nth-child(4)");
  await page.tap(".walk");
  await arrives(".way .tile");
  assert.equal(await count(".way .tile"), BATCH + 2);
  await page.setViewportSize(DESKTOP);
});

/** Angles between features of an image and of others, in radians. */
const angles = (of, others) => {
  const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  return others.map((other) => Math.acos(Math.min(1, cosine(of, other))));
};

/** The file that the page offers for download. */
const weights = join(out, "mine.safetensors");

await trial("features of the page by these weights are the native program's", async () => {
  await save(page, ".save", weights);
  const asked = await page.evaluate(() => globalThis.neighbours);
  assert.equal(new Set(asked.map(({ row }) => row)).size, 2);
  /** Of all images in the folder, held out or not. */
  const vectors = async (name, ...more) => {
    const data = ["--data-dir", join(out, "mine"), ...more];
    const all = await features(aavae, weights, join(out, name), "train", data);
    const size = all.length / IMAGES;
    return Array.from({ length: IMAGES }, (_, i) => all.slice(i * size, (i + 1) * size));
  };
  const angle = (cosine) => Math.acos(Math.min(1, cosine));
  const here = asked.flatMap(({ cosines }) => cosines.map(angle));
  const by = (all) =>
    asked.flatMap(({ row, rows }) => angles(all[row], rows.map((other) => all[other])));
  const off = distance(here, by(await vectors("mine.features")));
  const others = await vectors("random.features", "--random-init", "--seed", "1");
  const wrong = distance(here, by(others));
  assert.ok(here.length === 20 && off < NEAR, `angles between features differ by ${off}`);
  assert.ok(wrong > 100 * NEAR, `those of other weights differ by ${wrong} only`);
  const [near, far] = [off.toExponential(1), wrong.toFixed(2)];
  return `angles between ${here.length} pairs differ by ${near} (by other weights ${far})`;
});

await trial("the native program probes these weights, and goes on from them", async () => {
  const data = ["--data-dir", join(out, "mine"), "--device", "cpu", "--batch-size", String(TRAIN)];
  const words = ["probe", weights, ...data, "--epochs", "40", "--json"];
  const probed = JSON.parse(await run(aavae, words));
  const { seed, train_images: images, random_init: random, accuracy } = probed;
  assert.deepEqual({ seed, images, random }, { seed: 7, images: TRAIN, random: false });
  assert.ok(accuracy > 0.5, `dark and light are told apart: ${accuracy}`);
  // A step so short that it moves no weight, by a seed that draws others.
  const settings = {
    dataset: "folder", "data-dir": join(out, "mine"), seed: 1, "batch-size": BATCH,
    "max-steps": 1, "learning-rate": 1e-9,
  };
  const begun = async (name, others) => {
    const { path } = await pretrain(aavae, join(out, name), { ...settings, ...others });
    return tensors(last(path));
  };
  const [given, init, drawn] =
    [await tensors(weights), await begun("init", { "init-from": weights }), await begun("drawn")];
  const learned = [...given.keys()].filter((name) => !/^optim\.|running_/.test(name));
  const all = (of) => learned.flatMap((name) => [...of.get(name)]);
  const [off, wrong] = [init, drawn].map((of) => distance(all(of), all(given)));
  assert.ok(learned.length > 100 && off < 1e-6 && wrong > 0.5, `${off} off, drawn ones ${wrong}`);
  const [near, far] = [off.toExponential(1), wrong.toFixed(2)];
  return `probe ${accuracy}; parameters ${near} off (drawn ones ${far})`;
});

await trial("PyTorch's twin takes these weights, strictly", async () => {
  const check = new URL("../golden/check_torchload.py", import.meta.url).pathname;
  const said = await torch([check, weights]);
  if (said === null) return "NOT TESTED HERE: python3 has no PyTorch (REQUIRE_TORCH=1 fails then)";
  const { keys, variational } = JSON.parse(said);
  assert.ok(keys > 100 && variational, said);
  return `${keys} tensors`;
});

await trial("images, what it sees and what it makes of them", async () => {
  await page.click(".look");
  /** Images of a picture side by side, its rows, and whether each of these is another. */
  const rows = (of, count) =>
    page.$eval(
      `.${of} img`,
      async (image, count) => {
        await image.decode();
        const [width, height] = [image.naturalWidth, image.naturalHeight];
        const canvas = Object.assign(document.createElement("canvas"), { width, height });
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        const top = (i) => Math.round((i * height) / count);
        const row = (_, i) => context.getImageData(0, top(i), width, 20).data.join();
        const distinct = new Set(Array.from({ length: count }, row));
        return [Math.round((width * count) / height), distinct.size];
      },
      count,
    );
  for (const [of, count] of [["reconstructions", 3], ["views", 7]]) {
    await arrives(`.${of} img`);
    assert.deepEqual(await rows(of, count), [BATCH, count], of);
  }
  const alt = await page.getAttribute(".reconstructions img", "alt");
  assert.match(alt, /their reconstructions after \d+ steps/);
});

await trial("how alike views are", async () => {
  await page.click(".look");
  await arrives(".maps [data-of=z]");
  assert.equal(await count(".maps canvas"), 3);
  assert.match(await page.textContent(".maps [data-of=h]"), /-?\d\.\d\d within, -?\d\.\d\d across/);
  const diagonal = await page.$eval(".maps [data-of=h] canvas", (canvas) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.width).data;
    return [...Array(canvas.width).keys()].every((i) => pixels[4 * i * (canvas.width + 1)] === 28);
  });
  assert.ok(diagonal, "every view is wholly like itself");
  await arrives(".chart[data-name=alike]");
});

await trial("held-out images, neighbours and a probe", async () => {
  const said = await page.$eval(".measure", (button) => {
    button.click();
    return document.querySelector(".measured").textContent;
  });
  assert.match(said, /^Measuredlooks at the held-out images/);
  await says(".measured", "Accuracy of 20 neighbours");
  for (const name of ["loss", "kl", "log_pxz"]) {
    assert.match(await page.textContent(`.chart[data-name=${name}]`), /training .*held out/);
  }
  await page.click(".probe");
  await arrives(".lane[data-probed]");
  assert.match(await page.textContent(".measured"), /Linear probe[\d.]+ % of the held-out images/);
  await page.click("details.plan summary");
  await page.waitForFunction(() => document.querySelector(".plan pre").textContent !== "");
  assert.match(await page.textContent(".device"), /MiB on the GPU/);
});

await trial("charts of one name have one scale", async () => {
  const [one, two] = await page.evaluate(async () => {
    const { Chart } = await import("./chart.js");
    const charts = [new Chart("of a trial", ""), new Chart("of a trial", "")];
    charts[0].add("train", 1, 5);
    charts[1].add("train", 9, 50);
    await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
    const scale = (figure) => [".ys", ".xs"].map((of) => figure.querySelector(of).textContent);
    return charts.map(({ figure }) => scale(figure));
  });
  assert.deepEqual(one, two);
  assert.match(one.join(), /50.*5.*step 19?/);
});

await trial("by everyone, on a phone and a desktop", async () => {
  for (const [name, size] of [["desktop", DESKTOP], ["phone", PHONE]]) {
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize(size);
      assert.deepEqual(await inaccessible(page), [], `${name}, ${colorScheme}`);
      await picture(page, join(out, `features-${name}-${colorScheme}.png`));
      const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(wider <= 0, `the page is ${wider} pixels wider than a ${name}`);
    }
  }
});

await trial("a reload goes on with one's own files, dropped again", async () => {
  const at = Number(await page.getAttribute(".lane", "data-step"));
  await page.waitForFunction((at) => document.querySelector(".lane").dataset.kept === at, `${at}`);
  await page.goto("about:blank");
  await page.goto(site.address); // without the settings
  await page.click("#continue");
  assert.match(await error(), /your own files.*Choose them again/);
  assert.ok(await page.isVisible("#folder"), "the page asks for them");
  await drop([join(out, "half")]); // others
  await says("#given", "24 files");
  await page.click("#continue");
  await says(".lane .error", "half/test");
  await drop([join(out, "mine")]);
  await says("#given", "44 files");
  await page.click("#continue");
  // The refusal of the others stands until the run begins again.
  await page.waitForFunction(() => document.querySelector(".lane")?.dataset.state !== "failed");
  await compiles();
  await page.click("#reset");
});

await trial("CIFAR-10's binary files, dropped", async () => {
  const paths = await cifar();
  await drop(paths);
  await says("#given", "6 files (CIFAR-10). They stay on this device");
  await page.click("#start");
  await compiles();
  await page.click("#reset");
  assert.equal(await count(".lane"), 0);
});

// How long tasks are is measured in `page.mjs`, of a page that trains.
const faults = (await browser.close()).filter((fault) => !fault.startsWith("a task of"));
assert.deepEqual(faults, [], "nothing said, nothing asked of others");
site.close();
