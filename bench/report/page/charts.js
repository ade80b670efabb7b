// Charts of the rows that the filters leave, of one setup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const figures = document.getElementById("figures");
  const select = document.getElementById("charted");
  const colours = { scheme: "observable10" };
  const percent = (share) => (100 * share).toFixed(1);
  const told = ([value, low, high]) =>
    percent(value) + (low === null ? "" : ` [${percent(low)}, ${percent(high)}]`);
  // A name from elsewhere turns nothing that stands beside it.
  const isolated = (text) => `\u2068${text}\u2069`;
  const cut = (text, most) => text.length > most ? `${text.slice(0, most - 1)}\u2026` : text;
  // Of a long spec the name without its settings.
  const short = (name) => isolated(name.length <= 24 ? name
    : name.includes(":") ? `${cut(name.split(":")[0], 23)}\u2026` : cut(name, 24));

  const point = (row) => {
    const [robust, low, high] = row.values.robust ?? [null, null, null];
    const [clean, cleanLow, cleanHigh] = row.values.clean;
    return {
      row, robust, low: low ?? robust, high: high ?? robust, clean,
      cleanLow: cleanLow ?? clean, cleanHigh: cleanHigh ?? clean,
      name: short(row.name), family: row.values.family || "no family",
      title: `${isolated(row.name)}\nrobust ${robust === null ? "-" : told(row.values.robust)}`
        + `\nclean ${told(row.values.clean)}${row.ranked ? "" : "\nnot ranked"}`,
    };
  };

  const inPercent = (share) => `${+(100 * share).toFixed(1)}`;
  const shares = { domain: [0, 1], grid: true, tickFormat: inPercent };
  // From 0, and so far up that what is low can be told apart.
  const robustShares = (points, floor = 0) => ({ ...shares, label: "robust accuracy in percent",
    domain: [0, Math.min(1, 1.15 * Math.max(0.02, floor, ...points.map((one) => one.high)))] });
  const width = () => Math.max(280, Math.min(560, figures.clientWidth || 560));

  const drawn = (options) => {
    const plot = Plot.plot({ width: width(), height: 320, marginLeft: 46, marginBottom: 40,
      style: { background: "none", fontSize: "12px" }, ...options });
    // The policy of the page allows its own styles alone; board.css has what these say.
    for (const style of plot.querySelectorAll("style")) style.remove();
    const svg = plot.matches("svg") ? plot : plot.querySelector("figure > svg");
    svg.setAttribute("role", "img");
    // An image has one name; its parts have none.
    for (const part of plot.querySelectorAll("g[aria-label]")) part.removeAttribute("aria-label");
    return plot;
  };

  const figure = (title, note, draw) => {
    const made = document.createElement("figure");
    const heading = Object.assign(document.createElement("h3"), { textContent: title });
    const caption = Object.assign(document.createElement("figcaption"), { textContent: note });
    made.append(heading, ...[draw].flat(), caption);
    figures.append(made);
  };

  const dots = (points, x, y) => [
    Plot.dot(points.filter((one) => one.row.ranked), { x, y, fill: "family", stroke: "family", r: 5,
      symbol: (one) => one.row.stochastic ? "diamond" : "circle" }),
    Plot.dot(points.filter((one) => !one.row.ranked), { x, y, stroke: "family", r: 5,
      strokeWidth: 1.8, symbol: (one) => one.row.stochastic ? "diamond" : "circle" }),
    Plot.tip(points, Plot.pointer({ x, y, title: "title" })),
  ];
  // Names that would cover another are left to the pointer and the table.
  const named = (points, x, y) => [Plot.text(points, { x, y, text: "name", dy: -11, fontSize: 11,
    render(index, scales, values, dimensions, context, next) {
      const taken = [];
      const free = index.filter((at) => {
        const half = 3.2 * points[at].name.length;
        const [across, up] = [values.x[at], values.y[at]];
        const fits = taken.every(([x0, y0, half0]) =>
          Math.abs(across - x0) > half + half0 || Math.abs(up - y0) > 13);
        if (fits) taken.push([across, up, half]);
        return fits;
      });
      return next(free, scales, values, dimensions, context);
    } })];
  const legend = (points) => ({ ...colours, legend: true,
    domain: [...new Set(points.map((one) => one.family))].sort() });
  const symbols = { domain: ["circle", "diamond"], range: ["circle", "diamond"] };

  // One chart each --------------------------------------------------------------------------------

  function cleanAgainstRobust(points, board) {
    if (points.length < 2) return;
    figure("Clean against robust", "Up and to the right is better; a diamond is a stochastic "
      + "defense. Dashed: what a constant answer gets.", drawn({
      ariaLabel: `Scatter of ${points.length} rows: clean accuracy across, robust accuracy up`,
      x: { ...shares, label: "clean accuracy in percent" },
      y: robustShares(points, board.constant),
      color: legend(points), symbol: symbols,
      marks: [
        Plot.ruleY([board.constant], { strokeDasharray: "4 3", strokeOpacity: 0.6 }),
        Plot.ruleX(points, { x: "clean", y1: "low", y2: "high", stroke: "family" }),
        Plot.ruleY(points, { y: "robust", x1: "cleanLow", x2: "cleanHigh", stroke: "family" }),
        ...dots(points, "clean", "robust"), ...named(points, "clean", "robust"),
      ],
    }));
  }

  function costAgainstRobust(points, of, title, label, note) {
    const costed = points.filter((one) => of(one.row) > 0)
      .map((one) => ({ ...one, cost: of(one.row) }));
    if (new Set(costed.map((one) => one.cost)).size < 2) return;
    figure(title, note, drawn({
      ariaLabel: `Scatter of ${costed.length} rows: ${label} across, robust accuracy up`,
      x: { type: "log", label, grid: true, tickFormat: "~s", nice: true },
      y: robustShares(costed),
      color: legend(costed), symbol: symbols,
      marks: [
        Plot.ruleX(costed, { x: "cost", y1: "low", y2: "high", stroke: "family" }),
        ...dots(costed, "cost", "robust"), ...named(costed, "cost", "robust"),
      ],
    }));
  }

  const rowsHigh = (count) => 60 + 34 * count;
  const most = 40;
  const firstOf = (many) => many.length > most ? `The first ${most} of ${many.length}. ` : "";
  // Beside names of rows as much room as they need, if there is so much.
  const lettersLeft = () => Math.floor((0.45 * width() - 20) / 6.6);
  const left = (names) => 20 + 6.6 * Math.min(lettersLeft(), Math.max(...names.map(({ length }) =>
    length)));

  function replayAgainstFresh(points) {
    const all = points.filter((one) => one.row.replayed);
    const replayed = all.slice(0, most);
    if (!replayed.length) return;
    const ends = replayed.flatMap((one) => {
      const [value, low, high] = one.row.replayed;
      const passes = `${Math.round(one.row.replayPasses)} passes/image`;
      return [
        { ...one, what: "fresh draws", value: one.robust,
          title: `${one.name} on fresh draws: ${told(one.row.values.robust)}\n`
            + `worst of all attacks, ${Math.round(one.row.passes)} passes/image` },
        { ...one, what: "replay", value, low: low ?? value, high: high ?? value,
          title: `${one.name} under the attack's own fixed noise: ${told(one.row.replayed)}\n`
            + `replays alone, ${passes}` },
      ];
    });
    figure("Replay against fresh", firstOf(all) + "Robust accuracy where the judge draws anew, "
      + "and where the "
      + "defense's noise is the one that the attack saw. Fresh is the worst of all attacks, replay "
      + "that of the replays alone: the budgets stand in each row's details.", drawn({
      ariaLabel: `Replayed beside fresh robust accuracy of ${replayed.length} rows`,
      height: rowsHigh(replayed.length), marginLeft: left(replayed.map((one) => one.name)),
      x: robustShares(ends), y: { label: null },
      color: { ...colours, legend: true, domain: ["fresh draws", "replay"] },
      marks: [
        Plot.link(replayed, { y: "name", x1: "robust", x2: (one) => one.row.replayed[0],
          strokeOpacity: 0.4 }),
        Plot.ruleY(ends, { y: "name", x1: "low", x2: "high", stroke: "what" }),
        Plot.dot(ends, { y: "name", x: "value", fill: "what", r: 5 }),
        Plot.tip(ends, Plot.pointer({ y: "name", x: "value", title: "title" })),
      ],
    }));
  }

  // One for each setup that was measured at several radii.
  function securityCurves() {
    const boards = Map.groupBy(data.boards.map((_board, at) => at), (at) => data.boards[at].family);
    for (const family of boards.values()) securityCurve(family);
  }

  function securityCurve(family) {
    if (new Set(family.map((at) => data.boards[at].eps)).size < 2) return;
    const fitting = data.rows.filter((row) => family.includes(row.board) && row.values.robust);
    const radii = [...Map.groupBy(fitting, (row) => row.name).values()]
      .filter((own) => own.length > 1);
    const curves = radii.flatMap((own) => {
      const [clean, low, high] = own[0].values.clean;
      return [
        { ...point(own[0]), eps: 0, robust: clean, low: low ?? clean, high: high ?? clean,
          title: `${isolated(own[0].name)}\nwithout attack ${told(own[0].values.clean)}` },
        ...own.map((row) => {
          const { eps } = data.boards[row.board];
          return { ...point(row), eps, title: `${isolated(row.name)}\neps ${+eps.toPrecision(4)}, `
            + `robust ${told(row.values.robust)}\n${row.faced.map(isolated).join(", ")}` };
        }),
      ];
    });
    if (!curves.length) return;
    const unlike = radii.some((own) => new Set(own.map((row) => row.faced.join())).size > 1);
    const first = data.boards[family[0]];
    figure(`Robust accuracy over eps: ${isolated(first.setting)}`, "At 0 stands the accuracy "
      + "without an attack." + (unlike ? " The attacks are not the same at every radius: look into "
      + "the rows." : ""), drawn({
      ariaLabel: `Security curves of ${radii.length} rows: eps across, robust accuracy up`,
      x: { label: `eps (${first.norm})`, grid: true },
      y: { ...shares, label: "robust accuracy in percent" },
      color: { ...colours, legend: true },
      marks: [
        Plot.line(curves, { x: "eps", y: "robust", stroke: "name", sort: "eps" }),
        Plot.ruleX(curves, { x: "eps", y1: "low", y2: "high", stroke: "name" }),
        Plot.dot(curves, { x: "eps", y: "robust", fill: "name", r: 4 }),
        Plot.tip(curves, Plot.pointer({ x: "eps", y: "robust", title: "title" })),
      ],
    }));
  }

  let barsOf = "";

  function perClass(points) {
    const fitting = points.filter((one) => one.row.classes.length > 1);
    if (!fitting.length) return;
    const chooser = document.createElement("select");
    for (const one of fitting) {
      chooser.append(Object.assign(document.createElement("option"),
        { value: one.row.id, textContent: one.row.name }));
    }
    chooser.value = fitting.some((one) => one.row.id === barsOf) ? barsOf : fitting[0].row.id;
    const label = document.createElement("label");
    label.append("Row ", chooser);
    const place = document.createElement("div");
    const draw = () => {
      const { row } = fitting.find((one) => one.row.id === chooser.value);
      const bars = row.classes.flatMap(([name, n, clean, robust]) => [
        { name: String(name), n, what: "clean", of: clean },
        { name: String(name), n, what: "robust", of: robust },
      ]).map((one) => ({ ...one, value: one.of[0], low: one.of[1], high: one.of[2],
        title: `class ${one.name}, ${one.n} images\n${one.what} ${told(one.of)}` }));
      place.replaceChildren(drawn({
        ariaLabel: `Clean and robust accuracy of each of ${row.classes.length} classes`,
        x: { axis: null, domain: ["clean", "robust"] },
        y: { ...shares, label: "accuracy in percent" },
        fx: { label: "class", domain: row.classes.map(([name]) => String(name)), padding: 0.15 },
        color: { ...colours, legend: true, domain: ["clean", "robust"] },
        marks: [
          Plot.barY(bars, { fx: "name", x: "what", y: "value", fill: "what" }),
          Plot.ruleX(bars, { fx: "name", x: "what", y1: "low", y2: "high" }),
          Plot.ruleY([0]),
          Plot.tip(bars, Plot.pointerX({ fx: "name", x: "what", y: "value", title: "title" })),
        ],
      }));
    };
    chooser.addEventListener("change", () => { barsOf = chooser.value; draw(); });
    draw();
    figure("Class by class", "Robust is the worst case over all attacks; intervals over images.",
      [label, place]);
  }

  function besidePublished(points) {
    const all = points.flatMap((one) => one.row.published.map((other, at) => {
      const [value, low, high] = other.ours;
      const attack = ["", "none"].includes(other.attack) ? "" : other.attack;
      const of = other.metric + (attack && `, ${attack}`);
      const label = isolated(cut(
        `${attack || other.metric.split(" ")[0]}: ${one.row.name.split(":")[0]}`, lettersLeft()));
      return { key: `${one.row.id} ${at}`, name: label, value, low: low ?? value,
        high: high ?? value, published: other.value,
        title: `${one.name}\n${isolated(of)}: published ${percent(other.value)}\n`
          + `ours, ${isolated(other.measured)}: ${told(other.ours)}\n`
          + `differs: ${isolated(other.differs)}` };
    }));
    const pairs = all.slice(0, most);
    if (!pairs.length) return;
    const names = new Map(pairs.map((pair) => [pair.key, pair.name]));
    const ends = pairs.flatMap((pair) => [
      { ...pair, what: "ours", at: pair.value }, { ...pair, what: "published", at: pair.published },
    ]);
    figure("Published numbers beside ours", firstOf(all) + "Of the same defense on the same "
      + "data set; what "
      + "differs between the two stands in each row's details. None was measured here, and "
      + "none enters a rank.",
    drawn({
      ariaLabel: `Published accuracies beside ours, ${pairs.length} pairs`,
      height: rowsHigh(pairs.length), marginLeft: left([...names.values()]),
      x: { ...shares, label: "accuracy in percent" },
      y: { label: null, tickFormat: (key) => names.get(key), domain: [...names.keys()] },
      color: { ...colours, legend: true, domain: ["ours", "published"] },
      marks: [
        Plot.link(pairs, { y: "key", x1: "value", x2: "published", strokeOpacity: 0.4 }),
        Plot.ruleY(pairs, { y: "key", x1: "low", x2: "high", stroke: () => "ours" }),
        Plot.dot(ends.filter((one) => one.what === "ours"),
          { y: "key", x: "at", fill: "what", r: 5 }),
        Plot.dot(ends.filter((one) => one.what === "published"),
          { y: "key", x: "at", stroke: "what", strokeWidth: 2, r: 5, symbol: "square" }),
        Plot.tip(ends, Plot.pointer({ y: "key", x: "at", title: "title" })),
      ],
    }));
  }

  // All of them -----------------------------------------------------------------------------------

  let rows = [];
  let waiting = 0;

  const draw = () => {
    const board = data.boards[Number(select.value)];
    const points = rows.filter((row) => row.board === Number(select.value)).map(point);
    const attacked = points.filter((one) => one.robust !== null);
    figures.replaceChildren();
    if (!board) return;
    securityCurves();
    cleanAgainstRobust(attacked, board);
    costAgainstRobust(attacked, (row) => row.cost, "Cost of a prediction against robust",
      "passes/prediction", "Passes through the classifier for one prediction.");
    costAgainstRobust(attacked, (row) => row.passes, "Cost of the attacks against robust",
      "passes of all attacks/image",
      "Forward and backward passes that all attacks of a row took for an image: a number that "
      + "cost little may be one that was attacked little.");
    replayAgainstFresh(attacked);
    perClass(attacked);
    besidePublished(attacked);
  };
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(draw, 150); };

  const option = (board, at) => Object.assign(document.createElement("option"),
    { value: String(at), textContent: board.name });
  select.append(...data.boards.map(option));
  document.getElementById("of-charts").hidden = data.boards.length < 2;
  select.addEventListener("change", draw);
  document.addEventListener("rows", (event) => {
    const { board, rows: shown } = event.detail;
    // Another order is no other picture.
    const known = new Set(rows);
    const same = rows.length === shown.length && shown.every((row) => known.has(row));
    if (same && (!board || select.value === board)) return;
    rows = shown;
    if (board) select.value = board;
    soon();
  });
  addEventListener("resize", soon);
})();
