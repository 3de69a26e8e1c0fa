// Forms of a model that a worker makes when they are first asked for: wait until it is there, then download.
"use strict";
(() => {
  const told = document.getElementById("export-told");
  const pause = (s) => new Promise((done) => setTimeout(done, 1000 * s));

  async function fetchExport(button) {
    button.disabled = true;
    try {
      for (;;) {
        const asked = new AbortController();
        const answer = await pages.ask(button.dataset.export, { signal: asked.signal });
        if (answer.status !== 202) {
          asked.abort(); // it is there: the browser's own download keeps it on disk
          break;
        }
        told.textContent = "A worker is making it. The download begins by itself…";
        await pause(Number(answer.headers.get("Retry-After")) || 2);
      }
      told.textContent = "";
      location.assign(button.dataset.export);
    } catch (error) {
      told.textContent = "";
      pages.say(error.message, true);
    } finally {
      button.disabled = false;
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-export]");
    if (button) fetchExport(button);
  });
})();
