// The page: its buttons, what they start, and where the results go.

import {Listener} from "./listen.js";
import {Recording} from "./recording.js";
import {Transcript, element} from "./transcript.js";

const METER_DB = 60;  // below full scale, where the meter begins
const NEAR_END = 120;  // pixels from the end of the page within which it follows the words

const at = (id) => document.getElementById(id);
const transcripts = new Set();
let listener = null;
let recording = null;

// Speaking

at("speak").addEventListener("click", () => {
  if (listener) {
    status("Finishing");
    listener.stop();
    return;
  }
  complain(null);
  const transcript = begin(`Microphone, ${new Date().toLocaleTimeString([], {hour: "2-digit", minute: "2-digit"})}`);
  status("Opening the microphone");
  speaking(true);
  listener = new Listener(options(), {
    ready({model}) {
      status("Listening");
      at("model").textContent = `model ${model}`;
      listMicrophones();
    },
    partial: (event) => follow(() => transcript.partial(event)),
    final: (event) => follow(() => transcript.final(event)),
    level: showLevel,
    latency(milliseconds) {
      at("latency").hidden = false;
      at("latency").textContent = `Latency ${Math.round(milliseconds / 10) * 10} ms`;
    },
    ended(problem) {
      listener = null;
      speaking(false);
      showLevel(0);
      settle(transcript, problem);
    },
  });
  listener.start();
});

function speaking(on) {
  at("speak").classList.toggle("on", on);
  at("speak-label").textContent = on ? "Stop" : "Speak";
}

function showLevel(peak) {
  const share = 1 + (20 * Math.log10(Math.max(peak, 1e-9))) / METER_DB;
  at("meter").firstElementChild.style.transform = `scaleX(${Math.min(1, Math.max(0, share))})`;
}

async function listMicrophones() {  // browsers tell their names only once one was allowed
  const chosen = at("microphone").value;
  const devices = await navigator.mediaDevices.enumerateDevices();
  const inputs = devices.filter(({kind, deviceId}) => kind === "audioinput" && deviceId && deviceId !== "default");
  const first = at("microphone").options[0];
  at("microphone").replaceChildren(first, ...inputs.map(({deviceId, label}) => element("option", {value: deviceId}, label)));
  at("microphone").value = inputs.some(({deviceId}) => deviceId === chosen) ? chosen : "";
}

// Recordings

at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  if (file) transcribe(file);
  at("file").value = "";
});
at("cancel").addEventListener("click", () => recording?.cancel());

function transcribe(file) {
  if (recording) {
    complain("One recording at a time: wait for the present one, or cancel it.");
    return;
  }
  complain(null);
  const transcript = begin(file.name);
  at("upload").hidden = false;
  advance(`Sending ${file.name}`, 0);
  recording = new Recording(file, options(), {
    uploaded: (share) => advance(share < 1 ? `Sending ${file.name}` : `Reading ${file.name}`, share < 1 ? share : null),
    heard: (seconds, duration) => advance(`Writing down ${file.name}`, duration ? seconds / duration : null),
    final: (event) => follow(() => transcript.final(event)),
    ended(problem) {
      recording = null;
      at("upload").hidden = true;
      settle(transcript, problem);
    },
  });
}

function advance(label, share) {
  const percent = share === null ? "" : `, ${Math.round(100 * Math.min(1, share))} %`;
  at("upload-label").textContent = label + percent;
  if (share === null) at("progress").removeAttribute("value");
  else at("progress").value = Math.min(1, share);
}

let entered = 0;  // elements under the dragged file
document.addEventListener("dragenter", (event) => drag(event, 1));
document.addEventListener("dragleave", (event) => drag(event, -1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  entered = 0;
  document.body.classList.remove("dragging");
  const [file] = event.dataTransfer.files;
  if (file) transcribe(file);
});

function drag(event, step) {
  event.preventDefault();
  entered = Math.max(0, entered + step);
  document.body.classList.toggle("dragging", entered > 0);
}

// Transcripts

function begin(title) {
  const transcript = new Transcript(at("transcripts"), title, forget);
  transcripts.add(transcript);
  at("empty").hidden = true;
  toEnd();
  return transcript;
}

/** A transcript that ended: one without words is taken away again. */
function settle(transcript, problem) {
  transcript.close();
  complain(problem);
  const silent = transcript.segments.length === 0;
  status(problem ? "Stopped" : silent ? "No words were heard" : "Ready");
  if (silent) {
    transcript.element.remove();
    forget(transcript);
  }
}

function forget(transcript) {
  transcripts.delete(transcript);
  at("empty").hidden = transcripts.size > 0;
  at("speak").focus();
}

/** Makes a change and keeps the end of the page in view, unless the reader has gone back. */
function follow(change) {
  const page = document.scrollingElement;
  const near = page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_END;
  change();
  if (near) toEnd();
}

function toEnd() {
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
}

function status(text) {
  at("status").textContent = text;
}

function complain(problem) {
  at("problem").hidden = !problem;
  at("problem").textContent = problem ?? "";
}

// Options

at("options-button").addEventListener("click", () => at("options").showModal());
at("confidence").addEventListener("change", ({target}) => document.body.classList.toggle("marked", target.checked));
at("token").value = sessionStorage.getItem("token") ?? "";
at("token").addEventListener("change", ({target}) => sessionStorage.setItem("token", target.value));

function options() {
  const phrases = at("hotwords").value.split(",").map((phrase) => phrase.trim()).filter(Boolean);
  return {device: at("microphone").value, hotwords: phrases, token: at("token").value.trim()};
}
