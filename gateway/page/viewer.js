// The photo before and after, one over the other: a divider, zoom and pan of both in step.

const MOST = 16;
const NEAR = 28;
const element = (id) => document.getElementById(id);

export class Viewer {
  #size = [1, 1];
  #scale = 1;
  #left = 0;
  #top = 0;
  #fitted = true;
  #pointers = new Map();
  #drag = null;
  /** What a pointer and the keys do in place of moving the picture: begin, extend, end, cancel, key, moved. */
  tool = null;

  constructor() {
    this.stage = element("stage");
    this.planes = [...this.stage.querySelectorAll(".plane")];
    this.wipe = element("wipe");
    this.wipe.addEventListener("input", () => this.#draw());
    element("in").addEventListener("click", () => this.zoom(1.5));
    element("out").addEventListener("click", () => this.zoom(1 / 1.5));
    element("fit").addEventListener("click", () => this.fit());
    element("full").addEventListener("click", () => this.zoom(1 / devicePixelRatio / this.#scale));
    this.stage.addEventListener("keydown", (event) => this.#key(event));
    this.stage.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.stage.addEventListener("dblclick", (event) => {
      if (this.tool) return;
      if (this.#fitted) this.zoom(1 / devicePixelRatio / this.#scale, event);
      else this.fit();
    });
    this.stage.addEventListener("pointerdown", (event) => this.#down(event));
    this.stage.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      this.stage.addEventListener(name, (event) => this.#up(event));
    }
    new ResizeObserver(() => this.#resized()).observe(this.stage);
  }

  /** Show a picture of so many pixels, all of it. */
  show(width, height) {
    this.#size = [width, height];
    for (const plane of this.planes) {
      plane.style.width = `${width}px`;
      plane.style.height = `${height}px`;
    }
    this.wipe.value = 50;
    this.#fitted = true;
    this.#resized();
  }

  /** As high as the picture at the stage's width; the style sheet has the limits. */
  #resized() {
    this.stage.style.height = `${Math.round((this.stage.clientWidth * this.#size[1]) / this.#size[0])}px`;
    if (this.#fitted) this.fit();
    else this.#draw();
  }

  get #whole() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    return Math.min(width / this.#size[0], height / this.#size[1]);
  }

  fit() {
    this.#scale = this.#whole;
    this.#left = (this.stage.clientWidth - this.#size[0] * this.#scale) / 2;
    this.#top = (this.stage.clientHeight - this.#size[1] * this.#scale) / 2;
    this.#fitted = true;
    this.#draw();
  }

  /** Zoom by a factor about a point, or the middle. */
  zoom(factor, at = null) {
    const box = this.stage.getBoundingClientRect();
    const x = at ? at.clientX - box.left : box.width / 2;
    const y = at ? at.clientY - box.top : box.height / 2;
    const least = Math.min(this.#whole, 1);
    const scale = Math.min(Math.max(this.#scale * factor, least), MOST);
    const by = scale / this.#scale;
    this.#left = x - (x - this.#left) * by;
    this.#top = y - (y - this.#top) * by;
    this.#scale = scale;
    this.#fitted = false;
    this.#draw();
  }

  pan(x, y) {
    this.#left += x;
    this.#top += y;
    this.#fitted = false;
    this.#draw();
  }

  /** Where of the picture an event is, in its pixels. */
  placeOf(event) {
    const box = this.stage.getBoundingClientRect();
    return [(event.clientX - box.left - this.#left) / this.#scale, (event.clientY - box.top - this.#top) / this.#scale];
  }

  /** Where in the stage a place of the picture is, in pixels of the screen. */
  inStage([x, y]) {
    return [this.#left + x * this.#scale, this.#top + y * this.#scale];
  }

  /** The place of the picture in the middle of what is seen of it. */
  get middle() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    return [(width / 2 - this.#left) / this.#scale, (height / 2 - this.#top) / this.#scale];
  }

  /** Pixels of the screen to one of the picture. */
  get scale() {
    return this.#scale;
  }

  /** Move the picture as far as is needed to see a place of it. */
  reveal(place) {
    const [x, y] = this.inStage(place);
    const { clientWidth: width, clientHeight: height } = this.stage;
    const by = [Math.min(Math.max(x, 0), width) - x, Math.min(Math.max(y, 0), height) - y];
    if (by[0] || by[1]) this.pan(...by);
  }

  /** Where the divider is in the stage: it travels over what is seen of the picture. */
  #edges() {
    const right = this.#left + this.#size[0] * this.#scale;
    return [Math.max(0, this.#left), Math.min(this.stage.clientWidth, right)];
  }

  get #divider() {
    const [left, right] = this.#edges();
    return left + ((right - left) * this.wipe.value) / 100;
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    // A part of the picture stays in sight.
    const shown = [this.#size[0] * this.#scale, this.#size[1] * this.#scale];
    this.#left = Math.min(Math.max(this.#left, 48 - shown[0]), width - 48);
    this.#top = Math.min(Math.max(this.#top, 48 - shown[1]), height - 48);
    for (const plane of this.planes) {
      plane.style.transform = `translate(${this.#left}px, ${this.#top}px) scale(${this.#scale})`;
    }
    const at = this.#divider;
    element("after-layer").style.clipPath = `inset(0 0 0 ${at}px)`;
    element("divider").style.left = `${at}px`;
    element("zoom").textContent = `${Math.round(100 * this.#scale * devicePixelRatio)} %`;
    this.wipe.setAttribute("aria-valuetext", `${100 - this.wipe.value} % of what is seen is the result`);
    this.tool?.moved();
  }

  #wipeTo(event) {
    const [left, right] = this.#edges();
    const x = event.clientX - this.stage.getBoundingClientRect().left;
    this.wipe.value = Math.round((100 * (x - left)) / Math.max(right - left, 1));
    this.#draw();
  }

  #key(event) {
    if (this.tool?.key(event)) return;
    const step = event.shiftKey ? 200 : 50;
    const done = {
      ArrowLeft: () => this.pan(step, 0),
      ArrowRight: () => this.pan(-step, 0),
      ArrowUp: () => this.pan(0, step),
      ArrowDown: () => this.pan(0, -step),
      "+": () => this.zoom(1.25),
      "=": () => this.zoom(1.25),
      "-": () => this.zoom(0.8),
      0: () => this.fit(),
      1: () => this.zoom(1 / devicePixelRatio / this.#scale),
    }[event.key];
    if (!done || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    done();
  }

  #wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), event);
  }

  #down(event) {
    if (event.button) return;
    this.stage.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, event);
    const x = event.clientX - this.stage.getBoundingClientRect().left;
    const near = Math.abs(x - this.#divider) < NEAR;
    if (this.#pointers.size > 1) {
      if (this.#drag === "tool") this.tool?.cancel();
      this.#drag = "pinch";
    } else if (this.tool) {
      this.#drag = "tool";
      this.tool.begin(this.placeOf(event));
    } else this.#drag = near || this.#fitted ? "divider" : "picture";
  }

  #move(event) {
    this.tool?.hover(this.placeOf(event));
    const before = this.#pointers.get(event.pointerId);
    if (!before) return;
    if (this.#drag === "tool") {
      // A browser gathers what a quick hand did between two frames.
      const all = event.getCoalescedEvents?.() ?? [];
      for (const one of all.length ? all : [event]) this.tool?.extend(this.placeOf(one));
    }
    if (this.#drag === "divider") this.#wipeTo(event);
    if (this.#drag === "picture") this.pan(event.clientX - before.clientX, event.clientY - before.clientY);
    if (this.#drag === "pinch" && this.#pointers.size === 2) {
      const [other] = [...this.#pointers.values()].filter((one) => one.pointerId !== event.pointerId);
      const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
      const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
      this.zoom(distance(event) / distance(before), middle);
    }
    this.#pointers.set(event.pointerId, event);
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    if (this.#drag === "tool") event.type === "pointerup" ? this.tool?.end() : this.tool?.cancel();
    if (!this.#pointers.size) this.#drag = null;
  }
}
