// Other references of the server's library for a photo, the best first; and what looks like no photo.

import { call, pictureUrl } from "./api.js";
import { takesReferences } from "./options.js";

const CLOSED = "Show what else would suit";
const element = (id) => document.getElementById(id);

export class Alternatives {
  #item = null;
  #restoreAgain;
  #keepUrl;

  constructor({ restoreAgain, keepUrl }) {
    this.#restoreAgain = restoreAgain;
    this.#keepUrl = keepUrl;
  }

  get #graphic() {
    return this.#item.job.report.photo.content !== "photo";
  }

  /** Show what there is for an item, not yet ranked. */
  show(item, service) {
    this.#item = item;
    const { options } = item.job;
    const graphic = this.#graphic;
    const system = takesReferences(options.system) || service.systems.includes(`${options.system}+pikfix`);
    const part = element("alternatives");
    part.hidden = !(graphic || (service.library && options.color !== false && system));
    element("ranked").replaceChildren();
    const button = element("rank");
    button.disabled = false;
    button.textContent = graphic ? "Restore it all the same" : CLOSED;
    part.querySelector("h3").textContent = graphic ? "Not a photo?" : "Other references";
    element("alternatives-text").textContent = graphic
      ? "Text and drawings are left alone, since the networks know photos."
      : "The library can give the photo the colours of another picture.";
  }

  /** Rank the library; or restore what looks like no photo. */
  async open() {
    const item = this.#item;
    if (this.#graphic) {
      this.#restoreAgain(item, { options: { ...item.job.options, force_photo: true } });
      return;
    }
    const button = element("rank");
    button.disabled = true;
    button.textContent = "Ranking the library …";
    try {
      const ranked = await (await call(`v1/restorations/${item.id}/references`)).json();
      if (item !== this.#item) return;
      const used = new Set(item.job.report.references.map((one) => one.name));
      element("ranked").replaceChildren(...ranked.map((one) => this.#one(item, one, used.has(one.name))));
      button.textContent = ranked.length ? "Ranked, the best first" : "The library has no other picture";
    } catch (problem) {
      button.disabled = false;
      button.textContent = CLOSED;
      throw problem;
    }
  }

  #one(item, one, used) {
    const line = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", String(used));
    const picture = document.createElement("img");
    picture.alt = "";
    const text = document.createElement("span");
    text.textContent = `${one.name}, ${one.score.toFixed(2)}${one.suits ? "" : ", hardly suits"}${used ? ", used here" : ""}`;
    button.append(picture, text);
    button.addEventListener("click", () => {
      // Whoever asks for these colours asks no longer for none, or for the photo's own.
      const { color, keep_color: keep, ...options } = item.job.options;
      if (!takesReferences(options.system)) options.system = `${options.system}+pikfix`;
      this.#restoreAgain(item, { library: [one.name], options });
    });
    line.append(button);
    pictureUrl(`v1/library/thumbnail?name=${encodeURIComponent(one.name)}`, "image/jpeg").then(
      (url) => (picture.src = this.#keepUrl(url)),
      () => {},
    );
    return line;
  }
}
