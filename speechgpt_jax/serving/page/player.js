// AudioWorklet that plays samples in the order in which they arrive, without gaps between chunks.
class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.clear();
    this.port.onmessage = ({ data }) => {
      if (data === "clear") this.clear();
      else if (data === "end") this.ended = true;
      else this.chunks.push(data);
    };
  }

  clear() {
    this.chunks = [];
    this.offset = 0;
    this.ended = this.playing = this.dry = false;
  }

  process(_, [[output]]) {
    let written = 0;
    while (written < output.length && this.chunks.length) {
      const chunk = this.chunks[0];
      const part = chunk.subarray(this.offset, this.offset + output.length - written);
      output.set(part, written);
      written += part.length;
      this.offset += part.length;
      if (this.offset === chunk.length) this.chunks.shift(), this.offset = 0;
    }
    if (written) {
      if (!this.playing) this.port.postMessage("started");
      this.playing = true;
      this.dry = false;
    } else if (this.playing && !this.ended && !this.dry) {
      // Silence although more will come: the sound arrives too slowly.
      this.dry = true;
      this.port.postMessage("late");
    }
    if (this.ended && !this.chunks.length) {
      this.port.postMessage("finished");
      this.ended = this.playing = this.dry = false;
    }
    return true;
  }
}

registerProcessor("player", Player);
