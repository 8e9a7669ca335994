"use strict";
(() => {
  const LOOKS = {
    light: { ink: "#46505c", grid: "rgba(27,36,48,0.12)", card: "#ffffff" },
    dark: { ink: "#b4bdc8", grid: "rgba(230,233,238,0.14)", card: "#191f26" },
  };
  const PRINT_WIDTH = 620;
  const NARROW = 420;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll("figure .plot")].map((place) => ({
    place,
    spec: JSON.parse(place.parentElement.querySelector('script[type="application/json"]').textContent),
  }));

  function themed(place, spec, theme, width) {
    const { data, layout } = structuredClone(spec);
    const look = LOOKS[theme];
    layout.font = { ...layout.font, color: look.ink };
    layout.hoverlabel = { bgcolor: look.card, bordercolor: look.ink, font: { color: look.ink } };
    layout.dragmode = false; // a finger that moves over a figure scrolls the page
    const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
    for (const key of new Set([...axes, "xaxis", "yaxis"])) {
      layout[key] = { ...layout[key], gridcolor: look.grid, linecolor: look.grid, fixedrange: true };
    }
    for (const trace of data) {
      if (trace.type !== "heatmap" || theme !== "dark") continue;
      trace.colorscale = trace.meta.dark;
      if (trace.textfont) trace.textfont.color = trace.meta.ink;
    }
    const entries = data.filter((trace) => trace.name && trace.showlegend !== false).length;
    if (place.clientWidth < NARROW && entries > 4) layout.height += 14 * entries; // the legend has one column there
    if (width) Object.assign(layout, { width, autosize: false });
    return { data, layout };
  }

  function draw(theme, width) {
    for (const { place, spec } of plots) {
      const { data, layout } = themed(place, spec, theme, width);
      place.style.height = `${layout.height}px`;
      Plotly.react(place, data, layout, { responsive: true, displayModeBar: false });
    }
  }

  const onScreen = () => draw(dark.matches ? "dark" : "light");
  onScreen();
  dark.addEventListener("change", onScreen);
  window.addEventListener("beforeprint", () => draw("light", PRINT_WIDTH));
  window.addEventListener("afterprint", onScreen);

  const form = document.querySelector("form.filter");
  if (!form) return;
  const rows = [...document.querySelectorAll(".completions > li")];
  const texts = rows.map((row) => [...row.querySelectorAll("code, b, pre")].map((part) => part.textContent).join("\n").toLowerCase());
  const told = form.querySelector("output");
  function filter() {
    const { change, text } = Object.fromEntries(new FormData(form));
    const wanted = text.trim().toLowerCase();
    let shown = 0;
    rows.forEach((row, i) => {
      const fits = (change === "all" || row.dataset.change === change) && texts[i].includes(wanted);
      row.hidden = !fits;
      shown += fits;
    });
    told.textContent = `${shown} of ${rows.length} shown`;
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
