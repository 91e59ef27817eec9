// The page: an image and phrases about it (`phrases.js`), or a live camera (`live.js`).

import { onTokenNeeded } from "./api.js";
import { listenForLive, stopLive } from "./live.js";
import { closeImage, listenForQuestions, openImage } from "./phrases.js";
import { listenForPictures, openLink, showScenes } from "./picture.js";
import { find, offers, report } from "./view.js";

async function open(blob, more) {
  stopLive();
  await openImage(blob, more);
}

onTokenNeeded(
  () =>
    new Promise((done) => {
      const dialog = find("token-dialog");
      dialog.addEventListener("close", () => done(find("token").value.trim() || null), { once: true });
      dialog.showModal();
    }),
);
find("another").addEventListener("click", closeImage);
listenForPictures(open);
listenForQuestions();
if (offers("live")) listenForLive();
showScenes(open)
  .then(() => openLink(open))
  .catch((error) => report(error.message, true));
