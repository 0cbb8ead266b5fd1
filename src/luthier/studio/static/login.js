// Swap the code in the fragment (which no server sees and no log keeps), or what was typed, for a session.
const form = document.getElementById("login");
const refused = document.getElementById("refused");

async function enter(token) {
  refused.textContent = "";
  const answer = await fetch("/api/v1/login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (answer.ok) {
    location.replace(form.dataset.next);
    return;
  }
  const problem = await answer.json();
  refused.textContent = problem.fix ? `${problem.detail}. To do: ${problem.fix}.` : problem.detail;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  enter(new FormData(form).get("token").trim());
});

function fromLink() {
  const code = new URLSearchParams(location.hash.slice(1)).get("t");
  if (!code) return;
  history.replaceState(null, "", location.pathname + location.search);
  enter(code);
}
addEventListener("hashchange", fromLink);
fromLink();
