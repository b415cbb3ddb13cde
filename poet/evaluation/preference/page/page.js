"use strict";
// Asks the trials of one rater.  Answers go to the server that `poet prefer serve` runs; where there is none, the
// browser keeps them, and the rater downloads them.
(() => {
  const study = window.STUDY;
  const byId = (id) => document.getElementById(id);
  const SIDES = ["left", "tie", "right"];
  const LABELS = { left: "Left", tie: "No difference", right: "Right" };
  const KEYS = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right" };
  const RETRY_MS = 1500;
  const MOST_OF_HEIGHT = 0.4; // the questions fit below the clips
  const HAVE_FUTURE_DATA = 3; // readyState of a video that can begin

  let rater = 0;
  let trials = [];
  let answers = {}; // trial -> question -> answer
  let hasServer = false;
  let at = { trial: 0, question: 0 };
  let isOpen = false; // whether the pair was watched once
  let isPaused = false;
  let isSaving = false;

  // ---------------------------------------------------------------------------------- keeping answers

  const slot = () => `poet-prefer-${study.id}-${rater}`;
  const kept = () => JSON.parse(localStorage.getItem(slot()) || "[]");

  async function load() {
    try {
      const reply = await fetch(`api/answers?rater=${rater}`);
      if (reply.ok && (reply.headers.get("content-type") || "").startsWith("application/json")) {
        hasServer = true;
        return (await reply.json()).answers;
      }
    } catch {
      // A page that no server of ours sends: `file:`, or another web server.
    }
    hasServer = false;
    const found = {};
    for (const line of kept()) (found[line.trial] ||= {})[line.question] = line.answer;
    return found;
  }

  async function save(line) {
    if (!hasServer) {
      localStorage.setItem(slot(), JSON.stringify([...kept(), { ...line, at: new Date().toISOString() }]));
      return;
    }
    for (;;) {
      try {
        const reply = await fetch("api/answers", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(line),
        });
        if (reply.ok) break;
        byId("trouble").textContent = `The answer was refused: ${(await reply.json()).error}`;
      } catch {
        byId("trouble").textContent = "The server does not answer. This answer is sent again until it is kept.";
      }
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
    byId("trouble").textContent = "";
  }

  function download() {
    const text = kept().map((line) => JSON.stringify(line) + "\n").join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
    link.download = `answers_${rater}.jsonl`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // ------------------------------------------------------------------------------------------- clips

  const videos = () => [byId("left"), byId("right")];

  function play() {
    for (const video of videos()) {
      if (video.ended) video.currentTime = 0;
      video.play().catch(() => {});
    }
  }

  // Both begin again when both have ended, so that they stay together.
  function ended() {
    if (!videos().every((video) => video.ended)) return;
    if (!isOpen) open();
    if (!isPaused) play();
  }

  // The first time, they begin when both have come.
  function ready() {
    const areReady = videos().every((video) => video.readyState >= HAVE_FUTURE_DATA && video.paused);
    if (areReady && !isPaused) play();
  }

  // One scale for both: their pictures have the same area, whatever their aspect.
  function fit() {
    const [left, right] = videos();
    if (!left.videoWidth || !right.videoWidth) return;
    const wide = byId("left-box").clientWidth;
    const high = window.innerHeight * MOST_OF_HEIGHT;
    const scale = Math.min(...[left, right].flatMap((v) => [wide / v.videoWidth, high / v.videoHeight]));
    for (const video of [left, right]) {
      video.style.width = `${Math.floor(video.videoWidth * scale)}px`;
      video.style.height = `${Math.floor(video.videoHeight * scale)}px`;
    }
  }

  function pause(wanted) {
    showPaused(wanted);
    if (wanted) videos().forEach((video) => video.pause());
    else play();
  }

  function showPaused(wanted) {
    isPaused = wanted;
    byId("pause").setAttribute("aria-pressed", String(wanted));
    byId("pause").textContent = wanted ? "Play" : "Pause";
  }

  // ------------------------------------------------------------------------------------------ trials

  const number = () => trials[at.trial];
  const trial = () => study.trials[number()];
  const isDone = (name) => study.questions.every((question) => answers[name]?.[question.name]);

  function open() {
    isOpen = true;
    byId("state").textContent = "";
    drawQuestions();
  }

  function showTrial() {
    if (at.trial >= trials.length) return showEnd();
    const { left, right, prompt, hint } = trial();
    byId("heading").textContent = hint ? "Which clip? (practice)" : "Which clip?";
    byId("prompt").hidden = !prompt;
    byId("prompt-text").textContent = prompt;
    byId("hint").hidden = true;
    isOpen = isDone(number());
    byId("state").textContent = isOpen ? "" : "Watch both clips to their end first.";
    showPaused(false);
    [byId("left").src, byId("right").src] = [left, right];
    const done = trials.filter(isDone).length;
    byId("progress").max = trials.length;
    byId("progress").value = done;
    byId("place").textContent = `Pair ${at.trial + 1} of ${trials.length}`;
    drawQuestions();
    window.scrollTo(0, 0);
  }

  function drawQuestions() {
    const known = answers[number()] || {};
    const items = study.questions.map((question, place) => {
      const item = document.createElement("li");
      const isNow = place === at.question && byId("hint").hidden;
      if (isNow) item.setAttribute("aria-current", "step");
      const text = document.createElement("span");
      text.id = `question-${question.name}`;
      text.textContent = question.text;
      const choices = document.createElement("div");
      choices.className = "choices";
      choices.setAttribute("role", "group");
      choices.setAttribute("aria-labelledby", text.id);
      for (const side of SIDES) choices.append(choice(question, place, side, known[question.name] === side));
      item.append(text, choices);
      return item;
    });
    const held = document.activeElement?.dataset?.answer;
    byId("questions").replaceChildren(...items);
    // Who answers by Tab and Enter goes on from the next question.
    if (held) items[at.question].querySelector(`[data-answer="${held}"]`).focus();
    byId("back").disabled = at.trial === 0 && at.question === 0;
  }

  function choice(question, place, side, isChosen) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = LABELS[side];
    button.dataset.answer = side;
    button.setAttribute("aria-pressed", String(isChosen));
    button.disabled = !isOpen;
    button.addEventListener("click", () => {
      at.question = place;
      answer(side);
    });
    return button;
  }

  async function answer(side) {
    if (!isOpen || isSaving || !byId("hint").hidden) return;
    isSaving = true;
    const question = study.questions[at.question].name;
    await save({ study: study.id, rater, trial: number(), question, answer: side });
    isSaving = false;
    (answers[number()] ||= {})[question] = side;
    const left = study.questions.findIndex((other) => !answers[number()][other.name]);
    if (left < 0) return finishTrial();
    at.question = left;
    drawQuestions();
  }

  function finishTrial() {
    const { hint, expected } = trial();
    if (!hint) return next();
    const known = answers[number()];
    const isRight = Object.entries(expected).every(([question, side]) => !(question in known) || known[question] === side);
    byId("hint-text").textContent = `${isRight ? "Yes." : "Look again."} ${hint}`;
    byId("hint").hidden = false;
    drawQuestions();
    byId("go-on").focus();
  }

  function next() {
    at = { trial: at.trial + 1, question: 0 };
    showTrial();
  }

  function back() {
    if (isSaving) return;
    if (!byId("hint").hidden) byId("hint").hidden = true;
    else if (at.question > 0) at.question -= 1;
    else if (at.trial > 0) {
      at = { trial: at.trial - 1, question: study.questions.length - 1 };
      return showTrial();
    }
    drawQuestions();
  }

  function showEnd() {
    videos().forEach((video) => video.pause());
    byId("trial").hidden = true;
    byId("end").hidden = false;
    byId("progress").value = trials.length;
    byId("place").textContent = `All ${trials.length} pairs`;
    byId("heading").textContent = "Thank you.";
    byId("end-text").textContent = hasServer
      ? "All of your answers are kept. You can close this page."
      : "One thing is left to do: download your answers and send them.";
    byId("heading").focus();
  }

  // ------------------------------------------------------------------------------------------- start

  async function begin(text) {
    const found = Number(text);
    if (!Number.isInteger(found) || found < 1 || found > study.raters.length) {
      byId("who-problem").textContent = `A number from 1 to ${study.raters.length} is needed, ${text || "nothing"} was entered.`;
      return showStart();
    }
    rater = found;
    trials = study.raters[rater - 1];
    answers = await load();
    byId("start").hidden = true;
    byId("trial").hidden = false;
    byId("progress-row").hidden = false;
    byId("static-row").hidden = hasServer;
    const first = trials.findIndex((name) => !isDone(name));
    at = { trial: first < 0 ? trials.length : first, question: 0 };
    if (first >= 0) {
      at.question = study.questions.findIndex((question) => !answers[trials[first]]?.[question.name]);
    }
    showTrial();
  }

  function showStart() {
    byId("start").hidden = false;
    byId("asked").replaceChildren(
      ...study.questions.map((question) => Object.assign(document.createElement("li"), { textContent: question.text })),
    );
    byId("training-note").hidden = !Object.values(study.trials).some((one) => one.hint);
    byId("rater").focus();
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("trial").hidden) return;
    const isButton = document.activeElement instanceof HTMLButtonElement;
    if (event.key in KEYS) answer(KEYS[event.key]);
    else if (event.key === "ArrowUp" || event.key === "Backspace") back();
    else if (event.key === " " && !isButton) pause(!isPaused);
    else return;
    event.preventDefault();
  }

  if (!study) {
    byId("trouble").textContent = "study.js is missing beside this page.";
    return;
  }
  for (const video of videos()) {
    video.addEventListener("ended", ended);
    video.addEventListener("canplay", ready);
    video.addEventListener("loadedmetadata", fit);
    video.addEventListener("error", () => {
      byId("trouble").textContent = "This browser cannot play a clip (H.264 in MP4). Use another browser, and tell the person who runs this study.";
    });
  }
  window.addEventListener("resize", fit);
  document.addEventListener("keydown", key);
  byId("pause").addEventListener("click", () => pause(!isPaused));
  byId("back").addEventListener("click", back);
  byId("go-on").addEventListener("click", next);
  byId("download").addEventListener("click", download);
  byId("who").addEventListener("submit", (event) => {
    event.preventDefault();
    begin(byId("rater").value.trim());
  });
  const asked = new URLSearchParams(location.search).get("rater");
  if (asked === null) showStart();
  else begin(asked);
})();
