// The page: an image, phrases and their answers. State is in `state`; `render` shows all of it.

import { RemoteImage, demoImage, demoScenes, onTokenNeeded } from "./api.js";
import { COLORS, areaOf, candidateAt, drawHeat, drawMasks, make, overlayBlob, scoreTable } from "./view.js";

const WAIT_MS = 300;
const find = (id) => document.getElementById(id);
const state = {
  image: null, // RemoteImage
  size: { width: 1, height: 1 },
  kept: [], // {text, color, result, timings}
  draft: null, // the phrase that is being typed
  active: null, // of kept, or the draft
  hovered: -1,
  request: null, // AbortController of the request in progress
};

function report(text, bad = false) {
  find("status").textContent = text;
  find("status").classList.toggle("bad", bad);
}

// ---- the image

async function open(blob, phrase = "") {
  const url = URL.createObjectURL(blob);
  const picture = find("picture");
  picture.src = url;
  try {
    await picture.decode();
  } catch {
    report("This file is not an image that the browser can show.", true);
    return;
  }
  Object.assign(state, { image: new RemoteImage(blob), kept: [], draft: null, active: null, hovered: -1 });
  state.size = { width: picture.naturalWidth, height: picture.naturalHeight };
  find("frame").style.aspectRatio = `${state.size.width} / ${state.size.height}`;
  find("drop").hidden = true;
  find("view").hidden = false;
  find("phrase").disabled = find("keep").disabled = false;
  find("phrase").value = phrase;
  find("phrase").focus({ preventScroll: true });
  report("");
  render();
  if (phrase) askSoon(0);
}

function close() {
  state.request?.abort();
  Object.assign(state, { image: null, kept: [], draft: null, active: null, hovered: -1 });
  find("drop").hidden = false;
  find("view").hidden = true;
  find("phrase").value = "";
  find("phrase").disabled = find("keep").disabled = true;
  render();
  find("choose").focus();
}

function listenForImages() {
  const drop = find("drop");
  find("choose").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) open(file);
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) open(file);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (file) open(file);
  });
  find("another").addEventListener("click", close);
}

function listenForCamera() {
  const video = find("video");
  const stop = () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
    find("shutter").hidden = true;
    document.querySelector(".choose").hidden = false;
  };
  find("webcam").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch {
      report("No camera, or no permission to use it.", true);
      return;
    }
    document.querySelector(".choose").hidden = true;
    find("shutter").hidden = false;
    await video.play();
  });
  find("stop-camera").addEventListener("click", stop);
  find("shoot").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    stop();
    canvas.toBlob((blob) => open(blob), "image/jpeg", 0.95);
  });
}

async function showScenes() {
  const scenes = await demoScenes();
  for (const { name, phrase } of scenes) {
    const blob = await demoImage(name);
    const picture = make("img", { src: URL.createObjectURL(blob), alt: `Scene: ${phrase}` });
    const button = make("button", { type: "button", title: phrase }, picture);
    button.addEventListener("click", () => open(blob, phrase));
    find("scenes").append(make("li", {}, button));
  }
}

// ---- phrases

let timer = 0;

function askSoon(wait = WAIT_MS) {
  clearTimeout(timer);
  timer = setTimeout(ask, wait);
}

async function ask() {
  const text = find("phrase").value.trim();
  state.request?.abort();
  if (!text || !state.image) {
    state.draft = null;
    if (!state.kept.includes(state.active)) state.active = state.kept.at(-1) ?? null;
    find("busy").hidden = true;
    render();
    return;
  }
  const request = (state.request = new AbortController());
  find("busy").hidden = false;
  try {
    const fields = { format: "polygon", candidates: true, heat: true };
    const answer = await state.image.ask([text], fields, request.signal);
    const [result] = answer.prompt_results;
    for (const candidate of result.candidates) candidate.area = areaOf(candidate.masks);
    state.draft = { text, color: COLORS[state.kept.length % COLORS.length], result, timings: answer.timings };
    state.active = state.draft;
    state.hovered = -1;
    report(`Answered in ${Math.round(answer.time * 1000)} ms`);
  } catch (error) {
    if (error.name === "AbortError") return;
    report(error.message, true);
    state.draft = null;
  }
  if (request === state.request) {
    find("busy").hidden = true;
    render();
  }
}

function listenForPhrases() {
  find("phrase").addEventListener("input", () => askSoon());
  find("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = find("phrase").value.trim();
    if (state.draft?.text !== text) {
      clearTimeout(timer);
      await ask();
    }
    if (!state.draft || state.draft.text !== text) return;
    state.kept.push(state.draft);
    state.draft = null;
    find("phrase").value = "";
    render();
  });
}

// ---- showing

function best(result) {
  return result.predictions[0] ?? null;
}

function percent(value) {
  return value < 0.01 ? "< 1 %" : `${Math.round(100 * value)} %`;
}

// Below this confidence a mask is drawn with a dashed line.
const DOUBTFUL = 0.2;

function isDoubtful(found) {
  return found.confidence !== null && found.confidence < DOUBTFUL;
}

function verdict(result) {
  const found = best(result);
  if (!found) return ["Not found", "bad", result.reason ?? ""];
  if (found.confidence === null) return ["Best candidate", "", "This bundle has no calibrated confidence: the best candidate is shown even if nothing fits."];
  if (found.confidence >= 0.5) return [`Found, ${percent(found.confidence)} sure`, "good", `“${result.echo.text}” (head word: ${result.root})`];
  const title = isDoubtful(found) ? "Probably not here" : `Not sure, ${percent(found.confidence)}`;
  return [title, "bad", `The best candidate is shown; the probability that it is right is ${percent(found.confidence)}.`];
}

function render() {
  renderStage();
  renderPhrases();
  renderAnswer();
}

function renderStage() {
  const { active, hovered } = state;
  const entries = [...state.kept, ...(state.draft ? [state.draft] : [])];
  const shown = entries
    .filter((entry) => best(entry.result))
    .map((entry) => ({
      rings: best(entry.result).masks,
      color: entry.color,
      active: entry === active,
      ghost: isDoubtful(best(entry.result)),
    }));
  if (active && hovered >= 0) shown.push({ rings: active.result.candidates[hovered].masks, color: "#ffffff", ghost: true });
  drawMasks(find("masks"), state.size, shown);
  drawHeat(find("heat"), active?.result.heat);
}

function renderPhrases() {
  find("phrases").replaceChildren(
    ...state.kept.map((entry) => {
      const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = entry.color;
      const sure = best(entry.result)?.confidence;
      const note = best(entry.result) ? (sure === null ? "" : percent(sure)) : "none";
      const pressed = String(entry === state.active);
      const pick = make("button", { type: "button", class: "pick", "aria-pressed": pressed }, swatch, entry.text, make("span", { class: "sure" }, note));
      pick.addEventListener("click", () => {
        state.active = entry;
        state.hovered = -1;
        render();
      });
      const drop = make("button", { type: "button", "aria-label": `Remove ${entry.text}` }, "×");
      drop.addEventListener("click", () => {
        state.kept = state.kept.filter((each) => each !== entry);
        if (state.active === entry) state.active = state.draft ?? state.kept.at(-1) ?? null;
        render();
      });
      return make("li", {}, pick, drop);
    }),
  );
}

function renderAnswer() {
  const { active } = state;
  for (const id of ["answer", "candidates-card", "timings-card"]) find(id).hidden = !active;
  if (!active) return;
  const { result } = active;
  const [title, kind, why] = verdict(result);
  find("verdict").textContent = title;
  find("verdict").className = kind;
  find("why").textContent = why;
  find("cautions").replaceChildren(...result.cautions.map((text) => make("li", {}, text)));
  find("downloads").hidden = !best(result);
  renderComparison(result);
  renderCandidates(result);
  const rows = Object.entries(active.timings ?? {}).map(([stage, seconds]) =>
    make("tr", {}, make("th", { scope: "row" }, stage), make("td", {}, `${(1000 * seconds).toFixed(1)} ms`)),
  );
  find("timings").tBodies[0].replaceChildren(...rows);
}

function ranked(candidates) {
  return candidates
    .map((candidate, index) => ({ candidate, index }))
    .filter(({ candidate }) => candidate.score_parts.total !== null)
    .sort((one, other) => other.candidate.score_parts.total - one.candidate.score_parts.total);
}

function renderComparison(result) {
  const [first, second] = ranked(result.candidates);
  find("compare").replaceChildren();
  if (!first) return;
  const columns = [{ title: `chosen (${first.index + 1})`, candidate: first.candidate }];
  if (second) columns.push({ title: `runner-up (${second.index + 1})`, candidate: second.candidate });
  find("compare").append(make("h2", {}, "Why this one"), scoreTable(columns, result.candidates));
}

function renderCandidates(result) {
  find("candidates").replaceChildren(
    ...result.candidates.map((candidate, index) => {
      const selected = String(index === state.hovered);
      const kept = candidate.kept ? {} : { class: "out" };
      const option = make("span", { role: "option", id: `candidate-${index}`, "aria-selected": selected, ...kept }, String(index + 1));
      option.addEventListener("mouseenter", () => hover(index));
      option.addEventListener("click", () => hover(index));
      return option;
    }),
  );
  const chosen = result.candidates[state.hovered];
  find("candidate").replaceChildren(
    ...(chosen ? [scoreTable([{ title: `candidate ${state.hovered + 1}`, candidate: chosen }], result.candidates)] : []),
  );
  if (chosen) find("candidates").setAttribute("aria-activedescendant", `candidate-${state.hovered}`);
  else find("candidates").removeAttribute("aria-activedescendant");
}

function hover(index) {
  if (index === state.hovered || !state.active) return;
  state.hovered = index;
  renderStage();
  renderCandidates(state.active.result);
}

function listenForCandidates() {
  const svg = find("masks");
  svg.addEventListener("pointermove", (event) => {
    if (!state.active) return;
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    hover(candidateAt(state.active.result.candidates, place.x, place.y));
  });
  svg.addEventListener("pointerleave", () => hover(-1));
  find("candidates").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !state.active) return;
    event.preventDefault();
    const count = state.active.result.candidates.length;
    hover((state.hovered + step + count) % count);
  });
  find("mix").addEventListener("input", (event) => {
    find("heat").style.opacity = String(event.target.value / 100);
  });
}

// ---- saving

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function saveActive(what) {
  const { active } = state;
  const name = active.text.replace(/[^\w]+/g, "-").slice(0, 40);
  if (what === "overlay") {
    save(await overlayBlob(find("picture"), [{ rings: best(active.result).masks, color: active.color }]), `${name}-overlay.png`);
    return;
  }
  const format = what === "mask" ? "png" : "rle";
  const { prompt_results: [result] } = await state.image.ask([active.text], { format });
  const found = best(result);
  if (what === "mask") {
    const bytes = Uint8Array.from(atob(found.masks), (letter) => letter.charCodeAt(0));
    save(new Blob([bytes], { type: "image/png" }), `${name}-mask.png`);
    return;
  }
  const annotation = { id: 1, image_id: 1, category_id: 1, segmentation: found.masks, bbox: found.bbox, area: found.area, iscrowd: 0, score: found.score, caption: active.text };
  const document = { images: [{ id: 1, file_name: "image", ...state.size }], categories: [{ id: 1, name: result.root }], annotations: [annotation] };
  save(new Blob([JSON.stringify(document, null, 1)], { type: "application/json" }), `${name}-coco.json`);
}

function listenForSaving() {
  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => saveActive(button.dataset.save).catch((error) => report(error.message, true)));
  }
}

onTokenNeeded(
  () =>
    new Promise((done) => {
      const dialog = find("token-dialog");
      dialog.addEventListener("close", () => done(find("token").value.trim() || null), { once: true });
      dialog.showModal();
    }),
);
listenForImages();
listenForCamera();
listenForPhrases();
listenForCandidates();
listenForSaving();
showScenes().catch((error) => report(error.message, true));
