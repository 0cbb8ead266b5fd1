// The theme, chosen by name; the button in the sidebar walks through the same three.
const choice = document.getElementById("theme-choice");
const root = document.documentElement;
choice.value = root.dataset.theme ?? "";
choice.addEventListener("change", () => {
  if (choice.value) { root.dataset.theme = choice.value; localStorage.setItem("theme", choice.value); }
  else { delete root.dataset.theme; localStorage.removeItem("theme"); }
  dispatchEvent(new Event("themechange"));
});
addEventListener("themechange", () => { choice.value = root.dataset.theme ?? ""; });
