// Runs in the page of a test: does what a reader does, and writes down what is to be seen.
"use strict";
(() => {
  const told = { refused: [], errors: [] };
  document.addEventListener("securitypolicyviolation", ({ blockedURI }) =>
    told.refused.push(blockedURI));
  addEventListener("error", (event) => told.errors.push(event.message));
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const rows = () => all("#table tbody > tr[id] .name").map((name) => name.textContent);
  const box = (name) => all("#facets input").find(({ parentNode }) =>
    parentNode.textContent.trim() === name);
  const type = async (text) => {
    one("#search").value = text;
    one("#search").dispatchEvent(new Event("input"));
    await wait(300);
  };
  const files = [];
  URL.createObjectURL = (blob) => { files.push(blob); return "#"; };

  const steps = {
    async first() {
      return { rows: rows(), heads: all("#table thead th").map((head) => head.dataset.key) };
    },
    async sorts() {
      const head = one('th[data-key="robust"]');
      const button = head.querySelector("[role=button]");
      const press = () => button.dispatchEvent(
        new KeyboardEvent("keypress", { key: "Enter", keyCode: 13, which: 13, bubbles: true }));
      press();
      await wait(50);
      const down = { rows: rows(), sort: head.ariaSort, focusable: button.tabIndex };
      press();
      await wait(50);
      return { down, up: { rows: rows(), sort: head.ariaSort } };
    },
    async filters() {
      await type("stronger");
      const found = rows();
      await type("");
      box("fgsm").click();
      await wait(50);
      return { found, faced: rows(), status: one("#status").textContent };
    },
    async link() {
      one(".expand").click();
      box("lowest macro-F1").click();
      await wait(50);
      const { hash } = location;
      const head = (key) => one(`th[data-key="${key}"]`);
      const seen = () => ({ rows: rows(), open: all("#table .row-details").length,
        column: Boolean(head("f1low")), sort: head("robust").ariaSort });
      const before = seen();
      one("#reset").click();
      await wait(300);
      const reset = { ...seen(), hash: location.hash };
      location.hash = hash;
      await wait(300);
      return { hash, before, reset, again: seen() };
    },
    async csv() {
      one("#reset").click();
      one("#csv").click();
      return files[0].text();
    },
    async keyboard() {
      const menu = one("details.menu");
      menu.open = true;
      document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
      const button = one(".expand");
      return { open: menu.open, focus: document.activeElement.tagName, button: button.tagName,
        name: button.ariaLabel, expanded: button.ariaExpanded };
    },
    async charts() {
      await wait(800);
      return { titles: all("#figures > figure > h3").map((title) => title.textContent),
        named: all("#figures svg[role=img]").every((image) => image.ariaLabel) };
    },
    async harm() {
      const handlers = all("*").flatMap((node) => [...node.attributes])
        .filter(({ name }) => name.startsWith("on")).length;
      return { ran: window.hurt ?? false, handlers,
        links: all("a[href]").map((link) => link.protocol),
        fetched: performance.getEntriesByType("resource").map((entry) => entry.name),
        text: one("#table").textContent, isolated: all("bdi").every((node) =>
          getComputedStyle(node).unicodeBidi === "isolate") };
    },
  };

  addEventListener("load", async () => {
    await wait(300);
    for (const [name, step] of Object.entries(steps)) {
      try { told[name] = await step(); } catch (error) { told.errors.push(`${name}: ${error}`); }
    }
    const place = document.createElement("pre");
    place.id = "told";
    place.textContent = JSON.stringify(told);
    document.body.append(place);
  });
})();
