// Runs the compiled program. Commands go to it as they come; what it says, `host.js` posts.

import init, { tell } from "./aavae.js";

const { work } = await init();
self.onmessage = ({ data }) => tell(JSON.stringify(data.command), data.bytes);
self.postMessage({ kind: "loaded" });
// A panic has been told before; then the program is gone.
WebAssembly.promising(work)().catch(() => self.close());
