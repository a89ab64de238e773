"use strict";
// Tables: filters, sorting, and long ones shown in parts that can be searched.
const tables = (() => {
  const PART = 50;
  const UNKNOWN = "–";
  const picks = {};
  const collator = new Intl.Collator("en", { numeric: true });

  const number = (text) => (text === UNKNOWN ? null : parseFloat(text.replaceAll("−", "-")));
  const compared = (up, numeric) => ([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);  // unknown values stay last
    return (up ? 1 : -1) * (numeric ? a - b : collator.compare(a, b));
  };

  // How a heading sorts: the next direction, marked on it.
  function turned(heading) {
    const up = heading.getAttribute("aria-sort") !== "ascending";
    heading.closest("tr").querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    return { at: heading.cellIndex, up, numeric: heading.classList.contains("number") };
  }

  function sortShort(heading) {
    const { at, up, numeric } = turned(heading);
    const body = heading.closest("table").tBodies[0];
    const key = ({ cells }) => {
      if (!numeric) return cells[at].textContent;
      return cells[at].dataset.value === "" ? null : Number(cells[at].dataset.value);
    };
    const rows = [...body.rows].map((row) => [key(row), row]).sort(compared(up, numeric));
    body.append(...rows.map(([, row]) => row));
  }

  class Long {
    constructor(details) {
      this.details = details;
      const said = JSON.parse(details.querySelector("script").textContent);
      this.columns = said.columns;
      this.rows = said.rows;
      this.text = said.rows.map((row) => row.join(" ").toLowerCase());
      this.places = said.rows.map((_, place) => place);
      this.numeric = [...details.querySelectorAll("th")].map((th) => th.classList.contains("number"));
      this.conditions = {};
      this.part = 0;
      this.input = details.querySelector("input");
      this.clear = details.querySelector(".clear");
      this.input.addEventListener("input", () => this.show(0));
      this.clear.addEventListener("click", () => { this.conditions = {}; this.show(0); this.input.focus(); });
      details.querySelectorAll("[data-turn]").forEach((button) => {
        button.addEventListener("click", () => this.show(this.part + Number(button.dataset.turn)));
      });
      this.show(0);
    }

    sort(heading) {
      const { at, up, numeric } = turned(heading);
      const key = (place) => (numeric ? number(this.rows[place][at]) : this.rows[place][at]);
      this.places.sort((a, b) => compared(up, numeric)([key(a)], [key(b)]));
      this.show(0);
    }

    // Words anywhere in a row; name=value in that column (r=8 task=MRPC rate=1e-3).
    fits(place) {
      const is = (name, value) => !(name in this.columns) || this.rows[place][this.columns[name]] === value;
      if (!Object.entries({ ...picks, ...this.conditions }).every(([name, value]) => is(name, String(value)))) return false;
      return this.terms.every((term) => {
        const [, name, value] = /^(\w+)=(.+)$/.exec(term) ?? [];
        const at = this.columns[name === "r" ? "rank" : name];
        return at === undefined ? this.text[place].includes(term) : this.rows[place][at].toLowerCase() === value;
      });
    }

    show(part) {
      this.terms = this.input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = this.places.filter((place) => this.fits(place));
      const last = Math.max(0, Math.ceil(found.length / PART) - 1);
      this.part = Math.min(Math.max(part, 0), last);
      const first = this.part * PART;
      const shown = found.slice(first, first + PART);
      this.details.querySelector("tbody").replaceChildren(...shown.map((place) => {
        const line = document.createElement("tr");
        this.rows[place].forEach((text, at) => {
          const cell = line.insertCell();
          cell.textContent = text;
          if (this.numeric[at]) cell.className = "number";
        });
        return line;
      }));
      const count = (value) => value.toLocaleString("en");
      const of = found.length === this.rows.length ? "" : ` (${count(this.rows.length)} in all)`;
      this.details.querySelector("output").textContent = found.length
        ? `${count(first + 1)} to ${count(first + shown.length)} of ${count(found.length)}${of}` : `none${of}`;
      const [back, on] = this.details.querySelectorAll("[data-turn]");
      back.disabled = this.part === 0;
      on.disabled = this.part === last;
      const words = Object.entries(this.conditions).map(([name, value]) => (name === "rank" ? `r = ${value}` : name === "seed" ? `seed ${value}` : value));
      this.clear.hidden = words.length === 0;
      this.clear.textContent = `${words.join(", ")} ✕`;
      this.clear.setAttribute("aria-label", `Show all again, not only ${words.join(", ")}`);
    }
  }

  const long = new Map();
  document.querySelectorAll("th button").forEach((button) => {
    const heading = button.closest("th");
    button.addEventListener("click", () => {
      const held = long.get(heading.closest("details"));
      if (held) held.sort(heading);
      else sortShort(heading);
    });
  });

  return {
    picks,
    // Reads the long tables: after the first figure, which thousands of rows would hold up.
    start() {
      document.querySelectorAll("details.table").forEach((details) => {
        if (details.querySelector(".search")) long.set(details, new Long(details));
      });
    },
    // A filter of the page; an empty value takes it away.
    pick(name, value) {
      if (value === "") delete picks[name];
      else picks[name] = value;
      const shown = Object.entries(picks);
      document.querySelectorAll("tbody tr").forEach((row) => {
        row.hidden = shown.some(([key, wanted]) => (row.dataset[key] ?? wanted) !== wanted);
      });
      long.forEach((one) => one.show(0));
    },
    // The trials behind a point of a figure.
    lead(datum) {
      const details = document.getElementById("table-trials");
      const one = long.get(details);
      if (!one) return;
      const named = Object.keys(one.columns).filter((name) => datum[name] !== null && datum[name] !== undefined && datum[name] !== "");
      one.conditions = Object.fromEntries(named.map((name) => [name, datum[name]]));
      one.input.value = "";
      one.show(0);
      details.open = true;
      details.scrollIntoView({ block: "start" });
      one.clear.focus({ preventScroll: true });
    },
  };
})();
