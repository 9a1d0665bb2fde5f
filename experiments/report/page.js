"use strict";
(() => {
  const collator = new Intl.Collator("en", { numeric: true });

  // Cells without a value stay last both ways; rows of equal value keep the order they had.
  const sort = (head) => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    const sign = ascending ? 1 : -1;
    const number = head.dataset.kind === "number";
    const body = head.closest("table").tBodies[0];
    const rows = Array.from(body.rows, (row) => ({ row, value: row.cells[head.cellIndex].dataset.value }));
    rows.sort((a, b) => {
      if (a.value === undefined || b.value === undefined) {
        return (a.value === undefined) - (b.value === undefined);
      }
      return sign * (number ? a.value - b.value : collator.compare(a.value, b.value));
    });
    body.append(...rows.map(({ row }) => row));
    for (const other of head.parentElement.cells) {
      other.setAttribute("aria-sort", "none");
    }
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  };

  for (const button of document.querySelectorAll("table.sortable th button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }

  const form = document.getElementById("filter");
  const input = document.getElementById("words");
  const runs = [...document.querySelectorAll("details.run")];

  // A word with an equals sign is a key with its whole value, its table left out or not; others are found anywhere.
  const filter = () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const run of runs) {
      const words = run.dataset.words.toLowerCase().split("\n");
      const has = (one) => words.some((word) =>
        one.includes("=") ? word === one || word.endsWith("." + one) : word.includes(one));
      run.hidden = !wanted.every(has);
    }
    document.getElementById("shown").textContent = `${runs.filter((run) => !run.hidden).length} of ${runs.length}`;
  };

  input.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  // A link to a run opens it, and shows it where the filter had hidden it.
  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) {
      if (target.hidden) {
        input.value = "";
        filter();
      }
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", openTarget);
  openTarget();
})();
