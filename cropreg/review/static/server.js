// What the page asks of its server.  Addresses are relative to the page's own, which holds the key.

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Is cropreg review still running?");
  }
  if (!response.ok) {
    const text = await response.text();
    let message = text;
    try {
      message = JSON.parse(text).detail ?? text;
    } catch {
      // a plain sentence
    }
    throw new ServerError(response.status, String(message));
  }
  return response;
}

export const queue = async () => (await ask("api/queue")).json();
export const news = async (since) => (await ask(`api/news?since=${since}`)).json();
export const items = async (ids) => (await ask(`api/items?ids=${ids.join(",")}`)).json();

export const places = async (id) => (await ask(`api/places/${id}`)).json();

export const decide = async (decisions) =>
  (
    await ask("api/decisions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ decisions }),
    })
  ).json();

export const smallOf = (id) => `api/picture/${id}/small`;
export const screenOf = (id, long) => `api/picture/${id}/screen?long=${long}`;
export const cropOf = (id, long) => `api/picture/${id}/crop?long=${long}`;
export const regionOf = (id, { x, y, w, h }) => `api/picture/${id}/region?x=${x}&y=${y}&w=${w}&h=${h}`;

// Decoded off the main thread, so that showing it costs one draw.
export async function bitmap(path, signal) {
  return createImageBitmap(await (await ask(path, { signal })).blob());
}

export const newId = () => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
