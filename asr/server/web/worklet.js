// Gathers the microphone's samples, mono, into blocks of 16-bit PCM, and posts each with its peak.

const BLOCK_SECONDS = 0.02;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.length = Math.round(sampleRate * BLOCK_SECONDS);
    this.begin();
    this.ended = false;
    this.port.onmessage = () => {  // the end: what is held goes out, then null
      this.send();
      this.port.postMessage(null);
      this.ended = true;
    };
  }

  begin() {
    this.block = new Int16Array(this.length);
    this.filled = 0;
    this.peak = 0;
  }

  process([channels]) {
    const frames = channels.length ? channels[0].length : 0;
    for (let i = 0; i < frames; i++) {
      let sample = 0;
      for (const channel of channels) sample += channel[i] / channels.length;
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.block[this.filled++] = Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
      if (this.filled === this.length) this.send();
    }
    return !this.ended;
  }

  send() {
    const pcm = this.block.slice(0, this.filled).buffer;
    this.port.postMessage({pcm, peak: this.peak}, [pcm]);
    this.begin();
  }
}

registerProcessor("capture", Capture);
