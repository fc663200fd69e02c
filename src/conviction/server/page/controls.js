// Play, pause, go to a moment, choose a speed.

import { setText } from "./rows.js";

const SPEEDS = [0.5, 1, 2, 4, 8, 16, 32, 64];

const find = (id) => document.getElementById(id);

export class Controls {
  constructor(stage) {
    this.stage = stage;
    this.words = null;
    const speeds = find("speed");
    for (const speed of SPEEDS) speeds.append(new Option(`${speed}×`, speed));
    speeds.value = 1;
    speeds.addEventListener("change", () => this.setSpeed(Number(speeds.value)));
    find("play").addEventListener("click", () => this.toggle());
    find("live").addEventListener("click", () => {
      stage.player.follow();
      stage.wake();
    });
    find("scrub").addEventListener("input", () => {
      stage.player.seek((find("scrub").value / 1000) * stage.tape.at);
      stage.wake();
    });
    document.addEventListener("keydown", (event) => this.key(event));
    stage.onMoment = (moment) => this.draw(moment);
  }

  speak(words) {
    this.words = words;
  }

  setSpeed(speed) {
    const { player } = this.stage;
    find("speed").value = speed;
    player.speed = speed;
    player.following = false;
    this.stage.wake();
  }

  toggle() {
    const { player, tape } = this.stage;
    if (player.playing) player.pause();
    else {
      player.speed = Number(find("speed").value);
      player.play(tape);
    }
    this.stage.wake();
  }

  key(event) {
    if (event.key !== " " || find("run").hidden || event.defaultPrevented) return;
    if (event.target.closest("input, textarea, select, button, summary, dialog, a")) return;
    event.preventDefault();
    this.toggle();
  }

  draw(moment) {
    const { tape, player } = this.stage;
    const { words } = this;
    const name = words.say(player.playing ? "pause" : "play");
    const button = find("play");
    if (button.getAttribute("aria-label") !== name) {
      button.setAttribute("aria-label", name);
      button.title = name;
    }
    button.classList.toggle("playing", player.playing);
    const scrub = find("scrub");
    const all = words.time(tape.at);
    const now = words.time(moment.time);
    if (document.activeElement !== scrub || player.playing) {
      scrub.value = tape.at ? (moment.time / tape.at) * 1000 : 0;
    }
    const spoken = words.say("moment", { now, all });
    if (scrub.getAttribute("aria-valuetext") !== spoken) scrub.setAttribute("aria-valuetext", spoken);
    scrub.style.setProperty("--done", `${tape.at ? (100 * moment.time) / tape.at : 0}%`);
    setText(find("time"), `${now} / ${all}`);
    find("live").hidden = tape.over;
    find("live").setAttribute("aria-pressed", String(player.following));
  }
}
