(() => {
  "use strict";
  const tools = document.querySelector(".tools");
  const picks = [...document.querySelectorAll("[data-picks]")];
  const marks = { m: [...document.querySelectorAll("main [data-m]:not(button)")], c: [...document.querySelectorAll("main [data-c]")] };
  const buttons = [...document.querySelectorAll("button[data-m]")];
  const chosen = { m: "", c: "" };
  const show = () => {
    for (const one of document.querySelectorAll(".dim,.hot")) one.classList.remove("dim", "hot");
    for (const key of ["m", "c"]) {
      if (!chosen[key]) continue;
      for (const one of marks[key]) one.classList.add(one.dataset[key] === chosen[key] ? "hot" : "dim");
    }
    for (const one of picks) one.value = chosen[one.dataset.picks];
    for (const one of buttons) one.setAttribute("aria-pressed", String(one.dataset.m === chosen.m));
  };
  const pick = (key, value) => { chosen[key] = chosen[key] === value ? "" : value; show(); };
  if (picks.length) tools.hidden = false;
  for (const one of picks) one.addEventListener("change", () => { chosen[one.dataset.picks] = one.value; show(); });
  for (const one of buttons) one.addEventListener("click", () => pick("m", one.dataset.m));
  for (const key of ["c", "m"]) for (const one of marks[key]) if (one.ownerSVGElement) {
    one.addEventListener("click", (event) => { pick(key, one.dataset[key]); event.stopPropagation(); });
  }
  const clear = () => { chosen.m = chosen.c = ""; show(); };
  document.getElementById("clear").addEventListener("click", clear);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });
  const number = (text) => { const found = parseFloat(text.replace(/,/g, "")); return Number.isNaN(found) ? null : found; };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => {
          const [x, y] = [a, b].map((row) => row.cells[column].textContent);
          const [p, q] = [number(x), number(y)];
          if (p === null && q === null) return y.localeCompare(x) * (down ? 1 : -1);
          if (p === null) return 1;
          if (q === null) return -1;
          return (q - p) * (down ? 1 : -1);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
