"use strict";
// A pair's number shows what its image is compared with: all rows above it in its document.
function show(flow, pair, row) {
  flow.classList.toggle("focus", pair !== null);
  for (const button of flow.querySelectorAll("button[data-pair]"))
    button.setAttribute("aria-pressed", String(button.dataset.pair === pair));
  for (const line of flow.querySelectorAll(".rail, .elbow"))
    line.classList.toggle("on", line.dataset.pair === pair);
  for (const part of flow.querySelectorAll(".row")) {
    part.classList.toggle("seen", pair !== null && Number(part.dataset.row) < row);
    part.classList.toggle("paired", pair !== null && Number(part.dataset.row) === row);
  }
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-pair]");
  if (!button) return;
  const chosen = button.getAttribute("aria-pressed") !== "true";
  show(button.closest(".flow"), chosen ? button.dataset.pair : null, Number(button.dataset.row));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape")
    for (const flow of document.querySelectorAll(".flow.focus")) show(flow, null, 0);
});
