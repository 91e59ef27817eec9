// Where images come from: a file, the clipboard, a drop, the camera's shutter, or a rendered scene.

import { demoImage, demoScenes } from "./api.js";
import { find, make, report } from "./view.js";

// Call `open(blob, {scene, phrases})` with each image that the user gives.
export function listenForPictures(open) {
  find("choose").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) open(file);
  });
  listenForDrops(open);
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (file) open(file);
  });
  listenForShutter(open);
}

function listenForDrops(open) {
  const over = (is) => document.body.classList.toggle("over", is);
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      over(true);
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) over(false);
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    const [file] = event.dataTransfer.files;
    if (file) open(file);
  });
}

// Show the camera in a video element. Returns null, with a note to the user, if there is none.
export async function startCamera(video, wanted = {}) {
  if (!navigator.mediaDevices) {
    report("A browser gives its camera to https pages and to localhost only.", true);
    return null;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", ...wanted } });
  } catch {
    report("No camera, or no permission to use it.", true);
    return null;
  }
  await video.play();
  return video;
}

export function stopCamera(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

function listenForShutter(open) {
  const video = find("video");
  const show = (is) => {
    document.querySelector(".choose").hidden = is;
    find("shutter").hidden = !is;
  };
  const stop = () => {
    stopCamera(video);
    show(false);
  };
  find("webcam").addEventListener("click", async () => {
    show(true);
    if (!(await startCamera(video))) stop();
    else report("");
  });
  find("stop-camera").addEventListener("click", stop);
  find("shoot").addEventListener("click", () => {
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    stop();
    canvas.toBlob((blob) => open(blob), "image/jpeg", 0.95);
  });
}

export async function showScenes(open) {
  for (const { name, phrase } of await demoScenes()) {
    const blob = await demoImage(name);
    const picture = make("img", { src: URL.createObjectURL(blob), alt: "" });
    const button = make("button", { type: "button" }, picture, make("span", {}, phrase));
    button.addEventListener("click", () => open(blob, { scene: name, phrases: [phrase] }));
    find("scenes").append(make("li", {}, button));
  }
}

// Open what a link names: #scene=scene-1&phrase=the+mug&phrase=the+plate. Nothing in it reaches the server but
// the scene's name and the phrases.
export async function openLink(open) {
  const link = new URLSearchParams(location.hash.slice(1));
  const scene = link.get("scene");
  if (!scene) return;
  const phrases = link.getAll("phrase").slice(0, 6);
  open(await demoImage(encodeURIComponent(scene)), { scene, phrases });
}

export function linkOf(scene, phrases) {
  const link = new URLSearchParams({ scene });
  for (const each of phrases) link.append("phrase", each);
  return new URL(`#${link}`, location.href).href;
}
