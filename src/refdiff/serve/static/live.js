// The live camera: the picture that the server has answered, its masks, and what is known about each phrase.

import { LiveSession } from "./live_session.js";
import { startCamera, stopCamera } from "./picture.js";
import { COLORS, drawMasks, find, isDoubtful, make, percent, report } from "./view.js";

const WAIT_MS = 400;
const SILENT_MS = 1500; // without a result, the masks on show are too old to be shown
const RETRY_MS = { 1013: 1000, 1008: 0 };
const NAMES = { searching: "searching", seen: "seen now", tracked: "tracked", stale: "stale", lost: "lost", silent: "no answer" };
const ANNOUNCED = ["found", "lost", "switched", "cut", "failed"];

const live = {
  on: false,
  kept: [], // texts
  colors: new Map(), // text -> color
  rows: new Map(), // text -> elements
  session: null,
  shownAt: [], // times of the last results
  watch: 0,
  retry: 0,
  again: 1000,
};

// ---- starting and stopping

async function start() {
  report("Starting the camera…");
  if (!(await startCamera(find("live-video"), { width: { ideal: 640 }, height: { ideal: 480 } }))) return;
  live.on = true;
  const { videoWidth, videoHeight } = find("live-video");
  find("live-frame").style.aspectRatio = `${videoWidth} / ${videoHeight}`;
  show(true);
  note("Type what to follow");
  report("");
  live.watch = setInterval(watch, 300);
  find("phrase").focus({ preventScroll: true });
}

export function stopLive() {
  if (!live.on) return;
  live.on = false;
  clearInterval(live.watch);
  clearTimeout(live.retry);
  live.session?.close();
  live.session = null;
  live.kept = [];
  stopCamera(find("live-video"));
  show(false);
  clearPicture();
  renderRows([]);
  report("");
}

function show(is) {
  find("drop").hidden = is;
  find("live").hidden = !is;
  find("targets").hidden = !is;
  find("phrase").value = "";
  find("phrase").disabled = find("keep").disabled = !is;
  find("keep").textContent = is ? "Follow" : "Keep";
  find("hint").textContent = is
    ? "Masks follow what you type. Add further phrases with Enter."
    : "The answer appears as you type. Keep a phrase to compare it with others.";
}

// ---- phrases

function phrases() {
  const draft = find("phrase").value.trim();
  return [...new Set([...live.kept, draft])].filter(Boolean);
}

function follow() {
  clearTimeout(live.retry);
  const wanted = phrases();
  for (const text of live.colors.keys()) if (!wanted.includes(text)) live.colors.delete(text);
  for (const text of wanted) {
    const used = [...live.colors.values()];
    if (!live.colors.has(text)) live.colors.set(text, COLORS.find((each) => !used.includes(each)) ?? COLORS[0]);
  }
  renderRows(wanted);
  if (!wanted.length) {
    clearPicture();
    note("Type what to follow");
  }
  if (live.session) live.session.follow(wanted);
  else if (wanted.length) connect(wanted);
}

function listenForPhrases() {
  let timer = 0;
  find("phrase").addEventListener("input", () => {
    clearTimeout(timer);
    if (live.on) timer = setTimeout(follow, WAIT_MS);
  });
  find("ask").addEventListener("submit", () => {
    if (!live.on) return;
    clearTimeout(timer);
    live.kept = phrases();
    find("phrase").value = "";
    follow();
  });
}

// ---- the session

function connect(wanted) {
  note("Connecting…");
  const session = new LiveSession(find("live-video"), wanted, {
    result: (message, picture, delay) => {
      if (live.session === session) showResult(message, picture, delay);
    },
    error: (message) => report(message, true),
    end: (code, reason, opened) => {
      if (live.session === session) end(code, reason, opened);
    },
  });
  live.session = session;
}

function end(code, reason, opened) {
  live.session = null;
  clearPicture();
  if (!live.on || !phrases().length) return;
  live.again = opened ? 1000 : Math.min(8000, 2 * live.again);
  const wait = RETRY_MS[code] ?? live.again;
  if (code !== 1008) report(reason || "The server cannot be reached. Is it still running?", true);
  note(code === 1013 ? "Waiting for the other live session to end" : "Connecting again…");
  live.retry = setTimeout(follow, wait);
}

// Nothing old stays on show: a mask without news is taken away.
function watch() {
  const last = live.shownAt.at(-1);
  if (last === undefined || performance.now() - last < SILENT_MS) return;
  clearPicture();
  for (const row of live.rows.values()) setState(row, "silent", "", "");
  note("No answer from the server");
}

// ---- showing

function clearPicture() {
  live.shownAt = [];
  find("live-canvas").hidden = true;
  find("live-masks").replaceChildren();
  find("live-rate").textContent = "";
}

function note(text) {
  find("live-note").textContent = text;
  find("live-note").hidden = !text;
}

function showResult(message, picture, delay) {
  const wanted = message.targets.filter((each) => live.rows.has(each.phrase));
  if (!wanted.length) return;
  const canvas = find("live-canvas");
  [canvas.width, canvas.height] = message.size;
  canvas.getContext("2d").drawImage(picture, 0, 0);
  canvas.hidden = false;
  const [width, height] = message.size;
  drawMasks(find("live-masks"), { width, height }, wanted.filter((each) => each.masks).map(maskOf));
  for (const each of wanted) showTarget(each);
  const now = performance.now();
  live.shownAt = [...live.shownAt.filter((at) => at > now - 2000), now];
  const rate = live.shownAt.length > 1 ? (1000 * (live.shownAt.length - 1)) / (now - live.shownAt[0]) : 0;
  find("live-rate").textContent = `${rate.toFixed(0)} fps, ${Math.round(delay)} ms behind`;
  note(wanted.every((each) => each.state === "searching") ? "Searching…" : "");
  const event = message.events.filter((each) => ANNOUNCED.includes(each.kind) && live.rows.has(each.phrase)).at(-1);
  if (event) report(`${event.phrase}: ${event.kind}, ${event.reason}`, event.kind === "failed");
}

function maskOf({ phrase, masks, state, confidence }) {
  const sure = confidence === null ? "" : ` ${percent(confidence)}`;
  const text = phrase.length > 24 ? `${phrase.slice(0, 23)}…` : phrase;
  const ghost = state === "stale" || isDoubtful(confidence);
  return { rings: masks, color: live.colors.get(phrase), active: !ghost, ghost, label: text + sure };
}

function showTarget({ phrase, state, confidence, age_s: age, reason }) {
  const doubt = isDoubtful(confidence) ? "probably not here" : "";
  const since = age === null ? "" : `found ${age.toFixed(1)} s ago`;
  const sure = confidence === null ? "" : percent(confidence);
  setState(live.rows.get(phrase), state, [doubt, state === "stale" || state === "lost" ? reason : since].filter(Boolean).join(", "), sure);
}

// Only what changes is written, so that a screen reader is not interrupted at every frame.
function setState(row, state, why, sure) {
  const values = { state: NAMES[state], why, sure };
  for (const [name, text] of Object.entries(values)) if (row[name].textContent !== text) row[name].textContent = text;
  if (row.item.dataset.state !== state) row.item.dataset.state = state;
}

function renderRows(wanted) {
  live.rows = new Map(wanted.map((text) => [text, live.rows.get(text) ?? makeRow(text)]));
  find("targets").replaceChildren(...[...live.rows.values()].map((row) => row.item));
}

function makeRow(text) {
  const [state, why, sure] = ["badge", "why", "numbers"].map((name) => make("span", { class: name }));
  const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.background = live.colors.get(text);
  const drop = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${text}` }, "×");
  drop.addEventListener("click", () => {
    live.kept = live.kept.filter((each) => each !== text);
    if (find("phrase").value.trim() === text) find("phrase").value = "";
    follow();
  });
  const row = { item: make("li", {}, swatch, make("span", { class: "text" }, text), sure, drop, make("span", { class: "line" }, state, why)), state, why, sure };
  setState(row, "searching", "", "");
  return row;
}

export function listenForLive() {
  find("go-live").hidden = false;
  find("go-live").addEventListener("click", start);
  find("end-live").addEventListener("click", () => {
    stopLive();
    find("go-live").focus();
  });
  listenForPhrases();
}
