// The end of a job's log: what is new is added, and the view stays at the end if it was there.
"use strict";
(() => {
  const log = document.getElementById("log");
  const KEPT = 60000; // characters
  let offset = null;
  let busy = false;

  async function update() {
    if (busy) return;
    busy = true;
    try {
      const query = offset === null ? "tail=200" : `after=${offset}`;
      const answer = await pages.ask(`${log.dataset.log}?${query}`, { headers: { Accept: "application/json" } });
      const found = await answer.json();
      offset = found.next_offset;
      if (found.data) {
        const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
        log.textContent = (log.textContent + found.data).slice(-KEPT);
        if (isAtEnd) log.scrollTop = log.scrollHeight;
      } else if (!log.textContent) {
        log.textContent = "Nothing was logged yet.";
      }
    } catch {
      // the next news brings another try
    } finally {
      busy = false;
    }
  }

  document.addEventListener("job-changed", update);
  update();
})();
