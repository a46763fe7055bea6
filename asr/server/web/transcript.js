// One transcript on the page: its words while they come, and as text and subtitles.

const CUE_LETTERS = 84;  // of a subtitle: two lines of 42
const CUE_SECONDS = 6;
const CUE_PAUSE = 1;  // seconds of pause that begin a new subtitle
const SURE = 0.8, UNSURE = 0.5;  // confidence

export class Transcript {
  /** An empty transcript under a title, appended to `parent`; `removed` is called when the user takes it away. */
  constructor(parent, title, removed) {
    this.title = title;
    this.segments = [];
    this.element = element("article", {"aria-label": title});
    const copy = button("Copy", async () => {
      await navigator.clipboard.writeText(this.text);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    });
    copy.setAttribute("aria-live", "polite");
    this.buttons = [
      copy,
      button(".txt", () => download(`${this.name}.txt`, this.text), "Download as text"),
      button(".srt", () => download(`${this.name}.srt`, this.srt), "Download as subtitles"),
    ];
    const remove = button("Remove", () => {
      this.element.remove();
      removed(this);
    });
    const head = element("div", {class: "head"}, element("h2", {}, title), ...this.buttons, remove);
    // Screen readers speak what is final, and are spared what still changes.
    this.log = element("div", {class: "log", role: "log", "aria-live": "polite", "aria-label": "Captions"});
    this.open = element("p", {class: "partial", "aria-hidden": "true"});
    this.element.append(head, this.log, this.open);
    parent.append(this.element);
    this.enable();
  }

  get name() {
    return this.title.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}]+/gu, "-");
  }

  get text() {
    return this.segments.map((segment) => segment.text + "\n").join("");
  }

  /** Subtitles: cues of whole words, none too long to be read. */
  get srt() {
    const cues = this.segments.flatMap((segment) => divided(segment.words));
    return cues.map((words, i) => {
      const text = folded(words.map((word) => word.text).join(" "));
      return `${i + 1}\n${clock(words[0].start)} --> ${clock(words.at(-1).end)}\n${text}\n\n`;
    }).join("");
  }

  /** Shows what may still change, in place of what it showed before. */
  partial(event) {
    const committed = event.committed ?? 0;  // words that will not change any more
    const words = event.words.map((word) => word.text);
    const solid = element("span", {class: "committed"}, words.slice(0, committed).join(" "));
    this.open.replaceChildren(solid, committed ? " " : "", words.slice(committed).join(" "));
  }

  /** Shows a whole segment, which stays. */
  final(event) {
    this.open.replaceChildren();
    this.segments.push(event);
    const words = event.words.flatMap((word) => [shown(word), " "]);
    this.log.append(element("p", {}, ...words));
    this.enable();
  }

  /** Nothing more comes. */
  close() {
    this.open.remove();
  }

  enable() {
    for (const each of this.buttons) each.disabled = this.segments.length === 0;
  }
}

export function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function button(label, action, description) {
  const made = element("button", {type: "button", class: "quiet"}, label);
  if (description) {
    made.title = description;
    made.setAttribute("aria-label", description);
  }
  made.addEventListener("click", action);
  return made;
}

function shown(word) {
  const percent = Math.round(100 * word.confidence);
  const trust = word.confidence >= SURE ? "sure" : word.confidence >= UNSURE ? "unsure" : "doubtful";
  const tip = `${percent} % sure, at ${clock(word.start).slice(3, 8)}`;
  return element("span", {class: `word ${trust}`, "data-tip": tip, "data-percent": percent}, word.text);
}

function divided(words) {
  const cues = [];
  let letters = 0;
  for (const word of words) {
    const cue = cues.at(-1);
    const fits = cue && letters + 1 + word.text.length <= CUE_LETTERS &&
      word.end - cue[0].start <= CUE_SECONDS && word.start - cue.at(-1).end < CUE_PAUSE;
    if (fits) cue.push(word);
    else cues.push([word]);
    letters = fits ? letters + 1 + word.text.length : word.text.length;
  }
  return cues;
}

/** Text in two lines of about the same length where it is longer than one. */
function folded(text) {
  if (text.length <= CUE_LETTERS / 2) return text;
  const middle = text.length / 2;
  const spaces = [...text.matchAll(/ /g)].map((match) => match.index);
  if (!spaces.length) return text;
  const at = spaces.reduce((best, i) => (Math.abs(i - middle) < Math.abs(best - middle) ? i : best));
  return `${text.slice(0, at)}\n${text.slice(at + 1)}`;
}

/** Seconds as hours, minutes, seconds and thousandths. */
function clock(seconds) {
  const thousandths = Math.round(seconds * 1000);
  const parts = [3600000, 60000, 1000].map((unit, i) => Math.floor(thousandths / unit) % (i ? 60 : Infinity));
  const two = (number) => String(number).padStart(2, "0");
  return `${parts.map(two).join(":")},${String(thousandths % 1000).padStart(3, "0")}`;
}

function download(name, text) {
  const link = element("a", {href: URL.createObjectURL(new Blob([text], {type: "text/plain"})), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
