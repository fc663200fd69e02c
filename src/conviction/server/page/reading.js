// The panel in which a trace is read, with the passages marked of which the model was least sure.

import { sparkline } from "./drawing.js";
import { setText } from "./rows.js";
import { endedAt, stateAt, tokensAt } from "./tape.js";

const AGAIN = 1000; // Milliseconds between two looks at a trace that is being written.
const MARKS = ["", "less", "least"];

const find = (id) => document.getElementById(id);

export class Reading {
  /**
   * @param onStep Called with -1 or 1 to read the trace before or after.
   * @param onClose Called when the panel was closed.
   */
  constructor({ onStep, onClose }) {
    this.dialog = find("trace");
    this.number = null;
    find("trace-close").addEventListener("click", () => this.dialog.close());
    find("trace-before").addEventListener("click", () => onStep(-1));
    find("trace-after").addEventListener("click", () => onStep(1));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    this.dialog.addEventListener("close", () => {
      this.number = null;
      clearTimeout(this.timer);
      onClose();
    });
  }

  get open() {
    return this.dialog.open;
  }

  /**
   * Show a trace.
   *
   * @param number The trace.
   * @param source Gives its text: `text(number)`.
   */
  show(number, source) {
    const another = number !== this.number;
    this.number = number;
    this.source = source;
    this.stamp = "";
    if (another) {
      find("trace-text").replaceChildren();
      find("trace-text").scrollTop = 0;
      this.told = "";
    }
    if (!this.dialog.open) this.dialog.showModal();
    clearTimeout(this.timer);
    this.load();
  }

  async load() {
    const { number } = this;
    let told;
    try {
      told = await this.source.text(number);
    } catch {
      told = null;
    }
    if (number !== this.number) return;
    this.fill(told);
    if (told?.running) this.timer = setTimeout(() => this.load(), AGAIN);
  }

  fill(told) {
    const { words } = this;
    const pieces = told?.pieces ?? [];
    const stamp = JSON.stringify(pieces);
    if (stamp !== this.told) {
      this.told = stamp;
      find("trace-text").replaceChildren(
        ...pieces.map(([text, mark]) => {
          const piece = document.createElement(mark ? "mark" : "span");
          if (mark) piece.className = MARKS[mark];
          piece.textContent = text;
          return piece;
        }),
      );
    }
    const notes = [];
    const marked = pieces.filter(([, mark]) => mark).length;
    if (!pieces.length) notes.push(words.say(told?.running ? "noTextYet" : "noText"));
    if (marked) notes.push(`${words.say("markedCount", { count: words.number(marked) })}.`);
    if (told?.left) notes.push(words.say("textCut", { characters: words.number(told.left) }));
    if (told?.spread) notes.push(words.say("textSpread"));
    setText(find("trace-note"), notes.join(" "));
  }

  draw(tape, scales, moment, colours, words) {
    this.words = words;
    if (this.number === null) return;
    const trace = tape.traces[this.number];
    const state = stateAt(trace, moment.time, moment.voters);
    setText(find("trace-title"), words.say("traceTitle", { number: words.number(trace.id) }));
    const tokens = words.number(tokensAt(trace, moment.time));
    const parts = [words.say(`state.${state}`), `${tokens} ${words.say("tokensAxis")}`];
    if (endedAt(trace, moment.time)) {
      if (trace.end.answer) parts.push(trace.end.answer);
      if (trace.end.error) parts.push(trace.end.error);
    }
    setText(find("trace-facts"), parts.join(" · "));
    const leader = moment.vote?.rows[0]?.[0];
    sparkline(find("trace-line"), trace, scales, moment, colours, state === "voted" && trace.end.class === leader);
  }
}
