"use strict";
const RATE = 24000;
const $ = (id) => document.getElementById(id);
const state = { socket: null, audio: null, microphone: null, playing: [], playAt: 0, started: 0, item: null, asked: 0, heard: 0, answer: null, listening: false };

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

function send(type, fields = {}) {
  if (state.socket && state.socket.readyState === WebSocket.OPEN) state.socket.send(JSON.stringify({ type, ...fields }));
}

function connect(key = "") {
  const address = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/realtime`;
  const socket = new WebSocket(address, key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"]);
  state.socket = socket;
  socket.onmessage = (message) => handle(JSON.parse(message.data));
  socket.onclose = (event) => {
    $("keyform").hidden = state.heard > 0 && event.code !== 1008;
    say(state.heard ? "The connection is closed: load the page again." : "The server refused: it may want a key.", true);
  };
}

function line(who, text, element = null) {
  const item = element || document.createElement("li");
  item.className = who === "You" ? "user" : "answer";
  item.innerHTML = "<b></b><span></span>";
  item.firstChild.textContent = who;
  item.lastChild.textContent = text;
  if (!element) $("log").append(item);
  item.scrollIntoView({ block: "nearest" });
  return item;
}

const spoken = new Map(); // lines of what was said, by item
const handlers = {
  "session.created": (event) => {
    state.heard += 1;
    $("keyform").hidden = true;
    say(`Connected to ${event.session.model}.`);
    configure();
  },
  "input_audio_buffer.speech_started": () => {
    say("Listening …");
    silence();
  },
  "input_audio_buffer.speech_stopped": () => {
    state.asked = performance.now();
    say("Thinking …");
  },
  "input_audio_buffer.committed": (event) => spoken.set(event.item_id, line("You", "(spoken)")),
  "conversation.item.input_audio_transcription.delta": (event) => {
    const item = spoken.get(event.item_id);
    if (!item) return;
    const text = item.lastChild.textContent;
    item.lastChild.textContent = (text === "(spoken)" ? "" : text) + event.delta;
  },
  "response.created": () => { state.answer = null; state.first = 0; },
  "response.output_audio_transcript.delta": (event) => {
    state.answer = state.answer || line("Model", "");
    state.answer.lastChild.textContent += event.delta;
  },
  "response.output_audio.delta": (event) => {
    if (!state.first) state.first = performance.now() - state.asked;
    play(event);
  },
  "response.done": (event) => {
    const { status, status_details: why, omni_lab: told } = event.response;
    if (status === "completed") {
      say(`First sound after ${state.first.toFixed(0)} ms.`);
      show(told);
    } else if (status === "failed") {
      say(why.error.message, true);
    }
  },
  error: (event) => say(event.error.message, true),
};

function handle(event) {
  const handler = handlers[event.type];
  if (handler) handler(event);
}

function configure() {
  const turn_detection = $("free").checked ? { type: "server_vad" } : null;
  send("session.update", { session: { type: "realtime", audio: { input: { turn_detection, transcription: {} } } } });
}

// what ran
function show(told) {
  $("nothing").hidden = true;
  $("ran").hidden = false;
  $("encoders").replaceChildren(...Object.entries(told.encoders).map(([modality, level]) => {
    const item = document.createElement("li");
    item.textContent = level === "skip" ? `${modality}: skipped` : `${modality}: ${level.replace("_", " ")}`;
    item.className = level === "skip" ? "skipped" : "";
    return item;
  }));
  $("paths").textContent = told.paths.length ? `Paths: ${told.paths.join("; ")}.` : "No path between modalities.";
  const saved = told.flops_saved === null ? "" : ` ${(100 * told.flops_saved).toFixed(0)} % of the FLOPs were not needed.`;
  $("saved").textContent = `Confidence ${told.confidence.toFixed(2)}.${saved}`;
  const stages = { "to first sound": state.first, ...told.milliseconds };
  const most = Math.max(...Object.values(stages));
  $("stages").replaceChildren(...Object.entries(stages).map(([name, ms]) => {
    const item = document.createElement("li");
    item.innerHTML = "<em></em><i></i><span></span>";
    item.children[0].textContent = name;
    item.children[1].style.width = `${(100 * ms) / most}%`;
    item.children[2].textContent = ms.toFixed(1);
    return item;
  }));
}

// sound out
function context() {
  state.audio = state.audio || new AudioContext({ sampleRate: RATE });
  state.audio.resume();
  return state.audio;
}

function play(event) {
  const bytes = Uint8Array.from(atob(event.delta), (c) => c.charCodeAt(0));
  const samples = new Int16Array(bytes.buffer);
  const audio = context(), buffer = audio.createBuffer(1, Math.max(1, samples.length), RATE);
  buffer.copyToChannel(Float32Array.from(samples, (s) => s / 32768), 0);
  const source = audio.createBufferSource();
  source.buffer = buffer;
  source.connect(audio.destination);
  const start = Math.max(audio.currentTime, state.playAt);
  if (state.item !== event.item_id) [state.item, state.started] = [event.item_id, start];
  source.start(start);
  state.playAt = start + buffer.duration;
  state.playing.push(source);
  source.onended = () => { state.playing = state.playing.filter((other) => other !== source); };
}

function silence() { // somebody speaks: what was not heard is forgotten
  if (!state.playing.length) return;
  const heard = Math.max(0, Math.floor(1000 * (context().currentTime - state.started)));
  state.playing.forEach((source) => source.stop());
  [state.playing, state.playAt] = [[], 0];
  send("conversation.item.truncate", { item_id: state.item, content_index: 0, audio_end_ms: heard });
}

// sound in
function append(samples) {
  const pcm = Int16Array.from(samples, (s) => Math.max(-1, Math.min(1, s)) * 32767);
  send("input_audio_buffer.append", { audio: btoa(String.fromCharCode(...new Uint8Array(pcm.buffer))) });
}

async function listen() {
  const audio = context();
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true } });
  await audio.audioWorklet.addModule("/worklet.js");
  const node = new AudioWorkletNode(audio, "microphone");
  node.port.onmessage = (message) => append(message.data);
  audio.createMediaStreamSource(stream).connect(node);
  state.microphone = { stream, node };
}

function quiet() {
  state.microphone.stream.getTracks().forEach((track) => track.stop());
  state.microphone.node.disconnect();
  state.microphone.node.port.onmessage = null;
  state.microphone = null;
}

$("talk").onclick = async () => {
  try {
    if (state.microphone) {
      quiet();
      if (!$("free").checked) {
        state.asked = performance.now();
        send("input_audio_buffer.commit");
        send("response.create");
      }
    } else {
      silence();
      send("input_audio_buffer.clear");
      await listen();
    }
  } catch (error) {
    say(`No microphone: ${error.message}`, true);
  }
  const on = Boolean(state.microphone);
  $("talk").setAttribute("aria-pressed", on);
  $("talk").textContent = on ? ($("free").checked ? "Stop the microphone" : "Stop, and ask") : "Start the microphone";
};
$("free").onchange = configure;

$("form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  context();
  silence();
  line("You", text);
  state.asked = performance.now();
  send("conversation.item.create", { item: { type: "message", role: "user", content: [{ type: "input_text", text }] } });
  send("response.create");
  $("text").value = "";
};
$("keyform").onsubmit = (event) => {
  event.preventDefault();
  connect($("key").value);
};

// pictures and clips
function look(file) {
  if (!file || !file.type.startsWith("image/")) return say("Expected a picture or an animated clip.", true);
  const reader = new FileReader();
  reader.onload = () => {
    const image_url = reader.result;
    send("conversation.item.create", { item: { type: "message", role: "user", content: [{ type: "input_image", image_url }] } });
    [$("shown").src, $("shown").alt, $("shown").hidden] = [image_url, `The picture that was sent: ${file.name}`, false];
    $("hint").hidden = true;
    line("You", `(${file.name})`);
  };
  reader.readAsDataURL(file);
}
const drop = $("drop");
drop.onclick = () => $("file").click();
drop.onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("file").click(); } };
$("file").onclick = (event) => event.stopPropagation();
$("file").onchange = () => look($("file").files[0]);
drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
drop.ondragleave = () => drop.classList.remove("over");
drop.ondrop = (event) => { event.preventDefault(); drop.classList.remove("over"); look(event.dataTransfer.files[0]); };

connect();
