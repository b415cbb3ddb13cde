// The page: chooses a job, sends its form, and lists what was made.

import { Api } from "./api.js";
import { button, make, title } from "./dom.js";
import { about, formOf } from "./forms.js";
import { History } from "./jobs.js";

const by = (id) => document.getElementById(id);
const api = new Api();
let model;
let form;

async function start() {
  try {
    [model] = (await api.get("/v1/models")).data;
  } catch (error) {
    by("key-form").hidden = error.status !== 401;
    by("model").textContent = error.status === 401 ? "" : error.message;
    if (error.status !== 401) setTimeout(start, 2000);
    return;
  }
  const { width, height, seconds, rate_hz: rate } = model.clip;
  by("model").textContent = `${model.id}: clips of ${width} x ${height}, ${seconds.toFixed(1)} s at ${rate} frames a second`;
  by("key-form").hidden = true;
  by("studio").hidden = false;
  chooseFrom(model);
  await jobs.load();
}

function chooseFrom(model) {
  const options = (names) => names.map((name) => make("option", { value: name }, title(name)));
  const tasks = model.tasks.map((task) => task.name);
  const groups = { Clips: tasks, More: Object.keys(model.requests).filter((name) => !tasks.includes(name)) };
  by("task").replaceChildren(...Object.entries(groups).filter(([, names]) => names.length).map(([label, names]) => make("optgroup", { label }, ...options(names))));
  const wanted = decodeURIComponent(location.hash.slice(1));
  by("task").value = Object.hasOwn(model.requests, wanted) ? wanted : "text_to_video";
  if (!by("task").value) by("task").selectedIndex = 0;
  choose();
}

function choose() {
  const name = by("task").value;
  history.replaceState(null, "", `#${name}`);
  form = formOf(name, model, api);
  by("about").textContent = about(name, model);
  by("problem").textContent = "";
  by("form").replaceChildren(form.element, button("Make it", undefined, { type: "submit", className: "main", title: "Ctrl+Enter" }));
}

async function send(request) {
  // A key of its own: a request that is sent twice by a bad connection makes one job.
  const job = await api.post("/v1/jobs", request, { "idempotency-key": crypto.randomUUID() });
  jobs.add(job);
  return job;
}

async function submit(event) {
  event.preventDefault();
  const submitter = by("form").querySelector("button.main");
  submitter.disabled = true;
  by("problem").textContent = "";
  try {
    await send(await form.request());
    by("state").textContent = `${title(by("task").value)} is queued`;
  } catch (error) {
    by("problem").textContent = error.message;
  }
  submitter.disabled = false;
}

async function use(blob) {
  // A job without a place for it gives way to one that has it.
  if (!form.use || !(form.clip || form.scenes || form.end)) {
    by("task").value = blob.type.startsWith("audio") ? "audio_to_video" : "image_to_video";
    if (!by("task").value) throw new Error("no job of this model takes it");
    choose();
  }
  await form.use(blob);
  by("make").scrollIntoView({ behavior: "smooth" });
  by("state").textContent = "taken as input";
}

const jobs = new History(api, {
  list: by("history"), older: by("older"), empty: by("empty"), status: by("state"), onUse: use, onAgain: send,
});
by("task").onchange = choose;
by("form").onsubmit = submit;
by("form").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("form").requestSubmit();
};
by("key-form").onsubmit = (event) => {
  event.preventDefault();
  api.key = by("key").value;
  start();
};
start();
