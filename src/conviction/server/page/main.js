// The page: one run is shown at a time, live from the server, from its past, or out of this file.

import * as api from "./api.js";
import { Ask } from "./ask.js";
import { Controls } from "./controls.js";
import { drawPast } from "./past.js";
import { Stage } from "./stage.js";
import { Words, preferredLanguage, translate } from "./texts.js";

const LANGUAGE = "conviction-language";
const THEME = "conviction-theme";
const AGAIN = 2000; // Milliseconds between two looks at the list of runs.

const find = (id) => document.getElementById(id);

/** What the page may keep; a file on disk may not be allowed to. */
const kept = {
  get(name) {
    try {
      return localStorage.getItem(name);
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(name, value);
    } catch {
      // Then it holds for this visit.
    }
  },
};

class Page {
  constructor() {
    this.words = new Words(kept.get(LANGUAGE) ?? preferredLanguage(navigator.languages));
    this.stage = new Stage();
    this.controls = new Controls(this.stage);
    this.ask = new Ask((asked) => this.think(asked));
    this.id = null;
    this.runs = [];
    this.listed = "";
    this.following = new AbortController();
    if (kept.get(THEME)) document.documentElement.dataset.theme = kept.get(THEME);
    find("language").addEventListener("click", () => this.speak(this.words.language === "en" ? "ko" : "en"));
    find("theme").addEventListener("click", () => this.turn());
    find("cancel").addEventListener("click", () => this.cancel());
    find("export").addEventListener("click", () => this.save());
    document.querySelector(".skip").addEventListener("click", (event) => {
      // The address names the run, and goes on to do so.
      event.preventDefault();
      find("traces").focus();
    });
    find("unlock").addEventListener("submit", (event) => this.unlock(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.stage.restyle());
    addEventListener("hashchange", () => this.openHash());
    this.speak(this.words.language, { keep: false });
  }

  async start() {
    const held = find("tape");
    if (held) return this.play(JSON.parse(held.textContent));
    await this.enter();
  }

  speak(language, { keep = true } = {}) {
    this.words = new Words(language);
    if (keep) kept.set(LANGUAGE, language);
    translate(document, this.words);
    find("examples").replaceChildren(
      ...this.words.say("examples").map((example) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = example;
        button.addEventListener("click", () => {
          find("question").value = example;
          find("question").focus();
        });
        item.append(button);
        return item;
      }),
    );
    this.stage.speak(this.words);
    this.controls.speak(this.words);
    drawPast(this.runs, this.words, this.id, (id) => this.open(id));
  }

  turn() {
    const { dataset } = document.documentElement;
    const shown = dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    const theme = shown === "dark" ? "light" : "dark";
    dataset.theme = theme;
    kept.set(THEME, theme);
    this.stage.restyle();
  }

  /** Play the run that this file holds. */
  play({ frame, texts, speed }) {
    this.stage.show({ text: async (number) => texts[number] ?? null });
    this.stage.tape.apply(frame);
    this.stage.player.end(this.stage.tape);
    this.controls.setSpeed(speed ?? 1);
  }

  /** Find out what the server offers, then show the run that the address names. */
  async enter() {
    try {
      this.ask.offer(await api.options());
    } catch (error) {
      if (error.status === 401) return this.lock(false);
      find("ask").hidden = false;
      return this.ask.refuse(this.words.say("unreachable"));
    }
    await this.list();
    if (!this.openHash()) {
      find("welcome").hidden = false;
      find("question").focus();
    }
    this.watchList();
  }

  lock(refused) {
    find("ask").hidden = true;
    find("unlock").hidden = false;
    find("key-refused").hidden = !refused;
    find("key").focus();
  }

  async unlock(event) {
    event.preventDefault();
    api.key.set(find("key").value.trim());
    try {
      await api.options();
    } catch (error) {
      api.key.forget();
      return this.lock(error.status === 401);
    }
    find("unlock").hidden = true;
    find("key").value = "";
    await this.enter();
  }

  async think(asked) {
    try {
      const { id } = await api.begin(asked);
      find("question").value = "";
      this.open(id);
      find("traces").focus({ preventScroll: true });
    } catch (error) {
      this.refuse(error);
    }
  }

  refuse(error) {
    if (!(error instanceof api.Refusal)) throw error;
    if (error.status === 401) return this.lock(true);
    const said = error.status ? `${this.words.say("refused")} ${error.message}` : this.words.say("unreachable");
    this.ask.refuse(said);
  }

  openHash() {
    const id = new URLSearchParams(location.hash.slice(1)).get("run");
    if (id && id !== this.id) this.open(id);
    return Boolean(id);
  }

  async open(id) {
    this.following.abort();
    const following = new AbortController();
    this.following = following;
    this.id = id;
    history.replaceState(null, "", `#run=${id}`);
    find("welcome").hidden = true;
    find("cancel").hidden = false;
    find("export").hidden = false;
    this.ask.refuse("");
    this.ask.rest();
    this.stage.show({ text: (number) => api.text(id, number) });
    let first = true;
    const onFrame = (frame) => {
      this.stage.hear(frame, first);
      first = false;
      if (frame.over) find("cancel").hidden = true;
    };
    await this.list();
    try {
      await api.follow(id, {
        onFrame,
        onState: (state) => this.connection(state),
        signal: following.signal,
      });
    } catch (error) {
      this.refuse(error);
    }
    if (!following.signal.aborted) await this.list();
  }

  connection(state) {
    if (state === "gone") {
      find("cancel").hidden = true;
      return this.ask.refuse(this.words.say("gone"));
    }
    this.stage.speaker.say(this.words.say(`said.${state}`));
    this.ask.refuse(state === "lost" ? this.words.say("reconnecting") : "");
  }

  /** Others ask, too: their runs come into the list while the page is in sight. */
  async watchList() {
    for (;;) {
      await api.pause(AGAIN);
      if (!document.hidden) await this.list();
    }
  }

  async list() {
    try {
      const { stamp, runs } = await api.list(this.listed);
      this.listed = stamp;
      if (runs) this.runs = runs;
      else if (this.drawn === this.id) return;
    } catch {
      return;
    }
    this.drawn = this.id;
    drawPast(this.runs, this.words, this.id, (id) => this.open(id));
  }

  async cancel() {
    find("cancel").disabled = true;
    try {
      await api.cancel(this.id);
    } catch (error) {
      this.refuse(error);
    } finally {
      find("cancel").disabled = false;
    }
  }

  async save() {
    const button = find("export");
    button.disabled = true;
    button.textContent = this.words.say("saving");
    try {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await api.exported(this.id, this.words.language));
      link.download = `conviction-${this.id.slice(0, 8)}.html`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      this.refuse(error);
    } finally {
      button.disabled = false;
      button.textContent = this.words.say("export");
    }
  }
}

const page = new Page();
// For people with a console, and for tests.
window.conviction = page;
await page.start();
