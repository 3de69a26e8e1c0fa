// What all pages share: times in the reader's own, buttons that ask the API, parts that stay up to date.
"use strict";
(() => {
  const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });
  const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60]];
  const LIST_EVERY_MS = 3000;

  function tellTimes(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      const ago = (at - Date.now()) / 1000;
      const [unit, length] = UNITS.find(([, seconds]) => Math.abs(ago) >= seconds) || ["minute", 60];
      const isNear = Math.abs(ago) < 86400;
      time.textContent = isNear ? relative.format(Math.round(ago / length), unit) : absolute.format(at);
      if (!time.dataset.utc) time.dataset.utc = time.title;
      time.title = `${time.dataset.utc} (${absolute.format(at)} here)`;
    }
  }

  // What can be scrolled sideways can be reached with the keyboard; what cannot is no stop on the way.
  function openToKeys(root) {
    for (const box of root.querySelectorAll(".scroll")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  function say(text, isBad) {
    const note = document.createElement("div");
    note.className = isBad ? "note bad" : "note";
    note.textContent = text;
    if (isBad) note.setAttribute("role", "alert");
    document.getElementById("toast").replaceChildren(note);
    setTimeout(() => note.remove(), isBad ? 12000 : 5000);
  }

  // What went wrong, in the API's own words.
  async function problemOf(answer) {
    try {
      return (await answer.json()).detail;
    } catch {
      return `The server answered ${answer.status}.`;
    }
  }

  async function ask(url, options) {
    let answer;
    try {
      answer = await fetch(url, options);
    } catch {
      throw new Error("The server cannot be reached. Nothing was changed; try again.");
    }
    if (answer.status === 401) {
      location.reload(); // to where one signs in
      throw new Error("Sign in again.");
    }
    if (!answer.ok) throw new Error(await problemOf(answer));
    return answer;
  }

  // To the page of what the API has just made, from its address there.
  function open(made) {
    location.assign("/ui" + made.replace("/v1", ""));
  }

  async function act(button) {
    if (button.dataset.confirm && !confirm(button.dataset.confirm)) return;
    button.disabled = true;
    try {
      const { post, patch, delete: remove, body } = button.dataset;
      const headers = body ? { "Content-Type": "application/json" } : {};
      const method = post ? "POST" : patch ? "PATCH" : "DELETE";
      const answer = await ask(post || patch || remove, { method, headers, body });
      if (button.dataset.then === "secret") {
        document.dispatchEvent(new CustomEvent("secret-made", { detail: (await answer.json()).secret }));
        refresh();
      } else if (button.dataset.then === "created") {
        open(answer.headers.get("Location"));
      } else if (button.dataset.then) {
        location.assign(button.dataset.then);
      } else {
        refresh();
      }
    } catch (error) {
      say(error.message, true);
    } finally {
      button.disabled = false;
    }
  }

  // Parts are asked for anew, and drawn only where they differ: nothing moves under the reader's hand.
  async function load(part, url) {
    const lost = document.getElementById("lost");
    try {
      // With a source of its own: else they would wait for each other.
      await htmx.ajax("GET", url, { source: part, target: part, swap: "innerHTML" });
      if (!document.querySelector("[data-stream]")) lost.hidden = true;
    } catch {
      lost.hidden = false; // the next refresh is another try
    }
  }

  function refresh(kinds) {
    for (const part of document.querySelectorAll("[data-part]")) {
      if (!part.dataset.on || !kinds || kinds.has(part.dataset.on)) load(part, part.dataset.part);
    }
    for (const part of document.querySelectorAll("[data-live]")) load(part, part.dataset.live);
  }

  // One stream for the page. It only says that there is news; what it is, the page asks for: nothing can be missed.
  function follow(url) {
    const lost = document.getElementById("lost");
    let seen = -1;
    let again = 1000;
    function connect() {
      const stream = new EventSource(url);
      stream.onopen = () => {
        lost.hidden = true;
        again = 1000;
      };
      stream.addEventListener("changed", (event) => {
        const { events } = JSON.parse(event.data);
        refresh(new Set(events === seen ? [] : ["events"]));
        seen = events;
        document.dispatchEvent(new CustomEvent("job-changed"));
      });
      stream.addEventListener("done", () => {
        stream.close();
        refresh();
        document.dispatchEvent(new CustomEvent("job-changed", { detail: { done: true } }));
      });
      stream.onerror = () => {
        lost.hidden = false;
        if (stream.readyState !== EventSource.CLOSED) return; // it tries again by itself
        setTimeout(connect, again);
        again = Math.min(again * 2, 15000);
      };
    }
    connect();
  }

  function start() {
    tellTimes(document);
    openToKeys(document);
    addEventListener("resize", () => openToKeys(document));
    setInterval(() => tellTimes(document), 30000);
    document.addEventListener("click", (event) => {
      const button = event.target.closest("[data-post], [data-patch], [data-delete]");
      if (button) act(button);
    });
    document.getElementById("theme").addEventListener("click", () => {
      const now = document.documentElement.dataset.theme
        || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
      const next = now === "dark" ? "light" : "dark";
      document.documentElement.dataset.theme = next;
      localStorage.setItem("theme", next);
      document.dispatchEvent(new CustomEvent("theme-changed"));
    });
    document.body.addEventListener("htmx:beforeSwap", (event) => {
      const { target, xhr } = event.detail;
      if (xhr.status !== 200 || target.shown === xhr.responseText) event.detail.shouldSwap = false;
      else {
        target.shown = xhr.responseText;
        const box = target.querySelector(".events, .scroll");
        target.scrolled = box ? box.scrollTop : 0;
        target.opened = [...target.querySelectorAll("details")].map((each) => each.open);
        target.focused = target.contains(document.activeElement) ? document.activeElement.id : "";
      }
    });
    document.body.addEventListener("htmx:afterSwap", (event) => {
      tellTimes(event.detail.target);
      openToKeys(event.detail.target);
      const box = event.detail.target.querySelector(".events, .scroll");
      if (box) box.scrollTop = event.detail.target.scrolled;
      const { opened } = event.detail.target;
      if (opened?.length) event.detail.target.querySelectorAll("details").forEach((each, at) => { each.open = opened[at] ?? each.open; });
      if (event.detail.target.focused) document.getElementById(event.detail.target.focused)?.focus();
    });
    const { stream } = document.getElementById("main").dataset;
    if (stream) follow(stream);
    if (document.querySelector("[data-live]")) {
      setInterval(() => document.hidden || refresh(), LIST_EVERY_MS);
    }
  }

  window.pages = { ask, open, say, refresh, tellTimes };
  start();
})();
