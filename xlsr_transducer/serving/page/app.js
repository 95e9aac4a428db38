// The page: its controls, and what they do.

import { showLevel } from "./level.js";
import { Recogniser } from "./recogniser.js";
import { askServer } from "./session.js";
import { FORMATS } from "./subtitles.js";
import { Transcript } from "./transcript.js";
import { TranscriptView } from "./transcript_view.js";
import { showWordDetails } from "./word_details.js";

const STATES = {
  idle: "Ready",
  starting: "Starting…",
  listening: "Listening",
  reading: "Reading the file",
  lost: "Connecting…",
  finishing: "Waiting for the last words",
};

const $ = (id) => document.getElementById(id);
const transcript = new Transcript();
const recogniser = new Recogniser(transcript, showState, showSamples, showDelay);
new TranscriptView(transcript, $("segments"), $("announcer"));
showWordDetails($("segments"), $("word-details"));

let server = { no_hotwords: "", needs_key: false };

function settings() {
  const hotwords = $("hotwords").value.split(/[,/]/); // the protocol has / between them
  return { hotwords: hotwords.map((phrase) => phrase.trim()).filter(Boolean), key: $("key").value };
}

/** Whether the fields are filled in; the browser says what is wrong. */
function isReady() {
  return $("settings").reportValidity();
}

async function showServer() {
  try {
    server = await askServer({ hotwords: [], key: "" });
  } catch {
    showProblem("The server does not answer.");
    return;
  }
  $("model").textContent = `Model: ${server.model}`;
  $("key-field").hidden = !server.needs_key;
  $("key").required = server.needs_key;
  $("hotwords-note").textContent = server.no_hotwords && `Not with this server: ${server.no_hotwords}.`;
  $("hotwords-note").hidden = !server.no_hotwords;
  if (server.no_hotwords) {
    $("hotwords").disabled = true;
    $("hotwords").placeholder = "";
  }
}

function showState(state, problem = "", done = "") {
  const isBusy = state !== "idle";
  document.body.dataset.state = state;
  $("speak-label").textContent = isBusy ? "Stop" : "Speak";
  $("status").textContent = done || STATES[state];
  $("choose").disabled = $("key").disabled = isBusy;
  $("hotwords").disabled = isBusy || Boolean(server.no_hotwords);
  showProblem(problem);
  if (!["listening", "reading"].includes(state)) {
    showSamples([]);
  }
  if (state === "starting") {
    $("delay").textContent = "–";
  }
}

function showProblem(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

function showSamples(samples) {
  showLevel($("level"), samples);
}

function showDelay(seconds) {
  $("delay").textContent = `${seconds.toFixed(2)} s`;
}

function showButtons() {
  $("empty").hidden = !transcript.isEmpty;
  for (const button of document.querySelectorAll("#copy, #clear, [data-format]")) {
    button.disabled = transcript.isEmpty;
  }
}

function read(file) {
  if (file && recogniser.state !== "idle") {
    showProblem("Press Stop before you open a file.");
  } else if (file && isReady()) {
    recogniser.read(file, settings());
  }
}

function save(format) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([FORMATS[format](transcript.segments)]));
  link.download = `transcript.${format}`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function copy() {
  const text = FORMATS.txt(transcript.segments);
  try {
    await navigator.clipboard.writeText(text);
    $("status").textContent = "Copied";
  } catch {
    // No clipboard on http pages of other computers.
    getSelection().selectAllChildren($("segments"));
    $("status").textContent = "The browser does not let this page copy: the text is selected, press Ctrl+C";
  }
}

$("settings").addEventListener("submit", (event) => event.preventDefault());
$("speak").addEventListener("click", () => {
  if (recogniser.state !== "idle") {
    recogniser.stop();
  } else if (isReady()) {
    recogniser.listen(settings());
  }
});
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", ({ target }) => {
  read(target.files[0]);
  target.value = ""; // the same file may be chosen again
});
$("copy").addEventListener("click", copy);
$("clear").addEventListener("click", () => transcript.clear());
for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => save(button.dataset.format));
}
transcript.addEventListener("change", showButtons);

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  document.body.classList.toggle("dragging", relatedTarget !== null);
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  read(event.dataTransfer.files[0]);
});

showState("idle");
showServer();
