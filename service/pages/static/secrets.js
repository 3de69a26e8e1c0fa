// Secrets that are shown once.
"use strict";
(() => {
  const dialog = document.getElementById("secret");
  const text = document.getElementById("secret-text");

  document.addEventListener("secret-made", (event) => {
    text.textContent = event.detail;
    dialog.showModal();
  });
  document.getElementById("copy-secret").addEventListener("click", async () => {
    await navigator.clipboard.writeText(text.textContent);
    pages.say("Copied.");
  });
  dialog.addEventListener("close", () => {
    text.textContent = "";
  });
})();
