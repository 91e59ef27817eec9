// One live session: pictures of a video element go to the server, results come back.
//
// The next picture is sent when the server has taken the last one, so nothing piles up on the way. Each picture is
// kept until its result is there, because a mask belongs to that very picture.

import { liveSocket } from "./api.js";
import { make } from "./view.js";

const LONGEST_PX = 640;
const QUALITY = 0.85;
const MOST_PENDING = 12;

export class LiveSession {
  #socket = liveSocket();
  #pending = new Map(); // number -> {picture, at}
  #canvas = make("canvas");
  #sent = 0;
  #taken = -1;
  #wake = () => {};
  #phrases;

  // `on`: result(message, picture, delay in ms), error(message), end(code, reason, opened).
  constructor(video, phrases, on) {
    this.video = video;
    this.on = on;
    this.#phrases = phrases;
    let opened = false;
    this.#socket.addEventListener("message", (event) => {
      opened = true;
      this.#take(JSON.parse(event.data));
    });
    this.#socket.addEventListener("close", (event) => {
      this.ended = true;
      this.#wake();
      for (const { picture } of this.#pending.values()) picture.close();
      this.#pending.clear();
      on.end(event.code, event.reason, opened);
    });
  }

  follow(phrases) {
    this.#phrases = phrases;
    if (this.limits && !this.ended) this.#socket.send(JSON.stringify({ type: "phrases", phrases }));
  }

  close() {
    this.#socket.close(1000);
  }

  #take(message) {
    if (message.type === "hello") {
      this.limits = message;
      this.follow(this.#phrases);
      this.#pump();
    } else if (message.type === "taken") {
      this.#taken = message.frame;
      this.#wake();
    } else if (message.type === "result") {
      this.#show(message);
    } else if (message.type === "error") {
      this.on.error(message.message);
    }
  }

  async #pump() {
    const pause = 1000 / this.limits.frames_per_second;
    while (!this.ended) {
      const started = performance.now();
      if (this.video.videoWidth) await this.#send();
      while (this.#taken < this.#sent - 1 && !this.ended) await new Promise((done) => (this.#wake = done));
      const left = Math.max(4, pause - (performance.now() - started));
      await new Promise((done) => setTimeout(done, left));
    }
  }

  async #send() {
    const { videoWidth, videoHeight } = this.video;
    const scale = Math.min(1, LONGEST_PX / Math.max(videoWidth, videoHeight));
    this.#canvas.width = Math.round(videoWidth * scale);
    this.#canvas.height = Math.round(videoHeight * scale);
    const at = performance.now();
    this.#canvas.getContext("2d").drawImage(this.video, 0, 0, this.#canvas.width, this.#canvas.height);
    const picture = await createImageBitmap(this.#canvas);
    const file = await new Promise((done) => this.#canvas.toBlob(done, "image/jpeg", QUALITY));
    const bytes = await file.arrayBuffer();
    if (this.ended) {
      picture.close();
      return;
    }
    this.#pending.set(this.#sent, { picture, at });
    this.#sent += 1;
    this.#socket.send(bytes);
    this.#forget(this.#sent - MOST_PENDING);
  }

  #show(message) {
    const found = this.#pending.get(message.frame);
    if (found) this.on.result(message, found.picture, performance.now() - found.at);
    this.#forget(message.frame + 1);
  }

  // Drop the pictures before a number: their results were replaced, or have been shown.
  #forget(number) {
    for (const [each, { picture }] of this.#pending) {
      if (each >= number) return;
      picture.close();
      this.#pending.delete(each);
    }
  }
}
