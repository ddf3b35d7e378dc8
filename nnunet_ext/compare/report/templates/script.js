"use strict";
(() => {
  const table = document.getElementById("case-table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const text = new Intl.Collator("en", { numeric: true });

  // Numbers by size, texts by the alphabet, empty cells last whatever the direction.
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const difference = Number(a) - Number(b);
    return sign * (Number.isNaN(difference) ? text.compare(a, b) : difference);
  };

  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? direction : "none"));
      const sign = direction === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      rows.sort((a, b) => compare(value(a), value(b), sign));
      body.append(...rows);
    });
  });

  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  const apply = () => {
    const wanted = filter.value.trim().toLowerCase();
    rows.forEach((row) => { row.hidden = !row.dataset.text.includes(wanted); });
    shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  filter.addEventListener("input", apply);
  apply(); // a browser that goes back keeps what was typed
})();
