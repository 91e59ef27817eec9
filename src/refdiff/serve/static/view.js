// Drawing: masks as SVG paths over the image, the heatmap on a canvas, scores as bars.

const SVG = "http://www.w3.org/2000/svg";
const PARTS = { hard: "crop", soft: "in context", generative: "heat", place: "place" };
export const COLORS = ["#ff5a4f", "#2d9bff", "#ffb020", "#27b36a", "#b05cff", "#ff6fb5"];

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Rings run through pixel centers.
export function pathOf(rings) {
  return rings.map((ring) => `M${ring.map(([x, y]) => `${x + 0.5},${y + 0.5}`).join("L")}Z`).join("");
}

export function drawMasks(svg, size, shown) {
  svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  const line = Math.max(size.width, size.height) / 320;
  svg.replaceChildren(
    ...shown.map(({ rings, color, active, ghost }) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", pathOf(rings));
      path.setAttribute("fill-rule", "evenodd");
      path.setAttribute("fill", color);
      path.setAttribute("fill-opacity", ghost ? "0.12" : active ? "0.42" : "0.22");
      path.setAttribute("stroke", color);
      path.setAttribute("stroke-width", String(active || ghost ? line * 1.4 : line));
      if (ghost) path.setAttribute("stroke-dasharray", `${line * 4} ${line * 2.5}`);
      path.setAttribute("stroke-linejoin", "round");
      return path;
    }),
  );
}

// The index of the smallest candidate under a place of the image.
export function candidateAt(candidates, x, y) {
  let found = -1;
  let least = Infinity;
  const context = document.createElement("canvas").getContext("2d");
  candidates.forEach((candidate, index) => {
    const path = new Path2D(pathOf(candidate.masks));
    if (candidate.area < least && context.isPointInPath(path, x, y, "evenodd")) {
      found = index;
      least = candidate.area;
    }
  });
  return found;
}

export function areaOf(rings) {
  let twice = 0;
  for (const ring of rings) {
    ring.forEach(([x, y], index) => {
      const [nextX, nextY] = ring[(index + 1) % ring.length];
      twice += x * nextY - nextX * y;
    });
  }
  return Math.abs(twice) / 2;
}

export async function drawHeat(canvas, base64) {
  if (!base64) {
    canvas.width = canvas.height = 1;
    return;
  }
  const bitmap = await createImageBitmap(decode(base64));
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const [red, green, blue] = inferno(pixels.data[at] / 255);
    pixels.data[at] = red;
    pixels.data[at + 1] = green;
    pixels.data[at + 2] = blue;
  }
  context.putImageData(pixels, 0, 0);
}

function decode(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

const STOPS = [[8, 6, 30], [75, 20, 105], [160, 40, 95], [225, 85, 50], [250, 160, 40], [252, 240, 160]];

function inferno(value) {
  const place = Math.min(0.9999, value) * (STOPS.length - 1);
  const low = STOPS[Math.floor(place)];
  const high = STOPS[Math.floor(place) + 1];
  return low.map((from, index) => Math.round(from + (high[index] - from) * (place % 1)));
}

// A table of the score's parts for one or two candidates; bars are scaled over all candidates.
export function scoreTable(columns, candidates) {
  const head = make("tr", {}, make("th", { scope: "col" }, "part"));
  for (const { title } of columns) head.append(make("th", { scope: "col" }, title));
  const rows = Object.entries({ ...PARTS, total: "total" }).map(([part, name]) => {
    const values = candidates.map((each) => each.score_parts[part]).filter((value) => value !== null);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const row = make("tr", {}, make("th", { scope: "row" }, name));
    columns.forEach(({ candidate }, index) => {
      const value = candidate.score_parts[part];
      const share = value === null || most === least ? 0 : (value - least) / (most - least);
      row.append(make("td", {}, bar(share, value, index > 0)));
    });
    return row;
  });
  return make("table", { class: "scores" }, make("thead", {}, head), make("tbody", {}, ...rows));
}

function bar(share, value, second) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const rect = document.createElementNS(SVG, "rect");
  rect.setAttribute("width", String(Math.max(2, 100 * share)));
  rect.setAttribute("height", "10");
  svg.append(rect);
  const text = value === null ? "out" : value.toFixed(3);
  return make("div", { class: second ? "bar second" : "bar" }, svg, make("span", {}, text));
}

export async function overlayBlob(picture, shown) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const line = Math.max(canvas.width, canvas.height) / 320;
  for (const { rings, color } of shown) {
    const path = new Path2D(pathOf(rings));
    context.fillStyle = `${color}66`;
    context.fill(path, "evenodd");
    context.strokeStyle = color;
    context.lineWidth = line * 1.4;
    context.stroke(path);
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
