// A job that is prepared: its words as they come, then its run.
import { api, refresh } from "./core.js";
import { live } from "./live.js";

const box = document.getElementById("job");
const id = box.dataset.id;
if (box.dataset.state === "preparing") {
  const look = async () => {
    const job = await api("GET", `/api/v1/jobs/${id}`);
    if (job.run && job.state !== "failed") location.replace(`/runs/${encodeURIComponent(job.run)}`);
    else if (job.state !== "preparing") refresh();
    else document.getElementById("note").textContent = job.note;
  };
  live.subscribe({ topic: "jobs" }, look);
  setTimeout(look, 1500);
}
