// Files to PUT /api/v1/uploads: raw bytes, progress, and on from where a transfer broke off.
import { api, refresh, toast, words } from "./core.js";

const box = document.getElementById("transfers");
const drop = document.getElementById("drop");
const input = document.getElementById("file");
const TRIES = 8;

const units = ["B", "kB", "MB", "GB"];
function readable(bytes) {
  let power = 0;
  while (bytes >= 1000 && power < 3) { bytes /= 1000; power += 1; }
  return `${power ? bytes.toFixed(1) : bytes} ${units[power]}`;
}

class Transfer {
  constructor(file) {
    this.file = file;
    this.url = `/api/v1/uploads/${encodeURIComponent(file.name)}`;
    this.mark = String(file.lastModified);
    this.sent = 0;
    this.paused = false;
    this.show();
  }

  show() {
    this.element = document.createElement("section");
    this.element.className = "card transfer";
    const row = document.createElement("div");
    row.className = "row";
    const name = document.createElement("span");
    name.className = "mono";
    name.textContent = this.file.name;
    this.said = document.createElement("span");
    this.said.className = "quiet";
    this.pause = document.createElement("button");
    this.pause.type = "button";
    this.pause.className = "small";
    this.pause.textContent = "Pause";
    this.pause.addEventListener("click", () => (this.paused ? this.go() : this.stop("paused")));
    this.bar = document.createElement("progress");
    this.bar.max = Math.max(1, this.file.size);
    this.bar.value = 0;
    this.bar.setAttribute("aria-label", `Upload of ${this.file.name}`);
    row.append(name, this.said, this.pause);
    this.element.append(row, this.bar);
    box.append(this.element);
  }

  say(text, bad = false) {
    this.said.textContent = text;
    this.said.className = bad ? "bad-words" : "quiet";
  }

  stop(why) {
    this.paused = true;
    this.request?.abort();
    this.pause.textContent = "Continue";
    this.say(`${why}, ${readable(this.sent)} of ${readable(this.file.size)} are here`);
  }

  /** Ask how much is there, send the rest, and do so again where the line breaks. */
  async go() {
    this.paused = false;
    this.pause.textContent = "Pause";
    for (let tried = 0; tried < TRIES && !this.paused; tried += 1) {
      try {
        this.sent = await this.there();
        const found = await this.send(this.sent);
        if (found.id) return this.done(found);
        tried = -1; // a part arrived: the line is good
      } catch (error) {
        if (this.paused) return undefined;
        if (error.problem && error.problem.status !== 409) return this.refused(error);
        this.say(`the line broke, trying again (${tried + 1} of ${TRIES})`);
        await new Promise((after) => { setTimeout(after, 500 * 2 ** Math.min(tried, 5)); });
      }
    }
    if (!this.paused) this.stop("no connection");
    return undefined;
  }

  async there() {
    const answer = await fetch(this.url, {
      method: "PUT", headers: { "Content-Range": `bytes */${this.file.size}`, "Upload-Mark": this.mark },
    });
    const found = await answer.json();
    if (!answer.ok) { const error = new Error(found.detail); error.problem = found; throw error; }
    return found.bytes;
  }

  send(from) {
    const started = performance.now();
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      this.request = request;
      request.open("PUT", this.url);
      request.responseType = "json";
      request.setRequestHeader("Content-Range", `bytes ${from}-${this.file.size - 1}/${this.file.size}`);
      request.setRequestHeader("Upload-Mark", this.mark);
      request.upload.onprogress = (event) => {
        this.sent = from + event.loaded;
        this.bar.value = this.sent;
        const rate = event.loaded / Math.max(0.1, (performance.now() - started) / 1000);
        const left = (this.file.size - this.sent) / Math.max(1, rate);
        const rest = left > 2 ? `, ${Math.ceil(left)} s left` : "";
        this.say(`${readable(this.sent)} of ${readable(this.file.size)}, ${readable(rate)}/s${rest}`);
      };
      request.onload = () => {
        if (request.status < 300) { resolve(request.response); return; }
        const error = new Error(request.response?.detail ?? request.statusText);
        error.problem = request.response ?? { status: request.status };
        reject(error);
      };
      request.onerror = () => reject(new Error("the connection ended"));
      request.onabort = () => reject(new Error("stopped"));
      request.send(this.file.slice(from));
    });
  }

  refused(error) {
    this.say(words(error), true);
    this.bar.remove();
    this.pause.textContent = "Dismiss";
    this.pause.addEventListener("click", () => this.element.remove(), { once: true });
    toast(words(error), "bad");
  }

  done(found) {
    this.element.remove();
    toast(`${this.file.name} is here, and being checked`);
    if (running.every((one) => one === this || !one.element.isConnected)) {
      if (running.length === 1) location.assign(`/datasets/${found.id}`);
      else refresh();
    }
  }
}

const running = [];
async function take(files) {
  for (const file of files) {
    if (!file.size) { toast(`${file.name} is empty`, "bad"); continue; }
    running.push(new Transfer(file));
  }
  for (const one of running.filter((each) => !each.begun)) {
    one.begun = true;
    await one.go();
  }
}

input?.addEventListener("change", () => { take([...input.files]); input.value = ""; });
for (const kind of ["dragenter", "dragover"]) {
  drop?.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) drop?.addEventListener(kind, () => drop.classList.remove("over"));
drop?.addEventListener("drop", (event) => { event.preventDefault(); take([...event.dataTransfer.files]); });
addEventListener("beforeunload", (event) => {
  if (running.some((one) => one.element.isConnected && !one.paused && one.sent < one.file.size)) event.preventDefault();
});

document.getElementById("local")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const found = await api("POST", "/api/v1/datasets", { path: event.target.path.value });
    location.assign(`/datasets/${found.id}`);
  } catch (error) {
    toast(words(error), "bad");
  }
});
