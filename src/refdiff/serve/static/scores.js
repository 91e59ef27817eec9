// Numbers as pictures: the parts of a score and the times of the stages as bars, a confidence as a ring.

import { make, makeSvg, pathOf, percent } from "./view.js";

const PARTS = {
  hard: ["crop", "The phrase and the candidate cut out of the image"],
  soft: ["in context", "The phrase and the candidate in its blurred surroundings"],
  generative: ["heat", "The heatmap inside of the candidate, less that outside of it"],
  place: ["place", "Words such as “left” or “largest”"],
  total: ["total", "The weighted sum"],
};

// A table of the score's parts for one or two candidates; bars are scaled over all candidates.
export function scoreTable(columns, candidates) {
  const head = make("tr", {}, make("th", { scope: "col" }, make("span", { class: "visually-hidden" }, "part")));
  for (const { title } of columns) head.append(make("th", { scope: "col" }, title));
  const rows = Object.entries(PARTS).map(([part, [name, meaning]]) => {
    const values = candidates.map((each) => each.score_parts[part]).filter((value) => value !== null);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const row = make("tr", { class: part }, make("th", { scope: "row", title: meaning }, name));
    columns.forEach(({ candidate }, index) => {
      const value = candidate.score_parts[part];
      const share = value === null || most === least ? 0 : (value - least) / (most - least);
      row.append(make("td", {}, bar(share, value === null ? "out" : value.toFixed(3), index > 0)));
    });
    return row;
  });
  return make("table", { class: "scores" }, make("thead", {}, head), make("tbody", {}, ...rows));
}

export function timingRows(timings) {
  const longest = Math.max(...Object.values(timings));
  return Object.entries(timings).map(([stage, seconds]) => {
    const name = make("th", { scope: "row" }, stage.replaceAll("_", " "));
    return make("tr", {}, name, make("td", {}, bar(seconds / longest, `${(1000 * seconds).toFixed(1)} ms`, true)));
  });
}

function bar(share, text, second) {
  const rect = makeSvg("rect", { width: Math.max(1.5, 100 * share), height: 10 });
  const svg = makeSvg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, rect);
  return make("div", { class: second ? "bar second" : "bar" }, svg, make("span", {}, text));
}

// A ring that is filled as far as the confidence goes.
export function gauge(confidence) {
  const around = 2 * Math.PI * 26;
  const circle = { cx: 32, cy: 32, r: 26, fill: "none", "stroke-width": 7 };
  const filled = { ...circle, class: "gauge-part", "stroke-linecap": "round", transform: "rotate(-90 32 32)" };
  const text = makeSvg("text", { x: 32, y: 37, "text-anchor": "middle", "font-size": confidence < 0.01 ? 13 : 15 }, percent(confidence).replace(" %", "%"));
  return makeSvg(
    "svg",
    { viewBox: "0 0 64 64", width: 64, height: 64, class: "gauge" },
    makeSvg("circle", { ...circle, class: "gauge-back" }),
    makeSvg("circle", { ...filled, "stroke-dasharray": `${Math.max(0.02, confidence) * around} ${around}` }),
    text,
  );
}

// A candidate's shape in the image's frame.
export function thumbnail(rings, size, href) {
  const image = makeSvg("image", { href, width: size.width, height: size.height, opacity: 0.45 });
  const path = makeSvg("path", { d: pathOf(rings), "fill-rule": "evenodd" });
  return makeSvg("svg", { viewBox: `0 0 ${size.width} ${size.height}`, "aria-hidden": "true" }, image, path);
}
