// What the pages' own modules share.

// -- toasts ------------------------------------------------------------------------------------------
let toastTimer;
export function toast(words, kind = "") {
  const box = document.getElementById("toast");
  box.textContent = words;
  box.className = `shown ${kind}`;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { box.className = ""; }, kind === "bad" ? 12000 : 5000);
}

// -- asking the API ----------------------------------------------------------------------------------
/** Ask the API; the answer's JSON. Throws an Error with the problem's words (and `.problem`). */
export async function api(method, path, body) {
  const asked = { method, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    asked.headers["Content-Type"] = "application/json";
    asked.body = JSON.stringify(body);
  }
  const answer = await fetch(path, asked);
  const type = answer.headers.get("content-type") ?? "";
  const found = type.includes("json") ? await answer.json() : await answer.text();
  if (!answer.ok) {
    const error = new Error(found.detail ?? answer.statusText);
    error.problem = found;
    throw error;
  }
  return found;
}

/** Words for a failed request. */
export function words(error) {
  const fix = error.problem?.fix;
  return fix ? `${error.message}. To do: ${fix}` : error.message;
}

/** Fetch this page again and swap what is inside #main, keeping the place and the focus. */
export function refresh() {
  if (!window.htmx) { location.reload(); return; }
  return window.htmx.ajax("GET", location.href, { target: "#main", select: "#main", swap: "outerMorph" });
}
