// What leaves the page: files, and, where the server allows it, the overlay to another app and a link.

import { linkOf } from "./picture.js";
import { find, make, offers, overlayBlob, report } from "./view.js";

const best = (result) => result.predictions[0];

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function nameOf(entry) {
  return entry.text.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
}

function overlayOf({ active }) {
  return overlayBlob(find("picture"), [{ rings: best(active.result).masks, color: active.color }]);
}

async function saveMask({ image, active }) {
  const { prompt_results: [result] } = await image.ask([active.text], { format: "png" });
  const bytes = Uint8Array.from(atob(best(result).masks), (letter) => letter.charCodeAt(0));
  save(new Blob([bytes], { type: "image/png" }), `${nameOf(active)}-mask.png`);
}

async function saveCoco({ image, active, size }) {
  const { prompt_results: [result] } = await image.ask([active.text], { format: "rle" });
  const { masks, bbox, area, score } = best(result);
  const annotation = { id: 1, image_id: 1, category_id: 1, segmentation: masks, bbox, area, iscrowd: 0, score, caption: active.text };
  const document = { images: [{ id: 1, file_name: "image", ...size }], categories: [{ id: 1, name: result.root }], annotations: [annotation] };
  save(new Blob([JSON.stringify(document, null, 1)], { type: "application/json" }), `${nameOf(active)}-coco.json`);
}

async function share(state) {
  const name = `${nameOf(state.active)}-overlay.png`;
  const file = new File([await overlayOf(state)], name, { type: "image/png" });
  if (navigator.canShare?.({ files: [file] })) {
    await navigator.share({ files: [file], text: state.active.text });
  } else if (navigator.clipboard && window.ClipboardItem) {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": file })]);
    report("The overlay is in the clipboard.");
  } else {
    report("This browser cannot share images from here; save the overlay.", true);
  }
}

async function copyLink({ scene, kept, active }) {
  const phrases = [...new Set([...kept, active].map((each) => each.text))];
  await navigator.clipboard.writeText(linkOf(scene, phrases));
  report("The link is in the clipboard.");
}

// `state`: image, size, scene, kept and active, as `phrases.js` has it.
export function listenForSaving(state) {
  const actions = { mask: saveMask, overlay: async (of) => save(await overlayOf(of), `${nameOf(of.active)}-overlay.png`), coco: saveCoco };
  const listen = (button, action) =>
    button.addEventListener("click", () =>
      action(state).catch((error) => {
        if (error.name !== "AbortError") report(error.message, true); // the user has closed the share sheet
      }),
    );
  for (const button of document.querySelectorAll("[data-save]")) listen(button, actions[button.dataset.save]);
  listen(find("share"), share);
  listen(find("link"), copyLink);
}

export function showSharing(state) {
  find("share").hidden = !offers("share");
  find("link").hidden = !offers("share") || !state.scene || !navigator.clipboard;
}
