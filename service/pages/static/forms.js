// Forms that create something through the API, and secrets that are shown once.
"use strict";
(() => {
  const dialog = document.getElementById("secret");
  const text = document.getElementById("secret-text");
  const DAY_S = 86400;

  function body(form) {
    const made = {};
    for (const input of form.elements) {
      if (!input.name) continue;
      if (input.dataset.kind === "list") {
        made[input.name] ??= [];
        if (input.checked) made[input.name].push(input.value);
      } else if (input.value !== "") {
        made[input.name] = input.dataset.kind === "days" ? Math.round(Number(input.value) * DAY_S) : input.value;
      }
    }
    return JSON.stringify(made);
  }

  function show(secret) {
    text.textContent = secret;
    dialog.showModal();
  }

  for (const form of document.querySelectorAll("[data-create]")) {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const button = form.querySelector("button.primary");
      button.disabled = true;
      try {
        const headers = { "Content-Type": "application/json" };
        const answer = await pages.ask(form.dataset.create, { method: "POST", headers, body: body(form) });
        form.reset();
        show((await answer.json()).secret);
        pages.refresh();
      } catch (error) {
        pages.say(error.message, true);
      } finally {
        button.disabled = false;
      }
    });
  }
  document.addEventListener("secret-made", (event) => show(event.detail));
  document.getElementById("copy-secret").addEventListener("click", async () => {
    await navigator.clipboard.writeText(text.textContent);
    pages.say("Copied.");
  });
  dialog.addEventListener("close", () => {
    text.textContent = "";
  });
})();
