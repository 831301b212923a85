"use strict";
// A click on a column's name sorts by it: numbers from the greatest, text from A; again for the reverse.
for (const head of document.querySelectorAll("th")) {
  head.addEventListener("click", () => {
    const column = head.cellIndex;
    const body = head.closest("table").tBodies[0];
    const isNumber = head.classList.contains("n");
    const was = head.dataset.sorted;
    const up = was ? was === "down" : !isNumber;
    const key = (row) => {
      const cell = row.cells[column];
      return isNumber ? Number(cell.dataset.v) : cell.textContent;
    };
    const order = (a, b) => (isNumber ? key(a) - key(b) : key(a).localeCompare(key(b)));
    const rows = [...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a)));
    for (const other of head.parentNode.cells) delete other.dataset.sorted;
    head.dataset.sorted = up ? "up" : "down";
    body.append(...rows);
  });
}
