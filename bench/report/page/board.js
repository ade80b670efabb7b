// The table: sort, filter, choose columns, open rows, link to a view, write it as CSV.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const table = element("table");
  const several = data.boards.length > 1;
  const narrow = matchMedia("(max-width: 40rem)").matches;
  const keys = data.columns.map((column) => column.key);
  const rowOf = new Map(data.rows.map((row) => [row.id, row]));

  // Node and its content; strings become text, never markup.
  const make = (tag, properties, ...content) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...content);
    return node;
  };
  const isolated = (text) => make("bdi", {}, text);

  // The table itself ------------------------------------------------------------------------------

  const shownAtFirst = (column) =>
    column.shown === "always" || (column.shown === "wide" && !narrow);
  const numbers = data.columns.flatMap((column, at) =>
    column.kind === "number" || column.kind === "interval" ? [at] : []);
  const rankAt = keys.indexOf("rank");

  // Before the library reads the rows.
  for (const link of table.querySelectorAll("a.name")) {
    const id = link.closest("tr").id;
    const button = make("button", { type: "button", className: "expand", textContent: "+" });
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-label", `Details of ${rowOf.get(id).name}`);
    link.closest(".defense").prepend(button);
  }

  DataTable.ext.errMode = "throw";
  const view = new DataTable(table, {
    autoWidth: false,
    paging: data.rows.length > 200,
    pageLength: 100,
    lengthChange: false,
    order: [],
    // Like beside like: rows of one setup stay together whatever they are sorted by.
    orderFixed: several ? { pre: [[keys.indexOf("board"), "asc"]] } : null,
    columnDefs: [
      { targets: numbers.filter((at) => at !== rankAt), orderSequence: ["desc", "asc", ""] },
      { targets: "_all", orderSequence: ["asc", "desc", ""] },
      ...data.columns.map((column, at) => ({ targets: at, visible: shownAtFirst(column) })),
    ],
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: "paging" },
    language: {
      zeroRecords: "No row fits: reset the filters.",
      aria: {
        orderable: ": sort", orderableReverse: ": sort the other way",
        orderableRemove: ": sort no more",
      },
    },
  });

  // Rows open -------------------------------------------------------------------------------------

  const details = element("details");
  details.hidden = true;
  const sections = new Map([...details.querySelectorAll(".row-details")]
    .map((section) => [section.id.slice(2), section]));

  const opened = new Set();

  const setOpen = (id, open) => {
    if (!sections.has(id) || opened.has(id) === open) return;
    const row = view.row(`#${id}`);
    const button = row.node().querySelector(".expand");
    if (open) {
      if (!row.child()) row.child(sections.get(id), "details");
      row.child.show();
      opened.add(id);
    } else {
      row.child.hide();
      opened.delete(id);
    }
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "\u2212" : "+";
  };
  table.addEventListener("click", (event) => {
    const control = event.target.closest(".expand, a.name");
    if (!control) return;
    event.preventDefault();
    const id = control.closest("tr").id;
    setOpen(id, !opened.has(id));
    remember();
  });

  for (const source of details.querySelectorAll("pre.copied")) {
    const button = make("button", { type: "button", className: "copy", textContent: "Copy" });
    button.addEventListener("click", () => copy(source.textContent, button));
    source.before(button);
  }

  async function copy(text, button) {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    setTimeout(() => { button.textContent = before; }, 1500);
  }

  // Filters ---------------------------------------------------------------------------------------

  const values = {
    family: (row) => [row.values.family || "none"],
    access: (row) => row.values.access ?? ["none"],
    dataset: (row) => [data.boards[row.board].dataset],
    attack: (row) => row.attacks,
  };
  const titles = {
    family: "Family", access: "Data access", dataset: "Data set", attack: "Attacked by",
  };
  const chosen = Object.fromEntries(Object.keys(values).map((name) => [name, new Set()]));
  const boxes = [];

  const folded = (title, legend, lines) => {
    const summary = make("summary", {}, title);
    const inside = make("fieldset", {}, make("legend", { className: "hidden" }, legend), ...lines);
    return make("details", { className: "menu" }, summary, inside);
  };
  const box = (name, checked, changed) => {
    const input = make("input", { type: "checkbox", checked });
    input.addEventListener("change", () => changed(input.checked));
    return [input, make("label", {}, input, " ", isolated(name))];
  };

  for (const [facet, of] of Object.entries(values)) {
    const names = [...new Set(data.rows.flatMap(of))].sort();
    if (names.length < 2) continue;
    const lines = names.map((name) => {
      const [input, label] = box(name, false, (on) => {
        if (on) chosen[facet].add(name); else chosen[facet].delete(name);
        apply();
      });
      boxes.push({ facet, name, input });
      return label;
    });
    const legend = `Rows with any of these: ${titles[facet]}`;
    element("facets").append(folded(titles[facet], legend, lines));
  }

  const columnBoxes = new Map();
  const chooser = data.columns.filter((column) => column.shown !== "always").map((column) => {
    const at = keys.indexOf(column.key);
    const [input, label] = box(column.title, shownAtFirst(column), (on) => {
      view.column(at).visible(on);
      remember();
    });
    columnBoxes.set(column.key, input);
    return label;
  });
  element("facets").append(folded("Columns", "Columns that are shown", chooser));

  // One menu at a time, and Escape closes it.
  const menus = [...document.querySelectorAll("details.menu")];
  document.addEventListener("click", (event) => {
    for (const menu of menus) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && menus.find((one) => one.open);
    if (menu) { menu.open = false; menu.querySelector("summary").focus(); }
  });

  const boardSelect = element("board");
  if (several) {
    element("of-board").hidden = false;
    boardSelect.append(make("option", { value: "" }, "all"),
      ...data.boards.map((board, at) => make("option", { value: String(at) }, board.name)));
    boardSelect.addEventListener("change", apply);
  }

  view.search.fixed("facets", (_text, _cells, at) => {
    const row = data.rows[at];
    if (boardSelect.value && row.board !== Number(boardSelect.value)) return false;
    return Object.entries(values).every(([facet, of]) =>
      chosen[facet].size === 0 || of(row).some((name) => chosen[facet].has(name)));
  });

  const search = element("search");
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(apply, 120);
  });

  const shownRows = () => view.rows({ search: "applied", order: "applied" }).indexes().toArray()
    .map((at) => data.rows[at]);

  function apply() {
    view.search(search.value).draw();
    for (const about of document.querySelectorAll(".about")) {
      about.hidden = boardSelect.value !== "" && about.dataset.board !== boardSelect.value;
    }
    remember();
  }

  const ownOrder = () =>
    view.order().find(([at, way]) => way && !(several && keys[at] === "board"));

  view.on("order", () => remember());
  view.on("draw", () => {
    // The library would name the fixed order by setup; a reader asks for the one chosen.
    const order = ownOrder();
    data.columns.forEach((_column, at) => {
      const head = view.column(at).header();
      if (order?.[0] !== at) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", order[1] === "asc" ? "ascending" : "descending");
    });
    const count = view.rows({ search: "applied" }).count();
    element("status").textContent = `${count} of ${data.rows.length} rows`;
    document.dispatchEvent(new CustomEvent("rows", {
      detail: { rows: shownRows(), board: boardSelect.value },
    }));
  });

  // The view in the address -----------------------------------------------------------------------

  let restoring = false;

  const described = () => {
    const told = new URLSearchParams();
    if (search.value) told.set("q", search.value);
    if (boardSelect.value) told.set("board", boardSelect.value);
    for (const [facet, names] of Object.entries(chosen)) {
      for (const name of names) told.append(facet, name);
    }
    const changed = data.columns.filter((column) =>
      view.column(keys.indexOf(column.key)).visible() !== shownAtFirst(column));
    if (changed.length) {
      told.set("columns", data.columns
        .filter((column) => view.column(keys.indexOf(column.key)).visible())
        .map((column) => column.key).join(","));
    }
    const order = ownOrder();
    if (order) told.set("sort", `${keys[order[0]]}:${order[1]}`);
    if (opened.size) told.set("open", [...opened].join(","));
    return told.toString();
  };

  function remember() {
    if (restoring) return;
    const told = described();
    // Without a hash the address is left alone.
    history.replaceState(null, "", told ? `#${told}` : location.href.split("#")[0]);
  }

  const restore = () => {
    const text = location.hash.slice(1);
    // `#d-...` is the link that also works without scripts.
    const told = new URLSearchParams(text.startsWith("d-") ? `open=${text.slice(2)}` : text);
    restoring = true;
    search.value = told.get("q") ?? "";
    boardSelect.value = data.boards[told.get("board")] && several ? told.get("board") : "";
    for (const { facet, name, input } of boxes) {
      input.checked = told.getAll(facet).includes(name);
      if (input.checked) chosen[facet].add(name); else chosen[facet].delete(name);
    }
    const wanted = told.get("columns")?.split(",");
    for (const column of data.columns) {
      const on = column.shown === "always"
        || (wanted?.includes(column.key) ?? shownAtFirst(column));
      view.column(keys.indexOf(column.key)).visible(on);
      if (columnBoxes.has(column.key)) columnBoxes.get(column.key).checked = on;
    }
    const [key, way] = (told.get("sort") ?? "").split(":");
    const sorted = keys.includes(key) && (way === "asc" || way === "desc");
    view.order(sorted ? [[keys.indexOf(key), way]] : []);
    apply();
    const open = new Set((told.get("open") ?? "").split(","));
    for (const id of [...opened, ...open]) setOpen(id, open.has(id));
    restoring = false;
    const first = text.startsWith("d-") && rowOf.has(text.slice(2)) && element(text.slice(2));
    if (first) first.scrollIntoView();
  };
  addEventListener("hashchange", restore);

  element("reset").addEventListener("click", () => {
    history.replaceState(null, "", location.href.split("#")[0]);
    restore();
  });
  element("link").addEventListener("click", (event) => {
    remember();
    copy(location.href, event.currentTarget);
  });

  // CSV -------------------------------------------------------------------------------------------

  // A spreadsheet would compute what begins like a formula.
  const quoted = (value) => {
    if (value === null || value === undefined) return "";
    let text = Array.isArray(value) ? value.join(", ") : String(value);
    const number = typeof value === "number";
    if (!number && /^\s*[=+\-@]/.test(text)) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const visible = () => data.columns.filter((column, at) => view.column(at).visible());
  const headed = (column) => column.kind === "interval"
    ? [column.title, `${column.title} low`, `${column.title} high`] : [column.title];
  const written = (row) => (column) => {
    const value = row.values[column.key];
    if (column.kind === "interval") return value ?? [null, null, null];
    return [column.key === "rank" && !row.ranked ? null : value];
  };
  const csv = () => [
    visible().flatMap(headed),
    ...shownRows().map((row) => visible().flatMap(written(row))),
  ].map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";

  element("csv").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    make("a", { href: url, download: "board.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });

  // Charts are drawn by the next script: it listens before this runs.
  addEventListener("DOMContentLoaded", restore);
})();
