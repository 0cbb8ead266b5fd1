// What every page has: the theme, buttons that copy or ask the API, the memory meter.
import { api, refresh, toast, words } from "./core.js";
import { live } from "./live.js";

const root = document.documentElement;

// On a phone the pages stand in one row: the current one is brought into view.
const here = document.querySelector(".side [aria-current]");
if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 24;

// -- theme: system -> light -> dark ------------------------------------------------------------------
const themeButton = document.getElementById("theme");
function nameTheme() {
  if (themeButton) themeButton.textContent = `Theme: ${root.dataset.theme ?? "auto"}`;
}
themeButton?.addEventListener("click", () => {
  const next = { undefined: "light", light: "dark", dark: undefined }[root.dataset.theme];
  if (next) { root.dataset.theme = next; localStorage.setItem("theme", next); }
  else { delete root.dataset.theme; localStorage.removeItem("theme"); }
  nameTheme();
  dispatchEvent(new Event("themechange"));
});
nameTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("themechange")));

// A button with data-api="POST /api/v1/..." asks the API; data-body is its JSON, data-confirm asks first,
// data-done is what the toast then says, data-then="reload" or a path is where to go.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-api]");
  if (!button || button.disabled) return;
  event.preventDefault();
  if (button.dataset.confirm && !confirm(button.dataset.confirm)) return;
  const [method, path] = button.dataset.api.split(" ");
  button.disabled = true;
  try {
    const found = await api(method, path, button.dataset.body ? JSON.parse(button.dataset.body) : undefined);
    if (button.dataset.done) toast(button.dataset.done);
    const then = button.dataset.then;
    if (then === "reload") refresh();
    else if (then) location.assign(then.replace(/\{(\w+)\}/g, (_, key) => encodeURIComponent(found[key])));
  } catch (error) {
    toast(words(error), "bad");
  } finally {
    button.disabled = false;
  }
});

// -- copy --------------------------------------------------------------------------------------------
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = button.dataset.copy ? document.querySelector(button.dataset.copy) : button.parentElement.querySelector("pre");
  await navigator.clipboard.writeText(source.value ?? source.textContent);
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
});

// -- the memory meter --------------------------------------------------------------------------------
const gauge = document.getElementById("gauge");
if (gauge) {
  live.subscribe({ topic: "gauge" }, (message) => {
    gauge.max = message.total;
    gauge.value = message.used;
    document.getElementById("gauge-words").textContent = message.words;
  });
}
