// The microphone to the server's /v1/stream (see PROTOCOL.md), and its events to whoever listens.

const KEPT_BLOCKS = 3000;  // a minute
const LATENCIES = 20;  // of the last words, of which the median is shown

const REASONS = {
  NotAllowedError: "The microphone is not allowed here. Allow it in the address bar or the system's settings, then press Speak again.",
  NotFoundError: "There is no microphone. Plug one in, then press Speak again.",
  OverconstrainedError: "The chosen microphone is gone. Plug it in, or choose another under Options.",
  NotReadableError: "The microphone is busy. Close other programs that use it, then press Speak again.",
};
const INSECURE = "Browsers give the microphone only to pages from this computer or over https. Open this page that way.";
const REFUSED = "The server does not answer, or refuses. If it wants a token, enter that under Options.";
const LOST = "The connection to the server was lost. What was said until then is kept; press Speak to go on.";
const UNPLUGGED = "The microphone went away. What was said until then is kept; plug it in and press Speak.";

export class Listener {
  /**
   * options: device, hotwords, token. handlers: ready(event), partial(event), final(event), level(peak),
   * latency(milliseconds), and ended(problem), which comes once, with null where all went well.
   */
  constructor(options, handlers) {
    this.options = options;
    this.handlers = handlers;
    this.waiting = [];  // messages until the socket is open
    this.sent = 0;  // samples
    this.spoken = [];  // of the last blocks: seconds of sound until their end, and when that was
    this.words = {segment: -1, count: 0};  // already seen
    this.latencies = [];
  }

  /** Opens microphone and socket together; what is said while the socket opens is kept. */
  async start() {
    try {
      if (!navigator.mediaDevices) throw new Error(INSECURE);
      this.context = new AudioContext({latencyHint: "interactive"});
      await this.context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
      const {device} = this.options;
      this.media = await navigator.mediaDevices.getUserMedia({
        audio: {
          deviceId: device ? {exact: device} : undefined,
          channelCount: 1,
          echoCancellation: false,
          noiseSuppression: false,
          autoGainControl: false,
        },
      });
    } catch (error) {
      this.end(REASONS[error.name] ?? error.message);
      return;
    }
    if (this.finished) {  // stopped while it began
      this.end(null);
      return;
    }
    this.capture = new AudioWorkletNode(this.context, "capture", {numberOfOutputs: 0});
    this.capture.port.onmessage = ({data}) => this.hear(data);
    this.context.createMediaStreamSource(this.media).connect(this.capture);
    this.media.getAudioTracks()[0].addEventListener("ended", () => {
      this.problem = UNPLUGGED;
      this.stop();
    });
    this.connect();
  }

  /** No more sound; what was said comes, then `ended`. */
  stop() {
    if (this.finished) return;
    this.finished = true;
    this.capture?.port.postMessage("end");
  }

  connect() {
    const protocols = ["asr", ...(this.options.token ? [`bearer.${this.options.token}`] : [])];
    try {
      this.socket = new WebSocket(new URL("v1/stream", location.href.replace(/^http/, "ws")), protocols);
    } catch {
      this.end("The token has characters that none can have: letters, digits and - . _ ~ alone.");
      return;
    }
    const {hotwords} = this.options;
    this.send(JSON.stringify({
      type: "start",
      encoding: "pcm_s16le",
      sample_rate: this.context.sampleRate,
      ...(hotwords.length ? {hotwords} : {}),
    }));
    this.socket.onopen = () => {
      for (const message of this.waiting.splice(0)) this.socket.send(message);
    };
    this.socket.onmessage = ({data}) => this.receive(JSON.parse(data));
    this.socket.onclose = () => this.end(this.problem ?? (this.ready ? LOST : REFUSED));
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(message);
    else this.waiting.push(message);
  }

  /** A block of the microphone, or null after the last one. */
  hear(block) {
    if (!block) {
      this.send(JSON.stringify({type: "finish"}));
      this.release();
      return;
    }
    const samples = block.pcm.byteLength / 2;
    this.sent += samples;
    this.spoken.push({seconds: this.sent / this.context.sampleRate, time: performance.now()});
    if (this.spoken.length > KEPT_BLOCKS) this.spoken.shift();
    if (samples) this.send(block.pcm);
    this.handlers.level(block.peak);
  }

  receive(event) {
    if (event.type === "ready") {
      this.ready = true;
      this.handlers.ready(event);
    } else if (event.type === "partial" || event.type === "final") {
      this.time(event);
      this.handlers[event.type](event);
    } else if (event.type === "done") {
      this.end(this.problem ?? null);
    } else if (event.type === "error") {
      this.problem = event.message;
    }
  }

  /** Notes how late a word is that is seen for the first time. */
  time({segment, words}) {
    const before = segment === this.words.segment ? this.words.count : 0;
    this.words = {segment, count: Math.max(before, words.length)};
    if (words.length <= before) return;
    const block = this.spoken.find(({seconds}) => seconds >= words.at(-1).end);
    if (!block) return;
    this.latencies = [...this.latencies, performance.now() - block.time].slice(-LATENCIES);
    const sorted = [...this.latencies].sort((a, b) => a - b);
    this.handlers.latency(sorted[sorted.length >> 1]);
  }

  release() {
    for (const track of this.media?.getTracks() ?? []) track.stop();
    if (this.context?.state !== "closed") this.context?.close();
  }

  end(problem) {
    if (this.ended) return;
    this.ended = this.finished = true;
    this.release();
    this.socket?.close();
    this.handlers.ended(problem);
  }
}
