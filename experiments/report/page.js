"use strict";
(() => {
  const collator = new Intl.Collator("en", { numeric: true });

  // Cells without a value have no place in the order: they stay last both ways. Array.sort is stable, so that rows
  // of equal value keep the order they had.
  const compare = (kind, sign) => (a, b) => {
    if (a.value === undefined || b.value === undefined) {
      return (a.value === undefined) - (b.value === undefined);
    }
    return sign * (kind === "number" ? a.value - b.value : collator.compare(a.value, b.value));
  };

  const sort = (head) => {
    const place = head.cellIndex;
    const body = head.closest("table").tBodies[0];
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    const rows = Array.from(body.rows, (row) => ({ row, value: row.cells[place].dataset.value }));
    rows.sort(compare(head.dataset.kind, ascending ? 1 : -1));
    body.append(...rows.map(({ row }) => row));
    for (const other of head.parentElement.cells) {
      other.setAttribute("aria-sort", "none");
    }
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  };

  for (const button of document.querySelectorAll("table.sortable th button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }

  // A word with an equals sign is a whole key with its whole value, its table left out or not; others are found anywhere.
  const matches = (words, wanted) =>
    wanted.every((one) =>
      one.includes("=")
        ? words.some((word) => word === one || word.endsWith("." + one))
        : words.some((word) => word.includes(one)),
    );

  const form = document.getElementById("filter");
  const input = document.getElementById("words");
  const shown = document.getElementById("shown");
  const runs = Array.from(document.querySelectorAll("details.run"), (element) => ({
    element,
    words: element.dataset.words.toLowerCase().split("\n"),
  }));

  const filter = () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const { element, words } of runs) {
      element.hidden = !matches(words, wanted);
      left += element.hidden ? 0 : 1;
    }
    shown.textContent = `${left} of ${runs.length}`;
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
