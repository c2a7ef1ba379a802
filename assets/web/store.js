// The last state of the run, kept by the browser over a reload.

const open = () =>
  new Promise((resolve, reject) => {
    const request = indexedDB.open("aavae", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("runs");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const ask = async (mode, what) => {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const request = what(database.transaction("runs", mode).objectStore("runs"));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } finally {
    database.close();
  }
};

// A browser that keeps nothing, as in private windows, costs the continuation and nothing else.
// Blobs are stored without a copy by the page's thread.
export const keep = (bytes) =>
  ask("readwrite", (runs) => runs.put(new Blob([bytes]), "last")).catch(() => {});
export const kept = async () => {
  const blob = await ask("readonly", (runs) => runs.get("last")).catch(() => undefined);
  return blob && new Uint8Array(await blob.arrayBuffer());
};
export const keeps = () => ask("readonly", (runs) => runs.count("last")).catch(() => 0);
export const forget = () => ask("readwrite", (runs) => runs.delete("last")).catch(() => {});
