// The form for a new job: what it would take while one chooses, and every fault beside its field.
"use strict";
(() => {
  const form = document.getElementById("new-job");
  if (!form) return;
  const estimate = document.getElementById("estimate");
  const problem = document.getElementById("form-problem");
  const JSON_HEADERS = { "Content-Type": "application/json" };
  const CALM_MS = 600;
  const AGAIN_MS = 3000;
  const once = crypto.getRandomValues(new Uint32Array(4)).join("-"); // pressing twice creates one job
  let asked = 0;

  function valueOf(input) {
    switch (input.dataset.kind) {
      case "boolean":
        return input.checked;
      case "integer":
      case "number":
        return input.value === "" ? null : Number(input.value);
      case "json":
        return JSON.parse(input.value || "null");
      default:
        return input.value;
    }
  }

  // What differs from the defaults, as the API takes it.
  function body() {
    const made = {};
    for (const input of form.elements) {
      if (!input.name) continue;
      const value = valueOf(input);
      if (input.dataset.default !== undefined && JSON.stringify(value) === JSON.stringify(JSON.parse(input.dataset.default))) continue;
      const path = input.name.split(".");
      let place = made;
      for (const part of path.slice(0, -1)) place = place[part] ??= {};
      place[path.at(-1)] = value;
    }
    return made;
  }

  function clear() {
    problem.hidden = true;
    for (const input of form.querySelectorAll("[aria-invalid]")) {
      input.removeAttribute("aria-invalid");
      document.getElementById(`${input.id}-fault`)?.remove();
    }
  }

  function show(found) {
    clear();
    let first = null;
    const others = [];
    for (const { pointer, message } of found.errors || []) {
      const input = form.elements.namedItem(pointer.slice(1).replaceAll("/", "."));
      if (!input || !input.id) {
        others.push(`${pointer}: ${message}`);
        continue;
      }
      const fault = document.createElement("p");
      fault.id = `${input.id}-fault`;
      fault.className = "hint down";
      fault.textContent = message;
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", fault.id);
      input.closest(".field").append(fault);
      input.closest("details")?.setAttribute("open", "");
      first ??= input;
    }
    if (!first || others.length) {
      problem.textContent = others.join("; ") || found.detail;
      problem.hidden = false;
    }
    (first || problem).scrollIntoView({ block: "center" });
    first?.focus();
  }

  async function send(url, headers) {
    let made;
    try {
      made = JSON.stringify(body());
    } catch {
      return { status: 422, found: { detail: "A value with parts is not JSON: lists as [1, 2], names as {\"a\": 1}." } };
    }
    const answer = await fetch(url, { method: "POST", headers: { ...JSON_HEADERS, ...headers }, body: made });
    return { status: answer.status, found: await answer.json(), location: answer.headers.get("Location") };
  }

  function row(list, name, value, kind) {
    const term = document.createElement("dt");
    term.textContent = name;
    const told = document.createElement("dd");
    told.textContent = value;
    if (kind) told.className = kind;
    list.append(term, told);
  }

  const bytes = (value) => `${(value / 1e9).toFixed(1)} GB`;
  function duration(seconds) {
    if (seconds < 90) return `${Math.round(seconds)} s`;
    return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
  }

  function draw(found) {
    const list = document.createElement("dl");
    list.className = "facts";
    if (found.adapted) {
      row(list, "Trained", `${found.adapted.trainable_parameters.toLocaleString("en").replaceAll(",", "\u202f")} parameters (${found.adapted.trainable_percent.toFixed(2)} %)`);
    }
    if (found.memory) row(list, "Memory", `${bytes(found.memory.peak)} at most, on each GPU`);
    for (const device of found.devices) {
      row(list, device.device, device.fits ? "fits" : `too small: has ${bytes(device.memory_bytes)}, needs ${bytes(device.needed_bytes)}`, device.fits ? "up" : "down");
    }
    if (found.expected_seconds) row(list, "Time", `about ${duration(found.expected_seconds)}`);
    estimate.replaceChildren(list);
    if (found.status === "pending") {
      const note = document.createElement("p");
      note.className = "muted small";
      note.textContent = "A worker is still working it out.";
      estimate.append(note);
    }
  }

  async function ask() {
    asked += 1;
    const mine = asked;
    if (!form.checkValidity()) {
      // a name may be missing yet: for the estimate any will do
      if ([...form.elements].some((input) => input.name !== "name" && input.willValidate && !input.checkValidity())) return;
    }
    const nameless = form.elements.name.value === "";
    if (nameless) form.elements.name.value = "estimate";
    const sent = send("/v1/jobs/estimate", {});
    if (nameless) form.elements.name.value = "";
    try {
      const { status, found } = await sent;
      if (mine !== asked) return;
      if (status >= 400) {
        estimate.textContent = found.detail;
        return;
      }
      draw(found);
      if (found.status === "pending") setTimeout(() => mine === asked && ask(), AGAIN_MS);
    } catch {
      estimate.textContent = "The server cannot be reached.";
    }
  }

  let waiting;
  form.addEventListener("input", (event) => {
    if (event.target.name === "name") return;
    clearTimeout(waiting);
    waiting = setTimeout(ask, CALM_MS);
  });
  form.elements.base_model.addEventListener("change", (event) => {
    // other suggestions: the page is made anew, with the dataset that was chosen
    location.assign(`/ui/new-job?base=${encodeURIComponent(event.target.value)}&dataset=${encodeURIComponent(form.elements.dataset_id.value)}`);
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button.primary");
    button.disabled = true;
    try {
      const { status, found, location: place } = await send("/v1/jobs", { "Idempotency-Key": once });
      if (status === 201) pages.open(place);
      else show(found);
    } catch {
      pages.say("The server cannot be reached. No job was created; try again.", true);
    } finally {
      button.disabled = false;
    }
  });
  ask();
})();
