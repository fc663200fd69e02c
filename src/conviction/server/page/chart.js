// The overview: all traces in one chart, faint, with the threshold and one trace drawn strongly.
//
// uPlot draws axes, threshold and the strong line. The faint ones are painted once each onto a
// canvas of their own, as they grow, and copied beneath: five hundred lines cost no more than one.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { cross, strokeLine } from "./drawing.js";
import { endedAt, pointsAt, tokenOf } from "./tape.js";

const PAINTING = 4; // Milliseconds per frame for painting anew.
const NEAR = 24; // Pixels from the pointer within which a line is meant.

export class Overview {
  /**
   * @param root The element that holds the chart.
   * @param onPoint Called with the number of the trace that is pointed at, or null.
   * @param onChoose Called with the number of the trace that was clicked.
   */
  constructor(root, { onPoint, onChoose }) {
    this.root = root;
    this.onPoint = onPoint;
    this.onChoose = onChoose;
    this.layer = document.createElement("canvas");
    this.plot = null;
    this.words = null;
    this.forget();
  }

  /** Make the chart anew: in another size, language or palette. */
  build(words, colours) {
    this.words = words;
    this.colours = colours;
    this.plot?.destroy();
    this.plot = null;
    this.forget();
  }

  forget() {
    this.painted = [];
    this.marked = new Set();
    this.repaintFrom = 0;
    this.stamp = "";
    this.dataStamp = "";
  }

  draw(tape, scales, moment, chosen) {
    const width = this.root.clientWidth;
    if (!width || !scales.known) return;
    if (!this.plot || this.plot.width !== width) this.create(width, scales);
    this.tape = tape;
    this.scales = scales;
    this.moment = moment;
    const painted = this.paint(tape, scales, moment);
    const gate = moment.gate?.threshold ?? null;
    const stamp = `${scales.epoch} ${chosen} ${gate} ${chosen === null ? 0 : this.strongPoints(chosen)}`;
    if (!painted && stamp === this.dataStamp) return;
    this.dataStamp = stamp;
    this.plot.setData(this.data(chosen, gate, moment.gate?.window ?? 0), false);
    this.plot.setScale("x", { min: 0, max: scales.tokens });
    this.plot.setScale("y", { min: scales.low, max: scales.high });
  }

  strongPoints(chosen) {
    const trace = this.tape.traces[chosen];
    return trace ? pointsAt(trace, this.moment.time) : 0;
  }

  data(chosen, gate, window) {
    const trace = chosen === null ? null : this.tape.traces[chosen];
    const count = trace ? pointsAt(trace, this.moment.time) : 0;
    const xs = [window, this.scales.tokens];
    const strong = new Map();
    for (let i = 0; i < count; i++) {
      if (trace.points[i] === null) continue;
      const x = tokenOf(trace, i);
      strong.set(x, trace.points[i] / 100);
      xs.push(x);
    }
    const sorted = [...new Set(xs)].sort((a, b) => a - b);
    return [
      sorted,
      sorted.map((x) => (gate !== null && x >= window ? gate : null)),
      sorted.map((x) => strong.get(x) ?? undefined),
    ];
  }

  create(width, scales) {
    this.plot?.destroy();
    this.forget();
    const { colours, words } = this;
    const font = `11px ${getComputedStyle(this.root).fontFamily}`;
    const axis = {
      stroke: colours.soft,
      font,
      grid: { stroke: colours.rule, width: 1 },
      ticks: { show: false },
    };
    const options = {
      width,
      height: this.root.clientHeight,
      padding: [10, 26, 0, 0],
      legend: { show: false },
      cursor: { x: true, y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: { x: { time: false, auto: false }, y: { auto: false } },
      axes: [
        { ...axis, size: 26, space: 80, values: (_, ticks) => ticks.map((tick) => words.number(tick)) },
        { ...axis, size: 34, space: 34 },
      ],
      series: [
        {},
        { stroke: colours.low, width: 1.5, dash: [6, 4], points: { show: false }, spanGaps: true },
        { stroke: colours.ink, width: 2, points: { show: false }, spanGaps: true },
      ],
      hooks: {
        drawAxes: [(plot) => this.copy(plot)],
        draw: [(plot) => this.label(plot)],
        setCursor: [(plot) => this.point(plot)],
      },
    };
    this.plot = new uPlot(options, [[0, scales.tokens], [null, null], [null, null]], this.root);
    this.plot.over.addEventListener("click", () => {
      if (this.pointed !== null) this.onChoose(this.pointed);
    });
    this.plot.over.addEventListener("mouseleave", () => this.tell(null));
    this.pointed = null;
  }

  /** Paint what lines have grown by, and all of them anew where that has to be; whether it did. */
  paint(tape, scales, moment) {
    const { width, height } = this.plot.bbox;
    const resized = this.layer.width !== width || this.layer.height !== height;
    const leader = moment.vote?.rows[0]?.[0] ?? null;
    const stamp = `${tape.epoch} ${scales.epoch} ${leader}`;
    if (resized || stamp !== this.stamp || moment.time < this.time) {
      this.layer.width = width;
      this.layer.height = height;
      this.stamp = stamp;
      this.painted = [];
      this.marked.clear();
    }
    this.time = moment.time;
    const context = this.layer.getContext("2d");
    const alpha = Math.max(0.1, Math.min(0.55, 2.2 / Math.sqrt(Math.max(moment.begun, 1))));
    context.lineJoin = "round";
    context.lineWidth = (window.devicePixelRatio || 1) * (moment.begun > 100 ? 0.8 : 1.1);
    const until = performance.now() + PAINTING;
    let did = false;
    this.unfinished = false;
    for (let step = 0; step < moment.begun; step++) {
      const number = (this.repaintFrom + step) % moment.begun;
      const trace = tape.traces[number];
      if (this.paintTrace(context, trace, moment, scales, { alpha, leader })) did = true;
      if ((step & 15) === 15 && performance.now() > until) {
        this.repaintFrom = (number + 1) % moment.begun;
        this.unfinished = true;
        return true;
      }
    }
    return did;
  }

  paintTrace(context, trace, moment, scales, { alpha, leader }) {
    const { width, height } = this.layer;
    let done = this.painted[trace.id];
    if (done && done.stride !== trace.stride) {
      const count = Math.floor((done.count * done.stride) / trace.stride);
      done = { ...done, stride: trace.stride, count };
    }
    // What voted for the leader is painted over in its colour.
    const leads = moment.voters.has(trace.id) && trace.end.class === leader;
    const from = done && done.leads === leads ? done.count : 0;
    const count = pointsAt(trace, moment.time);
    const stopped = endedAt(trace, moment.time) && trace.end.finish === "low_confidence";
    const mark = stopped && !this.marked.has(trace.id);
    if (count <= from && !mark) return false;
    context.strokeStyle = leads ? this.colours.accent : this.colours.ink;
    const strength = leads ? Math.min(1, alpha * 1.8) : alpha;
    const room = { width, height, alpha: strength };
    strokeLine(context, trace, [Math.max(from - 1, 0), count], scales, room);
    this.painted[trace.id] = { stride: trace.stride, count, leads };
    if (mark && count) {
      this.marked.add(trace.id);
      const x = scales.x(tokenOf(trace, count - 1), width);
      cross(context, x, scales.yOf(trace.points[count - 1] ?? 0, height), this.colours.low);
    }
    return true;
  }

  copy(plot) {
    if (this.layer.width) plot.ctx.drawImage(this.layer, plot.bbox.left, plot.bbox.top);
  }

  label(plot) {
    const gate = this.moment?.gate;
    const ratio = window.devicePixelRatio || 1;
    const { left, top, width, height } = plot.bbox;
    plot.ctx.save();
    plot.ctx.font = `${11 * ratio}px ${getComputedStyle(this.root).fontFamily}`;
    plot.ctx.textAlign = "right";
    plot.ctx.fillStyle = this.colours.soft;
    plot.ctx.fillText(this.words.say("tokensAxis"), left + width - 6 * ratio, top + height - 7 * ratio);
    plot.ctx.restore();
    if (!gate) return;
    const text = `${this.words.say("threshold")} ${this.words.decimal(gate.threshold)}`;
    const y = plot.valToPos(gate.threshold, "y", true);
    const { ctx } = plot;
    ctx.save();
    ctx.font = `600 ${11 * ratio}px ${getComputedStyle(this.root).fontFamily}`;
    ctx.textAlign = "right";
    ctx.fillStyle = this.colours.low;
    ctx.strokeStyle = this.colours.paper;
    ctx.lineWidth = 4 * ratio;
    const x = left + width - 6 * ratio;
    ctx.strokeText(text, x, y - 6 * ratio);
    ctx.fillText(text, x, y - 6 * ratio);
    ctx.restore();
  }

  /** Find the line nearest to the pointer. */
  point(plot) {
    const { left, top } = plot.cursor;
    if (left < 0 || !this.moment) return this.tell(null);
    const token = plot.posToVal(left, "x");
    const height = plot.over.clientHeight;
    let nearest = null;
    let least = NEAR;
    for (let i = 0; i < this.moment.begun; i++) {
      const trace = this.tape.traces[i];
      const place = Math.round(token / trace.stride) - 1;
      if (place < 0 || place >= pointsAt(trace, this.moment.time)) continue;
      const point = trace.points[place];
      if (point === null) continue;
      const distance = Math.abs(this.scales.yOf(point, height) - top);
      if (distance < least) [nearest, least] = [i, distance];
    }
    this.tell(nearest);
  }

  tell(number) {
    if (number === this.pointed) return;
    this.pointed = number;
    this.plot.over.classList.toggle("pointing", number !== null);
    this.onPoint(number);
  }
}
