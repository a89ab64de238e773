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
  const LEADING = ["rank", "rate", "trial", "seed"];  // a mark that has one of them stands for trials
  const views = new Map();
  const { picks } = tables;

  function wanted(figure, spec) {
    const names = figure.dataset.filters.split(" ").filter((name) => name in picks);
    return spec.datasets.rows.filter((row) => names.every((name) => row[name] == null || String(row[name]) === picks[name]));
  }

  function fitted(spec, rows, width) {
    const { overhead, together } = spec.usermeta;
    const panels = new Set(rows.map((row) => row.panel)).size;
    const room = Math.max(1, Math.min(panels, Math.floor(width / (NARROWEST + overhead))));
    spec.columns = Math.ceil(panels / Math.ceil(panels / room));  // rows of equal length
    if (together > 1 && room >= together) spec.columns = room - (room % together);  // panels that belong together
    spec.columns = Math.min(spec.columns, panels);
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
    const options = {
      renderer: "svg",
      actions: { export: true, source: false, compiled: false, editor: false },
      logLevel: 1,  // errors: Vega warns of layers without rows in some panel (no fitted line), and draws them rightly
    };
    const result = await vegaEmbed(host, fitted(spec, rows, width), options);
    if (views.get(figure) !== mine) {  // a later choice overtook this one
      result.view.finalize();
      return;
    }
    mine.view = result.view;
    result.view.addEventListener("click", (event, item) => {
      const datum = item?.datum;
      if (datum?.task && LEADING.some((name) => datum[name] != null)) tables.lead(datum);
    });
    const svg = host.querySelector("svg.marks");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", host.dataset.label);
    for (const part of svg.children) part.setAttribute("aria-hidden", "true");  // one image, not a thousand symbols
    host.querySelector("summary")?.setAttribute("aria-label", "Save this figure");
  }

  const figures = [...document.querySelectorAll("figure")];
  (async () => {  // one after the other, and the page answers in between; none waits to be scrolled to
    try {
      if (figures.length > 0) await draw(figures[0]);
    } finally {
      tables.start();
    }
    for (const figure of figures.slice(1)) {
      await new Promise((next) => { setTimeout(next); });
      await draw(figure);
    }
  })();
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
  });

  document.querySelectorAll("[data-filter]").forEach((select) => {
    select.addEventListener("change", () => {
      const { filter } = select.dataset;
      tables.pick(filter, select.value);
      figures.filter((figure) => figure.dataset.filters.split(" ").includes(filter)).forEach(draw);
    });
  });
})();
