// Wires the page: photos come in, the list tells of them, the chosen one is shown.

import { Alternatives } from "./alternatives.js";
import { call, pictureUrl } from "./api.js";
import { listenForPhotos } from "./intake.js";
import { Choices, NextOptions, takesReferences } from "./options.js";
import { Painter } from "./painter.js";
import { Queue } from "./queue.js";
import { sentencesOf, shareOf, stateOf } from "./words.js";
import { Viewer } from "./viewer.js";

const element = (id) => document.getElementById(id);
const SHOWN_BY_BROWSERS = { jpeg: "image/jpeg", png: "image/png", webp: "image/webp", gif: "image/gif", bmp: "image/bmp", avif: "image/avif" };
const PREVIEW_SIDE = 4096;

const viewer = new Viewer();
const painter = new Painter(viewer, { say, fail, send: (item, mask) => restoreAgain(item, { mask }) });
const alternatives = new Alternatives({ restoreAgain, keepUrl });
const again = new Choices(element("again-choices"));
let next;
let service;
let queue;
let chosen = null;
let shown = null; // the id whose pictures are on the stage

function say(text) {
  element("status").textContent = text;
}

function fail(problem) {
  const box = element("error");
  box.replaceChildren();
  const title = document.createElement("strong");
  title.textContent = `${problem.title ?? "Something failed"}: `;
  box.append(title, `${problem.detail ?? problem.message}.`.replace(/([.!?])\.$/, "$1"));
  box.hidden = false;
}

// --- photos come in ---

function add(files) {
  const { options, references } = next;
  const weight = references.reduce((sum, one) => sum + one.size, 0);
  const items = files.map((file) => {
    const name = file.name || "pasted.png";
    const form = () => {
      const data = new FormData();
      data.append("options", JSON.stringify(options));
      data.append("photo", file, name);
      for (const reference of references) data.append("reference", reference, reference.name);
      return data;
    };
    return queue.add(name, weight + file.size, form);
  });
  choose(items[0]);
  say(items.length === 1 ? `${items[0].name} was added` : `${items.length} photos were added`);
}

/** Restore a photo once more, as before but for what is given; `mask` null takes its mask away. */
function restoreAgain(item, { library, mask, options = item.job.options }) {
  const { job } = item;
  const coloured = takesReferences(options.system);
  const form = () => {
    const data = new FormData();
    data.append("again", job.id);
    data.append("options", JSON.stringify(options));
    if (coloured) for (const name of library ?? job.library) data.append("library", name);
    if (coloured && !library && job.references) data.append("keep", "references");
    if (mask === undefined && job.mask) data.append("keep", "mask");
    if (mask) data.append("mask", mask, "mask.png");
    return data;
  };
  choose(queue.add(item.name, mask?.size ?? 0, form));
}

function row(text) {
  const line = document.createElement("li");
  line.textContent = text;
  return line;
}

// --- the list ---

const rows = new Map(); // item -> its parts

function rowOf(item) {
  if (rows.has(item)) return rows.get(item);
  const line = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "item";
  const thumb = document.createElement("img");
  thumb.className = "thumb";
  thumb.alt = "";
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = item.name;
  const state = document.createElement("span");
  state.className = "state";
  const progress = document.createElement("progress");
  progress.setAttribute("aria-label", `Progress of ${item.name}`);
  button.append(thumb, name, state, progress);
  button.addEventListener("click", () => choose(item));
  line.append(button);
  const parts = { line, button, thumb, state, progress };
  rows.set(item, parts);
  return parts;
}

function drawRow(item) {
  const { button, thumb, state, progress } = rowOf(item);
  const text = stateOf(item);
  if (state.textContent !== text) state.textContent = text;
  button.classList.toggle("failed", item.state === "failed");
  button.setAttribute("aria-current", String(item === chosen));
  progress.hidden = item.state === "done" || item.state === "failed";
  const share = shareOf(item);
  if (share === null) progress.removeAttribute("value");
  else progress.value = share;
  if (item.state === "done" && !item.thumb) {
    item.thumb = true;
    pictureUrl(`v1/restorations/${item.id}/picture?side=128`, "image/jpeg").then((url) => (thumb.src = url), () => {});
  }
}

function drawList() {
  const lines = queue.items.map((item) => rowOf(item).line);
  const list = element("list");
  if (list.children.length !== lines.length || lines.some((line, i) => list.children[i] !== line)) {
    list.replaceChildren(...lines);
  }
  const done = queue.items.filter((item) => item.state === "done").length;
  element("count").textContent = queue.items.length > 1 ? `(${done} of ${queue.items.length} done)` : "";
  element("queue").hidden = !queue.items.length;
  element("main").classList.toggle("empty", !queue.items.length);
  for (const item of queue.items) drawRow(item);
}

// --- the chosen photo ---

function choose(item) {
  if (item !== chosen) painter.close();
  chosen = item;
  drawList();
  drawChosen();
}

function drawChosen() {
  element("result").hidden = !chosen;
  if (!chosen) return;
  element("result-title").textContent = chosen.state === "done" ? chosen.name : `${chosen.name}: ${stateOf(chosen)}`;
  if (chosen.state !== "done") {
    element("viewer").hidden = true;
    shown = null;
    element("error").hidden = chosen.state !== "failed";
    if (chosen.state === "failed" && chosen.problem) {
      fail(chosen.problem);
      const again = document.createElement("button");
      again.type = "button";
      again.textContent = "Try again";
      again.hidden = !chosen.form;
      const item = chosen;
      again.addEventListener("click", () => queue.again(item));
      const away = document.createElement("button");
      away.type = "button";
      away.textContent = "Take off the list";
      away.addEventListener("click", () => remove(item));
      const buttons = document.createElement("div");
      buttons.className = "buttons";
      buttons.append(again, away);
      element("error").append(buttons);
    }
    return;
  }
  if (shown !== chosen.id) showPictures(chosen).catch(fail);
}

const urls = [];

function keepUrl(url) {
  urls.push(url);
  return url;
}

async function load(image, path, format) {
  const direct = SHOWN_BY_BROWSERS[format];
  for (const [place, type] of [...(direct ? [[path, direct]] : []), [`${path}?side=${PREVIEW_SIDE}`, "image/jpeg"]]) {
    image.src = keepUrl(await pictureUrl(place, type));
    try {
      await image.decode();
      return;
    } catch {
      // The browser cannot read it: the preview it is.
    }
  }
}

async function showPictures(item) {
  const { report } = item.job;
  shown = item.id;
  element("error").hidden = true;
  urls.splice(0).forEach((url) => URL.revokeObjectURL(url));
  for (const id of ["before", "after", "grey"]) element(id).removeAttribute("src");
  const place = `v1/restorations/${item.id}`;
  element("grey").hidden = true;
  element("after").style.opacity = "";
  setStrength(100);
  const colours = report.colorized && SHOWN_BY_BROWSERS[report.result.format];
  element("strength").disabled = !colours;
  // Nothing is offered that could not be seen before it is saved.
  if (!colours) element("strength-value").textContent = `100 %, as browsers do not show ${report.result.format.toUpperCase()}`;
  element("strength-label").hidden = !report.colorized;
  element("report").replaceChildren(...sentencesOf(item.job).map(row));
  alternatives.show(item, service);
  drawAgain(item);
  element("viewer").hidden = false;
  viewer.show(report.result.width, report.result.height);
  await Promise.all([
    load(element("before"), `${place}/photo`, report.photo.format),
    load(element("after"), `${place}/picture`, report.result.format),
  ]);
}

function setStrength(value) {
  element("strength").value = value;
  element("strength-value").textContent = `${value} %`;
  element("strength").setAttribute("aria-valuetext", `${value} percent of the colours`);
  element("after").style.opacity = value / 100;
}

/** Lay the grey picture under the coloured one: what is seen of both is what is saved. */
async function loadGrey() {
  const grey = element("grey");
  if (grey.hasAttribute("src") || !chosen) return;
  const { id, job } = chosen;
  const type = SHOWN_BY_BROWSERS[job.report.result.format];
  const url = keepUrl(await pictureUrl(`v1/restorations/${id}/picture?strength=0`, type));
  if (shown !== id) return;
  grey.src = url;
  await grey.decode();
  grey.hidden = false;
}

async function download() {
  const item = chosen;
  const strength = element("strength").value / 100;
  const faint = item.job.report.colorized && strength < 1;
  const path = `v1/restorations/${item.id}/picture${faint ? `?strength=${strength}` : ""}`;
  const response = await call(path);
  const named = /filename\*=utf-8''([^;]+)|filename="([^"]+)"/i.exec(response.headers.get("Content-Disposition") ?? "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = named ? decodeURIComponent(named[1] ?? named[2]) : item.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(`${link.download} is saved`);
}

async function remove(item) {
  painter.forget(item);
  if (item === chosen) {
    chosen = null;
    shown = null;
  }
  rows.get(item)?.line.remove();
  rows.delete(item);
  await queue.remove(item);
  drawList();
  drawChosen();
  say(`${item.name} is deleted`);
}

// --- the same photo otherwise ---

function drawAgain(item) {
  const { options, report } = item.job;
  const photo = report.photo.content === "photo";
  element("mark").hidden = element("otherwise").hidden = !photo;
  offerAgain(item);
  again.options = options;
  again.allowColours(options.color !== false);
}

function offerAgain({ job }) {
  again.offer([...new Set([...service.systems, job.options.system ?? "pikfix"])]);
}

function restoreOtherwise() {
  const { strength, keep_color: keep, system, ...others } = chosen.job.options;
  restoreAgain(chosen, { options: { ...others, ...again.options } });
}

function mark() {
  if (painter.isOpen) {
    painter.close();
    return;
  }
  const item = chosen;
  const earlier = async () => {
    if (!item.job.mask) return null;
    const image = new Image();
    await load(image, `v1/restorations/${item.id}/mask`, "png");
    return image;
  };
  painter.open(item, earlier).catch(fail);
}

/** Systems come and go with the server's models. */
async function askSystems() {
  service = await (await call("service")).json();
  next.offer(service.systems);
  if (chosen?.state === "done") offerAgain(chosen);
}

// --- begin ---

async function begin() {
  service = await (await call("service")).json();
  element("auto-text").textContent = service.library
    ? "Automatic, after the most alike of the server’s library"
    : "Automatic, where the server has a library; grey otherwise";
  next = new NextOptions(service.references);
  next.offer(service.systems);
  next.restore();
  queue = new Queue(service);
  queue.addEventListener("change", ({ detail: item }) => {
    drawList();
    if (item === chosen) {
      if (!queue.items.includes(item)) {
        painter.forget(item);
        chosen = null;
      }
      drawChosen();
    }
    if (item.state === "done" && !item.announced) say(`${item.name} is ready`);
    if (item.state === "failed" && !item.announced) say(`${item.name} failed: ${item.problem?.message}`);
    item.announced = item.state === "done" || item.state === "failed";
  });
  listenForPhotos(add);
  element("strength").addEventListener("input", (event) => {
    loadGrey().then(() => setStrength(event.target.value), fail);
  });
  element("download").addEventListener("click", () => download().catch(fail));
  element("delete").addEventListener("click", () => remove(chosen).catch(fail));
  element("rank").addEventListener("click", () => alternatives.open().catch(fail));
  element("redo").addEventListener("click", restoreOtherwise);
  element("mark").addEventListener("click", mark);
  for (const id of ["options", "otherwise"]) {
    element(id).addEventListener("toggle", (event) => event.target.open && askSystems().catch(fail));
  }
  setInterval(() => queue.items.filter((one) => one.state === "running").forEach(drawRow), 1000);
  await queue.restore();
  drawList();
  if (!chosen && queue.items.length) choose(queue.items.at(-1));
  document.body.dataset.ready = "true";
}

element("main").classList.add("empty");
begin().catch((problem) => {
  element("result").hidden = false;
  fail(problem);
});
