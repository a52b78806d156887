// The service's HTTP API, as the page uses it.

/** A refusal by the service. `status` is that of HTTP; undefined if a stream ended with an error. */
export class ServiceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The API key that the user gave; empty for none. */
export const access = { key: "" };

/** Get the names of all models. */
export async function listModels() {
  const response = await ask("/v1/models");
  return (await response.json()).data.map((model) => model.id);
}

/** Get what is known of one model: classes, size, presets, limits. */
export async function describeModel(name) {
  const response = await ask(`/v1/models/${encodeURIComponent(name)}`);
  return response.json();
}

/** Ask for images of a class. Yields the events of the stream as they come. */
export async function* generate(fields, signal) {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ ...fields, stream: true });
  yield* events(await ask("/v1/images/generations", { method: "POST", headers, body, signal }));
}

/** Ask for an edit of `image` where `mask` is transparent, both blobs of PNG. Yields events as `generate` does. */
export async function* edit(fields, image, mask, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries({ ...fields, stream: true })) {
    body.append(name, value);
  }
  body.append("image", image, "image.png");
  body.append("mask", mask, "mask.png");
  yield* events(await ask("/v1/images/edits", { method: "POST", body, signal }));
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(access.key && { Authorization: `Bearer ${access.key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new ServiceError("the service does not answer; is it still running?");
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new ServiceError(body?.error?.message ?? `the service answered ${response.status}`, response.status);
  }
  return response;
}

/** Yields the events of a response of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").find((line) => line.startsWith("data: "));
        if (data) {
          yield checked(JSON.parse(data.slice("data: ".length)));
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // the connection may have ended already
  }
}

function checked(event) {
  if (event.type === "error") {
    throw new ServiceError(event.error.message);
  }
  return event;
}
