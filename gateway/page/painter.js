// Damage that is marked by hand: a brush over the photo, by mouse, touch, pen or keys.

const LONGEST = 2048;
/** What is fainter in an earlier mask is the noise of its preview. */
const FAINT = 16;
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const element = (id) => document.getElementById(id);

/** The size of a photo's mask: the same shape, a long side of at most LONGEST. */
export function maskSize(width, height) {
  const share = Math.min(1, LONGEST / Math.max(width, height));
  // The short side is rounded, the long one fitted to it: it hits the shape within less than its own pixel.
  const short = Math.max(1, Math.floor(share * Math.min(width, height)));
  const long = Math.round((short * Math.max(width, height)) / Math.min(width, height));
  return width < height ? [short, long] : [long, short];
}

export class Painter {
  #viewer;
  #say;
  #work = new Map(); // item -> its strokes and the mask that it was restored with
  #item = null;
  #stroke = null;
  #at = [0, 0];
  #canvas = element("marks");
  #tip = element("brush-tip");
  #opens = 0;

  /** `send` gets an item and a PNG, or null where nothing is marked; `say` what is to be heard, `fail` an error. */
  constructor(viewer, { send, say, fail }) {
    this.#viewer = viewer;
    this.#say = say;
    element("brush").addEventListener("input", () => this.#size());
    element("undo").addEventListener("click", () => this.#undo());
    element("clear").addEventListener("click", () => this.#clear());
    element("unmark").addEventListener("click", () => this.close());
    element("send-marks").addEventListener("click", () => {
      const item = this.#item;
      this.end();
      const sent = this.#file().then((file) => send(item, file));
      this.close();
      sent.catch(fail);
    });
    viewer.stage.addEventListener("pointerleave", () => (this.#tip.hidden = !this.#stroke));
    document.addEventListener("keydown", (event) => this.#shortcut(event));
  }

  get isOpen() {
    return this.#item !== null;
  }

  /** Begin to mark an item's photo; `earlier` gives a picture of the mask it was restored with, or null. */
  async open(item, earlier) {
    const number = ++this.#opens;
    const { width, height } = item.job.report.photo;
    const size = maskSize(width, height);
    if (!this.#work.has(item)) {
      const picture = await earlier();
      // Another photo was chosen meanwhile.
      if (number !== this.#opens) return;
      this.#work.set(item, { strokes: [], base: picture && inkOf(picture, size) });
    }
    this.#item = item;
    [this.#canvas.width, this.#canvas.height] = size;
    this.#at = this.#viewer.middle;
    this.#viewer.tool = this;
    this.#show(true);
    this.#size();
    this.#redraw();
    element("stage").focus();
    this.#say("Arrow keys move the brush, space puts it down and lifts it, Escape ends.");
  }

  /** Leave off; what was painted is there when the same photo is marked again. */
  close() {
    this.#opens += 1;
    if (!this.isOpen) return;
    this.cancel();
    this.#item = null;
    this.#viewer.tool = null;
    this.#show(false);
    if (element("mark").offsetParent) element("mark").focus();
  }

  /** Forget an item. */
  forget(item) {
    if (item === this.#item) this.close();
    this.#work.delete(item);
  }

  // --- the brush ---

  /** Put the brush down at a place of the photo, in its pixels. */
  begin(place) {
    this.#stroke = { radius: (element("brush").value / 2 / this.#viewer.scale) * this.#share, points: [] };
    this.#strokes.push(this.#stroke);
    this.extend(place);
  }

  extend(place) {
    this.#move(place);
    if (!this.#stroke) return;
    this.#stroke.points.push(place.map((one) => one * this.#share));
    this.#line(this.#stroke, this.#stroke.points.slice(-2));
    this.#tell();
  }

  end() {
    this.#stroke = null;
  }

  /** Take back the stroke that is under way. */
  cancel() {
    if (!this.#stroke) return;
    this.#stroke = null;
    this.#undo();
  }

  hover(place) {
    if (!this.#stroke) this.#move(place);
  }

  /** The picture was moved under the brush. */
  moved() {
    const [x, y] = this.#viewer.inStage(this.#at);
    this.#tip.style.transform = `translate(${x}px, ${y}px)`;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    if (event.key === " ") {
      if (this.#stroke) this.end();
      else this.begin(this.#at);
      this.#say(this.#stroke ? "brush down" : "brush lifted");
    } else if (STEPS[event.key]) {
      const step = (event.shiftKey ? 40 : 8) / this.#viewer.scale;
      const { width, height } = this.#item.job.report.photo;
      const [x, y] = STEPS[event.key].map((one, axis) => this.#at[axis] + one * step);
      const place = [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
      this.#viewer.reveal(place);
      this.extend(place);
    } else return false;
    event.preventDefault();
    return true;
  }

  #shortcut(event) {
    if (!this.isOpen || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      if (this.#stroke) this.cancel();
      else this.close();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.#undo();
    else return;
    event.preventDefault();
  }

  #move(place) {
    this.#at = place;
    this.#tip.hidden = false;
    this.moved();
  }

  #size() {
    const { value } = element("brush");
    this.#tip.style.width = this.#tip.style.height = `${value}px`;
    this.#tip.style.margin = `${-value / 2}px`;
    element("brush-value").textContent = value;
    element("brush").setAttribute("aria-valuetext", `${value} pixels of the screen`);
  }

  // --- what is marked ---

  get #strokes() {
    return this.#work.get(this.#item).strokes;
  }

  /** Pixels of the mask to one of the photo. */
  get #share() {
    return this.#canvas.width / this.#item.job.report.photo.width;
  }

  /** Strokes since all was taken away, and whether the earlier mask is still there. */
  get #left() {
    const cleared = this.#strokes.findLastIndex((one) => one.clear);
    return { strokes: this.#strokes.slice(cleared + 1), base: cleared < 0 ? this.#work.get(this.#item).base : null };
  }

  #undo() {
    this.#stroke = null;
    this.#strokes.pop();
    this.#redraw();
  }

  #clear() {
    const { strokes, base } = this.#left;
    if (strokes.length || base) this.#strokes.push({ clear: true });
    this.#redraw();
  }

  #redraw() {
    const { strokes, base } = this.#left;
    const pen = this.#canvas.getContext("2d");
    pen.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (base) pen.drawImage(base, 0, 0);
    for (const stroke of strokes) this.#line(stroke, stroke.points);
    this.#tell();
  }

  #line({ radius, points: [first] }, points) {
    const pen = this.#canvas.getContext("2d");
    pen.fillStyle = pen.strokeStyle = getComputedStyle(this.#canvas).color;
    pen.lineWidth = 2 * radius;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    if (points.length < 2) {
      pen.arc(...first, radius, 0, 2 * Math.PI);
      pen.fill();
      return;
    }
    points.forEach((place) => pen.lineTo(...place));
    pen.stroke();
  }

  #tell() {
    const { strokes, base } = this.#left;
    const { strokes: all, base: before } = this.#work.get(this.#item);
    element("undo").disabled = !all.length;
    element("clear").disabled = !strokes.length && !base;
    element("send-marks").disabled = !all.length || (!strokes.length && !base && !before);
    element("send-marks").textContent = strokes.length || base ? "Restore with the marks" : "Restore without marks";
  }

  #show(yes) {
    for (const id of ["marking", "marks"]) element(id).hidden = !yes;
    if (!yes) this.#tip.hidden = true;
    element("mark").setAttribute("aria-expanded", String(yes));
    this.#viewer.stage.classList.toggle("marking", yes);
  }

  /** A PNG, white where the photo is marked; null where nothing is. */
  async #file() {
    const { strokes, base } = this.#left;
    if (!strokes.length && !base) return null;
    const { width, height } = this.#canvas;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const pen = canvas.getContext("2d");
    pen.drawImage(this.#canvas, 0, 0);
    for (const [how, colour] of [["source-in", "#fff"], ["destination-over", "#000"]]) {
      pen.globalCompositeOperation = how;
      pen.fillStyle = colour;
      pen.fillRect(0, 0, width, height);
    }
    const file = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    // Not taken for a photo without marks.
    if (!file) throw new Error("the browser cannot make a picture of the marks: mark the photo in another one");
    return file;
  }
}

/** A mask's picture as ink over nothing. */
function inkOf(picture, [width, height]) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0, width, height);
  const pixels = pen.getImageData(0, 0, width, height);
  const { data } = pixels;
  for (let at = 0; at < data.length; at += 4) {
    const level = Math.max(data[at], data[at + 1], data[at + 2]);
    data[at + 3] = level < FAINT ? 0 : level;
  }
  pen.putImageData(pixels, 0, 0);
  pen.globalCompositeOperation = "source-in";
  pen.fillStyle = getComputedStyle(element("marks")).color;
  pen.fillRect(0, 0, width, height);
  return canvas;
}
