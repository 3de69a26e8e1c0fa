// A job's metrics as curves: losses, the base model as a dashed line, the best epoch marked.
"use strict";
(() => {
  const box = document.getElementById("curves");
  const CHARTS = [
    { title: "Loss", names: [["train/loss", "loss"]] },
    { title: "Validation", names: [["val/segm_mAP", "mask mAP"], ["val/cgF1", "cgF1"]], constants: [["base/segm_mAP", "base mask mAP"]], best: true },
    { title: "Learning rate", names: [["train/lr", "rate"]] },
    { title: "Gradient norm", names: [["train/grad_norm", "norm"]] },
    { title: "Memory", names: [["sys/mem_used_bytes", "machine"], ["sys/gpu0/mem_used_bytes", "GPU"]], bytes: true },
  ];
  const series = new Map(); // by name: points in order of steps
  let constants = {};
  let lastStep = -1;
  let drawn = [];
  let busy = false;

  function colour(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    box.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  function short(value, isBytes) {
    if (value === null || value === undefined) return "–";
    if (isBytes) return `${(value / 1e9).toFixed(2)} GB`;
    const size = Math.abs(value);
    return size !== 0 && (size < 0.001 || size >= 100000) ? value.toExponential(1) : String(Number(value.toPrecision(4)));
  }

  function table(chart) {
    const names = chart.names.filter(([name]) => series.has(name));
    const steps = [...new Set(names.flatMap(([name]) => series.get(name).map((point) => point.step)))].sort((a, b) => a - b);
    const columns = names.map(([name]) => {
      const values = new Map(series.get(name).map((point) => [point.step, point.value]));
      return steps.map((step) => values.get(step) ?? null);
    });
    const lines = (chart.constants || []).filter(([name]) => constants[name] !== undefined && constants[name] !== null);
    return { names, lines, data: [steps, ...columns, ...lines.map(([name]) => steps.map(() => constants[name]))] };
  }

  function bestOf(name) {
    const points = (series.get(name) || []).filter((point) => point.value !== null);
    return points.reduce((best, point) => (best === null || point.value > best.value ? point : best), null);
  }

  function draw() {
    const charts = CHARTS.map((chart) => [chart, table(chart)]).filter(([, found]) => found.data[0].length);
    if (!charts.length) return;
    for (const plot of drawn) plot.destroy();
    drawn = [];
    box.replaceChildren();
    const ink = colour("--muted");
    const line = colour("--line");
    const strokes = [colour("--tuned-line"), colour("--good"), colour("--bad")];
    const figures = charts.map(([chart]) => {
      const figure = document.createElement("figure");
      figure.className = "curve";
      const caption = document.createElement("figcaption");
      caption.textContent = chart.title;
      figure.append(caption);
      return figure;
    });
    box.append(...figures); // all, before any is measured
    for (const [index, [chart, { names, lines, data }]] of charts.entries()) {
      const figure = figures[index];
      const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px system-ui" };
      const value = (_, raw) => short(raw, chart.bytes);
      const isSparse = data[0].length < 60;
      drawn.push(new uPlot({
        width: figure.clientWidth,
        height: 190,
        scales: { x: { time: false } },
        legend: { live: true },
        cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
        axes: [axis, { ...axis, size: 62, values: (_, marks) => marks.map((mark) => short(mark, chart.bytes)) }],
        series: [
          { label: "step" },
          ...names.map(([, label], place) => ({ label, value, stroke: strokes[place], width: 2, spanGaps: true, points: { show: isSparse, size: 5 } })),
          ...lines.map(([, label]) => ({ label, value, stroke: colour("--base-line"), width: 2, dash: [6, 5], points: { show: false } })),
        ],
        hooks: {
          draw: chart.best ? [(plot) => {
            const best = bestOf("val/segm_mAP");
            if (!best) return;
            const x = plot.valToPos(best.step, "x", true);
            const y = plot.valToPos(best.value, "y", true);
            plot.ctx.save();
            plot.ctx.strokeStyle = strokes[0];
            plot.ctx.lineWidth = 2 * devicePixelRatio;
            plot.ctx.beginPath();
            plot.ctx.arc(x, y, 6 * devicePixelRatio, 0, 2 * Math.PI);
            plot.ctx.stroke();
            plot.ctx.restore();
          }] : [],
        },
      }, data, figure));
      const best = chart.best && bestOf("val/segm_mAP");
      if (best) {
        figure.firstChild.textContent += `: best ${short(best.value)} after epoch ${best.epoch} (circled)`;
      }
    }
  }

  async function update() {
    if (busy) return;
    busy = true;
    try {
      const answer = await pages.ask(`${box.dataset.metrics}?after_step=${lastStep}&max_points=500`);
      const found = await answer.json();
      for (const [name, points] of Object.entries(found.series)) {
        series.set(name, [...(series.get(name) || []), ...points]);
      }
      if (Object.keys(found.series).length || lastStep < 0) {
        constants = found.constants;
        lastStep = found.last_step ?? lastStep;
        draw();
      }
    } catch {
      // the next news brings another try
    } finally {
      busy = false;
    }
  }

  let resizing;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(draw, 150);
  });
  document.addEventListener("theme-changed", draw);
  document.addEventListener("job-changed", update);
  update();
})();
