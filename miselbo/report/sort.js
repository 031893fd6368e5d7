// Tables are sorted by a click on a column's head: numbers by value, other cells as text; a third click restores the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const number = (text) => {
    const found = text.replace(/,(?=\d{3})/g, "").match(/^[^\d\-]*(-?inf|-?\d+(\.\d+)?(e[+-]?\d+)?)/i);
    return found ? (found[1].endsWith("inf") ? (found[1][0] === "-" ? -Infinity : Infinity) : Number(found[1])) : NaN;
  };
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const state = { none: "descending", descending: "ascending", ascending: "none" }[head.ariaSort || "none"];
      heads.forEach((other) => (other.ariaSort = "none"));
      head.ariaSort = state;
      const sign = state === "ascending" ? 1 : -1, numeric = head.classList.contains("r");
      const key = (row) => (numeric ? number(row.cells[at].textContent.trim()) : row.cells[at].textContent);
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!numeric) return sign * x.localeCompare(y, undefined, { numeric: true });
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y || 0);
      };
      body.append(...(state === "none" ? original : [...original].sort(compare)));
    });
  });
}
