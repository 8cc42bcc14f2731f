// Sound of the page: playing without gaps, the microphone, wav files.

export const RATE = 24000; // Hz of the API's sound.

let context;
let player;

// Browsers start sound only after a click or a key, so the context is made then. Pages by plain http
// from other hosts have no AudioWorklet: nothing is played there while it is made.
export async function openSound() {
  if (!window.isSecureContext) return;
  if (!context) {
    context = new AudioContext({ sampleRate: RATE });
    await context.audioWorklet.addModule("page/player.js");
    player = new AudioWorkletNode(context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    player.connect(context.destination);
  }
  await context.resume();
}

export function onPlayer(handler) {
  if (player) player.port.onmessage = ({ data }) => handler(data);
}

export const play = (samples) => player?.port.postMessage(samples);
export const endPlaying = () => player?.port.postMessage("end");
export const clearPlaying = () => player?.port.postMessage("clear");

// Base64 of 16-bit samples -> Float32Array in [-1, 1].
export function decodePcm16(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => view.getInt16(2 * i, true) / 32768);
}

export function concatenate(chunks) {
  const all = new Float32Array(chunks.reduce((total, chunk) => total + chunk.length, 0));
  let offset = 0;
  for (const chunk of chunks) all.set(chunk, offset), offset += chunk.length;
  return all;
}

// Float32Array -> Blob of a 16-bit wav.
export function encodeWav(samples, rate = RATE) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (offset, word) => [...word].forEach((c, i) => view.setUint8(offset + i, c.charCodeAt(0)));
  text(0, "RIFF"), text(8, "WAVEfmt "), text(36, "data");
  view.setUint32(4, 36 + 2 * samples.length, true);
  view.setUint32(16, 16, true), view.setUint16(20, 1, true), view.setUint16(22, 1, true);
  view.setUint32(24, rate, true), view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true), view.setUint16(34, 16, true);
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

// Records until `stop` of the returned object is called, which gives the recording as a wav.
export async function record() {
  // First, since a microphone that is on must be stopped if anything fails.
  await context.audioWorklet.addModule("page/recorder.js");
  // What browsers do to speech for calls changes its units.
  const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, ...raw } });
  const stopTracks = () => stream.getTracks().forEach((track) => track.stop());
  const chunks = [];
  try {
    const source = context.createMediaStreamSource(stream);
    const recorder = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
    recorder.port.onmessage = ({ data }) => chunks.push(data);
    source.connect(recorder);
    return {
      stop() {
        source.disconnect();
        stopTracks();
        return encodeWav(concatenate(chunks));
      },
    };
  } catch (error) {
    stopTracks();
    throw error;
  }
}
