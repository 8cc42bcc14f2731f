// The page: one form, and the turns below it, newest first.

import * as api from "./api.js";
import { draw } from "./picture.js";
import * as sound from "./sound.js";

const find = (id) => document.getElementById(id);
const form = find("form");
let model;
let recording; // In progress.
let isAskingForMicrophone = false; // A second click meanwhile would start a second recording.
let stopping; // AbortController of the answer in progress.
const TURNS = 50; // That are sent with a question; the server reads the last of them, if any.
let history = []; // Messages of the conversation: questions and their answers, as texts.

async function connect() {
  try {
    const { data, voices, default_voice } = await api.models(find("key").value);
    model = data[0].id;
    find("voice").replaceChildren(...voices.map((name) => new Option(name, name)));
    find("voice").value = default_voice;
    setStatus(`Model ${model}`);
  } catch (error) {
    if (error.status === 401) find("key-field").hidden = false;
    setStatus(error.message);
  }
}

const setStatus = (text) => { find("status").textContent = text; };

// Whether the task can be done with a text, or else with a recording; says so if not.
function isFor(task, hasText) {
  if (task === "speak" && !hasText) setStatus("Reading aloud needs a text.");
  else if (task === "transcribe" && hasText) setStatus("Transcribing needs a recording.");
  else return true;
  return false;
}

async function ask({ text, file }) {
  const [task, label] = [find("task").value, text ?? file?.name ?? "a recording"];
  if (!isFor(task, Boolean(text))) return;
  stop();
  const turn = new Turn(label, task !== "transcribe" && find("aloud").checked);
  const { signal } = (stopping = new AbortController());
  showStop();
  setStatus("Answering …");
  try {
    await sound.openSound();
    sound.onPlayer((state) => turn.player(state));
    const options = {
      model, text, recording: file, history, signal, key: find("key").value,
      voice: find("voice").value, aloud: find("aloud").checked,
    };
    const start = { answer: api.answer, transcribe: api.transcribe, speak: api.speak }[task];
    for await (const piece of start(options)) turn.add(piece);
    turn.end();
    if (task === "answer") remember(turn.question ?? text, turn.part("answer").textContent);
    setStatus(`Model ${model}`);
  } catch (error) {
    if (error.name === "AbortError") {
      turn.finish("Stopped.");
      // A newer question has a status of its own.
      if (stopping?.signal === signal) setStatus("Stopped.");
    } else turn.finish(error.message), setStatus("The request failed.");
    if (error.status === 401) find("key-field").hidden = false;
  } finally {
    if (stopping?.signal === signal) stopping = undefined;
    showStop();
  }
}

function remember(question, answer) {
  if (!question || !answer) return;
  history.push({ role: "user", content: question }, { role: "assistant", content: answer });
  history = history.slice(-2 * TURNS);
}

function beginAnew() {
  stop();
  history = [];
  find("turns").replaceChildren();
  find("text").focus();
}

class Turn {
  constructor(asked, isAloud) {
    this.isAloud = isAloud;
    this.start = performance.now();
    this.units = [];
    this.unitSeconds = []; // Lengths of the first units; those of the last ones come with their sound.
    this.chunks = [];
    this.isLate = false;
    find("turns").prepend(find("turn").content.cloneNode(true));
    this.element = find("turns").firstElementChild;
    this.part("asked").textContent = asked;
  }

  part(name) { return this.element.querySelector(`.${name}`); }

  add({ question, answer, units, unitSeconds, samples, cut, isLong }) {
    if (question) {
      this.question = (this.question ?? "") + question;
      this.part("asked").textContent = this.question;
    }
    if (answer) this.part("answer").textContent += answer;
    if (units) this.units.push(...units), this.showUnits();
    if (unitSeconds) this.unitSeconds.push(...unitSeconds);
    if (samples?.length) {
      this.chunks.push(samples);
      sound.play(samples);
    }
    if (samples) this.draw();
    if (cut) this.problem = `Cut off at the longest reply: ${cut.join(" ")}`;
    if (isLong) this.problem = "Cut off at the longest reply.";
  }

  showTime() {
    const seconds = (performance.now() - this.start) / 1000;
    this.element.dataset.firstSound = seconds;
    this.part("time").textContent = `First sound after ${seconds.toFixed(2)} s`;
  }

  showUnits() {
    this.part("count").textContent = `(${this.units.length})`;
    this.part("units").textContent = this.units.join(" ");
  }

  draw() {
    const samples = sound.concatenate(this.chunks);
    draw(this.part("picture"), samples, sound.RATE, this.units, this.unitSeconds);
  }

  player(state) {
    if (state === "started" && !this.element.dataset.firstSound) this.showTime();
    if (state === "late") this.isLate = true;
    if (this.isLate && !this.part("time").textContent.endsWith("late")) {
      this.part("time").textContent += ", sound came late";
    }
    this.element.dataset.player = state;
  }

  end() {
    sound.endPlaying();
    const isSilent = this.isAloud && !this.chunks.length;
    this.finish([this.problem, isSilent && "No sound was made."].filter(Boolean).join(" "));
  }

  // Shows what was heard, and a problem if there is one; other sound may be playing by now.
  finish(problem) {
    this.element.dataset.done = "true";
    if (problem) this.showProblem(problem);
    if (!this.chunks.length) return void (this.part("picture").hidden = true);
    const replay = this.part("replay");
    replay.src = URL.createObjectURL(sound.encodeWav(sound.concatenate(this.chunks)));
    replay.hidden = false;
  }

  showProblem(message) {
    this.part("error").textContent = message;
    this.part("error").hidden = false;
  }
}

function stop() {
  if (recording) endRecording(), setStatus("The recording was discarded.");
  stopping?.abort();
  sound.clearPlaying();
}

// Can be stopped: an answer, or a recording, which is then discarded.
function showStop() {
  const hadFocus = document.activeElement === find("stop");
  find("stop").disabled = !stopping && !recording;
  if (hadFocus && find("stop").disabled) find("text").focus();
}

// The recording in progress as a file.
function endRecording() {
  const file = recording.stop();
  recording = undefined;
  find("microphone").textContent = "Record";
  find("microphone").setAttribute("aria-pressed", "false");
  showStop();
  return file;
}

async function toggleMicrophone() {
  const button = find("microphone");
  if (isAskingForMicrophone || !isFor(find("task").value, false)) return;
  if (!recording) {
    stop();
    isAskingForMicrophone = true;
    try {
      await sound.openSound();
      recording = await sound.record();
    } catch (error) {
      return setStatus(`No microphone: ${error.message}`);
    } finally {
      isAskingForMicrophone = false;
    }
    button.textContent = "Stop and send";
    button.setAttribute("aria-pressed", "true");
    showStop();
    return setStatus("Recording …");
  }
  await ask({ file: endRecording() });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("text").value.trim();
  if (!text) find("text").focus();
  else if (isFor(find("task").value, true)) find("text").value = "", ask({ text });
});
find("text").addEventListener("keydown", (event) => {
  // Enter may also end the choice of a character.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) event.preventDefault(), form.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) stop();
});
find("stop").addEventListener("click", stop);
find("new").addEventListener("click", beginAnew);
find("microphone").addEventListener("click", toggleMicrophone);
find("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (file) ask({ file });
});
find("key").addEventListener("change", connect);
if (!window.isSecureContext) {
  find("microphone").disabled = true;
  find("microphone-note").hidden = false;
}
connect();
