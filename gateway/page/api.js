// The REST interface: requests with a token, problems as errors, uploads with progress, events.

export class Problem extends Error {
  constructor(members) {
    super(members.detail);
    Object.assign(this, members); // title, status, code, retry_after
  }
}

const offline = () =>
  new Problem({
    status: 0,
    code: "no_connection",
    title: "No connection",
    detail: "the server of this page does not answer: see that it runs, then try again",
  });

let token = sessionStorage.getItem("pikfix.token") ?? "";
let asking = null;

/** Ask for a token, once for all who wait for one. */
function askToken() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("ask");
    const field = document.getElementById("token");
    field.value = "";
    dialog.addEventListener(
      "close",
      () => {
        token = field.value.trim();
        sessionStorage.setItem("pikfix.token", token);
        asking = null;
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

function problemOf(status, text) {
  try {
    return new Problem(JSON.parse(text));
  } catch {
    return new Problem({ status, code: "unknown", title: "Something failed", detail: `status ${status}` });
  }
}

/** Fetch, with a token; throws a Problem. */
export async function call(path, init = {}) {
  for (;;) {
    const headers = { ...init.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    let response;
    try {
      response = await fetch(path, { ...init, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw offline();
    }
    if (response.ok) return response;
    if (response.status === 401) {
      await askToken();
      continue;
    }
    throw problemOf(response.status, await response.text());
  }
}

/** A word of our own for a request, so that it can be sent again without being done twice. */
export function randomKey() {
  // crypto.randomUUID is missing where a page comes by plain HTTP from another machine.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

/** Send a form; tells the share of it that is sent; gives the restoration. */
export function upload(form, key, onProgress) {
  const send = () =>
    new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", "v1/restorations");
      request.setRequestHeader("Prefer", "respond-async");
      request.setRequestHeader("Idempotency-Key", key);
      if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
      request.upload.onprogress = (event) => onProgress(event.total ? event.loaded / event.total : 0);
      request.onload = () =>
        request.status === 202
          ? resolve(JSON.parse(request.responseText))
          : reject(problemOf(request.status, request.responseText));
      request.onerror = request.onabort = () => reject(offline());
      request.send(form);
    });
  return send().catch(async (problem) => {
    if (problem.status !== 401) throw problem;
    await askToken();
    return upload(form, key, onProgress);
  });
}

/** Yield the states of a restoration until it has ended; null once it is deleted. */
export async function* watch(id) {
  for (;;) {
    let ended = false;
    try {
      const response = await call(`v1/restorations/${id}/events`);
      for await (const { event, data } of eventsOf(response.body)) {
        if (event === "deleted") {
          yield null;
          return;
        }
        const job = JSON.parse(data);
        ended = job.state === "done" || job.state === "failed";
        yield job;
      }
    } catch (problem) {
      if (problem.status === 404) {
        yield null;
        return;
      }
      if (problem instanceof Problem && problem.status !== 0 && problem.status < 500) throw problem;
      // Cut off: the gateway is being restarted, or the network is away for a moment.
    }
    if (ended) return;
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

/** Server-sent events of a stream; EventSource cannot send a token. */
export async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const found = { event: "message", data: "" };
      for (const line of part.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) found[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (found.data) yield found;
    }
  }
}

/** A picture as an object URL, of a type that is known to be a picture's. */
export async function pictureUrl(path, type) {
  const bytes = await (await call(path)).arrayBuffer();
  return URL.createObjectURL(new Blob([bytes], { type }));
}
