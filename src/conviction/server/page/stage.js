// Shows one run: everything that moves is drawn here, at most once per frame of the screen.

import { Overview } from "./chart.js";
import { drawConclusion } from "./conclusion.js";
import { Player } from "./player.js";
import { Reading } from "./reading.js";
import { Rows, setText } from "./rows.js";
import { Scales, palette } from "./scales.js";
import { Speaker } from "./speaking.js";
import { Tape, momentOf } from "./tape.js";

const SLOW = 100; // Milliseconds between two drawings of everything but rows and lines.

const find = (id) => document.getElementById(id);

export class Stage {
  constructor() {
    this.tape = new Tape();
    this.player = new Player();
    this.scales = new Scales();
    this.speaker = new Speaker(find("said"));
    this.source = null;
    this.pointed = null;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.rows = new Rows(find("traces"), find("filters"), {
      onChoose: () => this.wake(),
      onOpen: (number) => this.read(number),
    });
    this.overview = new Overview(find("chart"), {
      onPoint: (number) => {
        this.pointed = number;
        this.wake();
      },
      onChoose: (number) => {
        this.rows.choose(number);
        this.read(number);
      },
    });
    this.reading = new Reading({
      onStep: (step) => this.step(step),
      onClose: () => find("traces").focus(),
    });
    this.onMoment = () => {};
    new ResizeObserver(() => this.wake()).observe(find("chart"));
    this.last = this.drawn = 0;
    this.behind = false;
    this.frame = this.frame.bind(this);
  }

  /** Begin to show another run. */
  show(source) {
    this.source = source;
    this.tape.clear();
    this.tape.number = 0;
    this.player = new Player();
    this.scales.reset();
    this.speaker.forget();
    this.overview.forget();
    this.rows.reset();
    find("run").hidden = false;
    document.body.classList.add("watching");
    this.wake();
  }

  /** Take in a frame; the first one tells whether the run is live or past. */
  hear(frame, first) {
    this.tape.apply(frame);
    this.player.heard = performance.now();
    if (first && this.tape.over) this.player.end(this.tape);
    else if (first) {
      this.player.follow();
      this.player.now = Math.max(0, this.tape.at - 500);
    }
    this.wake();
  }

  speak(words) {
    this.words = words;
    this.colours = palette();
    this.rows.build(words);
    this.overview.build(words, this.colours);
    this.wake();
  }

  restyle() {
    this.speak(this.words);
  }

  read(number) {
    if (number === null) return;
    this.reading.words = this.words;
    this.reading.show(number, this.source);
    this.wake();
  }

  step(by) {
    const { shown, chosen } = this.rows;
    const place = Math.min(Math.max(shown.indexOf(chosen) + by, 0), shown.length - 1);
    this.rows.choose(shown[place]);
    this.read(shown[place]);
  }

  wake() {
    this.drawn = 0;
    if (this.awake) return;
    this.awake = true;
    this.last = performance.now();
    requestAnimationFrame(this.frame);
  }

  frame(now) {
    const elapsed = Math.max(0, now - this.last);
    this.last = now;
    const moved = this.player.tick(this.tape, elapsed);
    this.behind ||= moved || this.overview.unfinished;
    const pause = this.calm.matches ? 5 * SLOW : 0;
    if (this.drawn === 0 || (this.behind && now - this.drawn >= pause)) this.draw(now);
    this.awake = this.player.playing || this.behind || this.drawn === 0;
    if (this.awake) requestAnimationFrame(this.frame);
  }

  draw(now) {
    const { tape, player, scales, words, colours } = this;
    if (find("run").hidden) {
      this.drawn = now;
      this.behind = false;
      return;
    }
    scales.fit(tape);
    const moment = momentOf(tape, player.now);
    this.rows.draw(tape, scales, moment, colours);
    this.overview.draw(tape, scales, moment, this.pointed ?? this.rows.chosen);
    if (this.drawn === 0 || now - (this.slow ?? 0) >= SLOW || moment.done) {
      this.slow = now;
      drawConclusion(tape, moment, words, "starting");
      this.drawFacts(moment);
      this.reading.draw(tape, scales, moment, colours, words);
      this.speaker.hear(tape, moment, words);
    }
    this.onMoment(moment);
    // What was left out this time is drawn even if nothing moves any more.
    this.behind = this.slow !== now || this.overview.unfinished;
    this.drawn = now;
  }

  drawFacts(moment) {
    const { tape, words } = this;
    const { run } = tape;
    find("chart").hidden = !this.scales.known;
    if (!run) return;
    setText(find("asked"), run.question);
    const policy = [run.policy.name, `${words.say("budget")} ${words.number(run.budget)}`, run.engine];
    if (run.concurrency) policy.push(words.say("atOnce", { count: words.number(run.concurrency) }));
    setText(find("facts"), policy.join(" · "));
    const window = moment.gate?.window ?? tape.traces[0]?.window ?? run.window;
    const known = run.confidences;
    const chosen = moment.gate || window !== run.window;
    const name = !known ? "noConfidence" : chosen ? "groups" : "groupsForShow";
    setText(find("lines-note"), words.say(name, { window: words.number(window) }));
    let label = words.say("chartLabel", { count: words.number(moment.begun), window: words.number(window) });
    if (moment.gate) label += words.say("withThreshold", { threshold: words.decimal(moment.gate.threshold) });
    find("chart").setAttribute("aria-label", label);
  }
}
