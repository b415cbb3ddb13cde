// The form of a job, made from what the service says of its model.  A form has `element`, and `request()`.

import { button, check, field, make, title } from "./dom.js";
import { MediaInput } from "./media_input.js";
import { Painter } from "./painter.js";
import { collect, control, group } from "./settings.js";

// Fields that have a control of their own; all others of a request are settings.
const OWN = ["prompt", "negative_prompt", "clip", "conditioning_frames", "end", "region", "mask", "depth", "num", "format", "seed", "upscale"];
const LINE_SECONDS = 5;
// In the place of a file of depth (poet.sampling.requests.FLAT).
const FLAT = "flat";

export function formOf(name, model, api) {
  if (name === "long") return new LongForm(model, api);
  if (name === "storyboard") return new StoryboardForm(model, api);
  if (name === "chain") return new ChainForm(model, api);
  return new TaskForm(factsOf(name, model), model, api);
}

// What a job takes; of one that is no task, such as upscaling, its fields say it.
function factsOf(name, model) {
  const fields = model.requests[name];
  const plain = {
    name, text: "prompt" in fields, clip: "clip" in fields, clip_needed: true, clip_medium: "video",
    conditioning_frames: [], end: false, regions: [], mask: false, depth: false, depth_needed: false, outputs: ["video"],
  };
  return model.tasks.find((task) => task.name === name) ?? plain;
}

// What the names of tasks do not say by themselves.
const SAYS = {
  frame_prediction: "Goes on from the opening frames of your clip.",
  frame_prediction_bidirectional: "Goes on from the opening frames of your clip, which the model reads as a condition.",
  image_to_video_bidirectional: "Starts near your picture, which the model reads as a condition.",
  frame_interpolation: "Makes the frames between the first and the last ones.",
  inpainting: "Fills a hole in your clip.",
  outpainting: "Keeps a region of your clip, and paints what is around it.",
  stylization: "Moves as your clip does, and looks as the text says.",
  audio_video_continuation: "Goes on from the opening frames of your clip and from their sound.",
  captioning: "The text says what happens in your clip.",
  upscale: "The same, with more pixels.",
};
const WORDS = { text: "a text", clip: "a clip", sound: "a sound", picture: "a picture" };

// A sentence on what a job takes and makes.
export function about(name, model) {
  const films = {
    long: "A film of any length, continued clip by clip; texts may change on the way.",
    storyboard: "A film of scenes, each with its own text, camera and length.",
    chain: "Jobs in a row: each takes the result of the one before.",
  };
  if (films[name]) return films[name];
  const task = factsOf(name, model);
  const medium = task.clip_medium === "audio" ? "sound" : task.conditioning_frames.join() === "1" ? "picture" : "clip";
  const takes = [task.text && WORDS.text, task.clip && WORDS[medium]].filter(Boolean);
  const makes = task.outputs.map((one) => ({ video: name.endsWith("image") ? "a picture" : "a clip", audio: "sound", text: "a text" })[one] ?? one);
  return [`Takes ${takes.join(" and ") || "nothing"}, makes ${makes.join(" with ")}.`, SAYS[name]].filter(Boolean).join(" ");
}

function area(rows = 3) { return make("textarea", { rows, spellcheck: true }); }

function seedField() {
  return control("seed", { type: "integer", minimum: 0, maximum: 2 ** 32 - 1 }, "the same seed gives the same result; empty takes a new one");
}

function settingsOf(schemas, without) {
  return group("Sampling settings", Object.fromEntries(Object.entries(schemas).filter(([name]) => !without.includes(name))));
}

// Whole requests are numbers and strings; empty ones are not sent.
function filled(request) {
  return Object.fromEntries(Object.entries(request).filter(([, value]) => value !== "" && value !== undefined && value !== null));
}

export class TaskForm {
  constructor(task, model, api) {
    this.task = task;
    this.api = api;
    const schemas = model.requests[task.name];
    const parts = [];
    if (task.text) parts.push(...this.#texts(schemas));
    if (task.clip) parts.push(this.#clip(task));
    if (task.conditioning_frames.length > 1) parts.push(this.#frames(task));
    if (task.end) parts.push((this.end = new MediaInput(api, "Last frames", { accept: "image/*,video/*", note: "a picture or clip that it ends with; empty takes the end of the clip" })).element);
    if (task.regions.length) parts.push(this.#region(task));
    if (this.painter) parts.push(this.painter.element);
    if (task.depth) parts.push((this.depth = new MediaInput(api, "Depth", { accept: "image/*,video/*", note: "optional: a picture or video of the clip's depth, in which near is bright; without it motion alone counts" })).element);
    this.num = schemas.num && control("num", { ...schemas.num, default: 1 }, "samples to choose from");
    if (this.num) this.num.element.firstChild.textContent = "Candidates";
    this.upscale = schemas.upscale && control("upscale", schemas.upscale);
    this.seed = seedField();
    this.settings = settingsOf(schemas, OWN);
    parts.push(make("div", { className: "row" }, this.num?.element, this.seed.element));
    if (this.upscale) parts.push(this.upscale.element);
    parts.push(this.settings.element);
    this.element = make("div", { className: "fields" }, ...parts);
  }

  #texts(schemas) {
    this.prompt = area();
    const fields = [field("Prompt", this.prompt)];
    if (!schemas.negative_prompt) return fields;
    this.negative = area(1);
    return [...fields, field("Negative prompt", this.negative, "what to steer away from")];
  }

  #clip(task) {
    const sound = task.clip_medium === "audio";
    const label = sound ? "Sound" : task.conditioning_frames.join() === "1" ? "First frame or clip" : "Clip";
    if (task.mask) this.painter = new Painter(task.name === "outpainting" ? "what to make anew" : "the hole");
    const options = {
      accept: sound ? "audio/*,video/*" : "image/*,video/*",
      note: `${task.clip_needed ? "" : "optional; "}drop a file here, choose one, or take a result with “Use”`,
      onFile: (blob) => this.painter?.take(blob),
    };
    this.clip = new MediaInput(this.api, label, options);
    return this.clip.element;
  }

  #frames(task) {
    this.frames = make("select", {}, make("option", { value: "" }, "as trained"), ...task.conditioning_frames.map((n) => make("option", { value: n }, `${n}`)));
    return field("Frames that open it", this.frames);
  }

  #region(task) {
    this.region = make("select", {}, make("option", { value: "" }, task.mask ? "choose, or paint" : "choose"), ...task.regions.map((name) => make("option", { value: name }, title(name))));
    const note = task.mask ? "a named one; or paint over the first frame, which appears with the clip" : "";
    return field(task.name === "outpainting" ? "Region that is kept" : "Region", this.region, note);
  }

  async request() {
    const mask = await this.painter?.blob();
    return filled({
      task: this.task.name,
      prompt: this.prompt?.value.trim(),
      negative_prompt: this.negative?.value.trim(),
      clip: await this.clip?.value(),
      end: await this.end?.value(),
      depth: (await this.depth?.value()) || (this.task.depth_needed ? FLAT : ""),
      mask: mask ? (await this.api.upload(mask, "mask.png")).id : "",
      region: mask ? "" : this.region?.value,
      conditioning_frames: this.frames?.value ? Number(this.frames.value) : "",
      num: this.num?.value(),
      upscale: this.upscale?.value(),
      seed: this.seed.value(),
      ...this.settings.values(),
    });
  }

  // A medium that a result gives.
  use(blob) { return (this.clip ?? this.end)?.take(blob); }
}

// Rows that can be added, removed and moved.
class Rows {
  // build(): a row with `element`.  onChange(): after any change.
  constructor(word, build, onChange = () => {}) {
    this.rows = [];
    this.word = word;
    this.build = build;
    this.onChange = onChange;
    this.list = make("ol", { className: "items" });
    this.element = make("div", { className: "fields" }, this.list, button(`Add a ${word}`, () => this.add().element.querySelector("input, textarea, select").focus()));
  }

  add() {
    const row = this.build();
    const move = (step) => () => {
      const at = this.rows.indexOf(row);
      if (!this.rows[at + step]) return;
      this.rows.splice(at, 1);
      this.rows.splice(at + step, 0, row);
      this.#render();
    };
    const remove = () => {
      this.rows.splice(this.rows.indexOf(row), 1);
      this.#render();
    };
    const tools = make("div", { className: "tools" }, button("Up", move(-1)), button("Down", move(1)), button("Remove", remove));
    row.item = make("li", {}, row.element, tools);
    this.rows.push(row);
    this.#render();
    return row;
  }

  clear() {
    this.rows = [];
    this.#render();
  }

  #render() {
    this.list.replaceChildren(...this.rows.map((row) => row.item));
    this.rows.forEach((row, place) => row.item.setAttribute("aria-label", `${this.word} ${place + 1}`));
    this.onChange();
  }
}

export class LongForm {
  constructor(model, api) {
    const schemas = model.requests.long;
    this.clip = new MediaInput(api, "Opening", { accept: "image/*,video/*", note: "optional: a picture or clip that it goes on from" });
    this.seconds = control("seconds", { ...schemas.seconds, maximum: model.limits.max_film_seconds, default: 8 });
    this.seconds.input.value = 8;
    this.bar = make("div", { className: "timeline", role: "img" });
    this.texts = new Rows("text", () => this.#row(), () => this.#draw());
    this.sound = schemas.sound ? control("sound", schemas.sound) : null;
    this.camera = control("camera", schemas.camera);
    this.seed = seedField();
    const own = ["prompt", "seconds", "clip", "camera", "sound", "seed"];
    this.settings = settingsOf(schemas, own);
    this.element = make(
      "div", { className: "fields" },
      this.seconds.element,
      make("fieldset", {}, make("legend", {}, "Texts by time"), this.bar, this.texts.element),
      this.camera.element, this.sound?.element, this.clip.element, this.seed.element, this.settings.element,
    );
    this.element.addEventListener("input", () => this.#draw());
    this.texts.add();
  }

  #row() {
    const last = this.texts.rows.at(-1);
    const from = make("input", { type: "number", min: 0, step: "any", value: last ? Number(last.from.value) + LINE_SECONDS : 0 });
    const text = area(2);
    return { from, text, element: make("div", { className: "fields" }, field("From second", from), field("Prompt", text)) };
  }

  get #times() { return this.texts.rows.map((row) => Number(row.from.value)); }

  #draw() {
    const whole = Number(this.seconds.input.value) || 1;
    const rows = [...this.texts.rows].sort((a, b) => a.from.value - b.from.value);
    const parts = rows.map((row, place) => {
      const end = Math.min(Number(rows[place + 1]?.from.value ?? whole), whole);
      const part = make("div", { title: row.text.value }, row.text.value || "–");
      part.style.flexGrow = Math.max(end - Number(row.from.value), 0);
      part.style.flexBasis = 0;
      return part;
    });
    this.bar.replaceChildren(...parts);
    this.bar.setAttribute("aria-label", rows.map((row) => `from second ${row.from.value}: ${row.text.value}`).join("; "));
  }

  async request() {
    const rows = this.texts.rows.filter((row) => row.text.value.trim()).sort((a, b) => a.from.value - b.from.value);
    const texts = rows.map((row) => (Number(row.from.value) > 0 ? `${row.from.value}: ` : "") + row.text.value.trim());
    return filled({
      task: "long",
      prompt: texts.length ? texts : "",
      seconds: this.seconds.value(),
      clip: await this.clip.value(),
      camera: this.camera.value(),
      sound: this.sound?.value(),
      seed: this.seed.value(),
      ...this.settings.values(),
    });
  }

  use(blob) { return this.clip.take(blob); }
}

export class StoryboardForm {
  constructor(model, api) {
    const schemas = model.requests.storyboard;
    this.api = api;
    this.scene = schemas.scenes.items.properties;
    this.scenes = new Rows("scene", () => this.#row());
    this.text = area(4);
    const read = button("Read as scenes", () => this.#read());
    const own = ["scenes", "seed", "sound"];
    this.sound = control("sound", schemas.sound);
    this.seed = seedField();
    this.settings = settingsOf(schemas, own);
    this.element = make(
      "div", { className: "fields" },
      make("details", {}, make("summary", {}, "From plain text"), make("div", { className: "fields" }, field("Story", this.text, `a line for each ${LINE_SECONDS} seconds`), read)),
      this.scenes.element, this.sound.element, this.seed.element, this.settings.element,
    );
    this.scenes.add();
  }

  #row() {
    const prompt = area(2);
    const names = Object.keys(this.scene).filter((name) => !["prompt", "frame", "clip"].includes(name));
    const controls = names.map((name) => [name, control(name, this.scene[name])]);
    const some = (wanted) => controls.filter(([name]) => wanted.includes(name)).map(([, one]) => one.element);
    const frame = new MediaInput(this.api, "First frame", { accept: "image/*", note: "optional" });
    const front = ["seconds", "transition"];
    const rest = some(names.filter((name) => !front.includes(name)));
    const more = make("details", {}, make("summary", {}, "Camera, sound, first frame"), make("div", { className: "fields" }, ...rest, frame.element));
    const element = make("div", { className: "fields" }, field("Prompt", prompt), make("div", { className: "row" }, ...some(front)), more);
    const values = async () => filled({ prompt: prompt.value.trim(), ...collect(controls), frame: await frame.value() });
    return { element, prompt, frame, values };
  }

  #read() {
    const lines = this.text.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!lines.length) return;
    this.scenes.clear();
    for (const line of lines) this.scenes.add().prompt.value = line;
  }

  async request() {
    const scenes = await Promise.all(this.scenes.rows.map((row) => row.values()));
    return filled({ task: "storyboard", scenes, sound: this.sound.value(), seed: this.seed.value(), ...this.settings.values() });
  }

  use(blob) {
    const row = this.scenes.rows.at(-1) ?? this.scenes.add();
    return row.frame.take(blob);
  }
}

export class ChainForm {
  constructor(model, api) {
    const schemas = model.requests.chain;
    this.job = schemas.jobs.items.properties;
    this.names = [...model.tasks.map((task) => task.name), "long"];
    this.jobs = new Rows("job", () => this.#row());
    this.clip = new MediaInput(api, "Opening", { note: "optional: what the first job takes" });
    this.seed = seedField();
    this.settings = settingsOf(schemas, ["jobs", "clip", "seed"]);
    this.element = make("div", { className: "fields" }, this.clip.element, this.jobs.element, this.seed.element, this.settings.element);
    this.jobs.add();
  }

  #row() {
    const task = make("select", {}, ...this.names.map((name) => make("option", { value: name }, title(name))));
    const names = Object.keys(this.job).filter((name) => !["task", "seed"].includes(name));
    const controls = names.map((name) => [name, control(name, this.job[name])]);
    const more = make("details", {}, make("summary", {}, "Its settings"), make("div", { className: "fields" }, ...controls.filter(([name]) => name !== "prompt").map(([, one]) => one.element)));
    const prompt = controls.find(([name]) => name === "prompt")?.[1].element;
    const element = make("div", { className: "fields" }, field("Job", task), prompt, more);
    return { element, values: () => ({ task: task.value, ...collect(controls) }) };
  }

  async request() {
    const jobs = this.jobs.rows.map((row) => row.values());
    return filled({ task: "chain", jobs, clip: await this.clip.value(), seed: this.seed.value(), ...this.settings.values() });
  }

  use(blob) { return this.clip.take(blob); }
}
