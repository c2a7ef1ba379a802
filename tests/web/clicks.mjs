// What the trials of the page have in common: settings are filled in, and runs waited for.

import assert from "node:assert/strict";

import { MINUTE, computed } from "./browser.mjs";

export const trial = async (name, run) => {
  const [began, before] = [Date.now(), await computed()];
  try {
    const said = await run();
    const seconds = ((Date.now() - began) / 1000).toFixed(1);
    const took = `${seconds} s (${((await computed()) - before).toFixed(1)} s computed)`;
    console.log(`${name}: passed in ${took}${said ? `; ${said}` : ""}`);
  } catch (error) {
    console.error(`${name}: FAILED`);
    throw error;
  }
};

/** Waits until the first run of a page is in one of these states and took so many steps. */
export const reach = async (page, states, step = 0) => {
  const reached = ([states, step]) => {
    const { state, step: now } = document.querySelector(".lane")?.dataset ?? {};
    return state === "failed" || (states.includes(state) && Number(now ?? 0) >= step);
  };
  await page.waitForFunction(reached, [[states].flat(), step], { timeout: 15 * MINUTE });
  if (states !== "failed") assert.equal(await failure(page), null, "the run goes on");
};

/** What a page says about a run that failed. */
export const failure = async (page) => {
  const note = await page.$(".lane[data-state=failed] .error");
  return note && (await note.textContent());
};

export const choose = async (page, settings) => {
  for (const [name, value] of Object.entries(settings)) {
    const field = `#settings [name=${name}]`;
    if (name === "method") await page.selectOption(field, value);
    else await page.fill(field, String(value));
  }
};
