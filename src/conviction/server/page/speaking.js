// What a screen reader is told while a run goes on: milestones, never every token.

export class Speaker {
  constructor(element) {
    this.element = element;
    this.forget();
  }

  forget() {
    this.began = false;
    this.gate = null;
    this.leader = null;
    this.done = false;
  }

  say(text) {
    this.element.textContent = text;
  }

  /** Tell what is new at a moment; nothing while somebody goes back and forth. */
  hear(tape, moment, words) {
    const said = [];
    if (tape.run && !this.began) {
      this.began = true;
      said.push(words.say("said.began", { budget: words.number(tape.run.budget) }));
    }
    const threshold = moment.gate?.threshold ?? null;
    if (threshold !== this.gate) {
      this.gate = threshold;
      if (threshold !== null) said.push(words.say("said.threshold", { threshold: words.decimal(threshold) }));
    }
    const row = moment.vote?.rows[0];
    if (row && row[0] !== this.leader) {
      this.leader = row[0];
      const answer = tape.answers[row[0]];
      said.push(words.say("said.leads", { answer, votes: words.number(row[2]) }));
    }
    if (moment.done && !this.done) {
      this.done = true;
      if (moment.failed) said.push(words.say("said.failed", { reason: moment.failed }));
      else if (moment.verdict) {
        const answer = moment.verdict.answer ?? words.say("noAnswer");
        said.push(words.say("said.verdict", { answer }));
      }
    }
    if (!moment.done) this.done = false;
    if (said.length) this.say(said.join(" "));
  }
}
