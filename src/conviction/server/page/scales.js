// The axes that the overview and all rows share, so that lines can be compared at a glance.

const SCALE = 100; // Points are whole hundredths.
const STEPS = [1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8];

/** The axes: they grow in steps, so that what was painted stays valid for long. */
export class Scales {
  constructor() {
    this.reset();
  }

  reset() {
    this.tokens = 0;
    this.low = Infinity;
    this.high = -Infinity;
    this.stage = "";
    this.settled = false;
    this.epoch = (this.epoch ?? 0) + 1;
  }

  /** Make room for all that the tape holds; whether an axis changed. */
  fit(tape) {
    this.tape = tape;
    if (tape.over && !this.settled) {
      // Room that was kept for more is of no use any more.
      this.reset();
      this.settled = true;
    }
    let changed = false;
    if (tape.longest > this.tokens || this.tokens === 0) {
      this.tokens = roundUp(Math.max(tape.longest * (tape.over ? 1.02 : 1.3), 20));
      changed = true;
    }
    if (tape.low <= tape.high) {
      const gate = tape.gates.at(-1)?.threshold ?? tape.low / SCALE;
      const low = Math.min(tape.low / SCALE, gate);
      const high = Math.max(tape.high / SCALE, gate);
      if (low < this.low || high > this.high) {
        const room = Math.max((high - low) * 0.12, 0.5);
        this.low = Math.max(0, Math.floor((low - room) * 2) / 2);
        this.high = Math.ceil((high + room) * 2) / 2;
        changed = true;
      }
    }
    const points = tape.traces.reduce((sum, trace) => sum + trace.points.length, 0);
    const stage = `${tape.gates.length} ${Math.floor(Math.log2(points + 1))}`;
    if (stage !== this.stage) changed = true;
    this.stage = stage;
    if (changed) this.epoch += 1;
    return changed;
  }

  /** Whether there is any confidence to draw. */
  get known() {
    return this.low < this.high;
  }

  /** The range of most points and of the threshold: small lines have no room for the rare ones. */
  get middle() {
    if (this.middleEpoch !== this.epoch) {
      this.middleEpoch = this.epoch;
      this.middleRange = middleOf(this.tape, this.low, this.high);
    }
    return this.middleRange;
  }

  x(token, width) {
    return (token / this.tokens) * width;
  }

  y(confidence, height) {
    return height - ((confidence - this.low) / (this.high - this.low)) * height;
  }

  /** The same on a small line: what lies outside of the middle stands at its edge. */
  yMiddle(confidence, height) {
    const [low, high] = this.middle;
    return height * (1 - Math.min(Math.max((confidence - low) / (high - low), 0), 1));
  }

  /** Where a point in hundredths stands. */
  yOf(point, height) {
    return this.y(point / SCALE, height);
  }
}

function middleOf(tape, low, high) {
  const points = [];
  for (const trace of tape.traces) {
    const step = Math.max(1, trace.points.length >> 3);
    for (let i = trace.partial; i < trace.points.length; i += step) {
      if (trace.points[i] !== null) points.push(trace.points[i] / SCALE);
    }
  }
  const gate = tape.gates.at(-1)?.threshold;
  if (points.length < 8) return [low, high];
  points.sort((a, b) => a - b);
  const at = (part) => points[Math.floor(part * (points.length - 1))];
  const [bottom, top] = [Math.min(at(0.08), gate ?? Infinity), Math.max(at(0.92), gate ?? -Infinity)];
  const room = Math.max((top - bottom) * 0.15, 0.2);
  return [bottom - room, top + room];
}

function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = STEPS.find((one) => one * power >= value) ?? 10;
  return step * power;
}

/** Colours of the page's style, for canvases, which know nothing of light and dark. */
export function palette() {
  const probe = document.body.appendChild(document.createElement("i"));
  const colours = {};
  for (const name of ["ink", "soft", "faint", "rule", "accent", "low", "paper"]) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return colours;
}
