// Draws the figures, in the reader's theme, and lets legends hide and show.
(() => {
  "use strict";
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // On a touch screen a finger must scroll the page, not drag a zoom box.
  const touch = matchMedia("(pointer: coarse)").matches;

  const template = () => payload.templates[dark.matches ? "dark" : "light"];
  // A plot of squares is as high as its width allows: meta says the height as a factor of the width plus a margin.
  const heightOf = ({ id, layout: { height, meta } }) =>
    meta?.width_factor ? Math.min(height, document.getElementById(id).clientWidth * meta.width_factor + meta.plus) : height;
  // The toolbar lies on the plot: meta says "toolbar" false where there is nothing to zoom, and "wide" where a phone has no room for it.
  const hasToolbar = ({ layout: { height, meta } }) =>
    !touch && height >= 230 && meta?.toolbar !== false && (meta?.toolbar !== "wide" || innerWidth >= 560);
  // Room above the points is the toolbar's.
  const marginOf = (plot) => (plot.layout.meta?.toolbar === "wide" && !hasToolbar(plot) ? {} : plot.layout.margin);
  const layoutOf = (plot) => ({
    ...plot.layout,
    height: heightOf(plot),
    margin: marginOf(plot),
    template: template(),
    dragmode: touch ? false : "zoom",
  });
  const configOf = (plot) => ({
    displaylogo: false,
    responsive: true,
    displayModeBar: hasToolbar(plot) ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "pan2d"],
  });

  // A plot with choices has a trace for each of their combinations, which it names in its meta; a list a choice shows one of them.
  const offer = (plot) => {
    const choices = plot.layout.meta?.choices ?? [];
    if (!choices.length) return;
    const holder = document.getElementById(plot.id);
    const lists = choices.map(({ name, values, first }) => {
      const list = document.createElement("select");
      list.dataset.choice = name;
      list.append(...values.map((value) => new Option(value, value, value === first, value === first)));
      const label = document.createElement("label");
      label.append(`${name} `, list);
      return { name, list, label };
    });
    const bar = document.createElement("div");
    bar.className = "choices";
    bar.append(...lists.map(({ label }) => label));
    bar.addEventListener("change", () => {
      const visible = plot.data.map((trace) => lists.every(({ name, list }) => trace.meta[name] === list.value));
      plot.data.forEach((trace, i) => (trace.visible = visible[i])); // kept when the theme changes
      Plotly.restyle(holder, { visible });
    });
    holder.before(bar);
  };

  const draw = async () => {
    for (const plot of payload.plots) {
      document.getElementById(plot.id).style.height = `${heightOf(plot)}px`;
      offer(plot);
      await Plotly.newPlot(plot.id, plot.data, layoutOf(plot), configOf(plot));
      await new Promise((done) => setTimeout(done)); // the page stays scrollable meanwhile
    }
    document.documentElement.dataset.drawn = String(payload.plots.length);
  };

  const hideOrShow = (button) => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const element of button.closest(".card").querySelectorAll(".js-plotly-plot")) {
      const traces = element.data.flatMap((trace, i) => (trace.name === button.dataset.name ? [i] : []));
      if (traces.length) Plotly.restyle(element, { visible: shown }, traces);
    }
  };

  const copy = async (button) => {
    const block = button.closest(".copyable").querySelector("pre");
    const said = button.firstChild; // what a screen reader says besides stands behind it
    getSelection().selectAllChildren(block); // where the clipboard is closed to the page, the reader copies by hand
    try {
      await navigator.clipboard.writeText(block.textContent);
      said.data = "Copied";
    } catch {
      said.data = "Selected";
    }
    setTimeout(() => (said.data = "Copy"), 1500);
  };

  document.addEventListener("click", (event) => {
    const copied = event.target.closest(".copy");
    if (copied) copy(copied);
    const button = event.target.closest(".legend button");
    if (button) hideOrShow(button);
  });
  dark.addEventListener("change", () => {
    for (const plot of payload.plots) Plotly.react(plot.id, plot.data, layoutOf(plot), configOf(plot));
  });
  draw();
})();
