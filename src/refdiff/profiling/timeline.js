"use strict";
// The timeline of a profile: spans as boxes, one row for each depth. Wheel or + and - zoom, dragging moves,
// a double click fits one span. Data: [{title, spans: [{name, kind, stage, depth, start, length, told}]}], in ms.
for (const box of document.querySelectorAll(".timeline")) {
  const SVG = "http://www.w3.org/2000/svg", ROW = 26, AXIS = 22, LEAST_LABEL = 7;
  const groups = JSON.parse(box.querySelector("script").textContent);
  const [choice, svg, told] = ["select", "svg", ".told"].map((name) => box.querySelector(name));
  let group, full, from, to, chosen = null;

  groups.forEach((each, index) => choice.add(new Option(each.title, index)));

  function choose() {
    group = groups[choice.value];
    full = Math.max(...group.spans.map((span) => span.start + span.length), 0.001);
    chosen = null;
    told.textContent = "";
    show(0, full);
  }

  function show(begin, end) {
    const length = Math.min(Math.max(end - begin, full / 1e5), full);
    from = Math.min(Math.max(begin, 0), full - length);
    to = from + length;
    draw();
  }

  function zoom(factor, at) {
    show(at - (at - from) * factor, at + (to - at) * factor);
  }

  function shape(kind, attributes, text) {
    const made = document.createElementNS(SVG, kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    svg.append(made);
    return made;
  }

  function draw() {
    const width = svg.clientWidth || 600, scale = width / (to - from);
    const rows = 1 + Math.max(...group.spans.map((span) => span.depth));
    svg.replaceChildren();
    svg.setAttribute("height", AXIS + rows * ROW);
    svg.setAttribute("viewBox", `0 0 ${width} ${AXIS + rows * ROW}`);
    ticks(width, scale, AXIS + rows * ROW);
    for (const span of group.spans) {
      const x = Math.max((span.start - from) * scale, -2);
      const end = Math.min((span.start + span.length - from) * scale, width + 2);
      if (end < 0 || x > width) continue;
      const y = AXIS + span.depth * ROW, wide = Math.max(end - x, 0.5);
      const drawn = shape("rect", { x, y, width: wide, height: ROW - 2, fill: `var(--${span.stage})` });
      drawn.setAttribute("opacity", span.kind === "graph" || span.kind === "load" ? 1 : 0.85);
      if (span === chosen) drawn.classList.add("chosen");
      drawn.addEventListener("pointerenter", () => { if (!chosen) tell(span); });
      drawn.addEventListener("click", () => { chosen = chosen === span ? null : span; tell(span); draw(); });
      drawn.addEventListener("dblclick", () => show(span.start - span.length / 20, span.start + span.length * 1.05));
      const inside = Math.max(x, 0);
      const letters = Math.floor((end - inside - 8) / LEAST_LABEL);
      if (letters >= 3) {
        const label = span.name.length > letters ? span.name.slice(0, letters - 1) + "…" : span.name;
        shape("text", { x: inside + 4, y: y + ROW / 2 + 3 }, label);
      }
    }
  }

  function ticks(width, scale, height) {
    const about = 90 / scale, unit = 10 ** Math.floor(Math.log10(about));
    const step = unit * [1, 2, 5, 10].find((factor) => unit * factor >= about);
    const digits = Math.max(0, -Math.floor(Math.log10(step)));
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const x = (at - from) * scale;
      shape("line", { x1: x, x2: x, y1: 0, y2: height });
      if (x < width - 50) shape("text", { x: x + 3, y: 14, class: "tick" }, `${at.toFixed(digits)} ms`);
    }
  }

  function tell(span) {
    told.textContent = `${span.name} (${span.kind}): ${span.length.toFixed(3)} ms from ${span.start.toFixed(3)} ms. ${span.told}`;
  }

  function timeAt(event) {
    const side = svg.getBoundingClientRect();
    return from + ((event.clientX - side.left) / side.width) * (to - from);
  }

  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, timeAt(event));
  }, { passive: false });

  let held = null;
  svg.addEventListener("pointerdown", (event) => { held = { x: event.clientX, from, moved: false }; });
  window.addEventListener("pointermove", (event) => {
    if (!held) return;
    const moved = event.clientX - held.x;
    held.moved ||= Math.abs(moved) > 3;
    if (held.moved) {
      const begin = held.from - (moved / svg.clientWidth) * (to - from);
      show(begin, begin + to - from);
    }
  });
  window.addEventListener("pointerup", () => { held = null; });
  window.addEventListener("pointercancel", () => { held = null; });

  const middle = () => (from + to) / 2;
  const deeds = {
    in: () => zoom(0.5, middle()),
    out: () => zoom(2, middle()),
    left: () => show(from - (to - from) / 4, to - (to - from) / 4),
    right: () => show(from + (to - from) / 4, to + (to - from) / 4),
    all: () => show(0, full),
  };
  const keys = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "all" };
  svg.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    deeds[keys[event.key]]();
  });
  for (const button of box.querySelectorAll("button")) button.addEventListener("click", () => deeds[button.value]());
  choice.addEventListener("change", choose);
  new ResizeObserver(draw_if_shown).observe(svg);
  function draw_if_shown() { if (group) draw(); }
  choose();
}
