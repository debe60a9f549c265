"use strict";

const DARKEST = 0.65; // opacity over what the model did not look at
const JPEG_QUALITY = 0.92;

const part = (id) => document.getElementById(id);
const settings = JSON.parse(document.body.dataset.settings);
const cards = []; // as the page shows them; each has the element, the file and the result
let queue = Promise.resolve();
let total = 0;
let done = 0;

function tell(text, bad = false) {
  part("status").textContent = text;
  part("status").classList.toggle("bad", bad);
}

function create(tag, className, ...content) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...content);
  return element;
}

// From files to cards

function add(files) {
  const added = [...files].map(newCard);
  cards.unshift(...added);
  part("results").prepend(...added.map((card) => card.element));
  part("downloads").hidden = part("legend").hidden = false;
  added.forEach(enqueue);
  added[0]?.element.scrollIntoView({ block: "nearest" });
}

function newCard(file) {
  const element = part("card").content.cloneNode(true).firstElementChild;
  const card = { element, file, result: { image: file.name } };
  const picture = element.querySelector("img");
  picture.alt = file.name;
  picture.onerror = () => element.querySelector(".picture").remove(); // no format of this browser
  picture.src = URL.createObjectURL(file);
  element.querySelector(".name").textContent = file.name;
  element.querySelector(".copy").addEventListener("click", (event) => copy(card, event.target));
  return card;
}

function enqueue(card) {
  total++;
  card.element.classList.add("waiting");
  queue = queue.then(async () => {
    tell(`Captioning ${done + 1} of ${total} …`);
    try {
      Object.assign(card.result, await ask(card.file));
    } catch (error) {
      card.result.error = error.message;
    }
    display(card);
    done++;
    if (done < total) return;
    const failed = cards.filter((one) => one.result.error).length;
    tell(`Done: ${cards.length - failed} captioned` + (failed ? `, ${failed} failed` : ""));
    total = done = 0;
  });
}

async function ask(file) {
  if (file.size > settings.limit) {
    throw new Error(`larger than ${settings.limit / 1e6} MB; scale it down`);
  }
  const body = await file.arrayBuffer().catch(() => {
    throw new Error("cannot be read; if it is a folder, choose the photographs in it");
  });
  const reply = await fetch("caption", { method: "POST", body }).catch(() => {
    throw new Error("no answer from the captioner; is it still running?");
  });
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

function display(card) {
  const { words, alternatives = [], recognised = {}, guess, error } = card.result;
  const lines = words ? captionElements(card.result, "Confidence") : [];
  if (alternatives.length) {
    const more = alternatives.flatMap((caption) => captionElements(caption, "Alternative: confidence", "other"));
    lines.push(create("details", "", create("summary", "note", "Alternatives"), ...more));
  }
  const seen = Object.entries(recognised).map(([word, probability]) => `${word} ${percent(probability)}`);
  if (seen.length) lines.push(create("p", "note", `Recognised: ${seen.join(", ")}.`));
  if (guess) lines.push(create("p", "note", "Unlike what the captioner has seen: the caption is a guess."));
  if (error) lines.push(create("p", "error", error));
  card.element.classList.remove("waiting");
  card.element.querySelector(".captions").replaceChildren(...lines);
  card.element.querySelector(".copy").hidden = Boolean(error) || !navigator.clipboard; // https or local
}

const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;

function captionElements(caption, title, className = "") {
  const line = create("p", `caption ${className}`);
  line.setAttribute("role", "toolbar");
  line.setAttribute("aria-label", "Words of the caption");
  const facts = create("p", "note facts", `${title} ${percent(caption.confidence)}`);
  facts.setAttribute("aria-live", "off"); // it changes as words are pointed at
  caption.words.forEach((word, index) => {
    const button = create("button", "word", word);
    button.type = "button";
    button.tabIndex = index ? -1 : 0; // one tab stop per caption; arrow keys lead on
    button.style.setProperty("--probability", caption.probabilities[index]);
    button.setAttribute("aria-label", `${word}, ${percent(caption.probabilities[index])}`);
    Object.assign(button, { map: caption.maps?.[index], facts, normal: facts.textContent });
    line.append(button, " ");
  });
  if (!caption.words.length) line.append("(no words)");
  return [line, facts];
}

// Where the model looked: a canvas over the picture, for the word that has the pointer or the focus

const overlay = create("canvas", "");
overlay.setAttribute("aria-hidden", "true");
let shown = null;

const wordAt = (target) => (target instanceof Element ? target.closest(".word") : null);

function look(word) {
  overlay.remove();
  if (shown) {
    shown.classList.remove("shown");
    shown.facts.textContent = shown.normal;
  }
  shown = word;
  if (!word) return;
  word.classList.add("shown");
  word.facts.textContent = word.getAttribute("aria-label");
  const picture = word.closest(".card").querySelector("img");
  if (!word.map || !picture) return;
  const [rows, columns] = [word.map.length, word.map[0].length];
  const shade = new ImageData(columns, rows);
  word.map.flat().forEach((weight, place) => {
    shade.data[4 * place + 3] = DARKEST * (255 - weight);
  });
  const small = create("canvas", "");
  [small.width, small.height] = [columns, rows];
  small.getContext("2d").putImageData(shade, 0, 0);
  [overlay.width, overlay.height] = [picture.clientWidth, picture.clientHeight];
  const context = overlay.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, overlay.width, overlay.height);
  picture.after(overlay);
}

const results = part("results");
for (const type of ["mouseover", "focusin", "click"]) {
  results.addEventListener(type, (event) => {
    const word = wordAt(event.target);
    if (word) look(word);
  });
}
results.addEventListener("mouseout", (event) => {
  if (wordAt(event.target)) look(wordAt(document.activeElement));
});
results.addEventListener("focusout", () => look(null));
results.addEventListener("keydown", (event) => {
  const word = wordAt(event.target);
  if (event.key === "Escape") look(null);
  const next = word && { ArrowRight: word.nextElementSibling, ArrowLeft: word.previousElementSibling }[event.key];
  if (!next) return;
  word.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  event.preventDefault();
});

// Copy and download

async function copy(card, button) {
  try {
    await navigator.clipboard.writeText(card.result.caption);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  } catch (error) {
    tell(`Cannot copy: ${error.message}`, true);
  }
}

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const quoted = (value = "") => `"${String(value).replaceAll('"', '""')}"`;

part("csv").addEventListener("click", () => {
  const names = ["image", "caption", "confidence", "error"];
  const lines = [names, ...cards.map(({ result }) => names.map((name) => result[name]))];
  download("captions.csv", "text/csv", lines.map((row) => row.map(quoted).join(",") + "\r\n").join(""));
});
part("json").addEventListener("click", () => {
  const withoutMaps = (key, value) => (key === "maps" ? undefined : value);
  download("captions.json", "application/json", JSON.stringify(cards.map((card) => card.result), withoutMaps, 1));
});

// Where photographs come from: files, examples, the clipboard, a drop, the camera

part("choose").addEventListener("click", () => part("file").click());
part("file").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", ({ clipboardData: { files } }) => {
  if (files.length) add(files);
  else tell("The clipboard has no picture; copy the picture, not its address.", true);
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
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  else tell("What was dropped is not a file; save the picture first.", true);
});

part("model").textContent = settings.model;
part("hint").hidden = !settings.attention;
part("samples").hidden = !settings.examples.length;
part("examples").append(...settings.examples.map((name) => {
  const picture = document.createElement("img");
  [picture.src, picture.alt] = [`examples/${name}`, name];
  const button = create("button", "", picture);
  button.type = "button";
  button.addEventListener("click", async () => {
    const reply = await fetch(picture.src);
    add([new File([await reply.blob()], name)]);
  });
  return button;
}));

const video = part("video");

function closeCamera() {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  part("live").hidden = true;
}

part("camera").hidden = !navigator.mediaDevices?.getUserMedia; // https or local pages only
part("camera").addEventListener("click", async () => {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play(); // before it is shown, so that a picture can be taken at once
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
  [still.width, still.height] = [video.videoWidth, video.videoHeight];
  still.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  part("camera").focus();
  still.toBlob((blob) => add([new File([blob], "camera.jpg")]), "image/jpeg", JPEG_QUALITY);
});
