// Drawing: elements, masks as SVG paths over the image, the heatmap on a canvas.

const SVG = "http://www.w3.org/2000/svg";
export const COLORS = ["#ff5a4f", "#2d9bff", "#ffb020", "#27b36a", "#b05cff", "#ff6fb5"];

export const find = (id) => document.getElementById(id);

export function report(text, bad = false) {
  find("status").textContent = text;
  find("status").classList.toggle("bad", bad);
}

// What the server allows: "live", "share".
export function offers(name) {
  return document.body.dataset.offers.split(" ").includes(name);
}

export function percent(value) {
  return value < 0.01 ? "< 1 %" : `${Math.round(100 * value)} %`;
}

// Below this confidence a mask is drawn with a dashed line.
const DOUBTFUL = 0.2;

export function isDoubtful(confidence) {
  return confidence !== null && confidence < DOUBTFUL;
}

export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

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

// `shown`: rings, color, active (strong), ghost (dashed), and a label.
export function drawMasks(svg, size, shown) {
  svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  const line = Math.max(size.width, size.height) / 320;
  const unit = size.width / (svg.clientWidth || size.width); // of a CSS pixel
  const drawn = shown.flatMap(({ rings, color, active, ghost, label }) => {
    const path = makeSvg("path", {
      d: pathOf(rings),
      "fill-rule": "evenodd",
      fill: color,
      "fill-opacity": ghost ? 0.12 : active ? 0.42 : 0.22,
      stroke: color,
      "stroke-width": active || ghost ? line * 1.4 : line,
      "stroke-linejoin": "round",
      ...(ghost ? { "stroke-dasharray": `${line * 4} ${line * 2.5}` } : {}),
    });
    return label && rings.length ? [path, tag(rings, size, color, label, unit)] : [path];
  });
  svg.replaceChildren(...drawn);
}

// A label above the largest part of a mask, inside of the picture.
function tag(rings, size, color, label, unit) {
  const height = 26 * unit;
  const width = height * (0.8 + 0.335 * label.length);
  const points = rings.reduce((most, ring) => (areaOf([ring]) > areaOf([most]) ? ring : most));
  const middle = (Math.min(...points.map(([x]) => x)) + Math.max(...points.map(([x]) => x))) / 2;
  const top = Math.min(...points.map(([, y]) => y));
  const x = Math.max(0, Math.min(size.width - width, middle - width / 2));
  const y = Math.max(0, top - height * 1.3);
  const text = makeSvg("text", { x: x + width / 2, y: y + height * 0.69, "font-size": height * 0.56, "text-anchor": "middle" }, label);
  const back = makeSvg("rect", { x, y, width, height, rx: height * 0.3, stroke: color, "stroke-width": 2 * unit });
  return makeSvg("g", { class: "tag" }, back, text);
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
