// What is asked for with a photo. Nothing is sent that is at its default.

const REMEMBERED = "pikfix.options";
const DEFAULT_SYSTEM = "pikfix";
const SYSTEMS = {
  pikfix: "Pik-Fix: restores and colours",
  latent: "Latent translation: restores, adds no colours",
  "latent+pikfix": "Latent translation, coloured by Pik-Fix",
};

const element = (id) => document.getElementById(id);

/** Whether a system takes references; the others add no colours. */
export const takesReferences = (system = DEFAULT_SYSTEM) => system !== "latent";

/** Choices for new photos, and once more for one that was restored: strength, own colours, system. */
export class Choices {
  #parts = {};
  #value;
  /** The system that was chosen, also while the server does not have it. */
  wanted = DEFAULT_SYSTEM;

  constructor(box) {
    box.append(element("choices").content.cloneNode(true));
    for (const part of box.querySelectorAll("[name]")) this.#parts[part.name] = part;
    this.#value = box.querySelector(".value");
    this.#parts.strength.addEventListener("input", () => this.#tell());
    this.#parts.system.addEventListener("change", () => (this.wanted = this.#parts.system.value));
  }

  /** Offer systems; without latent translation there is no choice. */
  offer(systems) {
    const { system } = this.#parts;
    system.replaceChildren(...systems.map((one) => new Option(SYSTEMS[one] ?? one, one)));
    this.#choose();
    system.closest("label").hidden = !systems.includes("latent");
  }

  /** Own colours are none that a grey result could keep. */
  allowColours(yes) {
    this.#parts.keep_color.disabled = !yes;
  }

  get options() {
    const { strength, keep_color: keep, system } = this.#parts;
    const options = {};
    if (strength.value !== "100") options.strength = strength.value / 100;
    if (keep.checked && !keep.disabled) options.keep_color = true;
    if (system.value && system.value !== DEFAULT_SYSTEM) options.system = system.value;
    return options;
  }

  set options({ strength = 1, keep_color: keep = false, system = DEFAULT_SYSTEM }) {
    this.#parts.strength.value = Number.isFinite(strength) ? Math.round(100 * strength) : 100;
    this.#parts.keep_color.checked = keep;
    this.wanted = system;
    this.#choose();
    this.#tell();
  }

  #choose() {
    const { system } = this.#parts;
    system.value = this.wanted;
    if (system.selectedIndex < 0 && system.options.length) system.selectedIndex = 0;
  }

  #tell() {
    const { strength } = this.#parts;
    this.#value.textContent = `${strength.value} %`;
    strength.setAttribute("aria-valuetext", `${strength.value} percent of the restoration`);
  }
}

/** The options of the next photos; this browser remembers them. */
export class NextOptions {
  #own = [];
  #choices = new Choices(element("next-choices"));

  /** `most` is how many references a photo may have. */
  constructor(most) {
    element("references").addEventListener("change", (event) => {
      this.#own = [...event.target.files].slice(0, most);
      const lines = this.#own.map((file) => {
        const line = document.createElement("li");
        line.textContent = file.name;
        return line;
      });
      element("own-list").replaceChildren(...lines);
    });
    element("options").addEventListener("change", () => {
      this.#settle();
      localStorage.setItem(REMEMBERED, JSON.stringify({ ...this.options, system: this.#choices.wanted }));
    });
  }

  offer(systems) {
    this.#choices.offer(systems);
    this.#settle();
  }

  /** Take up what was chosen at an earlier visit; photos of one's own are not remembered. */
  restore() {
    let known = {};
    try {
      known = JSON.parse(localStorage.getItem(REMEMBERED)) ?? {};
    } catch {
      // Written by something else.
    }
    if (known.color === false) document.querySelector("input[name=colours][value=none]").checked = true;
    element("force-photo").checked = known.force_photo === true;
    const formats = [...element("format").options].map((one) => one.value);
    element("format").value = formats.includes(known.format) ? known.format : "";
    this.#choices.options = known;
    this.#settle();
    // What is not as usual is seen before a photo is sent with it.
    element("options").open = Object.keys(this.options).length > 0;
  }

  get options() {
    const options = this.#choices.options;
    if (this.#colours === "none") options.color = false;
    if (element("force-photo").checked) options.force_photo = true;
    if (element("format").value) options.format = element("format").value;
    return options;
  }

  get references() {
    return this.#colours === "own" ? this.#own : [];
  }

  get #colours() {
    return document.querySelector("input[name=colours]:checked").value;
  }

  /** What contradicts another choice cannot be chosen. */
  #settle() {
    const own = document.querySelector("input[name=colours][value=own]");
    own.disabled = !takesReferences(this.#choices.options.system);
    if (own.disabled && own.checked) document.querySelector("input[name=colours][value=auto]").checked = true;
    element("own").hidden = !own.checked;
    this.#choices.allowColours(this.#colours !== "none");
  }
}
