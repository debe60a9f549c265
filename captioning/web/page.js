"use strict";

const TRIES = 30; // when many photographs are waiting
const DARKEST = 0.72;
const JPEG_QUALITY = 0.92;

const part = (id) => document.getElementById(id);
const source = part("source");
const limit = Number(source.dataset.limit);
let sending = null; // the AbortController of the photograph that is being captioned

function tell(text, bad = false) {
  part("status").textContent = text;
  part("status").classList.toggle("bad", bad);
}

// From a photograph to its captions

async function show(photograph, name) {
  sending?.abort();
  const mine = (sending = new AbortController());
  clear();
  if (photograph.size > limit) {
    tell(`${name} is too large: at most ${limit / 1e6} MB are read, scale it down.`, true);
    return;
  }
  tell(`Looking at ${name} …`);
  document.body.setAttribute("aria-busy", "true");
  try {
    const answer = await ask(photograph, mine.signal);
    if (mine !== sending) return;
    display(photograph, name, answer.captions);
  } catch (error) {
    if (mine !== sending) return;
    tell(error.message, true);
  } finally {
    if (mine === sending) document.body.removeAttribute("aria-busy");
  }
}

async function ask(photograph, signal) {
  for (let left = TRIES; ; left--) {
    const request = {
      method: "POST", body: photograph, signal, headers: { "Content-Type": "application/octet-stream" },
    };
    const reply = await fetch("caption", request).catch((error) => {
      throw signal.aborted ? error : new Error("The captioner does not answer; is it still running?");
    });
    if (reply.status === 503 && left > 0) {
      tell("Many photographs are waiting; yours will have its turn …");
      const seconds = Number(reply.headers.get("Retry-After")) || 1;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      continue;
    }
    const answer = await reply.json().catch(() => ({}));
    if (!reply.ok) throw new Error(answer.error || `The captioner answers ${reply.status}.`);
    return answer;
  }
}

function clear() {
  look(null);
  part("result").hidden = true;
  URL.revokeObjectURL(part("shown").src);
  part("shown").removeAttribute("src");
  part("captions").replaceChildren();
}

function display(photograph, name, captions) {
  const shown = part("shown");
  shown.onerror = () => tell(`${name}: captioned, though this browser does not show such files.`);
  shown.src = URL.createObjectURL(photograph);
  shown.alt = name;
  part("captions").replaceChildren(...captions.flatMap(element));
  part("hint").hidden = !captions.some((caption) => caption.maps);
  part("result").hidden = false;
  const sentences = captions.map((one) => `${one.search}: ${one.words.join(" ")}.`).join(" ");
  const spoken = document.createElement("span");
  spoken.className = "hidden-text";
  spoken.textContent = sentences;
  tell(`${name}: done. `);
  part("status").append(spoken);
}

function element(caption) {
  const heading = document.createElement("h2");
  heading.textContent = caption.search;
  const line = document.createElement("p");
  line.className = "caption";
  const words = document.createElement("span");
  words.append(...caption.words.flatMap((word, place) => [" ", wordElement(word, place, caption)]));
  if (caption.maps) {
    words.setAttribute("role", "toolbar");
    words.setAttribute("aria-label", `${caption.search}; a word shows where the model looked for it`);
  }
  if (!caption.words.length) words.append("(no words)");
  const probability = document.createElement("span");
  probability.className = "probability";
  probability.textContent = percent(caption.probability);
  line.append(words, " ", probability);
  return [heading, line];
}

function wordElement(word, place, caption) {
  if (!caption.maps) return word;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "word";
  button.textContent = word;
  button.tabIndex = place ? -1 : 0;
  button.map = caption.maps[place];
  return button;
}

function percent(probability) {
  return `${(100 * probability).toLocaleString("en", { maximumSignificantDigits: 2 })} %`;
}

// Where the model looked: one canvas over the picture, for the word that is pointed at or has focus

const overlay = document.createElement("canvas");
overlay.setAttribute("aria-hidden", "true");
let lit = null;

function wordAt(target) {
  return target instanceof Element ? target.closest(".word") : null;
}

function look(word) {
  lit?.classList.remove("shown");
  overlay.remove();
  lit = word;
  const picture = part("shown");
  if (!word || !picture.naturalWidth) return;
  word.classList.add("shown");
  const rows = word.map.length;
  const columns = word.map[0].length;
  const shade = new ImageData(columns, rows);
  word.map.flat().forEach((weight, place) => {
    shade.data[4 * place + 3] = DARKEST * (255 - weight);
  });
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  small.getContext("2d").putImageData(shade, 0, 0);
  overlay.width = picture.clientWidth;
  overlay.height = picture.clientHeight;
  const context = overlay.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, overlay.width, overlay.height);
  picture.after(overlay);
}

const captions = part("captions");
for (const type of ["mouseover", "focusin", "click"]) {
  captions.addEventListener(type, (event) => {
    const word = wordAt(event.target);
    if (word) look(word);
  });
}
captions.addEventListener("mouseout", (event) => {
  if (wordAt(event.target)) look(wordAt(document.activeElement));
});
captions.addEventListener("focusin", (event) => {
  const word = wordAt(event.target);
  if (!word) return;
  word.parentElement.querySelector("[tabindex='0']").tabIndex = -1; // the one tab stop moves along
  word.tabIndex = 0;
});
captions.addEventListener("focusout", () => look(null));
captions.addEventListener("keydown", (event) => {
  const word = wordAt(event.target);
  if (event.key === "Escape") look(null);
  const next = word && { ArrowRight: word.nextElementSibling, ArrowLeft: word.previousElementSibling }[event.key];
  if (!next) return;
  next.focus();
  event.preventDefault();
});

// Where photographs come from: a file, the clipboard, a drop, the camera

function take(files, otherwise) {
  if (files.length) show(files[0], files[0].name || "The photograph");
  else tell(otherwise, true);
}

part("choose").addEventListener("click", () => part("file").click());
part("file").addEventListener("change", (event) => {
  if (event.target.files.length) take(event.target.files);
  event.target.value = ""; // so that the same file may be chosen again
});
document.addEventListener("paste", (event) => {
  take(event.clipboardData.files, "What was pasted is no photograph; copy a picture, not its address.");
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files, "What was dropped is no file; save the picture first.");
});

const video = part("video");

function closeCamera() {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  part("live").hidden = true;
}

part("camera").hidden = !navigator.mediaDevices?.getUserMedia; // browsers give it to local pages alone
part("camera").addEventListener("click", async () => {
  closeCamera();
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play(); // before it is shown: a picture may be taken at once
    part("live").hidden = false;
    part("take").focus();
  } catch (error) {
    closeCamera();
    tell(`The camera cannot be used: ${error.message}.`, true);
  }
});
part("stop").addEventListener("click", () => {
  closeCamera();
  part("camera").focus();
});
part("take").addEventListener("click", () => {
  const still = document.createElement("canvas");
  still.width = video.videoWidth;
  still.height = video.videoHeight;
  still.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  part("camera").focus();
  still.toBlob((blob) => take(blob ? [blob] : [], "The camera gave no picture."), "image/jpeg", JPEG_QUALITY);
});
