// The service's API: requests, uploads, media and events, with the API key where one is needed.

const KEY = "poet-api-key";

// What the service refused: its message, and the field that it is about.
export class Refusal extends Error {
  constructor(status, error) {
    super(error?.message ?? `the service answered with status ${status}`);
    this.status = status;
    this.param = error?.param ?? "";
  }
}

export class Api {
  #media = new Map();

  set key(value) { sessionStorage.setItem(KEY, value); }

  get #headers() {
    const key = sessionStorage.getItem(KEY);
    return key ? { authorization: `Bearer ${key}` } : {};
  }

  async #send(path, options = {}) {
    let answer;
    try {
      answer = await fetch(path, { ...options, headers: { ...this.#headers, ...options.headers } });
    } catch {
      throw new Refusal(0, { message: "the service does not answer: is it running?" });
    }
    if (!answer.ok) {
      const body = await answer.json().catch(() => ({}));
      throw new Refusal(answer.status, body.error);
    }
    return answer;
  }

  async get(path) { return (await this.#send(path)).json(); }

  async post(path, body, headers = {}) {
    const json = { "content-type": "application/json", ...headers };
    return (await this.#send(path, { method: "POST", body: JSON.stringify(body), headers: json })).json();
  }

  async delete(path) { return (await this.#send(path, { method: "DELETE" })).json(); }

  // Uploads a file; returns its description.
  async upload(blob, name) {
    const form = new FormData();
    form.append("file", blob, name);
    return (await this.#send("/v1/files", { method: "POST", body: form })).json();
  }

  // A blob of media; kept, since the same file is displayed, used and downloaded.
  async blob(path) {
    if (!this.#media.has(path)) this.#media.set(path, this.#send(path).then((answer) => answer.blob()));
    try {
      return await this.#media.get(path);
    } catch (error) {
      this.#media.delete(path);
      throw error;
    }
  }

  // Forgets the media of a job that was deleted.
  forget(prefix) {
    for (const path of this.#media.keys()) if (path.startsWith(prefix)) this.#media.delete(path);
  }

  // Calls onJob with the job at every event until its end.  A stream that breaks is opened anew.
  async follow(id, onJob) {
    for (;;) {
      try {
        const answer = await this.#send(`/v1/jobs/${id}/events`);
        if (await this.#read(answer.body, onJob)) return;
      } catch (error) {
        if (error.status >= 400) throw error;
      }
      await new Promise((done) => setTimeout(done, 2000));
    }
  }

  // True when the job has ended.
  async #read(body, onJob) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return false;
      text += value.replaceAll("\r", "");
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const kind = event.match(/^event: (.*)$/m)?.[1];
        const data = event.match(/^data: (.*)$/m)?.[1];
        if (data) onJob(JSON.parse(data));
        if (kind === "end") return true;
      }
    }
  }
}
