// What every page has: controls that need scripts are shown, and the colours can be chosen.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const remember = {
    // A page from a file may be refused its storage.
    get() { try { return localStorage.getItem("theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("theme", value); } catch { /* this page alone */ } },
  };
  const choose = (value) => {
    if (value === "light" || value === "dark") root.dataset.theme = value;
    else delete root.dataset.theme;
    root.dispatchEvent(new CustomEvent("theme"));
  };
  choose(remember.get());
  for (const select of document.querySelectorAll("select.theme")) {
    select.value = root.dataset.theme ?? "auto";
    select.addEventListener("change", () => { remember.set(select.value); choose(select.value); });
  }
})();
