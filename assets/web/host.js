// What the compiled program asks of the worker that it runs in.

let woken = false;
let resume = null;

// Whether there is JSPI is asked by the page; this module must load where there is none.
const Suspending = WebAssembly.Suspending ?? Object;

// Suspends the program until something wakes it, as a thread is parked and unparked.
export const suspend = new Suspending(() => {
  if (woken) {
    woken = false;
    return undefined;
  }
  return new Promise((resolve) => {
    resume = resolve;
  });
});

export function wake() {
  if (resume) {
    const go = resume;
    resume = null;
    go();
  } else {
    woken = true;
  }
}

// Tells the page something: what kind of thing, its JSON, and bytes where there are any.
export function post(kind, json, bytes) {
  self.postMessage({ kind, value: JSON.parse(json), bytes }, bytes ? [bytes.buffer] : []);
}
