// The list of past verdicts.

import { setText } from "./rows.js";

const find = (id) => document.getElementById(id);

/**
 * Draw the list.
 *
 * @param runs What the server keeps, newest first.
 * @param current Id of the run that is shown.
 * @param onOpen Called with the id of a run that is to be shown.
 */
export function drawPast(runs, words, current, onOpen) {
  const focused = find("past-list").querySelector(":focus")?.dataset.run;
  find("past").hidden = !runs.length;
  const when = new Intl.DateTimeFormat(words.language, { hour: "2-digit", minute: "2-digit" });
  find("past-list").replaceChildren(
    ...runs.map((run) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.run = run.id;
      if (run.id === current) button.setAttribute("aria-current", "true");
      const part = (name, text) => {
        const element = document.createElement("span");
        element.className = name;
        setText(element, text);
        button.append(element);
      };
      part("given", run.answer ?? (run.state === "over" ? words.say("noAnswer") : "…"));
      part("question", run.question);
      const facts = [run.policy, when.format(new Date(run.created * 1000))];
      if (run.share !== null) facts.unshift(words.percent(run.share));
      if (run.state !== "over") facts.unshift(words.say(`pastState.${run.state}`));
      part("facts", facts.join(" · "));
      button.addEventListener("click", () => onOpen(run.id));
      item.append(button);
      return item;
    }),
  );
  if (focused) find("past-list").querySelector(`[data-run="${focused}"]`)?.focus({ preventScroll: true });
}
