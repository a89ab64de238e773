"use strict";
(() => {
  const root = document.documentElement;
  const themeButton = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => { try { return localStorage.getItem("rankscope-theme"); } catch { return null; } };

  function dress(theme) {
    root.dataset.theme = theme;
    themeButton.textContent = theme === "dark" ? "Light" : "Dark";
    themeButton.setAttribute("aria-label", `Switch to the ${theme === "dark" ? "light" : "dark"} theme`);
    themeButton.setAttribute("aria-pressed", String(theme === "dark"));
  }
  dress(remembered() ?? (system.matches ? "dark" : "light"));
  system.addEventListener("change", (event) => remembered() ?? dress(event.matches ? "dark" : "light"));
  themeButton.addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    dress(theme);
    try { localStorage.setItem("rankscope-theme", theme); } catch { /* a page from disk may have no storage */ }
  });

  // Figures: as many panels beside each other as there is room for.
  const NARROWEST = 205;
  const views = new Map();
  const picks = {};

  function fitted(spec, width) {
    const copy = structuredClone(spec);
    const cell = copy.spec;
    const most = Number(copy.usermeta.panels);
    const overhead = Number(copy.usermeta.overhead);
    const room = Math.max(1, Math.min(most, Math.floor(width / (NARROWEST + overhead))));
    copy.columns = Math.ceil(most / Math.ceil(most / room));  // rows of equal length
    const share = Math.floor(width / copy.columns) - overhead - 12;
    cell.width = Math.max(150, Math.min(share, copy.columns === 1 ? 520 : 400));
    if (width < 500) copy.config.legend.columns = 2;
    return copy;
  }

  async function draw(figure) {
    const host = figure.querySelector(".chart");
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const width = host.clientWidth;
    const options = { renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false } };
    views.get(figure)?.view.finalize();
    const result = await vegaEmbed(host, fitted(spec, width), options);
    views.set(figure, { view: result.view, width });
    const svg = host.querySelector("svg.marks");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", host.dataset.label);
    host.querySelector(".vega-embed summary, summary")?.setAttribute("aria-label", "Save this figure");
    await pick(figure);
  }

  function pick(figure) {
    const { view } = views.get(figure) ?? {};
    if (!view) return undefined;
    for (const name of figure.dataset.filters.split(" ")) {
      view.signal(`pick_${name}`, picks[name] ?? "all");
    }
    return view.runAsync();
  }

  const figures = [...document.querySelectorAll("figure")];
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "600px" });
  figures.forEach((figure) => near.observe(figure));
  let resized = 0;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => {
      for (const [figure, { width }] of views) {
        if (Math.abs(figure.querySelector(".chart").clientWidth - width) > 4) draw(figure);
      }
    }, 150);
  });
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((details) => { details.open = true; });
    figures.filter((figure) => !views.has(figure)).forEach((figure) => { near.unobserve(figure); draw(figure); });
  });

  document.querySelectorAll("[data-filter]").forEach((select) => {
    select.addEventListener("change", () => {
      const { filter } = select.dataset;
      if (select.value === "") delete picks[filter];
      else picks[filter] = filter === "rank" ? Number(select.value) : select.value;
      figures.forEach((figure) => pick(figure));
      sift();
    });
  });

  // Tables: hide what the filters exclude, sort by a click on a heading.
  function sift() {
    const shown = Object.entries(picks).map(([name, value]) => [name, String(value)]);
    document.querySelectorAll("tbody tr").forEach((row) => {
      row.hidden = shown.some(([name, value]) => (row.dataset[name] ?? value) !== value);
    });
  }

  function sort(heading) {
    const table = heading.closest("table");
    const at = heading.cellIndex;
    const up = heading.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = heading.classList.contains("number");
    const collator = new Intl.Collator("en", { numeric: true });
    const key = (row) => {
      const cell = row.cells[at];
      return numeric ? (cell.dataset.value === "" ? null : Number(cell.dataset.value)) : cell.textContent;
    };
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);  // unknown values stay last
      return (up ? 1 : -1) * (numeric ? a - b : collator.compare(a, b));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }
  document.querySelectorAll("th button").forEach((button) => {
    button.addEventListener("click", () => sort(button.closest("th")));
  });
})();
