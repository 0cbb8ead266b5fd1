// The sum of what is chosen, beside what is free.
const form = document.getElementById("export-form");
const needed = document.getElementById("needed");

function readable(size) {
  for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (size >= scale * 0.99995) return `${(size / scale).toFixed(1)} ${unit}`;
  }
  return `${size} B`;
}

function add() {
  let sum = 0, gguf = false, sixteen = false, merged = 0;
  for (const box of form.querySelectorAll("input[name=kind]")) {
    if (box.value === "merged") merged = Number(box.dataset.bytes);
    if (!box.checked) continue;
    sum += Number(box.dataset.bytes);
    if (box.dataset.gguf === "1") gguf = true;
    if (box.value === "F16" || box.value === "BF16") sixteen = true;
    if (box.value === "merged") merged = 0;
  }
  // A GGUF is made from the merged weights, by way of its 16-bit file.
  if (gguf) sum += merged + (sixteen ? 0 : Number(form.dataset.scratch));
  needed.textContent = readable(sum);
  needed.classList.toggle("bad-words", sum > Number(form.dataset.free));
}

form?.addEventListener("change", add);
if (form) add();
