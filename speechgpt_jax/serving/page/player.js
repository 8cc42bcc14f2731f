// AudioWorklet that plays samples in the order in which they arrive, without gaps between chunks.

// Sound that is collected before playing, in seconds, so that chunks may come a little late.
const RESERVE = 0.2;

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.clear();
    this.port.onmessage = ({ data }) => {
      if (data === "clear") this.clear();
      else if (data === "end") this.ended = true;
      else this.chunks.push(data), this.waiting += data.length;
    };
  }

  clear() {
    this.chunks = [];
    this.offset = this.waiting = 0;
    this.ended = this.playing = false;
  }

  process(_, [[output]]) {
    let written = 0;
    const isReady = this.playing || this.ended || this.waiting >= RESERVE * sampleRate;
    while (isReady && written < output.length && this.chunks.length) {
      const chunk = this.chunks[0];
      const part = chunk.subarray(this.offset, this.offset + output.length - written);
      output.set(part, written);
      written += part.length;
      this.offset += part.length;
      this.waiting -= part.length;
      if (this.offset === chunk.length) this.chunks.shift(), this.offset = 0;
    }
    if (written) {
      if (!this.playing) this.port.postMessage("started");
      this.playing = true;
    } else if (this.playing && !this.ended) {
      // Silence although more will come: the sound arrives too slowly.
      this.playing = false;
      this.port.postMessage("late");
    }
    if (this.ended && !this.chunks.length) {
      this.port.postMessage("finished");
      this.ended = this.playing = false;
    }
    return true;
  }
}

registerProcessor("player", Player);
