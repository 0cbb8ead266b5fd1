// One run: its tiles, curves and log as they come.
import { api, refresh, toast, words } from "./core.js";
import { live } from "./live.js";

const box = document.getElementById("live");
const id = box.dataset.id;
const base = `/api/v1/runs/${encodeURIComponent(id)}`;
const GIB = 2 ** 30;

// -- dialogs -----------------------------------------------------------------------------------------
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open]");
  if (opener) {
    const dialog = document.querySelector(opener.dataset.open);
    if (opener.dataset.choose) dialog.querySelector("select").value = opener.dataset.choose;
    dialog.showModal();
  } else if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
});
document.getElementById("from-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const values = new FormData(event.target);
  const [source, step] = values.get("source").split("@");
  const overrides = values.get("overrides").split("\n").map((line) => line.trim()).filter(Boolean);
  try {
    const job = await api("POST", "/api/v1/jobs", { kind: "train", source, run: step ? `${id}@${step}` : id, overrides });
    location.assign(`/jobs/${job.id}`);
  } catch (error) { toast(words(error), "bad"); }
});

// -- charts ------------------------------------------------------------------------------------------
const data = { step: [], loss: [], learning_rate: [], grad_norm: [], memory: [], tokens_per_second: [], checks: new Map() };
const NAMES = ["loss", "learning_rate", "grad_norm", "memory", "tokens_per_second"];
const charts = new Map();
const boxes = [...document.querySelectorAll("[data-chart]")];
const smoothing = document.getElementById("smoothing");

function short(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(1).replace("e-", "e-");
  return size >= 1e5 ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : String(+value.toPrecision(4));
}

/** Colours are light-dark() in CSS: a canvas only understands what a probe element computes. */
function colour(name) {
  const probe = document.createElement("span");
  probe.className = "sr";
  document.body.append(probe);
  const read = (variable) => { probe.style.color = `var(--${variable})`; return getComputedStyle(probe).color; };
  const found = read(name);
  probe.remove();
  return found;
}

function smoothed(values, weight) {
  const out = new Array(values.length);
  let mean = 0, norm = 0;
  for (let i = 0; i < values.length; i++) {
    if (values[i] == null) { out[i] = null; continue; }
    mean = weight * mean + (1 - weight) * values[i];
    norm = weight * norm + (1 - weight);
    out[i] = mean / norm;
  }
  return out;
}

function series(name) {
  if (name !== "loss") return [data.step, name === "memory" ? data.memory.map((v) => v && v / GIB) : data[name]];
  // Evaluations stand at their own steps: one x axis for both.
  const all = [...new Set([...data.step, ...data.checks.keys()])].sort((a, b) => a - b);
  const at = new Map(data.step.map((step, i) => [step, i]));
  const soft = smoothed(data.loss, Number(smoothing?.value ?? 0.6));
  const pick = (values) => all.map((step) => { const i = at.get(step); return i === undefined ? null : values[i]; });
  return [all, pick(data.loss), pick(soft), all.map((step) => data.checks.get(step) ?? null)];
}

function mount(place) {
  const name = place.dataset.chart;
  if (charts.has(name) || !window.uPlot || !data.step.length) return;
  const ink = colour("ink-2"), line = colour("line"), accent = colour("accent"), third = colour("third");
  const small = { size: 4, width: 1.5, stroke: colour("eval"), fill: colour("surface") };
  const lines = name === "loss"
    ? [{ label: "raw", stroke: colour("base"), width: 1, alpha: 0.55, points: { show: false }, spanGaps: true },
       { label: "train", stroke: accent, width: 2, points: { show: false }, spanGaps: true },
       { label: "eval", stroke: colour("eval"), width: 2, points: { show: true, ...small }, spanGaps: true }]
    : [{ label: name, stroke: third, width: 1.5, points: { show: data.step.length < 2 }, spanGaps: true }];
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "12px Inter, system-ui, sans-serif" };
  const readout = document.querySelector(`[data-readout="${name}"]`);
  const chart = new window.uPlot({
    width: place.clientWidth, height: place.clientHeight, padding: [8, 8, 0, 0], legend: { show: false },
    cursor: { y: false, points: { size: 6 }, drag: { x: true, y: false } },
    scales: { x: { time: false } },
    axes: [{ ...axis, space: name === "loss" ? 60 : 40, size: 30 }, { ...axis, size: 56, values: (_, ticks) => ticks.map(short) }],
    series: [{ label: "step" }, ...lines],
    hooks: { setData: [say], setCursor: [say] },
  }, series(name), place);
  function say(u) {
    // Where the pointer is; the last step where it is nowhere.
    const i = u.cursor.idx ?? u.data[0].length - 1;
    if (i >= 0) {
      const at = name === "loss" || u.cursor.idx != null ? `step ${u.data[0][i].toLocaleString("en")} · ` : "";
      readout.textContent = at + u.series.slice(1).map((s, k) => [s.label, u.data[k + 1][i]]).filter(([, v]) => v != null).map(([label, v]) => (name === "loss" ? `${label} ${short(v)}` : short(v))).join(" · ");
    }
  }
  say(chart);
  charts.set(name, chart);
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    entry.target.dataset.seen = entry.isIntersecting ? "yes" : "no";
    if (entry.isIntersecting) { mount(entry.target); charts.get(entry.target.dataset.chart)?.setData(series(entry.target.dataset.chart)); }
  }
}, { rootMargin: "100px" });

let drawing = 0;
function draw() {
  if (drawing) return;
  drawing = requestAnimationFrame(() => {
    drawing = 0;
    for (const place of boxes) {
      place.toggleAttribute("data-none", !data.step.length);
      if (place.dataset.seen !== "yes") continue;
      mount(place);
      charts.get(place.dataset.chart)?.setData(series(place.dataset.chart));
    }
  });
}

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) charts.get(target.dataset.chart)?.setSize({ width: target.clientWidth, height: target.clientHeight });
});

function redo() { for (const chart of charts.values()) chart.destroy(); charts.clear(); draw(); }
addEventListener("themechange", redo);
smoothing?.addEventListener("input", draw);

function add(rows, checks) {
  for (const row of rows) {
    if (data.step.length && row[0] <= data.step.at(-1)) continue; // went on from a checkpoint: told before
    data.step.push(row[0]);
    NAMES.forEach((name, i) => data[name].push(row[i + 1]));
  }
  for (const [step, loss] of checks) data.checks.set(step, loss);
}

document.getElementById("numbers")?.addEventListener("toggle", (event) => {
  if (!event.target.open) return;
  const every = Math.max(1, Math.floor(data.step.length / 100));
  const body = event.target.querySelector("tbody");
  body.replaceChildren(...data.step.flatMap((step, i) => {
    if (i % every && i !== data.step.length - 1) return [];
    const row = document.createElement("tr");
    for (const value of [step, data.loss[i], data.learning_rate[i], data.grad_norm[i], data.memory[i] && data.memory[i] / GIB, data.tokens_per_second[i]]) {
      const cell = document.createElement("td");
      cell.className = "num";
      cell.textContent = short(value);
      row.append(cell);
    }
    return [row];
  }));
});

// -- what is told ------------------------------------------------------------------------------------
let state = box.dataset.state;
function put(name, value) {
  const place = document.getElementById(name);
  if (place && value !== undefined && value !== null && value !== "") place.textContent = value;
}

function tell(news) {
  if (news.rows?.length || news.checks?.length) {
    add(news.rows, news.checks);
    draw();
    const row = news.rows.at(-1);
    if (row) { put("t-loss", row[1]?.toFixed(4)); put("t-speed", row[5] && Math.round(row[5]).toLocaleString("en")); }
    if (news.checks.length) put("t-eval", news.checks.at(-1)[1]?.toFixed(4));
    if (news.peak) put("t-memory", (news.peak / GIB).toFixed(2));
  }
  put("t-step", news.step?.toLocaleString("en"));
  put("t-left", news.left);
  put("stage", news.work ?? news.stage);
  const bar = document.getElementById("progress");
  if (bar && news.total) { bar.max = news.total; bar.value = news.step ?? 0; }
  if (news.state && news.state !== state) {
    state = news.state;
    document.getElementById("told").textContent = `The run is now ${state}`;
    // Another state has other buttons and words: the page again, its charts stay.
    if (!boxes.length) refresh(); else location.reload();
  }
}

if (boxes.length) {
  const found = await api("GET", `${base}/metrics`);
  const { columns } = found;
  add(columns.step.map((step, i) => [step, ...NAMES.map((name) => columns[name][i])]), found.validation.step.map((step, i) => [step, found.validation.loss[i]]));
  for (const place of boxes) { inView.observe(place); resized.observe(place); }
  draw();
  performance.mark("charts");
  live.subscribe({ topic: "run", id, offset: found.offset }, tell);
} else live.subscribe({ topic: "run", id, offset: Number(box.dataset.offset) }, tell);

const log = document.getElementById("log");
if (log) {
  live.subscribe({ topic: "log", id, offset: Number(log.dataset.offset) }, ({ text }) => {
    const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(text);
    if (below) log.scrollTop = log.scrollHeight;
  });
  log.scrollTop = log.scrollHeight;
}
