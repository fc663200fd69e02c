// What the page asks of the server, and the streams that it reads from it.

const KEY = "conviction-key";

/** The server refused, or cannot be reached: `status` is 0 then. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

async function request(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "");
  }
  if (!response.ok) throw new Refusal(response.status, await reason(response));
  return response;
}

async function reason(response) {
  try {
    const told = await response.json();
    return told.error?.message ?? response.statusText;
  } catch {
    return response.statusText;
  }
}

const json = async (path, options) => (await request(path, options)).json();
const run = (id) => `api/runs/${encodeURIComponent(id)}`;

export const options = () => json("api/options");
export const begin = (asked) => json("api/runs", { method: "POST", body: asked });
export const list = (known) => json(`api/runs?known=${known}`);
export const cancel = (id) => json(run(id), { method: "DELETE" });
export const text = (id, trace) => json(`${run(id)}/traces/${trace}`);
export const exported = async (id, language) =>
  (await request(`${run(id)}/export?language=${language}`)).blob();

/**
 * Follow a run to its end, through broken connections.
 *
 * @param id The run.
 * @param onFrame Called with every frame.
 * @param onState Called with "lost", "back" or "gone".
 * @param signal Ends it.
 */
export async function follow(id, { onFrame, onState, signal }) {
  let last = null;
  let lost = 0;
  while (!signal.aborted) {
    try {
      const headers = last === null ? {} : { "Last-Event-ID": String(last) };
      const response = await request(`${run(id)}/events`, { headers, signal });
      if (lost) onState("back");
      lost = 0;
      for await (const event of events(response.body)) {
        if (!event.data) continue;
        const frame = JSON.parse(event.data);
        last = frame.n;
        onFrame(frame);
        if (frame.over) return;
      }
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      if (error instanceof Refusal && error.status === 404) return onState("gone");
      if (error instanceof Refusal && error.status === 401) throw error;
    }
    if (!lost) onState("lost");
    lost += 1;
    await pause(Math.min(250 * 2 ** lost, 5000), signal);
  }
}

/** Wait; no longer than until the signal, if there is one. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** The events of a stream of server-sent events. EventSource cannot send a key. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) yield fields(block);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function fields(block) {
  const event = { data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  return event;
}
