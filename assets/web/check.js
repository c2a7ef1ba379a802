// Every kernel's trials, told one by one.

const form = document.getElementById("check");
const status = document.querySelector(".status");
const asked = new URLSearchParams(location.search);
form.elements.only.value = asked.get("only") ?? "";
form.elements.first.checked = asked.has("first");

const list = (id, text) => {
  const item = document.createElement("li");
  item.textContent = text;
  document.getElementById(id).append(item);
};

form.onsubmit = (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  for (const id of ["failures", "left-out"]) document.getElementById(id).replaceChildren();
  document.querySelector("h2").hidden = true;
  delete status.dataset.done;
  status.textContent = "Opening the GPU.";
  const command = {
    do: "check",
    only: form.elements.only.value,
    first: form.elements.first.checked,
  };
  let tried = 0;
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const end = (done, more) => {
    worker.terminate();
    button.disabled = false;
    Object.assign(status.dataset, { done, ...more });
  };
  const fail = (text) => {
    list("failures", text);
    status.textContent = "Stopped.";
    end("failed");
  };
  worker.onmessage = ({ data: { kind, value } }) => {
    if (kind === "loaded") {
      worker.postMessage({ command });
    } else if (kind === "trial") {
      tried += 1;
      status.textContent = `${tried}: ${value.case}`;
      if (value.message) list("failures", `${value.case} (${value.variant}): ${value.message}`);
    } else if (kind === "checked") {
      status.textContent = `${value.passed} passed, ${value.failed} failed on ${value.device}`;
      document.querySelector("h2").hidden = value.left_out.length === 0;
      for (const { why, count } of value.left_out) list("left-out", `${count}: ${why}`);
      end("yes", { passed: value.passed, failed: value.failed });
    } else if (kind === "error") {
      fail(value.message);
    }
  };
  worker.onerror = (event) => {
    event.preventDefault();
    fail(event.message ?? "The program could not be loaded.");
  };
};
