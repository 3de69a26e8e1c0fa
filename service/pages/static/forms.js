// Forms that create something through the API.
"use strict";
(() => {
  const DAY_S = 86400;

  function body(form) {
    const made = {};
    for (const input of form.elements) {
      const { kind } = input.dataset;
      if (!input.name) continue;
      if (kind === "list" || kind === "items") {
        made[input.name] ??= [];
        if (kind === "items" || input.checked) made[input.name].push(input.value);
      } else if (input.value !== "") {
        made[input.name] = kind === "days" ? Math.round(Number(input.value) * DAY_S) : input.value;
      }
    }
    return JSON.stringify(made);
  }

  async function create(form) {
    const button = form.querySelector("button.primary");
    button.disabled = true;
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await pages.ask(form.dataset.create, { method: "POST", headers, body: body(form) });
      if (form.dataset.then === "created") {
        pages.open(answer.headers.get("Location"));
        return;
      }
      form.reset();
      document.dispatchEvent(new CustomEvent("secret-made", { detail: (await answer.json()).secret }));
      pages.refresh();
    } catch (error) {
      pages.say(error.message, true);
    } finally {
      button.disabled = false;
    }
  }

  for (const form of document.querySelectorAll("[data-create]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      create(form);
    });
  }
})();
