"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const state = { key: `${data.headlines[0]}_mean`, down: true, hidden: new Set(["provenance"]) };

  const percent = (value) => (100 * value).toFixed(2);
  const signed = (value) => (value >= 0 ? "+" : "\u2212") + Math.abs(100 * value).toFixed(2);
  const difference = (row, key = "mean") =>
    `${signed(row[key])} [${signed(row[key.replace("mean", "low")])}, ${signed(row[key.replace("mean", "high")])}]`;
  function write(row, column) {
    const value = row[column.key];
    if (value === null || value === undefined) return "\u2013";
    if (column.kind === "percent") {
      const spread = row[column.key.replace("_mean", "_sd")];
      return percent(value) + (spread === null || spread === undefined || spread === value ? "" : ` \u00b1 ${percent(spread)}`);
    }
    if (column.kind === "difference") return difference(row, column.key);
    if (column.kind === "count") return value.toLocaleString("en");
    if (column.kind === "number") return Number(value.toPrecision(4)).toString();
    return String(value);
  }
  const near = (row, column) => row.near_best.some((key) => column.key === `${key}_mean`);
  const shown = () => data.columns.filter((column) => !state.hidden.has(column.group));

  function rows() {
    const name = at("name").value.toLowerCase();
    const limit = at("params").value === "" ? Infinity : Number(at("params").value);
    const only = at("near").checked;
    const found = data.rows.filter((row) =>
      row.row.toLowerCase().includes(name) &&
      (limit === Infinity || (row.params_without_head !== null && row.params_without_head <= limit)) &&
      (!only || row.near_best.includes(data.headlines[0])));
    const sign = state.down ? -1 : 1;
    const empty = (value) => value === null || value === undefined;
    return found.sort((one, other) => {
      const a = one[state.key], b = other[state.key];
      if (empty(a) || empty(b)) return empty(a) - empty(b);
      return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
    });
  }

  function draw() {
    const columns = shown();
    const head = make("tr");
    for (const column of columns) {
      const cell = make("th", undefined, column.kind === "text" ? "text" : "");
      const sorted = column.key === state.key;
      const button = make("button", column.label + (sorted ? (state.down ? " \u25bc" : " \u25b2") : ""));
      button.type = "button";
      button.addEventListener("click", () => {
        state.down = sorted ? !state.down : column.kind !== "text";
        state.key = column.key;
        draw();
      });
      cell.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
      cell.append(button);
      head.append(cell);
    }
    at("table").tHead.replaceChildren(head);
    const found = rows();
    at("table").tBodies[0].replaceChildren(...found.map((row) => {
      const failed = row.state.startsWith("failed");
      const line = make("tr", undefined, (row.row === data.baseline ? "baseline " : "") + (failed ? "failed" : ""));
      for (const column of columns) {
        line.append(make("td", write(row, column), (column.kind === "text" ? "text " : "") + (near(row, column) ? "near" : "")));
      }
      line.addEventListener("click", () => detail(line, row, columns.length));
      return line;
    }));
    at("count").textContent = `${found.length} of ${data.rows.length} rows`;
  }

  function detail(line, row, width) {
    const next = line.nextElementSibling;
    if (next && next.classList.contains("detail")) return next.remove();
    const cell = make("td", `${row.settings || "the base settings"} \u00b7 seeds ${row.seeds || "none"} \u00b7 ${row.state}`);
    cell.colSpan = width;
    const below = make("tr", undefined, "detail");
    below.append(cell);
    line.after(below);
  }

  function plain(table, header, lines, wide) {
    const head = make("tr");
    header.forEach((text) => head.append(make("th", text, "text")));
    table.tHead.replaceChildren(head);
    table.tBodies[0].replaceChildren(...lines.map((cells) => {
      const line = make("tr");
      cells.forEach((text, number) => line.append(make("td", text, wide && number === cells.length - 1 ? "wide" : "text")));
      return line;
    }));
  }

  at("title").textContent = data.title;
  at("baseline").textContent = data.baseline;
  for (const group of new Set(data.columns.map((column) => column.group))) {
    const label = make("label");
    const box = make("input");
    box.type = "checkbox";
    box.checked = !state.hidden.has(group);
    box.id = `group-${group}`;
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(group); else state.hidden.add(group);
      draw();
    });
    label.append(box, ` ${group}`);
    at("groups").append(label);
  }
  for (const id of ["name", "params", "near"]) at(id).addEventListener("input", draw);
  if (data.pairs.length) {
    plain(at("pairs"), ["row", "against", "difference", "seeds ahead"], data.pairs.map((pair) =>
      [pair.row, pair.against, pair.mean === null ? "\u2013" : difference(pair), pair.mean === null ? "\u2013" : `${pair.ahead} of ${pair.seeds}`]));
  } else at("pairs-section").hidden = true;
  if (data.advice.rows.length) plain(at("advice"), data.advice.header, data.advice.rows, true);
  else at("advice-section").hidden = true;
  for (const picture of data.pictures) {
    const figure = make("figure");
    const image = make("img");
    image.src = picture.source;
    image.alt = picture.title;
    figure.append(make("figcaption", picture.title), image);
    at("pictures").append(figure);
  }
  draw();
  window.pclStudy = { ready: true };
})();
