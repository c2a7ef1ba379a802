// The files that a person gives to the page: dropped on it, or chosen. They are read by the worker.

const entries = (reader) => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

// Files of a dropped entry, those of folders by their paths.
async function* walk(entry) {
  if (entry.isFile) {
    yield { path: entry.fullPath.slice(1), file: await fileOf(entry) };
    return;
  }
  const reader = entry.createReader();
  for (let some = await entries(reader); some.length > 0; some = await entries(reader)) {
    for (const inner of some) yield* walk(inner);
  }
}

export const dropped = async (transfer) => {
  // The list is emptied when the event is over.
  const roots = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [];
  for (const root of roots) for await (const file of walk(root)) files.push(file);
  return files;
};

export const chosen = (input) =>
  [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));

export const kindOf = (files) => (files.some(({ path }) => path.endsWith(".bin")) ? "cifar10" : "folder");
