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

  function wanted(figure, spec) {
    const names = figure.dataset.filters.split(" ").filter((name) => name in picks);
    return spec.datasets.rows.filter((row) => names.every((name) => row[name] == null || row[name] === picks[name]));
  }

  function fitted(spec, rows, width) {
    const { overhead } = spec.usermeta;
    const panels = new Set(rows.map((row) => row.panel)).size;
    const room = Math.max(1, Math.min(panels, Math.floor(width / (NARROWEST + overhead))));
    spec.columns = Math.ceil(panels / Math.ceil(panels / room));  // rows of equal length
    const share = Math.floor(width / spec.columns) - overhead - 12;
    spec.spec.width = Math.max(150, Math.min(share, spec.columns === 1 ? 520 : 400));
    if (width < 500) spec.config.legend.columns = 2;
    spec.datasets.rows = rows;
    return spec;
  }

  async function draw(figure) {
    const host = figure.querySelector(".chart");
    const width = host.clientWidth;
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const rows = wanted(figure, spec);
    views.get(figure)?.view?.finalize();
    const mine = { width };
    views.set(figure, mine);
    if (rows.length === 0) {
      host.textContent = "Nothing to show for this choice.";
      return;
    }
    const options = { renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false } };
    const result = await vegaEmbed(host, fitted(spec, rows, width), options);
    if (views.get(figure) !== mine) {  // a later choice overtook this one
      result.view.finalize();
      return;
    }
    mine.view = result.view;
    const svg = host.querySelector("svg.marks");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", host.dataset.label);
    for (const part of svg.children) part.setAttribute("aria-hidden", "true");  // one image, not a thousand symbols
    host.querySelector("summary")?.setAttribute("aria-label", "Save this figure");
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
      figures.filter((figure) => views.has(figure) && figure.dataset.filters.split(" ").includes(filter)).forEach(draw);
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
