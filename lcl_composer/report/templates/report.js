// Curves of the runs: SVG drawn here, so that one page works offline. Names are set as text, never as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const host = document.getElementById("panels");
  if (!host) return;
  const NS = "http://www.w3.org/2000/svg";
  const MARGIN = { left: 56, right: 12, top: 8, bottom: 36 };
  const HEIGHT = 230;
  const state = { axis: "batches", smooth: 4, log: false, hidden: new Set(), at: null };
  const panels = [];

  // As page.tone: from the eleventh variant on the colours come again, with dashed lines and open swatches.
  const tone = (number) => "v" + (number % 10) + (number >= 10 ? " again" : "");
  const svg = (parent, name, attributes, text) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  };
  const html = (parent, name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  };
  const format = (value) => {
    if (value === null || !isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1e9) return +(value / 1e9).toPrecision(4) + "G";
    if (size >= 1e6) return +(value / 1e6).toPrecision(4) + "M";
    if (size >= 1e4) return +(value / 1e3).toPrecision(4) + "k";
    if (size && size < 1e-3) return value.toExponential(1);
    return String(+value.toPrecision(4));
  };

  // Position among sorted xs, and the value there on the line through the neighbours.
  const interpolate = (xs, ys, x) => {
    if (!xs.length || x < xs[0] || x > xs[xs.length - 1]) return null;
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle; else high = middle;
    }
    if (xs[high] === x) return ys[high];
    if (ys[low] === null || ys[high] === null) return null;
    const share = xs[high] === xs[low] ? 0 : (x - xs[low]) / (xs[high] - xs[low]);
    return ys[low] + share * (ys[high] - ys[low]);
  };
  const onAxis = (run, x) => (state.axis === "batches" ? x : interpolate(run.axes.batches, run.axes[state.axis], x));

  // Centred running mean over a share of the points; values that are not finite are passed over.
  const smoothed = (ys, percent) => {
    const half = Math.floor((ys.length * percent) / 200);
    if (!half) return ys;
    return ys.map((value, i) => {
      if (value === null) return null;
      let sum = 0, count = 0;
      for (let j = Math.max(0, i - half); j <= Math.min(ys.length - 1, i + half); j++)
        if (ys[j] !== null) { sum += ys[j]; count++; }
      return sum / count;
    });
  };
  const curveOf = (run, key, smooth) => {
    const found = key && run.series[key];
    if (!found) return null;
    const x = found.x.map((value) => onAxis(run, value));
    return { run, x, raw: found.y, y: smooth ? smoothed(found.y, state.smooth) : found.y, lo: found.lo, hi: found.hi };
  };
  // The mean over a variant's runs at the x of the first, where all of them have a value.
  const meanOf = (curves) => {
    const first = curves[0];
    const y = first.x.map((x) => {
      const values = curves.map((curve) => interpolate(curve.x, curve.y, x));
      return values.includes(null) ? null : values.reduce((a, b) => a + b, 0) / values.length;
    });
    return { x: first.x, y };
  };

  const ticks = (low, high, count) => {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw) || raw;
    const found = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step) found.push(+t.toPrecision(12));
    return found;
  };
  const logTicks = (low, high) => {
    const found = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
      for (const m of high / low > 30 ? [1] : [1, 2, 5]) {
        const t = m * 10 ** p;
        if (t >= low && t <= high) found.push(t);
      }
    return found.length > 1 ? found : ticks(low, high, 4).filter((t) => t > 0);
  };

  const extent = (panel, variants) => {
    const ys = [], xs = [];
    for (const { train, held } of variants)
      for (const curve of [...train, ...held]) {
        xs.push(...curve.x);
        ys.push(...curve.raw.filter((v) => v !== null && (!panel.log || v > 0)));
      }
    if (!ys.length) return null;
    ys.sort((a, b) => a - b);
    const cut = ys.length > 100 ? Math.floor(ys.length * 0.004) : 0; // single spikes do not set the scale
    let low = ys[cut], high = ys[ys.length - 1 - cut];
    if (panel.zero && !panel.log) low = 0;
    if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
    const pad = panel.log ? (high / low) ** 0.04 : (high - low) * 0.04;
    const [y0, y1] = panel.log ? [low / pad, high * pad] : [panel.zero ? 0 : low - pad, high + pad];
    const ends = xs.filter((v) => v !== null);
    return { x0: 0, x1: Math.max(...ends) || 1, y0, y1 };
  };

  const pathOf = (xs, ys, sx, sy) => {
    let path = "", pen = "M";
    xs.forEach((x, i) => {
      const y = ys[i] === null || x === null ? NaN : sy(ys[i]);
      if (!isFinite(y)) { pen = "M"; return; }
      path += pen + sx(x).toFixed(1) + " " + y.toFixed(1);
      pen = "L";
    });
    return path;
  };

  const collect = (panel) =>
    data.variants.map((name, number) => {
      const runs = state.hidden.has(number) ? [] : data.runs.filter((run) => run.variant === number);
      const pick = (key, smooth) => runs.map((run) => curveOf(run, key, smooth)).filter(Boolean);
      return { name, number, train: pick(panel.spec.key, panel.spec.smooth), held: pick(panel.spec.held_out, false) };
    });

  const drawAxes = (panel, scale, width) => {
    const { sx, sy, box } = scale;
    const bottom = HEIGHT - MARGIN.bottom;
    for (const t of panel.log ? logTicks(box.y0, box.y1) : ticks(box.y0, box.y1, 5)) {
      svg(panel.root, "line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: sy(t), y2: sy(t) });
      svg(panel.root, "text", { x: MARGIN.left - 7, y: sy(t) + 4, "text-anchor": "end" }, format(t));
    }
    for (const t of ticks(box.x0, box.x1, Math.max(2, Math.min(6, width / 90))))
      svg(panel.root, "text", { x: sx(t), y: bottom + 16, "text-anchor": "middle" }, format(t));
    svg(panel.root, "text", { x: width - MARGIN.right, y: HEIGHT - 4, "text-anchor": "end" }, state.axis);
  };

  const drawCurves = (root, variants, sx, sy) => {
    for (const { number, train, held } of variants) {
      const group = svg(root, "g", { class: tone(number), "data-variant": number });
      const dash = number >= 10 ? "7 3" : "none";
      const line = (curve, ys, width, opacity, dashes) =>
        svg(group, "path", { class: "curve", d: pathOf(curve.x, ys, sx, sy), "stroke-width": width, opacity, "stroke-dasharray": dashes });
      for (const curve of train) {
        if (curve.lo) {
          const back = pathOf([...curve.x].reverse(), [...curve.lo].reverse(), sx, sy).replace("M", "L");
          svg(group, "path", { class: "range", d: pathOf(curve.x, curve.hi, sx, sy) + back });
        } else if (curve.y !== curve.raw) line(curve, curve.raw, 1, 0.22, "none");
        line(curve, curve.y, train.length > 1 ? 1 : 1.9, train.length > 1 ? 0.45 : 1, dash);
        if (curve.x.length === 1) svg(group, "circle", { class: "dot", r: 3, cx: sx(curve.x[0]), cy: sy(curve.y[0]) });
      }
      if (train.length > 1) { const mean = meanOf(train); line(mean, mean.y, 2.1, 1, dash); }
      for (const curve of held.length > 1 ? [meanOf(held)] : held) {
        if (train.length) line(curve, curve.y, 1.5, 0.9, "2 4"); else line(curve, curve.y, 1.9, 1, dash);
        curve.x.forEach((x, i) => {
          if (curve.y[i] !== null && x !== null && isFinite(sy(curve.y[i]))) svg(group, "circle", { class: "dot", r: 2.6, cx: sx(x), cy: sy(curve.y[i]) });
        });
      }
    }
  };

  const draw = (panel) => {
    const width = panel.root.clientWidth;
    if (!width) return;
    panel.root.replaceChildren();
    panel.log = state.log && panel.spec.title !== "Logit scale";
    panel.variants = collect(panel);
    const box = extent(panel, panel.variants);
    panel.scale = null;
    if (!box) { svg(panel.root, "text", { x: MARGIN.left, y: HEIGHT / 2 }, "not logged by the runs shown"); return; }
    const inner = { w: width - MARGIN.left - MARGIN.right, h: HEIGHT - MARGIN.top - MARGIN.bottom };
    const f = panel.log ? Math.log : (v) => v;
    const sx = (x) => MARGIN.left + ((x - box.x0) / (box.x1 - box.x0)) * inner.w;
    const sy = (y) => MARGIN.top + (1 - (f(y) - f(box.y0)) / (f(box.y1) - f(box.y0))) * inner.h;
    panel.scale = { sx, sy, box };
    drawAxes(panel, panel.scale, width);
    const id = "clip" + panels.indexOf(panel);
    svg(svg(panel.root, "clipPath", { id }), "rect", { x: MARGIN.left, y: 0, width: inner.w + 4, height: HEIGHT - MARGIN.bottom });
    drawCurves(svg(panel.root, "g", { "clip-path": `url(#${id})` }), panel.variants, sx, sy);
    panel.cross = svg(panel.root, "line", { class: "cross", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
  };

  const point = (panel, event) => {
    if (!panel.scale) return;
    const bounds = panel.root.getBoundingClientRect();
    const { box } = panel.scale;
    const share = (event.clientX - bounds.left - MARGIN.left) / (bounds.width - MARGIN.left - MARGIN.right);
    state.at = Math.min(box.x1, Math.max(box.x0, box.x0 + share * (box.x1 - box.x0)));
    for (const other of panels) {
      if (!other.scale || !other.cross) continue;
      const inside = state.at >= other.scale.box.x0 && state.at <= other.scale.box.x1;
      other.cross.setAttribute("visibility", inside ? "visible" : "hidden");
      other.cross.setAttribute("x1", other.scale.sx(state.at));
      other.cross.setAttribute("x2", other.scale.sx(state.at));
    }
    tell(panel, event.clientX - bounds.left, bounds.width);
  };
  const tell = (panel, x, width) => {
    panel.tip.replaceChildren();
    html(panel.tip, "small", "", `${state.axis} ${format(state.axis === "minutes" ? state.at : Math.round(state.at))}`);
    const table = html(panel.tip, "table");
    const value = (curves) => {
      const found = curves.map((curve) => interpolate(curve.x, curve.y, state.at)).filter((v) => v !== null);
      return found.length ? format(found.reduce((a, b) => a + b, 0) / found.length) : "–";
    };
    if (panel.spec.held_out && panel.spec.key) {
      const row = html(table, "tr");
      ["", "training", "held out"].forEach((text) => html(row, "td", "none", text));
    }
    for (const { name, number, train, held } of panel.variants) {
      if (!train.length && !held.length) continue;
      const row = html(table, "tr");
      const cell = html(row, "td");
      html(cell, "i", "swatch " + tone(number)).style.display = "inline-block";
      cell.append(" " + name);
      if (panel.spec.key) html(row, "td", "", value(train));
      if (panel.spec.held_out) html(row, "td", "", value(held));
    }
    panel.tip.hidden = false;
    const left = x > width / 2 ? x - panel.tip.offsetWidth - 14 : x + 14;
    panel.tip.style.left = Math.max(0, left) + "px";
    panel.tip.style.top = "40px";
  };
  const leave = () => {
    for (const panel of panels) { panel.tip.hidden = true; if (panel.cross) panel.cross.setAttribute("visibility", "hidden"); }
  };

  const more = document.getElementById("more");
  for (const spec of data.panels) {
    const place = html(spec.main ? host : more.querySelector(".panels"), "div", "panel");
    const title = html(place, "h3", "", spec.title);
    if (spec.unit) html(title, "small", "", spec.unit);
    const panel = { spec, zero: spec.zero, root: svg(place, "svg", { role: "img", "aria-label": spec.title }), tip: html(place, "div", "tip") };
    panel.tip.hidden = true;
    panel.root.addEventListener("pointermove", (event) => point(panel, event));
    panel.root.addEventListener("pointerleave", leave);
    panels.push(panel);
  }
  const others = data.panels.filter((spec) => !spec.main).length;
  if (others) { more.hidden = false; more.querySelector("summary").textContent = `${others} more metrics`; }
  more.addEventListener("toggle", () => panels.forEach(draw));

  const all = () => panels.forEach(draw);
  const how = document.getElementById("how");
  const seeds = data.runs.length > data.variants.length;
  how.textContent = "Point at a chart to read it; press a name to hide it. Thin: as logged" + (seeds ? ", and single seeds; thick: their mean" : "; thick: running mean") + ". Dotted with points: held out.";
  data.variants.forEach((name, number) => {
    const button = html(document.getElementById("legend"), "button", tone(number));
    html(button, "i", "swatch");
    html(button, "span", "", name);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const shown = state.hidden.has(number);
      if (shown) state.hidden.delete(number); else state.hidden.add(number);
      button.setAttribute("aria-pressed", String(shown));
      all();
    });
  });
  const bind = (id, event, change) => document.getElementById(id).addEventListener(event, (e) => { change(e.target); all(); });
  bind("axis", "change", (input) => { state.axis = input.value; });
  bind("smooth", "input", (input) => { state.smooth = +input.value; });
  bind("log", "change", (input) => { state.log = input.checked; });
  new ResizeObserver(all).observe(host);
  all();
})();
