// A place to drop, choose or take over media: a picture, a clip or a sound.

import { button, field, kind, make } from "./dom.js";

export class MediaInput {
  // accept: MIME pattern of the file chooser; onFile(blob): called with what is now chosen, or null.
  constructor(api, label, { accept = "image/*,video/*,audio/*", note = "", onFile = () => {} } = {}) {
    this.api = api;
    this.onFile = onFile;
    this.id = "";
    this.busy = null;
    this.chooser = make("input", { type: "file", accept, onchange: () => this.take(this.chooser.files[0]) });
    this.shown = make("div", { hidden: true });
    this.status = make("p", { className: "soft", role: "status" });
    this.clear = button("Remove", () => this.take(null), { hidden: true });
    this.element = make("div", { className: "drop" }, field(label, this.chooser, note), this.shown, this.status, this.clear);
    this.#listen();
  }

  #listen() {
    const over = (on) => (event) => {
      event.preventDefault();
      this.element.classList.toggle("over", on);
    };
    this.element.addEventListener("dragover", over(true));
    this.element.addEventListener("dragleave", over(false));
    this.element.addEventListener("drop", (event) => {
      over(false)(event);
      this.take(event.dataTransfer.files[0]);
    });
  }

  // Uploads a file, or forgets the one before; resolves when it is there.
  take(blob) {
    this.id = "";
    this.busy = blob ? this.#upload(blob) : null;
    this.clear.hidden = !blob;
    this.#show(blob);
    this.status.textContent = blob ? "uploading …" : "";
    if (!blob) this.chooser.value = "";
    Promise.resolve(this.onFile(blob ?? null)).catch((error) => { this.status.textContent = error.message; });
    return this.busy;
  }

  async #upload(blob) {
    const name = blob.name ?? `media.${blob.type.split("/")[1]}`;
    try {
      const file = await this.api.upload(blob, name);
      this.id = file.id;
      const size = file.width ? `${file.width} x ${file.height}, ` : "";
      const length = file.frames > 1 || !file.width ? `${file.seconds.toFixed(1)} s` : "picture";
      this.status.textContent = `${name}: ${size}${length}`;
    } catch (error) {
      this.status.textContent = "";
      this.clear.hidden = true;
      this.#show(null);
      throw error;
    }
  }

  #show(blob) {
    const tag = { image: "img", video: "video", audio: "audio" }[blob ? kind(blob.type) : ""];
    this.shown.hidden = !tag;
    if (!tag) return this.shown.replaceChildren();
    const media = make(tag, { src: URL.createObjectURL(blob) });
    if (tag === "img") media.alt = "what you chose";
    else media.controls = true;
    if (tag === "video") Object.assign(media, { loop: true, muted: true });
    this.shown.replaceChildren(media);
  }

  // The id of the upload, "" without one; waits for it.
  async value() {
    await this.busy;
    return this.id;
  }
}
