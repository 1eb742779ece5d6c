// Sends the microphone's samples to the page, 20 ms at a time.
class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.kept = [];
  }
  process([input]) {
    if (input.length) this.kept.push(...input[0]);
    while (this.kept.length >= 480) this.port.postMessage(Float32Array.from(this.kept.splice(0, 480)));
    return true;
  }
}
registerProcessor("microphone", Microphone);
