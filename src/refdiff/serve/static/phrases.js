// Phrases about one image and their answers. State is in `state`; `render` shows all of it.

import { RemoteImage } from "./api.js";
import { listenForSaving, showSharing } from "./save.js";
import { gauge, scoreTable, thumbnail, timingRows } from "./scores.js";
import { COLORS, areaOf, candidateAt, drawHeat, drawMasks, find, isDoubtful, make, percent, report } from "./view.js";

const WAIT_MS = 300;
const state = {
  image: null, // RemoteImage
  size: { width: 1, height: 1 },
  scene: null, // name of the rendered scene
  kept: [], // {text, color, result, timings}
  draft: null, // the phrase that is being typed
  active: null, // of kept, or the draft
  hovered: -1,
  request: null, // AbortController of the request in progress
};

const best = (result) => result.predictions[0] ?? null;

// ---- the image

export async function openImage(blob, { scene = null, phrases = [] } = {}) {
  const picture = find("picture");
  const before = picture.src;
  picture.src = URL.createObjectURL(blob);
  try {
    await picture.decode();
  } catch {
    report("This file is not an image that the browser can show.", true);
    return;
  }
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
  state.request?.abort();
  Object.assign(state, { image: new RemoteImage(blob), scene, kept: [], draft: null, active: null, hovered: -1 });
  state.size = { width: picture.naturalWidth, height: picture.naturalHeight };
  find("frame").style.aspectRatio = `${state.size.width} / ${state.size.height}`;
  enable(true);
  report("");
  render();
  for (const [index, phrase] of phrases.entries()) {
    find("phrase").value = phrase;
    await ask();
    if (index < phrases.length - 1) keep();
  }
}

export function closeImage() {
  state.request?.abort();
  Object.assign(state, { image: null, scene: null, kept: [], draft: null, active: null, hovered: -1 });
  enable(false);
  render();
}

function enable(is) {
  find("drop").hidden = is;
  find("view").hidden = !is;
  find("phrase").value = "";
  find("phrase").disabled = find("keep").disabled = !is;
  if (is) find("phrase").focus({ preventScroll: true });
  else find("choose").focus();
}

// ---- asking

let timer = 0;

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
  find("busy").textContent = state.image.id ? "Looking…" : "Reading the image…";
  find("busy").hidden = false;
  try {
    const fields = { format: "polygon", candidates: true, heat: true };
    const answer = await state.image.ask([text], fields, request.signal);
    const [result] = answer.prompt_results;
    for (const candidate of result.candidates) candidate.area = areaOf(candidate.masks);
    state.draft = { text, color: nextColor(), result, timings: answer.timings };
    state.active = state.draft;
    state.hovered = -1;
    report(`Answered in ${Math.round(answer.time * 1000)} ms`);
  } catch (error) {
    if (error.name === "AbortError") return;
    report(error.message, true);
    state.draft = null;
    if (!state.kept.includes(state.active)) state.active = null;
  }
  if (request === state.request) {
    find("busy").hidden = true;
    render();
  }
}

function nextColor() {
  const used = state.kept.map((each) => each.color);
  return COLORS.find((each) => !used.includes(each)) ?? COLORS[used.length % COLORS.length];
}

function keep() {
  if (!state.draft || state.draft.text !== find("phrase").value.trim()) return;
  state.kept.push(state.draft);
  state.draft = null;
  find("phrase").value = "";
  render();
}

function listenForPhrases() {
  find("phrase").addEventListener("input", () => {
    clearTimeout(timer);
    if (!state.image) return;
    // What is on show belongs to an earlier text until the answer to this one is there.
    document.body.classList.toggle("pending", state.active === state.draft && state.draft?.text !== find("phrase").value.trim());
    timer = setTimeout(ask, WAIT_MS);
  });
  find("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!state.image) return;
    if (state.draft?.text !== find("phrase").value.trim()) {
      clearTimeout(timer);
      await ask();
    }
    keep();
  });
}

// ---- showing

function verdict(result) {
  const found = best(result);
  if (!found) return ["Not found", "bad", result.reason ?? ""];
  if (found.confidence === null) return ["Best candidate", "", "This bundle has no calibrated confidence: the best candidate is shown even if nothing fits."];
  if (found.confidence >= 0.5) return [`Found, ${percent(found.confidence)} sure`, "good", `“${result.echo.text}” (head word: ${result.root})`];
  const title = isDoubtful(found.confidence) ? "Probably not here" : `Not sure, ${percent(found.confidence)}`;
  return [title, "bad", `The best candidate is shown; the probability that it is right is ${percent(found.confidence)}.`];
}

function render() {
  document.body.classList.remove("pending");
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
      ghost: isDoubtful(best(entry.result).confidence),
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
      const pick = make("button", { type: "button", class: "pick", "aria-pressed": pressed }, swatch, make("span", { class: "text" }, entry.text), make("span", { class: "numbers" }, note));
      pick.addEventListener("click", () => {
        state.active = entry;
        state.hovered = -1;
        render();
      });
      const drop = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${entry.text}` }, "×");
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
  find("answer").dataset.kind = kind;
  find("why").textContent = why;
  const sure = best(result)?.confidence ?? null;
  find("gauge").replaceChildren(...(sure === null ? [] : [gauge(sure)]));
  find("cautions").replaceChildren(...result.cautions.map((text) => make("li", {}, text)));
  find("downloads").hidden = !best(result);
  showSharing(state);
  renderComparison(result);
  renderCandidates(result);
  find("timings").tBodies[0].replaceChildren(...timingRows(active.timings ?? {}));
  const total = Object.values(active.timings ?? {}).reduce((sum, each) => sum + each, 0);
  find("timings-total").textContent = `${Math.round(1000 * total)} ms`;
}

function renderComparison(result) {
  const [first, second] = result.candidates
    .map((candidate, index) => ({ candidate, index }))
    .filter(({ candidate }) => candidate.score_parts.total !== null)
    .sort((one, other) => other.candidate.score_parts.total - one.candidate.score_parts.total);
  find("compare").replaceChildren();
  if (!first) return;
  const columns = [{ title: `chosen (${first.index + 1})`, candidate: first.candidate }];
  if (second) columns.push({ title: `runner-up (${second.index + 1})`, candidate: second.candidate });
  find("compare").append(make("h2", {}, "Why this one"), scoreTable(columns, result.candidates));
}

// The options are kept while another one is pointed at, so that the pointer stays on the same element.
function renderCandidates(result) {
  const list = find("candidates");
  if (list.result !== result) {
    list.result = result;
    list.replaceChildren(...result.candidates.map(option));
  }
  [...list.children].forEach((each, index) => each.setAttribute("aria-selected", String(index === state.hovered)));
  const chosen = result.candidates[state.hovered];
  find("candidate").replaceChildren(
    ...(chosen ? [scoreTable([{ title: `candidate ${state.hovered + 1}`, candidate: chosen }], result.candidates)] : []),
  );
  if (chosen) list.setAttribute("aria-activedescendant", `candidate-${state.hovered}`);
  else list.removeAttribute("aria-activedescendant");
}

function option(candidate, index) {
  const kept = candidate.kept ? {} : { class: "out" };
  const picture = thumbnail(candidate.masks, state.size, find("picture").src);
  const made = make("span", { role: "option", id: `candidate-${index}`, ...kept }, picture, make("span", {}, String(index + 1)));
  made.addEventListener("mouseenter", () => hover(index));
  made.addEventListener("click", () => hover(index));
  return made;
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
    hover(state.hovered < 0 && step < 0 ? count - 1 : (state.hovered + step + count) % count);
  });
  find("mix").addEventListener("input", (event) => {
    find("heat").style.opacity = String(event.target.value / 100);
  });
}

export function listenForQuestions() {
  listenForPhrases();
  listenForCandidates();
  listenForSaving(state);
}
