// Requests to the server this page came from. An image is sent once; later requests name it by its id.

export class ServerError extends Error {
  constructor(message, kind) {
    super(message);
    this.kind = kind;
  }
}

// One for each page: a router of several servers then gives all its questions to one, which keeps the image.
const session = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("");

let token = sessionStorage.getItem("refdiff-token");
let askForToken = async () => null;

export function onTokenNeeded(ask) {
  askForToken = ask;
}

// The subprotocols that open a live session; the second one holds the token, as a browser cannot send a header.
export function liveSocket() {
  const url = new URL("v1/live", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.hash = "";
  const bytes = String.fromCharCode(...new TextEncoder().encode(token ?? ""));
  const encoded = btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return new WebSocket(url, ["refdiff.live.v1", ...(token ? [`bearer.${encoded}`] : [])]);
}

async function send(path, options = {}) {
  const headers = { ...options.headers, "X-Session-Id": session, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it still running?", "lost");
  }
  if (response.status === 401) {
    const given = await askForToken();
    if (given) {
      token = given;
      sessionStorage.setItem("refdiff-token", given);
      return send(path, options);
    }
  }
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({ error: {} }));
    throw new ServerError(error?.message || `The server answered ${response.status}.`, error?.type);
  }
  return response;
}

export async function demoScenes() {
  return (await send("v1/demo")).json();
}

export async function demoImage(name) {
  return (await send(`v1/demo/${name}`)).blob();
}

export class RemoteImage {
  constructor(blob) {
    this.blob = blob;
    this.id = null;
  }

  async ask(texts, fields, signal) {
    if (this.id) {
      try {
        return await this.#askById(texts, fields, signal);
      } catch (error) {
        if (error.kind !== "unknown_image") throw error;
      }
    }
    const form = new FormData();
    form.append("image", this.blob, "image");
    for (const text of texts) form.append("prompt", text);
    for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
    const answer = await (await send("v1/segment", { method: "POST", body: form, signal })).json();
    this.id = answer.image_id;
    return answer;
  }

  async #askById(texts, fields, signal) {
    const body = JSON.stringify({ image_id: this.id, prompts: texts.map((text) => ({ text })), ...fields });
    const headers = { "Content-Type": "application/json" };
    return (await send("v1/segment", { method: "POST", body, headers, signal })).json();
  }
}
