// A mask painted over the first frame of a clip: white is what the model fills.

import { button, check, field, make } from "./dom.js";

const MARK = "rgb(255 64 64 / 0.55)";

export class Painter {
  // word: what a marked pixel becomes, for the label.
  constructor(word) {
    this.marked = false;
    this.frame = make("canvas", { tabIndex: 0, role: "img" });
    this.frame.setAttribute("aria-label", "the first frame, to paint on with the pointer; the fields below mark a box by keyboard");
    this.mask = document.createElement("canvas");
    this.brush = make("input", { type: "range", min: 1, max: 40, value: 12 });
    this.erase = make("input");
    this.sides = ["left", "top", "right", "bottom"].map((name) => {
      const side = make("input", { type: "number", min: 0, max: 100, value: name === "left" || name === "top" ? 25 : 75 });
      return [side, field(`${name} %`, side)];
    });
    const box = button("Mark this box", () => this.#box());
    const clear = button("Clear", () => this.#clear());
    this.element = make(
      "fieldset", { className: "painter", hidden: true },
      make("legend", {}, `Paint ${word}`),
      this.frame,
      make("div", { className: "row" }, field("Brush", this.brush), check("Erase", this.erase), clear),
      make("div", { className: "row" }, ...this.sides.map(([, element]) => element), box),
    );
    this.#listen();
  }

  // Displays the first frame of a picture or a clip; null hides the painter.
  async take(blob) {
    this.element.hidden = true;
    this.marked = false;
    if (!blob || !/^(image|video)/.test(blob.type)) return;
    this.source = await firstFrame(blob);
    for (const canvas of [this.frame, this.mask]) {
      canvas.width = this.source.width;
      canvas.height = this.source.height;
    }
    this.#clear();
    this.element.hidden = false;
  }

  #listen() {
    let last = null;
    const place = (event) => {
      const box = this.frame.getBoundingClientRect();
      return [((event.clientX - box.left) * this.frame.width) / box.width, ((event.clientY - box.top) * this.frame.height) / box.height];
    };
    this.frame.addEventListener("pointerdown", (event) => {
      this.frame.setPointerCapture(event.pointerId);
      last = place(event);
      this.#stroke(last, last);
    });
    this.frame.addEventListener("pointermove", (event) => {
      if (!last) return;
      const now = place(event);
      this.#stroke(last, now);
      last = now;
    });
    const end = () => { last = null; };
    this.frame.addEventListener("pointerup", end);
    this.frame.addEventListener("pointercancel", end);
  }

  #stroke([x0, y0], [x1, y1]) {
    const pen = this.mask.getContext("2d");
    pen.globalCompositeOperation = this.erase.checked ? "destination-out" : "source-over";
    pen.strokeStyle = "white";
    pen.lineCap = "round";
    pen.lineWidth = (this.brush.value * this.mask.width) / 100;
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1 + 0.01, y1);
    pen.stroke();
    this.#draw();
  }

  #box() {
    const { width, height } = this.mask;
    const [left, top, right, bottom] = this.sides.map(([side]) => side.value / 100);
    const pen = this.mask.getContext("2d");
    pen.globalCompositeOperation = this.erase.checked ? "destination-out" : "source-over";
    pen.fillStyle = "white";
    pen.fillRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
    this.#draw();
  }

  #clear() {
    this.mask.getContext("2d").clearRect(0, 0, this.mask.width, this.mask.height);
    this.#draw();
  }

  #draw() {
    const { width, height } = this.frame;
    const pen = this.frame.getContext("2d");
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = MARK;
    pen.fillRect(0, 0, width, height);
    pen.globalCompositeOperation = "destination-in";
    pen.drawImage(this.mask, 0, 0);
    pen.globalCompositeOperation = "destination-over";
    pen.drawImage(this.source, 0, 0);
    pen.globalCompositeOperation = "source-over";
    const alpha = this.mask.getContext("2d").getImageData(0, 0, width, height).data;
    this.marked = alpha.some((value, index) => index % 4 === 3 && value > 127);
  }

  // A PNG, white where it is marked; null where nothing is.
  async blob() {
    if (this.element.hidden || !this.marked) return null;
    const { width, height } = this.mask;
    const whole = make("canvas", { width, height });
    const pen = whole.getContext("2d");
    pen.fillStyle = "black";
    pen.fillRect(0, 0, width, height);
    const pixels = pen.getImageData(0, 0, width, height);
    const marks = this.mask.getContext("2d").getImageData(0, 0, width, height).data;
    for (let i = 0; i < marks.length; i += 4) pixels.data.fill(marks[i + 3] > 127 ? 255 : 0, i, i + 3);
    pen.putImageData(pixels, 0, 0);
    return new Promise((done) => whole.toBlob(done, "image/png"));
  }
}

async function firstFrame(blob) {
  if (blob.type.startsWith("image")) return createImageBitmap(blob);
  const video = make("video", { src: URL.createObjectURL(blob), muted: true, preload: "auto" });
  const event = (name) => new Promise((done, fail) => {
    video.addEventListener(name, done, { once: true });
    video.addEventListener("error", () => fail(new Error("this browser cannot play the clip, so no mask can be painted: choose a region")), { once: true });
  });
  await event("loadeddata");
  const sought = event("seeked");
  video.currentTime = 0; // Some browsers have no picture of a clip that was never sought.
  await sought;
  const still = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  still.getContext("2d").drawImage(video, 0, 0);
  return still;
}
