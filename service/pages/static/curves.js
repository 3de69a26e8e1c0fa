// Metrics as curves, of one job or of two over each other: the base model as a dashed line, the best epoch circled.
"use strict";
(() => {
  const box = document.getElementById("curves");
  const CHARTS = [
    { title: "Loss", names: [["train/loss", "loss"]] },
    { title: "Validation", names: [["val/segm_mAP", "mask mAP"], ["val/cgF1", "cgF1"]], constants: [["base/segm_mAP", "base mask mAP"]], best: "val/segm_mAP" },
    { title: "Learning rate", names: [["train/lr", "rate"]] },
    { title: "Gradient norm", names: [["train/grad_norm", "norm"]] },
    { title: "Memory", names: [["sys/mem_used_bytes", "machine"], ["sys/gpu0/mem_used_bytes", "GPU"]], bytes: true },
  ];
  const HEIGHT = 190;
  const FEW = 60; // points that are drawn as points, too
  const jobs = JSON.parse(box.dataset.jobs).map(([label, url]) => ({ label, url, series: new Map(), constants: {}, lastStep: -1 }));
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

  // The lines of a chart: values at every step that any of them has.
  function linesOf(chart) {
    const names = jobs.length > 1 ? chart.names.slice(0, 1) : chart.names;
    const curves = jobs.flatMap((job) => names.filter(([name]) => job.series.has(name)).map(([name, label]) => (
      { label: jobs.length > 1 ? job.label : label, points: job.series.get(name) }
    )));
    const steps = [...new Set(curves.flatMap(({ points }) => points.map((point) => point.step)))].sort((a, b) => a - b);
    for (const curve of curves) {
      const values = new Map(curve.points.map((point) => [point.step, point.value]));
      curve.values = steps.map((step) => values.get(step) ?? null);
    }
    const constants = (jobs.length > 1 ? [] : chart.constants || [])
      .filter(([name]) => (jobs[0].constants[name] ?? null) !== null)
      .map(([name, label]) => ({ label, values: steps.map(() => jobs[0].constants[name]) }));
    return { steps, curves, constants };
  }

  function bestOf(points) {
    return (points || []).filter((point) => point.value !== null)
      .reduce((best, point) => (best === null || point.value > best.value ? point : best), null);
  }

  function circle(plot, point, stroke) {
    const { ctx } = plot;
    ctx.save();
    ctx.strokeStyle = stroke;
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.setLineDash([]); // not that of the line drawn before
    ctx.beginPath();
    ctx.arc(plot.valToPos(point.step, "x", true), plot.valToPos(point.value, "y", true), 6 * devicePixelRatio, 0, 2 * Math.PI);
    ctx.stroke();
    ctx.restore();
  }

  function draw() {
    const charts = CHARTS.map((chart) => [chart, linesOf(chart)]).filter(([, found]) => found.steps.length);
    if (!charts.length) return;
    for (const plot of drawn) plot.destroy();
    drawn = [];
    const figures = charts.map(([chart]) => {
      const figure = document.createElement("figure");
      figure.className = "curve";
      const caption = document.createElement("figcaption");
      caption.textContent = chart.title;
      figure.append(caption);
      return figure;
    });
    box.replaceChildren(...figures); // all, before any is measured
    const [ink, line, dashed] = ["--muted", "--line", "--base-line"].map(colour);
    const strokes = ["--tuned-line", "--good", "--bad"].map(colour);
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px system-ui" };
    for (const [index, [chart, { steps, curves, constants }]] of charts.entries()) {
      const value = (_, raw) => short(raw, chart.bytes);
      const best = chart.best && jobs.length === 1 ? bestOf(jobs[0].series.get(chart.best)) : null;
      drawn.push(new uPlot({
        width: figures[index].clientWidth,
        height: HEIGHT,
        scales: { x: { time: false } },
        cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
        axes: [axis, { ...axis, size: 62, values: (_, marks) => marks.map((mark) => short(mark, chart.bytes)) }],
        series: [
          { label: "step" },
          ...curves.map(({ label }, place) => ({ label, value, stroke: strokes[place % strokes.length], width: 2, spanGaps: true, points: { show: steps.length < FEW, size: 5 } })),
          ...constants.map(({ label }) => ({ label, value, stroke: dashed, width: 2, dash: [6, 5], points: { show: false } })),
        ],
        hooks: { draw: best ? [(plot) => circle(plot, best, strokes[0])] : [] },
      }, [steps, ...curves.map(({ values }) => values), ...constants.map(({ values }) => values)], figures[index]));
      if (best) figures[index].firstChild.textContent += `, best ${best.value.toFixed(3)} after epoch ${best.epoch}`;
    }
  }

  async function load(job) {
    const answer = await pages.ask(`${job.url}?after_step=${job.lastStep}&max_points=500`);
    const found = await answer.json();
    for (const [name, points] of Object.entries(found.series)) {
      job.series.set(name, [...(job.series.get(name) || []), ...points]);
    }
    const isNew = Object.keys(found.series).length > 0 || job.lastStep < 0;
    job.constants = found.constants;
    job.lastStep = found.last_step ?? job.lastStep;
    return isNew;
  }

  async function update() {
    if (busy) return;
    busy = true;
    try {
      if ((await Promise.all(jobs.map(load))).some(Boolean)) draw();
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
