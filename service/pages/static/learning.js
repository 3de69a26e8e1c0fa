// The slider over epochs: pictures are exchanged where they stand, so that one sees what changed.
"use strict";
(() => {
  const part = document.getElementById("learning");
  const url = part.dataset.part;
  const known = new Map(); // what the server answered, by epoch
  let wanted = null;

  async function answerOf(epoch) {
    if (!known.has(epoch)) {
      const answer = await pages.ask(`${url}?epoch=${epoch}`);
      known.set(epoch, new DOMParser().parseFromString(await answer.text(), "text/html"));
    }
    return known.get(epoch);
  }

  function exchange(found) {
    const fresh = found.querySelectorAll("h3, figure");
    for (const [place, old] of part.querySelectorAll("h3, figure").entries()) {
      const now = fresh[place];
      if (!now || old.outerHTML === now.outerHTML) continue;
      if (old.tagName === "H3") {
        old.innerHTML = now.innerHTML;
        continue;
      }
      old.querySelector("figcaption").textContent = now.querySelector("figcaption").textContent;
      for (const [tag, name] of [["a", "href"], ["img", "src"], ["img", "alt"]]) {
        old.querySelector(tag).setAttribute(name, now.querySelector(tag).getAttribute(name));
      }
    }
  }

  part.addEventListener("input", async (event) => {
    const slider = event.target;
    const epochs = JSON.parse(slider.dataset.epochs);
    const epoch = wanted = epochs[slider.value];
    document.getElementById("epoch-shown").textContent = epoch;
    slider.setAttribute("aria-valuetext", `epoch ${epoch}`);
    // While it trains the latest is shown, until one looks at another.
    part.dataset.part = epoch === epochs.at(-1) ? url : `${url}?epoch=${epoch}`;
    try {
      const found = await answerOf(epoch);
      if (epoch === wanted) exchange(found);
    } catch (error) {
      pages.say(error.message, true);
    }
  });
})();
