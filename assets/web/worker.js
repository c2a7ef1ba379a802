// Runs the compiled program. Commands go to it as they come; what it says, `host.js` posts.

import init, { give, tell } from "./aavae.js";

// Browsers leave an adapter's description empty, by which the program names it; they say whose it
// is and of which kind.
if (self.GPUAdapterInfo) {
  const { get } = Object.getOwnPropertyDescriptor(GPUAdapterInfo.prototype, "description");
  Object.defineProperty(GPUAdapterInfo.prototype, "description", {
    get() {
      return get.call(this) || [this.vendor, this.architecture].filter(Boolean).join(" ");
    },
  });
}

const { work } = await init();

// Files are read here, one after the other, so that the page never waits for them.
const read = async (path, file) => {
  try {
    give(path, new Uint8Array(await file.arrayBuffer()));
    return true;
  } catch (error) {
    const value = { what: "data", message: `${path} cannot be read: ${error.message}` };
    self.postMessage({ kind: "error", value });
    return false;
  }
};
const hear = async ({ command, bytes, files = [] }) => {
  for (const { path, file } of files) if (!(await read(path, file))) return;
  if (command) tell(JSON.stringify(command), bytes);
};
let heard = Promise.resolve();
self.onmessage = ({ data }) => {
  heard = heard.then(() => hear(data));
};
self.postMessage({ kind: "loaded" });
// A panic has been told before; then the program is gone.
WebAssembly.promising(work)().catch(() => self.close());
