// The photos of this page: two uploads at a time, then each watched until its end.

import { call, Problem, randomKey, upload, watch } from "./api.js";

const AT_ONCE = 2;
const REMEMBERED = "pikfix.restorations";
const OFFLINE_TRIES = 5;
// A browser opens six connections to a server: with a stream for each photo nothing else would pass.
const STREAMS = 2;

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

export class Queue extends EventTarget {
  items = [];
  #waiting = [];
  #uploads = 0;
  #unwatched = [];
  #streams = 0;

  constructor(limits) {
    super();
    this.limits = limits;
  }

  /** Take up what earlier visits left, as far as it is still there. */
  async restore() {
    let known = [];
    try {
      known = JSON.parse(localStorage.getItem(REMEMBERED)) ?? [];
    } catch {
      // Written by something else.
    }
    for (const { id, name } of known) {
      const item = { name, state: "asking", id };
      try {
        item.job = await (await call(`v1/restorations/${id}`)).json();
      } catch (problem) {
        if (problem.status === 404) continue;
        throw problem;
      }
      this.items.push(item);
      this.#enter(item, item.job);
      this.#follow(item);
    }
    this.#remember();
  }

  /** Add a photo: `form` makes its request anew, `size` is what is uploaded. */
  add(name, size, form) {
    const item = { name, state: "waiting", key: randomKey(), form };
    this.items.push(item);
    this.#changed(item);
    if (size > this.limits.upload_bytes) {
      const most = (this.limits.upload_bytes / 2 ** 20).toFixed(0);
      item.state = "failed";
      item.problem = new Problem({
        code: "upload_too_large",
        title: "The upload is too large",
        detail: `an upload may have ${most} MiB: send a smaller file or fewer references`,
      });
      this.#changed(item);
    } else {
      this.#waiting.push(item);
      this.#next();
    }
    return item;
  }

  /** Send a photo again that could not be sent, or failed on the server. */
  again(item) {
    Object.assign(item, { state: "waiting", problem: null, job: null, id: null, key: randomKey() });
    this.#waiting.push(item);
    this.#changed(item);
    this.#next();
  }

  /** Forget a photo, here and on the server. */
  async remove(item) {
    this.items = this.items.filter((one) => one !== item);
    this.#waiting = this.#waiting.filter((one) => one !== item);
    this.#unwatched = this.#unwatched.filter((one) => one !== item);
    this.#remember();
    this.#changed(item);
    if (item.id) {
      await call(`v1/restorations/${item.id}`, { method: "DELETE" }).catch((problem) => {
        if (problem.status !== 404) throw problem;
      });
    }
  }

  async #next() {
    if (this.#uploads >= AT_ONCE || !this.#waiting.length) return;
    const item = this.#waiting.shift();
    this.#uploads += 1;
    try {
      await this.#send(item);
    } catch (problem) {
      item.state = "failed";
      item.problem = problem;
      this.#changed(item);
    } finally {
      this.#uploads -= 1;
      this.#next();
    }
    if (item.id) this.#follow(item);
  }

  async #send(item) {
    for (let offline = 0; ; ) {
      item.state = "uploading";
      item.share = 0;
      this.#changed(item);
      try {
        const job = await upload(item.form(), item.key, (share) => {
          item.share = share;
          this.#changed(item);
        });
        this.#enter(item, job);
        this.#remember();
        return;
      } catch (problem) {
        offline += problem.status === 0;
        const passes = problem.status === 429 || problem.status === 409;
        if (!passes && (problem.status !== 0 || offline > OFFLINE_TRIES)) throw problem;
        item.state = "refused";
        item.problem = problem;
        item.retry = problem.retry_after ?? 2;
        this.#changed(item);
        await pause(item.retry);
        if (!this.items.includes(item)) throw problem;
      }
    }
  }

  /** Watch the oldest photos, which are done first; the others are asked for whenever one ends. */
  async #follow(item) {
    if (item.state === "done" || item.state === "failed") return;
    if (this.#streams >= STREAMS) {
      this.#unwatched.push(item);
      return;
    }
    this.#streams += 1;
    try {
      for await (const job of watch(item.id)) this.#told(item, job);
    } catch (problem) {
      item.state = "failed";
      item.problem = problem;
      this.#changed(item);
    } finally {
      this.#streams -= 1;
    }
    const next = this.#unwatched.shift();
    if (next) this.#follow(next);
    for (const other of [...this.#unwatched]) {
      await call(`v1/restorations/${other.id}`).then(
        async (answer) => this.#unwatched.includes(other) && this.#told(other, await answer.json()),
        () => {}, // its own stream will tell
      );
    }
  }

  #told(item, job) {
    if (job) {
      this.#enter(item, job);
      return;
    }
    this.items = this.items.filter((one) => one !== item);
    this.#remember();
    this.#changed(item);
  }

  #enter(item, job) {
    item.id = job.id;
    item.job = job;
    item.state = job.state;
    item.problem = job.error ? new Problem(job.error) : null;
    item.since = job.started ? Date.parse(job.started) : null;
    item.expected = job.seconds_left;
    item.told = Date.now();
    this.#changed(item);
  }

  #remember() {
    const known = this.items.filter((one) => one.id).map(({ id, name }) => ({ id, name }));
    localStorage.setItem(REMEMBERED, JSON.stringify(known));
  }

  #changed(item) {
    this.dispatchEvent(new CustomEvent("change", { detail: item }));
  }
}
