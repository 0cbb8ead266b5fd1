// Home and Runs: progress of what works, and the page again when the queue or a run's state changes.
import { refresh } from "./core.js";
import { live } from "./live.js";

const followed = new Map();

function follow() {
  const there = new Set();
  for (const box of document.querySelectorAll("[data-run]")) {
    const id = box.dataset.run;
    there.add(id);
    if (followed.has(id)) continue;
    followed.set(id, live.subscribe({ topic: "run", id }, (news) => tell(id, news)));
  }
  for (const [id, end] of followed) if (!there.has(id)) { end(); followed.delete(id); }
}

function tell(id, news) {
  const box = document.querySelector(`[data-run="${CSS.escape(id)}"]`);
  if (!box) return;
  const put = (name, value) => {
    const place = box.querySelector(`[data-${name}]`);
    if (place && value !== undefined && value !== null) place.textContent = value;
  };
  put("step", news.step);
  put("left", news.left);
  put("stage", news.work ?? news.stage);
  if (news.rows?.length) put("loss", news.rows.at(-1)[1].toFixed(4));
  const bar = box.querySelector("[data-progress]");
  if (bar) { if (news.total) bar.max = news.total; if (news.step != null) bar.value = news.step; }
}

follow();
live.subscribe({ topic: "jobs" }, async () => { await refresh(); follow(); });

// Two runs chosen in the list are compared by their settings.
document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-pick]")) return;
  const picked = [...document.querySelectorAll("[data-pick]:checked")];
  const link = document.getElementById("diff");
  link.hidden = picked.length !== 2;
  if (picked.length === 2) link.href = `/runs/diff?ids=${picked.map((box) => encodeURIComponent(box.value)).join(",")}`;
});
