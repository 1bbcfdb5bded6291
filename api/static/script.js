"use strict";
/* Optional features of the pages: filter a directory, move through it with the keyboard, copy a command, mark a range of lines. */

/* Focuses the next visible row in the direction of `step`. Returns false if there is none. */
function focusRow(rows, from, step) {
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
  let groups = null; // collected at first use, because a directory may have 100,000 entries
  let rows = null;
  let frame = 0; // the requested animation frame, or 0

  function collectRows() {
    if (groups) return;
    groups = [...table.tBodies]
      .filter((body) => !body.classList.contains("up"))
      .map((body) => {
        const bodyRows = [...body.rows];
        const names = bodyRows.map((row) => row.querySelector("bdi")?.textContent.toLowerCase() ?? "");
        return { body, rows: bodyRows, names };
      });
    rows = groups.flatMap((group) => group.rows);
  }

  /* If no row of a group matches, only the group is hidden: hiding up to 100,000 single rows would be slow. */
  function filterGroup(group, text) {
    const matches = group.names.map((name) => name.includes(text));
    const matchCount = matches.filter(Boolean).length;
    group.body.hidden = matchCount === 0;
    if (matchCount === 0) return 0;
    group.rows.forEach((row, index) => {
      if (row.hidden === matches[index]) row.hidden = !matches[index];
    });
    return matchCount;
  }

  function filter() {
    frame = 0;
    collectRows();
    const text = input.value.trim().toLowerCase();
    const matchCount = groups.reduce((sum, group) => sum + filterGroup(group, text), 0);
    table.classList.toggle("filtered", matchCount < 2000);
    count.textContent = text ? `${matchCount.toLocaleString("en")} of ${unfiltered}` : unfiltered;
  }

  /* Applies the filter now if it is scheduled for the next frame, so that a key press acts on the filtered rows. */
  function applyPendingFilter() {
    collectRows();
    if (!frame) return;
    cancelAnimationFrame(frame);
    filter();
  }

  function handleKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const focused = document.activeElement;
    const inList = table.contains(focused);
    if (event.key === "/" && focused !== input) {
      input.focus();
    } else if (event.key === "Escape" && focused === input && input.value) {
      input.value = "";
      filter();
    } else if (event.key === "Enter" && focused === input) {
      applyPendingFilter();
      if (focusRow(rows, -1, 1)) document.activeElement.click();
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && (inList || focused === input)) {
      applyPendingFilter();
      const step = event.key === "ArrowDown" ? 1 : -1;
      const index = inList ? rows.indexOf(focused.closest("tr")) : -1;
      if (focused === input && step < 0) return;
      if (!focusRow(rows, index, step) && step < 0) input.focus();
    } else {
      return;
    }
    event.preventDefault();
  }

  input.addEventListener("input", () => {
    frame = frame || requestAnimationFrame(filter);
  });
  document.addEventListener("keydown", handleKey);
  box.hidden = false;
  if (input.value) filter(); // the browser restored the text after a reload
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
