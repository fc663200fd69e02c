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
    this.epoch = (this.epoch ?? 0) + 1;
  }

  /** Make room for all that the tape holds; whether an axis changed. */
  fit(tape) {
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
    if (changed) this.epoch += 1;
    return changed;
  }

  /** Whether there is any confidence to draw. */
  get known() {
    return this.low < this.high;
  }

  x(token, width) {
    return (token / this.tokens) * width;
  }

  y(confidence, height) {
    return height - ((confidence - this.low) / (this.high - this.low)) * height;
  }

  /** Where a point in hundredths stands. */
  yOf(point, height) {
    return this.y(point / SCALE, height);
  }
}

function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = STEPS.find((one) => one * power >= value) ?? 10;
  return step * power;
}

/** Colours of the page's style, for canvases. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: colour("ink"),
    soft: colour("soft"),
    faint: colour("faint"),
    rule: colour("rule"),
    accent: colour("accent"),
    low: colour("low"),
    paper: colour("paper"),
  };
}
