// The clock of the page: which moment of a tape is shown. Live is playing a little behind the end.

const BEHIND = 350; // Milliseconds behind a live run, so that lines grow evenly between two frames.
const TOO_FAR = 2500; // A page that slept catches up at once.

export class Player {
  constructor() {
    this.now = 0;
    this.speed = 1;
    this.playing = false;
    this.following = false;
    this.heard = 0;
  }

  /** Follow a live run. */
  follow() {
    this.following = true;
    this.playing = true;
    this.speed = 1;
  }

  /** Play from the beginning, or from where it stands. */
  play(tape) {
    if (this.now >= tape.at && tape.over) this.now = 0;
    this.playing = true;
  }

  pause() {
    this.playing = false;
    this.following = false;
  }

  /** Go to a moment. */
  seek(time) {
    this.following = false;
    this.now = time;
  }

  /** Stand at the end of a run that is over. */
  end(tape) {
    this.following = false;
    this.playing = false;
    this.now = tape.at;
  }

  /** Let `elapsed` milliseconds pass; whether the shown moment moved. */
  tick(tape, elapsed) {
    if (!this.playing) return false;
    const before = this.now;
    let next = before + elapsed * this.speed;
    if (this.following) {
      // A run that stands still is shown to its end.
      const behind = Math.max(0, BEHIND - (performance.now() - this.heard));
      const target = tape.over ? tape.at : tape.at - behind;
      if (target - next > TOO_FAR) next = target;
      else next += (target - next) * Math.min(1, elapsed / 1500);
      next = Math.max(before, next);
    }
    this.now = Math.min(next, tape.at);
    if (tape.over && this.now >= tape.at) {
      this.playing = false;
      this.following = false;
    }
    return this.now !== before;
  }
}
