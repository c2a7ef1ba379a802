// Every kernel's trials, told one by one.

const form = document.getElementById("check");
const status = document.querySelector(".status");
const failures = document.getElementById("failures");
form.elements.only.value = new URLSearchParams(location.search).get("only") ?? "";

form.onsubmit = (event) => {
  event.preventDefault();
  form.querySelector("button").disabled = true;
  let tried = 0;
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const fail = (text) => {
    const item = document.createElement("li");
    item.textContent = text;
    failures.append(item);
  };
  worker.onmessage = ({ data: { kind, value } }) => {
    if (kind === "loaded") {
      worker.postMessage({ command: { do: "check", only: form.elements.only.value } });
    } else if (kind === "trial") {
      tried += 1;
      status.textContent = `${tried}: ${value.case}`;
      if (value.message) fail(`${value.case} (${value.variant}): ${value.message}`);
    } else if (kind === "checked") {
      status.textContent = `${value.passed} passed, ${value.failed} failed on ${value.device}`;
      status.dataset.done = "yes";
    } else if (kind === "error") {
      fail(value.message);
      status.dataset.done = "yes";
    }
  };
};
