// The page of one record: cards of images, filters, and a window for one image.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const STEP = 60;
  const at = (id) => document.getElementById(id);
  const count = data.ids.length;
  const draws = data.clean.length;
  const right = (which, place, draw) => {
    const good = data[which][draw][place] === data.labels[place];
    // An attacked answer is right only if the clean one was, under the same draw.
    return which === "adversarial" ? good && right("clean", place, draw) : good;
  };
  const named = (label) => {
    if (label < 0) return "no answer";
    const name = data.names[label];
    return name === undefined ? String(label) : `${label} ${name}`;
  };
  const make = (tag, options = {}, ...children) => {
    const { text, attributes = {}, ...rest } = options;
    const made = Object.assign(document.createElement(tag), rest);
    if (text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  // Pictures ------------------------------------------------------------------------------------

  const scaleFor = (width, wanted) =>
    width >= wanted ? wanted / width : Math.max(1, Math.round(wanted / width));

  function tile(which, place, wanted) {
    const { width, height, tiles, columns } = data.pictures;
    const scale = scaleFor(width, wanted);
    const within = place % tiles;
    const made = make("span", {
      className: scale > 1 ? "tile sharp" : "tile",
      attributes: { role: "img", "aria-label": `${which.label}, image ${data.ids[place]}` },
    });
    const style = made.style;
    style.width = `${width * scale}px`;
    style.height = `${height * scale}px`;
    style.backgroundImage = `url("${data.id}/${which.name}-${Math.floor(place / tiles)}.png")`;
    style.backgroundSize = `${columns * width * scale}px auto`;
    style.backgroundPosition =
      `-${(within % columns) * width * scale}px -${Math.floor(within / columns) * height * scale}px`;
    return made;
  }

  const large = () => (matchMedia("(max-width: 40rem)").matches ? 92 : 196);

  const pictures = () => (data.pictures ? data.pictures.which : []);

  // Cards ---------------------------------------------------------------------------------------

  function most(which, place) {
    const counted = new Map();
    for (const draw of data[which]) {
      counted.set(draw[place], (counted.get(draw[place]) ?? 0) + 1);
    }
    return [...counted].sort((a, b) => b[1] - a[1]);
  }

  function answers(which, place) {
    const counted = most(which, place);
    if (counted.length === 1) return named(counted[0][0]);
    const shown = counted.slice(0, 3).map(([label, times]) => `${named(label)} (${times} of ${draws})`);
    return shown.join(", ") + (counted.length > 3 ? ", ..." : "");
  }

  function card(place) {
    const kind = data.kindNames[data.kinds[place]];
    const made = make("button", { className: `card ${kind}`, type: "button" });
    if (data.pictures) {
      made.append(make("span", { className: "tiles" }, ...pictures().map((one) => tile(one, place, 84))));
    }
    made.append(
      make("b", { text: `#${data.ids[place]}` }), ` is ${named(data.labels[place])}: ${kind}`,
      make("br"),
      make("span", {
        className: "quiet",
        text: `${answers("clean", place)} → ${answers("adversarial", place)}`,
      }),
    );
    made.addEventListener("click", () => open(place));
    return made;
  }

  let chosen = [];
  let shown = 0;

  function choose() {
    const kind = at("kind").value, by = at("by").value, label = at("label").value;
    const broke = by === "" || by === "none" ? null : new Set(data.breakers[by].images);
    chosen = [];
    for (let place = 0; place < count; place++) {
      if (kind !== "all" && data.kindNames[data.kinds[place]] !== kind) continue;
      if (label !== "" && data.labels[place] !== Number(label)) continue;
      if (broke && !broke.has(place)) continue;
      if (by === "none" && (touched.has(place) || data.kindNames[data.kinds[place]] === "clean-wrong")) continue;
      chosen.push(place);
    }
    shown = 0;
    at("cards").replaceChildren();
    at("count").textContent = `${chosen.length} of ${count} images`;
    more();
  }

  function more() {
    const next = chosen.slice(shown, shown + STEP);
    at("cards").append(...next.map(card));
    shown += next.length;
    at("more").hidden = shown >= chosen.length;
  }

  // One image -----------------------------------------------------------------------------------

  const dialog = at("one");
  let current = null;

  function open(place) {
    current = place;
    dialog.replaceChildren(...inside(place));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    history.replaceState(null, "", `#${data.ids[place]}`);
  }

  function move(by) {
    const here = chosen.indexOf(current);
    const next = chosen[here + by];
    if (next !== undefined) open(next);
  }

  dialog.addEventListener("close", () => {
    history.replaceState(null, "", location.pathname);
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("select, input")) return;
    if (event.key === "ArrowRight") move(1);
    if (event.key === "ArrowLeft") move(-1);
  });

  function button(text, action) {
    const made = make("button", { type: "button", text });
    made.addEventListener("click", action);
    return made;
  }

  function inside(place) {
    const kind = data.kindNames[data.kinds[place]];
    const parts = [
      make("header", {},
        make("h2", { id: "one-title", text: `Image ${data.ids[place]}: ${named(data.labels[place])}, ${kind}` }),
        button("Before", () => move(-1)), button("Next", () => move(1)),
        button("Close", () => dialog.close())),
    ];
    if (data.pictures) {
      const figures = pictures().map((one) =>
        make("figure", {}, tile(one, place, large()), make("figcaption", { text: one.label })));
      parts.push(make("div", { className: "tiles" }, ...figures));
    }
    parts.push(...told(place));
    parts.push(make("div", { className: "answers" }, ...asked(place)));
    parts.push(make("h3", { text: draws > 1 ? "Every draw of the judge" : "The judge" }), table(place));
    return parts;
  }

  function told(place) {
    const said = (text) => make("p", { text });
    const made = [];
    const broke = data.breakers.filter((one) => one.images.includes(place));
    if (data.kindNames[data.kinds[place]] === "clean-wrong") made.push(said("Wrong without an attack."));
    else if (!broke.length) made.push(said("Nothing here broke it."));
    else {
      const list = make("ul", {}, ...broke.map((one) => make("li", {},
        one.href ? make("a", { href: `${one.href}#${data.ids[place]}`, text: one.name }) : one.name)));
      const all = make("summary", { text: `Broken by ${broke.length} of ${data.breakers.length}` });
      made.push(broke.length === 1 ? said(`Broken by ${broke[0].name}.`)
        : make("details", { open: broke.length < 6 }, all, list));
    }
    if (data.targets && data.targets[place] >= 0) made.push(said(`It was to become ${named(data.targets[place])}.`));
    if (data.distances) {
      const far = data.distances[place];
      made.push(said(far === null ? "No point was found that breaks it, at any distance."
        : `Distance of the nearest point that was found to break it: ${far}.`));
    }
    return made;
  }

  function table(place) {
    const row = (name, which) => make("tr", {},
      make("th", { text: name, attributes: { scope: "row" } }),
      ...data[which].map((draw, number) => {
        const good = right(which, place, number);
        return make("td", {
          className: good ? "good" : "bad",
          text: `${good ? "✓" : "✗"} ${named(draw[place])}`,
        });
      }));
    const head = make("tr", {}, make("th", { text: "draw", attributes: { scope: "col" } }),
      ...data.clean.map((_, number) =>
        make("th", { text: String(number + 1), attributes: { scope: "col" } })));
    const rows = [row("clean", "clean"), row("attacked", "adversarial")];
    const parts = [make("table", { className: "draws" }, make("thead", {}, head), make("tbody", {}, ...rows))];
    if (data.replayed.length) {
      const name = data.replayed.length > 1 ? "under the attack's own noises" : "under the attack's own noise";
      parts.push(make("table", { className: "draws" }, make("tbody", {}, row(name, "replayed"))));
    }
    return make("div", { className: "wide", tabIndex: 0 }, ...parts);
  }

  // Asking the defense --------------------------------------------------------------------------

  async function fetched(path, tell) {
    for (;;) {
      const answer = await fetch(`${data.id}/${path}`, { headers: { "X-Bench": "view" }, cache: "no-store" });
      const said = await answer.json();
      // In the first second it has been working for 0 seconds.
      if (said.working === undefined) return said;
      tell(`Computing for ${said.working} s ...`);
      await new Promise((done) => setTimeout(done, 300));
    }
  }

  function asked(place) {
    if (!data.served) {
      const known = data.asked[place];
      return known ? [make("h3", { text: "The defense" }), ...showAnswer(known, place)] : [];
    }
    const where = make("div", { attributes: { role: "status" } });
    const ask = async (path, show) => {
      const tell = (text) => where.replaceChildren(make("p", { className: "quiet", text }));
      tell("Computing ...");
      const warn = (text) => where.replaceChildren(make("p", { className: "warn", text }));
      let said;
      try {
        said = await fetched(path, tell);
      } catch {
        warn("The server does not answer: is bench view still running?");
        return;
      }
      if (said.error) warn(said.error);
      else where.replaceChildren(...show(said, place));
    };
    const draw = make("select", { attributes: { "aria-label": "draw" } },
      ...data.clean.map((_, number) => make("option", { value: number, text: `draw ${number + 1}` })));
    return [make("h3", { text: "The defense" }),
      make("div", { className: "controls" },
        ...(draws > 1 ? [draw] : []),
        button("Logits, and what it makes of the image",
          () => ask(`ask-${place}-${draws > 1 ? draw.value : 0}.json`, showAnswer)),
        button("Path of the attack", () => ask(`path-${place}.json`, showPath))),
      where];
  }

  function image(src, label) {
    const made = make("img", { src, alt: label });
    made.addEventListener("load", () => {
      const scale = scaleFor(made.naturalWidth, large());
      made.width = made.naturalWidth * scale;
      if (scale > 1) made.className = "sharp";
    });
    return make("figure", {}, made, make("figcaption", { text: label }));
  }

  function showAnswer(said, place) {
    const parts = [];
    for (const view of said.views) {
      parts.push(make("div", { className: "tiles" },
        image(view.clean, `${view.name}, clean`), image(view.attacked, `${view.name}, attacked`)));
    }
    parts.push(...said.notes.map((text) => make("p", { className: "quiet", text })));
    const values = said.classes.flatMap((one) => [one.clean, one.attacked]).filter((one) => one !== null);
    const least = Math.min(...values), span = Math.max(...values) - least || 1;
    const cell = (value) => [
      make("td", { className: "number", text: value === null ? "-" : value.toPrecision(4) }),
      make("td", {}, make("meter", {
        value: value === null ? 0 : (value - least) / span,
        attributes: { "aria-hidden": "true" },
      })),
    ];
    const rows = said.classes.map((one) => make("tr", {
      className: one.label === data.labels[place] ? "true" : "",
    }, make("th", {
      text: named(one.label) + (one.label === data.labels[place] ? " (true)" : ""),
      attributes: { scope: "row" },
    }), ...cell(one.clean), ...cell(one.attacked)));
    const head = make("tr", {}, make("th", { text: "class", attributes: { scope: "col" } }),
      make("th", { text: "clean", attributes: { scope: "col", colspan: 2 } }),
      make("th", { text: "attacked", attributes: { scope: "col", colspan: 2 } }));
    parts.push(make("div", { className: "wide", tabIndex: 0 }, make("table", { className: "bars" },
      make("caption", { text: said.caption }), make("thead", {}, head), make("tbody", {}, ...rows))));
    return parts;
  }

  const SVG = "http://www.w3.org/2000/svg";
  function drawn(tag, attributes, text) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function showPath(said) {
    const told = said.notes.map((text) => make("p", { className: "quiet", text }));
    if (!said.paths.length) return told;
    const all = said.paths.flat(), long = Math.max(...said.paths.map((one) => one.length), 2);
    const low = Math.min(...all), high = Math.max(...all), span = high - low || 1;
    const x = (step) => 60 + (step / (long - 1)) * 560, y = (value) => 180 - ((value - low) / span) * 160;
    const svg = drawn("svg", { viewBox: "0 0 640 220", class: "path", role: "img",
      "aria-label": `${said.paths.length} searches, from ${low.toPrecision(3)} to ${high.toPrecision(3)}` });
    svg.append(
      drawn("line", { x1: 60, x2: 620, y1: 180, y2: 180, class: "axis" }),
      drawn("line", { x1: 60, x2: 60, y1: 20, y2: 180, class: "axis" }),
      drawn("text", { x: 55, y: 184, "text-anchor": "end" }, low.toPrecision(3)),
      drawn("text", { x: 55, y: 26, "text-anchor": "end" }, high.toPrecision(3)),
      drawn("text", { x: 60, y: 200 }, "step 0"),
      drawn("text", { x: 620, y: 200, "text-anchor": "end" }, `step ${long - 1}`));
    for (const path of said.paths) {
      svg.append(drawn("polyline", { class: "line",
        points: path.map((value, step) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
    }
    return [svg, ...told];
  }

  // ---------------------------------------------------------------------------------------------

  const touched = new Set(data.breakers.flatMap((one) => one.images));
  const untouched = data.kinds.filter((kind, place) =>
    data.kindNames[kind] !== "clean-wrong" && !touched.has(place)).length;
  at("by").append(
    ...data.breakers.map((one, number) =>
      make("option", { value: number, text: `${one.name} (${one.images.length})` })),
    make("option", { value: "none", text: `nothing here (${untouched})` }));
  at("label").append(...[...new Set(data.labels)].sort((a, b) => a - b)
    .map((label) => make("option", { value: label, text: named(label) })));
  for (const id of ["kind", "by", "label"]) at(id).addEventListener("change", choose);
  at("more").addEventListener("click", more);
  choose();
  const fragment = location.hash.slice(1);
  const begun = fragment === "" ? -1 : data.ids.indexOf(Number(fragment));
  if (begun >= 0) open(begun);
})();
