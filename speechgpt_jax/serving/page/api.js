// Calls of the API as streams of {question, answer, units, unitSeconds, samples, cut, isLong}.

import { decodePcm16 } from "./sound.js";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function models(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  await check(response);
  return response.json();
}

// Answer to a question, a text or a recording, after the messages of `history`.
export async function* answer({ model, voice, text, recording, history, aloud, key, signal }) {
  const part = recording && { data: await base64(recording), format: "wav" };
  const content = part ? [{ type: "input_audio", input_audio: part }] : text;
  const sound = aloud ? { modalities: ["text", "audio"], audio: { voice, format: "pcm16" } } : {};
  const body = {
    model, messages: [...history, { role: "user", content }], stream: true,
    stream_options: { include_units: true }, ...sound,
  };
  for await (const event of post("v1/chat/completions", JSON.stringify(body), key, signal)) {
    const delta = event.choices[0]?.delta ?? {};
    yield {
      question: delta.question, answer: delta.content, units: delta.units,
      unitSeconds: delta.unit_seconds,
      samples: delta.audio?.data && decodePcm16(delta.audio.data),
      isLong: event.choices[0]?.finish_reason === "length",
    };
  }
}

export async function* transcribe({ model, recording, key, signal }) {
  const form = new FormData();
  form.append("model", model);
  form.append("stream", "true");
  form.append("file", recording, "recording");
  for await (const event of post("v1/audio/transcriptions", form, key, signal)) {
    if (event.type === "transcript.text.delta") yield { answer: event.delta };
  }
}

export async function* speak({ model, voice, text, key, signal }) {
  const body = {
    model, voice, input: text, response_format: "pcm", stream_format: "sse", include_units: true,
  };
  for await (const event of post("v1/audio/speech", JSON.stringify(body), key, signal)) {
    yield {
      units: event.units, unitSeconds: event.unit_seconds,
      samples: event.audio && decodePcm16(event.audio),
      cut: event.incomplete_details?.sentences,
    };
  }
}

// Server-sent events of a reply.
async function* post(path, body, key, signal) {
  const json = typeof body === "string" ? { "Content-Type": "application/json" } : {};
  const response = await fetch(path, { method: "POST", body, signal, headers: { ...json, ...headers(key) } });
  await check(response);
  let waiting = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const text of events) {
      const data = text.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(500, event.error.message);
      yield event;
    }
  }
}

async function check(response) {
  if (response.ok) return;
  const body = await response.json().catch(() => null);
  throw new ApiError(response.status, body?.error?.message ?? `The server answers ${response.status}.`);
}

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function base64(blob) {
  const url = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}
