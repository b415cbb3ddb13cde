// The list of jobs: their progress frame by frame, their results side by side, and what can be done with them.

import { button, kind, make, title } from "./dom.js";
import { addWave } from "./waveform.js";

const ENDED = ["completed", "failed", "cancelled"];
const PAGE = 12;
// A strip of several frames is wider than this times its height.
const WIDE = 2.5;

export class History {
  // onUse(blob): a result is to open the next job.  onAgain(request): a request is to be sent once more.
  constructor(api, { list, older, empty, status, onUse, onAgain }) {
    Object.assign(this, { api, list, older, empty, status, onUse, onAgain });
    this.cards = new Map();
    older.onclick = () => this.load();
  }

  async load() {
    const after = this.last ? `&after=${this.last}` : "";
    const page = await this.api.get(`/v1/jobs?limit=${PAGE}${after}`);
    for (const job of page.data) this.#show(job, false);
    this.last = page.data.at(-1)?.id ?? this.last;
    this.older.hidden = !page.has_more;
    this.#count();
  }

  // A job that was just made, on top.
  add(job) {
    this.#show(job, true);
    this.#count();
    this.cards.get(job.id).element.scrollIntoView({ block: "nearest" });
  }

  #show(job, first) {
    if (this.cards.has(job.id)) return;
    const card = new Card(job, this);
    this.cards.set(job.id, card);
    if (first) this.list.prepend(card.element);
    else this.list.append(card.element);
    if (!ENDED.includes(job.status)) this.#follow(card);
  }

  async #follow(card) {
    try {
      await this.api.follow(card.job.id, (job) => card.update(job));
    } catch (error) {
      card.problem(error.message);
    }
  }

  async remove(card) {
    await this.api.delete(`/v1/jobs/${card.job.id}`);
    this.api.forget(`/v1/jobs/${card.job.id}/`);
    this.cards.delete(card.job.id);
    const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
    card.element.remove();
    next?.querySelector("button")?.focus();
    this.#count();
  }

  #count() { this.empty.hidden = this.cards.size > 0; }
}

class Card {
  constructor(job, history) {
    this.history = history;
    this.head = make("div", { className: "head" });
    this.bar = make("progress", { max: 100 });
    this.preview = make("img", { className: "preview", hidden: true });
    this.words = make("p", { className: "words" });
    this.error = make("p", { className: "problem", role: "alert" });
    this.results = make("div", { className: "results" });
    this.tools = make("div", { className: "tools" });
    const body = make("article", { className: "card" }, this.head, this.words, this.bar, this.preview, this.error, this.results, this.tools);
    this.element = make("li", {}, body);
    this.preview.onload = () => this.preview.classList.toggle("wide", this.preview.naturalWidth > WIDE * this.preview.naturalHeight);
    this.update(job);
  }

  update(job) {
    const before = this.job?.status;
    this.job = job;
    const name = title(job.task);
    this.element.firstChild.setAttribute("aria-label", `${name}, ${job.status}`);
    this.head.replaceChildren(make("h3", {}, name), make("span", { className: "soft" }, this.#state()), make("span", { className: "soft" }, `seed ${job.seed}`));
    this.words.textContent = wordsOf(job.request);
    this.words.hidden = !this.words.textContent;
    this.bar.hidden = ENDED.includes(job.status);
    this.bar.value = job.progress;
    this.bar.setAttribute("aria-label", `progress of ${name}`);
    if (job.preview) this.#preview(job.preview);
    if (job.error) this.problem(job.error.message);
    if (before !== job.status) this.#settle(before);
  }

  problem(message) { this.error.textContent = message; }

  #state() {
    const { status, queue_position: place, progress, seconds_left: left, cancelling } = this.job;
    if (status === "queued") return place ? `queued, ${place} before it` : "queued, next";
    if (cancelling) return "stopping …";
    if (status === "in_progress") return `making it: ${progress} %${left ? `, ${Math.ceil(left)} s left` : ""}`;
    return status;
  }

  async #preview(path) {
    this.preview.alt = "the newest frames";
    this.preview.src = URL.createObjectURL(await this.history.api.blob(path));
    this.preview.hidden = ENDED.includes(this.job.status);
  }

  #settle(before) {
    const ended = ENDED.includes(this.job.status);
    if (ended) this.preview.hidden = true;
    if (ended && before) this.history.status.textContent = `${title(this.job.task)}: ${this.job.status}`;
    const act = (work) => async () => {
      try {
        await work();
      } catch (error) {
        this.problem(error.message);
      }
    };
    const { api, onAgain } = this.history;
    const stop = button("Cancel", act(async () => this.update(await api.post(`/v1/jobs/${this.job.id}/cancel`, {}))));
    const again = button("Same again", act(() => onAgain({ ...this.job.request, seed: this.job.seed })));
    const vary = button("New seed", act(() => onAgain({ ...this.job.request, seed: undefined })));
    const remove = button("Delete", act(() => this.history.remove(this)));
    this.tools.replaceChildren(...(ended ? [again, vary, remove] : [stop]));
    if (this.job.status === "completed") this.#results().catch((error) => this.problem(error.message));
  }

  async #results() {
    const stems = Map.groupBy(this.job.files, (file) => file.name.replace(/\.[^.]*$/, ""));
    const figures = await Promise.all([...stems.values()].map((files, place) => this.#figure(files, place, stems.size)));
    this.results.replaceChildren(...this.job.texts.map((text) => make("p", { className: "words" }, text)), ...figures);
  }

  // The files of one sample: the first that a browser plays is displayed, all can be downloaded.
  async #figure(files, place, of) {
    const best = ["video", "image", "audio"].map((wanted) => files.find((file) => kind(file.media_type) === wanted)).find(Boolean);
    const label = of > 1 ? `Candidate ${place + 1}` : "Result";
    const figure = make("figure", {}, make("figcaption", {}, label));
    if (best) {
      const blob = await this.history.api.blob(best.url);
      const named = new File([blob], best.name, { type: best.media_type });
      const shown = player(named, `${label} of ${title(this.job.task)}`);
      figure.append(shown);
      if (kind(named.type) !== "image") addWave(shown, named);
      const use = button("Use", async () => {
        try {
          await this.history.onUse(named);
        } catch (error) {
          this.problem(error.message);
        }
      }, { title: "take it as the input of the form" });
      figure.append(make("div", { className: "tools" }, use, make("span", { className: "soft" }, "Download"), ...files.map((file) => this.#download(file))));
    }
    return figure;
  }

  #download(file) {
    const save = async () => {
      const url = URL.createObjectURL(await this.history.api.blob(file.url));
      make("a", { href: url, download: `${this.job.task}_${this.job.seed}_${file.name}` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    };
    return button(file.name.split(".").pop(), save, { title: `download ${file.name}` });
  }
}

// The texts of a request in a line.
function wordsOf(request) {
  if (request.scenes) return request.scenes.map((scene) => scene.prompt).filter(Boolean).join(" / ");
  if (request.jobs) return request.jobs.map((job) => [title(job.task), job.prompt].filter(Boolean).join(": ")).join(" → ");
  // A text of a long film opens with the second from which it holds.
  const texts = [request.prompt ?? []].flat();
  return texts.map((text) => (request.task === "long" ? text.replace(/^([\d.]+): /, "from second $1: ") : text)).join(" / ");
}

function player(file, label) {
  const src = URL.createObjectURL(file);
  if (kind(file.type) === "image") {
    const image = make("img", { src, alt: label });
    image.onload = () => image.classList.toggle("wide", image.naturalWidth > WIDE * image.naturalHeight);
    return image;
  }
  const media = make(kind(file.type), { src, controls: true, "aria-label": label });
  if (kind(file.type) === "video") {
    Object.assign(media, { loop: true, muted: true, playsInline: true });
    SEEN.observe(media);
  }
  return media;
}

// Clips play while they can be seen: a long list of jobs would keep a processor busy.
const SEEN = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) target.play().catch(() => {}); // A browser may forbid it: the player has a button.
    else target.pause();
  }
});
