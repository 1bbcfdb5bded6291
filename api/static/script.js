"use strict";
/* What our pages do beyond links: filter a directory, walk it by keys, copy a line, mark a range of lines. */

function visit(rows, from, step) {
  for (let index = from + step; index >= 0 && index < rows.length; index += step) {
    if (!rows[index].hidden && !rows[index].parentElement.hidden) {
      rows[index].querySelector("td.name a")?.focus();
      return true;
    }
  }
  return false;
}

function directory(table) {
  const box = document.getElementById("filter");
  const input = box.querySelector("input");
  const count = document.getElementById("count");
  const unfiltered = count.textContent;
  let groups = null; // a directory may have 100,000 entries: nothing is gathered before it is needed
  let rows = null;
  let waiting = 0;

  function gather() {
    if (groups) return;
    groups = [...table.tBodies]
      .filter((body) => !body.classList.contains("up"))
      .map((body) => {
        const own = [...body.rows];
        const names = own.map((row) => row.querySelector("bdi")?.textContent.toLowerCase() ?? "");
        return { body, rows: own, names };
      });
    rows = groups.flatMap((group) => group.rows);
  }

  /* Rows of a group that is out of sight are left as they are: to change 100,000 would be slow. */
  function filterGroup(group, wanted) {
    const fits = group.names.map((name) => name.includes(wanted));
    const left = fits.filter(Boolean).length;
    group.body.hidden = left === 0;
    if (left === 0) return 0;
    group.rows.forEach((row, index) => {
      if (row.hidden === fits[index]) row.hidden = !fits[index];
    });
    return left;
  }

  function filter() {
    waiting = 0;
    gather();
    const wanted = input.value.trim().toLowerCase();
    const left = groups.reduce((sum, group) => sum + filterGroup(group, wanted), 0);
    table.classList.toggle("filtered", left < 2000);
    count.textContent = wanted ? `${left.toLocaleString("en")} of ${unfiltered}` : unfiltered;
  }

  /* Before a key moves on: what was typed just now may wait for the next frame. */
  function settle() {
    gather();
    if (!waiting) return;
    cancelAnimationFrame(waiting);
    filter();
  }

  function walk(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const here = document.activeElement;
    const inList = table.contains(here);
    if (event.key === "/" && here !== input) {
      input.focus();
    } else if (event.key === "Escape" && here === input && input.value) {
      input.value = "";
      filter();
    } else if (event.key === "Enter" && here === input) {
      settle();
      if (visit(rows, -1, 1)) document.activeElement.click();
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && (inList || here === input)) {
      settle();
      const step = event.key === "ArrowDown" ? 1 : -1;
      const at = inList ? rows.indexOf(here.closest("tr")) : -1;
      if (here === input && step < 0) return;
      if (!visit(rows, at, step) && step < 0) input.focus();
    } else {
      return;
    }
    event.preventDefault();
  }

  input.addEventListener("input", () => {
    waiting = waiting || requestAnimationFrame(filter);
  });
  document.addEventListener("keydown", walk);
  box.hidden = false;
  if (input.value) filter(); // the browser kept it over a reload
}

function copyButton(box) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(box.querySelector("code").textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(box.querySelector("code"));
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  box.querySelector("p").append(button);
}

function lineRange(source) {
  let anchor = 0;

  function mark() {
    const found = /^#L(\d+)(?:-L?(\d+))?$/.exec(location.hash);
    for (const line of source.querySelectorAll(".marked")) line.classList.remove("marked");
    if (!found) return;
    const [first, last] = [Number(found[1]), Number(found[2] ?? found[1])].sort((a, b) => a - b);
    for (let number = first; number <= last; number += 1) {
      const line = document.getElementById(`L${number}`);
      if (!line) break;
      line.classList.add("marked");
    }
    anchor = first;
    document.getElementById(`L${first}`)?.scrollIntoView({ block: "center" });
  }

  source.addEventListener("click", (event) => {
    const number = Number(event.target.closest("a.number")?.textContent);
    if (!number || !event.shiftKey || !anchor) return;
    event.preventDefault();
    location.hash = `#L${Math.min(anchor, number)}-L${Math.max(anchor, number)}`;
  });
  addEventListener("hashchange", mark);
  mark();
}

const table = document.getElementById("entries");
if (table) directory(table);
for (const box of document.querySelectorAll(".copied")) copyButton(box);
const source = document.getElementById("source");
if (source) lineRange(source);
