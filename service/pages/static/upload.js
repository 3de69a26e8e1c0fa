// Upload of an archive in parts: it goes on where it was, also after the page or the server was closed.
"use strict";
(() => {
  const form = document.getElementById("upload");
  const file = document.getElementById("file");
  const name = document.getElementById("name");
  const stop = document.getElementById("stop-upload");
  const shown = document.getElementById("upload-progress");
  const told = document.getElementById("upload-told");
  const bar = shown.querySelector("progress");
  const RETRY_MS = [1000, 2000, 4000, 8000, 15000];
  let isStopped = false;

  const keyOf = (chosen) => `upload:${chosen.name}:${chosen.size}:${chosen.lastModified}`;
  const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));

  function send(url, part, onBytes) {
    return new Promise((done, fail) => {
      const request = new XMLHttpRequest();
      request.open("PUT", url);
      request.upload.onprogress = (event) => onBytes(event.loaded);
      request.onload = () => (request.status < 300 ? done() : fail(Object.assign(new Error(describe(request)), { status: request.status })));
      request.onerror = () => fail(Object.assign(new Error("The server cannot be reached."), { status: 0 }));
      request.send(part);
    });
  }

  function describe(request) {
    try {
      return JSON.parse(request.responseText).detail;
    } catch {
      return `The server answered ${request.status}.`;
    }
  }

  // The upload that was begun for this very file, else a new one.
  async function begin(chosen) {
    const known = localStorage.getItem(keyOf(chosen));
    if (known) {
      const answer = await fetch(`/v1/uploads/${known}`);
      if (answer.ok) {
        const found = await answer.json();
        if (found.status !== "expired") return found;
      }
    }
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ filename: chosen.name, bytes: chosen.size, part_bytes: partSize(chosen.size) });
    const found = await (await pages.ask("/v1/uploads", { method: "POST", headers, body })).json();
    localStorage.setItem(keyOf(chosen), found.id);
    return found;
  }

  // Small enough that little is sent twice, large enough for 10,000 parts.
  function partSize(bytes) {
    return Math.max(8 * 2 ** 20, Math.ceil(bytes / 9000));
  }

  async function sendParts(chosen, upload) {
    const there = new Set(upload.parts.map((part) => part.number));
    let sent = upload.parts.reduce((sum, part) => sum + part.bytes, 0);
    const tell = (more) => {
      bar.value = (sent + more) / chosen.size;
      told.textContent = `${megabytes(sent + more)} of ${megabytes(chosen.size)} MB`;
    };
    tell(0);
    for (let number = 1; number <= upload.part_count; number += 1) {
      if (there.has(number)) continue;
      const part = chosen.slice((number - 1) * upload.part_bytes, number * upload.part_bytes);
      for (let attempt = 0; ; attempt += 1) {
        if (isStopped) return false;
        try {
          await send(upload.urls.part.replace("{number}", number), part, tell);
          break;
        } catch (error) {
          if (error.status >= 400 && error.status < 500 && error.status !== 408 && error.status !== 429) throw error;
          told.textContent = `${error.message} Trying again…`;
          await pause(RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]);
        }
      }
      sent += part.size;
      tell(0);
    }
    return true;
  }

  async function run() {
    const chosen = file.files[0];
    if (chosen.size > Number(form.dataset.maxBytes)) {
      pages.say("This file is larger than the server takes.", true);
      return;
    }
    isStopped = false;
    shown.hidden = stop.hidden = false;
    form.querySelector(".primary").disabled = true;
    try {
      const upload = await begin(chosen);
      if (upload.status === "pending") {
        if (!(await sendParts(chosen, upload))) {
          told.textContent += ", paused. Upload goes on from here.";
          return;
        }
        told.textContent = "Putting the parts together…";
        await pages.ask(upload.urls.complete, { method: "POST" });
      }
      const headers = { "Content-Type": "application/json" };
      const body = JSON.stringify({ name: name.value || null, source: { type: "upload", upload_id: upload.id } });
      const answer = await pages.ask("/v1/datasets", { method: "POST", headers, body });
      localStorage.removeItem(keyOf(chosen));
      pages.open(answer.headers.get("Location"));
    } catch (error) {
      pages.say(error.message, true);
    } finally {
      stop.hidden = true;
      form.querySelector(".primary").disabled = false;
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  stop.addEventListener("click", () => {
    isStopped = true;
  });
})();
