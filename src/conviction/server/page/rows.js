// The list of traces: one row each, and only those that are on screen are in the document.

import { sparkline } from "./drawing.js";
import { endedAt, pointsAt, stateAt, tokensAt } from "./tape.js";

const GLYPHS = {
  thinking: "●",
  voted: "✓",
  stop: "○",
  length: "⋯",
  low_confidence: "✕",
  consensus: "–",
  cancelled: "–",
  error: "!",
};

const FILTERS = {
  all: () => true,
  thinking: (state) => state === "thinking",
  voted: (state) => state === "voted",
  stopped: (state) => state === "low_confidence",
  other: (state) => !["thinking", "voted", "low_confidence"].includes(state),
};

const SPARE = 3; // Rows above and below the visible ones.

export class Rows {
  /**
   * @param root The scrolling list.
   * @param filters Where the filters stand.
   * @param onChoose Called with the number of the chosen trace, or null.
   * @param onOpen Called with the number of a trace that is to be opened.
   */
  constructor(root, filters, { onChoose, onOpen }) {
    this.root = root;
    this.inside = root.querySelector(".inside");
    this.filters = filters;
    this.onChoose = onChoose;
    this.onOpen = onOpen;
    this.pool = [];
    this.chosen = null;
    this.filter = "all";
    this.shown = [];
    root.addEventListener("scroll", () => this.redraw?.(), { passive: true });
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("focus", () => {
      if (this.chosen === null && this.shown.length) this.choose(this.shown[0]);
    });
    this.inside.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (!row) return;
      this.choose(Number(row.dataset.trace));
      this.onOpen(this.chosen);
    });
  }

  /** Speak another language. */
  build(words) {
    this.words = words;
    this.filters.replaceChildren(
      ...Object.keys(FILTERS).map((name) => {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.filter = name;
        button.append(words.say(`filter.${name}`), " ", document.createElement("span"));
        button.addEventListener("click", () => {
          this.filter = name;
          this.root.scrollTop = 0;
          this.redraw?.();
        });
        return button;
      }),
    );
    for (const row of this.pool) row.stamp = "";
  }

  /** Another run is to be shown. */
  reset() {
    this.redraw = null;
    this.shown = [];
    this.chosen = null;
    this.filter = "all";
    this.root.scrollTop = 0;
  }

  choose(number, { scroll = true } = {}) {
    this.chosen = number;
    if (scroll && number !== null) this.reveal(number);
    this.onChoose(number);
    this.redraw?.();
  }

  draw(tape, scales, moment, colours) {
    this.redraw = () => this.draw(tape, scales, moment, colours);
    const states = [];
    for (let i = 0; i < moment.begun; i++) states.push(stateAt(tape.traces[i], moment.time, moment.voters));
    this.count(states);
    const wanted = FILTERS[this.filter];
    this.shown = [];
    for (let i = 0; i < states.length; i++) if (wanted(states[i])) this.shown.push(i);
    this.height = this.rowHeight();
    this.inside.style.height = `${this.shown.length * this.height}px`;
    const first = Math.max(0, Math.floor(this.root.scrollTop / this.height) - SPARE);
    const last = Math.min(
      this.shown.length,
      Math.ceil((this.root.scrollTop + this.root.clientHeight) / this.height) + SPARE,
    );
    this.fill(Math.max(0, last - first));
    const leader = moment.vote?.rows[0]?.[0] ?? null;
    this.pool.forEach((row, slot) => {
      const place = first + slot;
      row.element.hidden = place >= last;
      if (place >= last) return;
      const number = this.shown[place];
      const facts = { place, of: this.shown.length, state: states[number], leader, epoch: scales.epoch };
      this.drawRow(row, tape.traces[number], facts, { tape, scales, moment, colours });
    });
    const active = this.chosen !== null && this.shown.includes(this.chosen);
    if (active) this.root.setAttribute("aria-activedescendant", `row-${this.chosen}`);
    else this.root.removeAttribute("aria-activedescendant");
  }

  rowHeight() {
    return parseFloat(getComputedStyle(this.root).getPropertyValue("--row")) || 40;
  }

  count(states) {
    for (const button of this.filters.children) {
      const wanted = FILTERS[button.dataset.filter];
      const count = states.reduce((sum, state) => sum + wanted(state), 0);
      setText(button.lastElementChild, this.words.number(count));
      button.setAttribute("aria-pressed", String(button.dataset.filter === this.filter));
    }
  }

  fill(count) {
    while (this.pool.length < count) {
      const element = document.createElement("div");
      element.className = "row";
      element.setAttribute("role", "option");
      const part = (name, tag = "span") => {
        const child = document.createElement(tag);
        child.className = name;
        element.append(child);
        return child;
      };
      const row = { element, stamp: "", line: "" };
      row.number = part("number");
      row.spark = part("spark", "canvas");
      row.tokens = part("count");
      row.glyph = part("glyph");
      row.glyph.ariaHidden = "true";
      row.state = part("state");
      row.answer = part("given");
      this.inside.append(element);
      this.pool.push(row);
    }
  }

  drawRow(row, trace, { place, of, state, leader, epoch }, { scales, moment, colours }) {
    const { words } = this;
    const tokens = tokensAt(trace, moment.time);
    const ended = endedAt(trace, moment.time);
    const leads = state === "voted" && trace.end.class === leader;
    const chosen = trace.id === this.chosen;
    const stamp = [trace.id, place, of, tokens, state, leads, chosen, words.language].join();
    if (stamp !== row.stamp) {
      row.stamp = stamp;
      const { element } = row;
      element.id = `row-${trace.id}`;
      element.dataset.trace = trace.id;
      element.dataset.state = state;
      element.style.transform = `translateY(${place * this.height}px)`;
      element.classList.toggle("chosen", chosen);
      element.classList.toggle("leads", leads);
      element.setAttribute("aria-selected", String(chosen));
      element.setAttribute("aria-posinset", place + 1);
      element.setAttribute("aria-setsize", of);
      const answer = ended ? (trace.end.answer ?? "") : "";
      element.setAttribute("aria-label", this.label(trace, state, tokens, answer));
      element.title = ended ? (trace.end.error ?? "") : "";
      setText(row.number, trace.id);
      setText(row.tokens, words.number(tokens));
      setText(row.glyph, GLYPHS[state] ?? "·");
      setText(row.state, words.say(`state.${state}`));
      setText(row.answer, answer);
    }
    const points = pointsAt(trace, moment.time);
    const gate = moment.gate?.threshold;
    const line = [
      trace.id, points, trace.stride, scales.known ? 0 : tokens, state, leads, gate, epoch,
      row.spark.clientWidth, colours.ink,
    ].join(); // prettier-ignore
    if (line === row.line) return;
    row.line = line;
    sparkline(row.spark, trace, scales, moment, colours, leads);
  }

  label(trace, state, tokens, answer) {
    const { words } = this;
    const parts = [
      words.say("row", {
        number: words.number(trace.id),
        state: words.say(`state.${state}`),
        tokens: words.number(tokens),
      }),
    ];
    if (answer) parts.push(words.say("rowAnswer", { answer }));
    if (trace.lost) parts.push(words.say("rowRestarted", { lost: words.number(trace.lost) }));
    return parts.join("");
  }

  key(event) {
    const place = this.shown.indexOf(this.chosen);
    const page = Math.max(1, Math.floor(this.root.clientHeight / this.height) - 1);
    const moves = {
      ArrowDown: place + 1,
      ArrowUp: Math.max(place, 0) - 1,
      PageDown: place + page,
      PageUp: place - page,
      Home: 0,
      End: this.shown.length - 1,
    };
    if (event.key === "Enter" && this.chosen !== null) this.onOpen(this.chosen);
    else if (event.key in moves && this.shown.length) {
      const to = Math.min(Math.max(moves[event.key], 0), this.shown.length - 1);
      this.choose(this.shown[to]);
    } else return;
    event.preventDefault();
  }

  reveal(number) {
    const place = this.shown.indexOf(number);
    if (place < 0) return;
    const top = place * this.height;
    const bottom = top + this.height;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    else if (bottom > this.root.scrollTop + this.root.clientHeight) {
      this.root.scrollTop = bottom - this.root.clientHeight;
    }
  }
}

/** Set a text only where it changed: layout is dear. */
export function setText(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}
