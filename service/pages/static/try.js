// The try-it box: an image and a prompt to the tuned model and its base, and what they find drawn on the image.
"use strict";
(() => {
  const part = (name) => document.getElementById(name); // it comes with the model, perhaps long after this script
  const POLL_MS = 1000;
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));

  function figure(source, alt, title) {
    const made = document.createElement("figure");
    const picture = document.createElement("img");
    picture.src = source;
    picture.alt = alt;
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    made.append(picture, caption);
    return made;
  }

  // The picture of what was found, and the answer behind it.
  async function find(file, wanted, untuned) {
    const { model } = part("try").dataset;
    const body = new FormData();
    if (untuned) body.append("untuned", "true");
    body.append("file", file);
    if (wanted) body.append("prompt", wanted);
    let answer = await pages.ask(`${model}/predict`, { method: "POST", body, headers: { Accept: "image/png" } });
    let place = answer.headers.get("Content-Location") || answer.headers.get("Location");
    while (answer.status === 202 || (await isPending(answer))) {
      part("try-told").textContent = "The model is being loaded, or others are before you…";
      await pause(POLL_MS);
      answer = await pages.ask(place, { headers: { Accept: "application/json" } });
      const found = await answer.json();
      if (found.status === "failed") throw new Error(`${found.error.message} ${found.error.hint}`);
      if (found.status === "succeeded") {
        answer = await pages.ask(place, { headers: { Accept: "image/png" } });
        break;
      }
    }
    const picture = URL.createObjectURL(await answer.blob());
    const found = await (await pages.ask(place, { headers: { Accept: "application/json" } })).json();
    return { picture, found };
  }

  async function isPending(answer) {
    return answer.headers.get("Content-Type").startsWith("application/json") && !["succeeded", "failed"].includes((await answer.clone().json()).status);
  }

  function summary(results) {
    return results.map(({ prompt: asked, detections }) => {
      const scores = detections.slice(0, 3).map((each) => each.score.toFixed(2)).join(", ");
      return `${asked}: ${detections.length}${scores ? ` (${scores}${detections.length > 3 ? ", …" : ""})` : ""}`;
    }).join("; ");
  }

  async function run() {
    const [image, prompt, told, pictures] = ["image", "prompt", "told", "pictures"].map((name) => part(`try-${name}`));
    const file = image.files[0];
    const button = part("try").querySelector("button");
    button.disabled = true;
    told.textContent = "Looking…";
    for (const old of pictures.querySelectorAll("img")) URL.revokeObjectURL(old.src);
    pictures.replaceChildren(figure(URL.createObjectURL(file), `The image ${file.name}`, "Image"));
    try {
      for (const [title, untuned] of [["Tuned", false], ["Base", true]]) {
        const { picture, found } = await find(file, prompt.value.trim(), untuned);
        const said = summary(found.results);
        pictures.append(figure(picture, `What the ${title.toLowerCase()} model found: ${said}`, `${title}: ${said}`));
        told.textContent = "";
      }
    } catch (error) {
      told.textContent = "";
      pages.say(error.message, true);
    } finally {
      button.disabled = false;
    }
  }

  document.addEventListener("submit", (event) => {
    if (event.target.id !== "try") return;
    event.preventDefault();
    run();
  });
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.target.closest("#try-card")) return;
      event.preventDefault();
      if (kind === "dragover" || !event.dataTransfer.files.length) return;
      part("try-image").files = event.dataTransfer.files;
      run();
    });
  }
})();
