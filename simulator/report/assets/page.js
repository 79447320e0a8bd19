// Unpacks Plotly and what it draws, draws the figures in the reader's theme, and lets legends hide and show.
(() => {
  "use strict";
  let payload;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // On a touch screen a finger must scroll the page, not drag a zoom box.
  const touch = matchMedia("(pointer: coarse)").matches;

  // Fonts, margins and colours of every figure, in the theme of the page.
  const template = () => {
    const theme = getComputedStyle(document.documentElement);
    const [ink, muted, grid, card] = ["--ink", "--muted", "--grid", "--card"].map((name) => theme.getPropertyValue(name).trim());
    const font = { family: theme.fontFamily, size: 12, color: ink };
    const axis = {
      automargin: true,
      tickangle: 0,
      gridcolor: grid,
      linecolor: grid,
      zeroline: false,
      tickcolor: grid,
      tickfont: { color: muted, size: 12 },
      title: { font: { color: muted, size: 12 }, standoff: 8 },
    };
    const small = { color: muted, size: 11 };
    const colorbar = { outlinewidth: 0, thickness: 10, tickfont: small, title: { font: small } };
    return {
      layout: {
        font,
        colorway: payload.colours,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 8, r: 12, t: 12, b: 8 },
        xaxis: axis,
        yaxis: axis,
        coloraxis: { colorbar },
        showlegend: false, // the page draws the legend itself, so that it wraps on a phone
        hoverlabel: { bgcolor: card, bordercolor: grid, font, namelength: -1, align: "left" },
        annotationdefaults: { font: { color: ink, size: 12 }, showarrow: false },
        bargap: 0.3,
      },
      data: { heatmap: [{ colorbar }] },
    };
  };
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
    // Nothing leaves the reader's machine: no button, of any version, that uploads the data, and nowhere to send it.
    showSendToCloud: false,
    showEditInChartStudio: false,
    showLink: false,
    plotlyServerURL: "",
  });

  // Gzip in base 85: see packed.py. The digits are the characters from "#" on, less "<".
  const unpack = async (name) => {
    const { textContent: text, dataset } = document.getElementById(name);
    const words = new DataView(new ArrayBuffer((text.length / 5) * 4));
    for (let from = 0, to = 0; from < text.length; to += 4) {
      let word = 0;
      for (const end = from + 5; from < end; from++) {
        const code = text.charCodeAt(from);
        word = word * 85 + code - 35 - (code > 60);
      }
      words.setUint32(to, word);
    }
    const compressed = new Blob([new Uint8Array(words.buffer, 0, Number(dataset.bytes))]);
    return new Response(compressed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const run = (code) => {
    const script = document.createElement("script");
    script.textContent = code; // inline, as the page's policy asks
    document.head.append(script);
    script.remove();
  };
  // The colours of a map of loads are the logarithm of what a cell says, so only that is carried.
  const colour = (trace) => {
    const limit = trace.meta?.colour_limit;
    if (!limit) return;
    const power = (load) => (load === null ? null : Math.log2(Math.min(Math.max(load, 1 / limit), limit)));
    trace.z = trace.customdata.map((row) => row.map(power));
  };
  const say = (text) => {
    const notice = document.createElement("p");
    notice.className = "notice";
    notice.setAttribute("role", "alert");
    notice.textContent = text;
    document.querySelector("main").prepend(notice);
  };

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

  // A figure for a paper, and its data for a table: what is shown, under the titles of its axes.
  const save = (name, url) => Object.assign(document.createElement("a"), { href: url, download: name }).click();
  const plain = (text) => new DOMParser().parseFromString(text ?? "", "text/html").body.textContent;
  const quote = (value) => {
    const text = typeof value === "string" ? plain(value).replace(/^[=+\-@]/, "'$&") : String(value ?? ""); // a spreadsheet runs no name
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const rowsOf = (plot) => {
    const heading = plot.closest(".cell").querySelector("h4")?.textContent.trim();
    const rows = plot._fullData.filter(({ visible }) => visible === true).flatMap(({ name, x, y, z, customdata }) =>
      z
        ? [...z].flatMap((row, j) => [...row].map((value, i) => [name, x?.[i] ?? i, y?.[j] ?? j, customdata?.[j]?.[i] ?? value]))
        : Array.from({ length: Math.max(x?.length ?? 0, y?.length ?? 0) }, (_, i) => [name, x?.[i] ?? i, y?.[i] ?? i, ""]),
    );
    const { xaxis, yaxis } = plot._fullLayout;
    const titles = [xaxis?.title.text, yaxis?.title.text].map((title) => title ?? "");
    return rows.map((row) => [heading, ...row, ...titles]);
  };
  const take = async (button) => {
    const card = button.closest(".card");
    const plots = [...card.querySelectorAll(".js-plotly-plot")];
    if (button.dataset.as === "csv") {
      const rows = [["plot", "series", "x", "y", "value", "x axis", "y axis"], ...plots.flatMap(rowsOf)];
      const text = rows.map((row) => row.map(quote).join(",") + "\n").join("");
      return save(`${plots[0].id}.csv`, URL.createObjectURL(new Blob([text], { type: "text/csv" })));
    }
    const paper_bgcolor = getComputedStyle(card).backgroundColor;
    for (const { data, layout, clientWidth: width, clientHeight: height, id } of plots) {
      save(`${id}.svg`, await Plotly.toImage({ data, layout: { ...layout, paper_bgcolor } }, { format: "svg", width, height }));
    }
  };
  const offerToTake = (card) => {
    const holder = document.createElement("p");
    holder.className = "takes";
    holder.append(
      ...["svg", "csv"].map((as) => {
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: as.toUpperCase() });
        button.dataset.as = as;
        button.title = as === "svg" ? "Save the figure as SVG" : "Save its data as CSV";
        return button;
      }),
    );
    card.querySelector("h3")?.before(holder);
  };

  const draw = async () => {
    await new Promise((done) => setTimeout(done)); // what can be read is shown first
    const [code, data] = await Promise.all([unpack("plotly"), unpack("payload")]);
    run(code);
    payload = JSON.parse(data);
    payload.plots.forEach(({ data }) => data.forEach(colour));
    dark.addEventListener("change", () => {
      for (const plot of payload.plots) Plotly.react(plot.id, plot.data, layoutOf(plot), configOf(plot));
    });
    for (const plot of payload.plots) {
      document.getElementById(plot.id).style.height = `${heightOf(plot)}px`;
      offer(plot);
      await Plotly.newPlot(plot.id, plot.data, layoutOf(plot), configOf(plot));
      await new Promise((done) => setTimeout(done)); // the page stays scrollable meanwhile
    }
    document.querySelectorAll(".card:has(.plot)").forEach(offerToTake);
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

  // Columns of tables, and traces that a legend names, of deployments that a pairing does not show.
  const showPairing = (chosen) => {
    for (const button of chosen.closest(".pairing").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button === chosen));
    }
    const shown = new Set(JSON.parse(chosen.dataset.shown));
    const all = new Set([...chosen.closest(".pairing").querySelectorAll("button")].flatMap((one) => JSON.parse(one.dataset.shown)));
    for (const row of document.querySelectorAll("thead tr")) {
      [...row.cells].forEach((cell, i) => {
        const { name } = cell.dataset;
        if (name === undefined) return;
        for (const each of row.closest("table").rows) each.cells[i]?.toggleAttribute("hidden", !shown.has(name));
      });
    }
    for (const button of document.querySelectorAll(".legend button")) {
      const name = button.dataset.name;
      if (all.has(name) && shown.has(name) !== (button.getAttribute("aria-pressed") === "true")) hideOrShow(button);
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

  // A plan's candidates under other prices and limits, from what was simulated of each: the cheapest that meets them first.
  const rankAnew = (group) => {
    const inputs = [...group.querySelectorAll("input")];
    const body = group.parentElement.querySelector("tbody");
    const isPlanned = inputs.every((one) => one.value === one.defaultValue || !one.checkValidity() || one.value === "");
    body.replaceChildren(...(group.planned ??= [...body.children].map((row) => row.cloneNode(true))).map((row) => row.cloneNode(true)));
    group.querySelector("button").hidden = isPlanned;
    group.querySelector("output").value = "";
    for (const one of inputs.filter((one) => one.dataset.limit)) {
      const place = body.querySelector(`[data-figure="${one.dataset.limit}"]`)?.cellIndex;
      const hint = body.parentElement.tHead.rows[0].cells[place]?.querySelector(".hint");
      if (!hint) continue;
      hint.dataset.planned ??= hint.textContent;
      hint.textContent = one.value === one.defaultValue ? hint.dataset.planned : `limit ${one.value}`;
    }
    if (isPlanned) return;
    const number = (one) => Number(one.value === "" || !one.checkValidity() ? one.defaultValue : one.value);
    const prices = new Map(inputs.filter((one) => one.dataset.price).map((one) => [one.dataset.price, number(one)]));
    const limits = inputs.filter((one) => one.dataset.limit);
    const short = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 6 });
    const rows = [...body.querySelectorAll("tr[data-gpus]")].map((row) => {
      const { machines, gpus, power, cost: planned, least } = row.dataset;
      const cost = gpus * prices.get(machines) + Number(power);
      const worst = Math.max(Number(least), ...limits.map((one) => {
        const value = Number(row.querySelector(`[data-figure="${one.dataset.limit}"]`)?.dataset.value || NaN);
        return one.hasAttribute("data-floor") ? number(one) / value : value / number(one);
      }));
      for (const cell of row.querySelectorAll("[data-value]")) {
        const { figure, value } = cell.dataset;
        if (figure === "cost_per_hour" || figure.startsWith("cost_per_million")) cell.textContent = short(planned > 0 ? (value * cost) / planned : cost);
        if (figure === "worst_ratio") cell.textContent = Number.isNaN(worst) ? "not simulated" : `${short(100 * worst)} %`;
        if (figure === "is_best_probability") cell.textContent = "–";
      }
      if (worst <= 1) row.querySelector(".why")?.remove();
      return { row, cost, worst };
    });
    const meets = rows.filter(({ worst }) => worst <= 1).sort((one, other) => one.cost - other.cost);
    const head = (text) => {
      const made = body.querySelector(".group").cloneNode(true);
      made.querySelector("span").textContent = text;
      return made;
    };
    const misses = rows.filter(({ worst }) => !(worst <= 1));
    body.replaceChildren(
      ...(meets.length ? [head("Meet these limits, the cheapest first"), ...meets.map(({ row }) => row)] : []),
      ...(misses.length ? [head("Miss a limit, or were not simulated for it"), ...misses.map(({ row }) => row)] : []),
    );
    group.querySelector("output").value =
      (meets.length ? `Cheapest of these: ${meets[0].row.querySelector(".name").textContent}, ${short(meets[0].cost)} ${group.dataset.currency} an hour.` : "None of these meets the limits.") +
      " Others were not simulated for them: plan again to search all.";
  };
  for (const group of document.querySelectorAll(".conditions")) {
    group.addEventListener("input", () => rankAnew(group));
    group.querySelector("button").addEventListener("click", () => {
      for (const one of group.querySelectorAll("input")) one.value = one.defaultValue;
      rankAnew(group);
    });
  }

  document.addEventListener("click", (event) => {
    const copied = event.target.closest(".copy");
    if (copied) copy(copied);
    const taken = event.target.closest(".takes button");
    if (taken) take(taken);
    const button = event.target.closest(".legend button");
    if (button) hideOrShow(button);
    const pairing = event.target.closest(".pairing button");
    if (pairing) showPairing(pairing);
  });
  if (typeof DecompressionStream === "undefined") {
    say("This browser cannot unpack the figures, which takes Chrome or Edge 80, Firefox 113, Safari 16.4 or later; the texts and tables are complete.");
  } else {
    draw().catch((error) => {
      say(`The figures could not be drawn (${error.message}); the texts and tables are complete.`);
      throw error;
    });
  }
})();
