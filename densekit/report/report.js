"use strict";
const root = document.documentElement;
root.classList.add("js");

// one device pixel for one picture pixel at 1:1, also on a screen that draws more than one for each CSS pixel
const measure = () => root.style.setProperty("--dpr", window.devicePixelRatio || 1);
window.addEventListener("resize", measure);
measure();

for (const compare of document.querySelectorAll(".compare")) {
  const stage = compare.querySelector(".stage");
  const range = compare.querySelector("input");
  const figures = [...stage.querySelectorAll("figure")];
  const whole = figures.map((figure) => figure.querySelector("img")).find((img) => !img.classList.contains("coarse"));
  stage.style.setProperty("--width", compare.dataset.width);
  stage.style.setProperty("--aspect", `${whole.getAttribute("width")} / ${whole.getAttribute("height")}`);

  const split = () => stage.style.setProperty("--split", `${range.value}%`);
  range.addEventListener("input", split);
  split();

  const sides = { before: compare.querySelector(".left"), after: compare.querySelector(".right") };
  const show = () => {
    for (const [side, select] of Object.entries(sides)) {
      for (const figure of figures) figure.classList.toggle(side, figure.dataset.key === select.value);
    }
    if (sides.before.value === sides.after.value) stage.querySelector(".before").classList.remove("after");
  };
  for (const select of Object.values(sides)) select.addEventListener("change", show);
  show();

  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    range.value = Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width));
    split();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const sort = (column) => {
    const head = heads[column];
    const isNumber = head.dataset.kind === "number";
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    const number = (text) => Number(text.replace("inf", "Infinity"));
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // undefined always last
      if (isNumber) return number(x) === number(y) ? 0 : direction * (number(x) - number(y));
      return direction * x.localeCompare(y, "en", { numeric: true });
    });
    body.append(...rows);
  };
  heads.forEach((head, column) => {
    if (!head.dataset.kind) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
}
