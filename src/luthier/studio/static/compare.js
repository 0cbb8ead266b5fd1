// Answers as they come. Everything that is said lies in the studio: this only shows it meanwhile.
import { refresh, toast } from "./core.js";

let source = null;

function follow() {
  const turns = document.getElementById("turns");
  const url = turns?.dataset.stream;
  if (!url || source) return;
  const columns = [...turns.querySelectorAll("[data-column][data-last]")];
  for (const one of columns) one.querySelector("[data-answer]").textContent = "";
  source = new EventSource(url);
  source.onopen = () => {
    // The stream begins with the first word, also after a break of the line.
    for (const one of columns) {
      one.querySelector("[data-answer]").textContent = "";
      const thoughts = one.querySelector("[data-reasoning]");
      if (thoughts) thoughts.textContent = "";
    }
  };
  source.onmessage = (event) => {
    const said = JSON.parse(event.data);
    const column = columns[said.c];
    if (!column) return;
    const meta = column.querySelector("[data-meta]");
    const answer = column.querySelector("[data-answer]");
    if (said.t) answer.append(said.t);
    if (said.r) {
      const thoughts = column.querySelector("[data-reasoning]");
      thoughts.closest("details").hidden = false;
      thoughts.append(said.r);
    }
    if (said.state) meta.textContent = said.state === "loading" ? said.note || "loading the model" : "answering";
    if (said.weights) {
      const pill = column.querySelector("[data-weights]");
      if (pill) { pill.textContent = said.weights; pill.hidden = false; }
    }
    if (said.done) {
      answer.classList.remove("waiting");
      const { rate, tokens, finish, error } = said.done;
      meta.textContent = error ? "failed" : [rate ? `${rate} tokens/s` : "", tokens ? `${tokens} tokens` : "", finish].filter(Boolean).join(" · ");
    }
  };
  source.addEventListener("end", async () => {
    stop();
    await refresh();
    const told = document.getElementById("told");
    if (told) told.textContent = "Every model has answered.";
  });
}

function stop() {
  source?.close();
  source = null;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("[data-send]")) {
    event.preventDefault();
    const form = event.target.form;
    const button = form.querySelector("button[type=submit]");
    if (button.disabled) toast("The last prompt is still being answered");
    else form.requestSubmit(button);
  }
});
// One press sends once.
document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-once]")) return;
  const button = event.submitter;
  if (button) setTimeout(() => { button.disabled = true; });
});
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
addEventListener("pagehide", stop);
follow();
