// A recording to the server's /v1/audio/transcriptions, and its words as they are known.

const NO_ANSWER = "The server does not answer. See that it runs, then try again.";

export class Recording {
  /**
   * handlers: uploaded(share), heard(seconds, duration or null), final(event), and ended(problem), which comes once,
   * with null where all went well.
   */
  constructor(file, {token, hotwords}, handlers) {
    this.handlers = handlers;
    this.read = 0;  // characters of the answer
    this.done = false;
    this.problem = NO_ANSWER;
    const form = new FormData();
    form.append("model", "default");
    form.append("stream", "true");
    form.append("progress", "true");
    if (hotwords.length) form.append("prompt", hotwords.join(", "));
    form.append("file", file);
    this.request = new XMLHttpRequest();  // fetch does not tell how far an upload is
    this.request.open("POST", new URL("v1/audio/transcriptions", location.href));
    if (token) this.request.setRequestHeader("Authorization", `Bearer ${token}`);
    this.request.upload.onprogress = ({loaded, total}) => handlers.uploaded(loaded / total);
    this.request.onprogress = () => this.advance();
    this.request.onloadend = () => this.end();
    this.request.send(form);
  }

  cancel() {
    this.problem = null;
    this.request.abort();
  }

  /** Takes in the server-sent events that are complete. */
  advance() {
    if (this.request.status !== 200) return;
    const text = this.request.responseText;
    for (let at; (at = text.indexOf("\n\n", this.read)) >= 0; this.read = at + 2) {
      const line = text.slice(this.read, at);
      if (line.startsWith("data: {")) this.receive(JSON.parse(line.slice(6)));
    }
  }

  receive(event) {
    if (event.type === "asr.progress") this.handlers.heard(event.seconds, event.duration);
    else if (event.type === "asr.final") this.handlers.final(event);
    else if (event.type === "transcript.text.done") this.problem = null;
    else if (event.type === "error") this.problem = event.error.message;
  }

  end() {
    this.advance();
    if (this.request.status !== 200 && this.problem !== null) this.problem = refusal(this.request) ?? this.problem;
    this.handlers.ended(this.problem);
  }
}

/** The server's own sentence on why it refused. */
function refusal(request) {
  try {
    return JSON.parse(request.responseText).error.message;
  } catch {
    return null;
  }
}
