// What the traces agree on so far, how the votes stand, and what it cost.

import { setText } from "./rows.js";

const FATES = ["voted", "unvoted", "thinking", "stopped", "cancelled", "failed"];

const find = (id) => document.getElementById(id);

function show(element, text) {
  element.hidden = !text;
  setText(element, text);
}

/** Draw everything beside the traces. */
export function drawConclusion(tape, moment, words, status) {
  drawVerdict(tape, moment, words, status);
  drawVotes(tape, moment, words);
  drawTokens(tape, moment, words);
}

function drawVerdict(tape, moment, words, status) {
  const { vote, verdict, failed } = moment;
  const leader = vote?.rows[0];
  const final = Boolean(verdict || failed);
  let title = leader ? words.say("soFar") : words.say("noVote");
  if (verdict) title = words.say("verdict");
  if (failed) title = words.say("failed");
  setText(find("verdict-title"), title);
  let answer = leader ? tape.answers[leader[0]] : "";
  if (verdict) answer = verdict.answer ?? words.say(verdict.abstained ? "abstained" : "noAnswer");
  if (failed) answer = failed;
  if (!tape.run && !failed) answer = words.say(status === "waiting" ? "waiting" : "starting");
  const place = find("answer");
  setText(place, answer || "…");
  const size = failed || !tape.run || answer.length > 24 ? "long" : answer.length > 9 ? "middle" : "";
  place.className = `answer ${size} ${final ? "final" : ""} ${answer ? "" : "none"}`;
  find("run").classList.toggle("decided", Boolean(verdict));
  show(find("standing"), leader && !failed ? standing(moment, words) : "");
  const lead = verdict ? verdict.lead : vote?.lead;
  const known = lead !== null && lead !== undefined && !failed;
  show(find("lead"), known ? words.say("lead", { lead: words.probability(lead) }) : "");
  show(find("right"), verdict?.right ? rightInWords(verdict.right, words) : "");
  show(find("ended"), verdict ? endedInWords(verdict, words) : "");
  const { gold } = tape.run ?? {};
  show(find("gold"), final && gold ? words.say("gold", { gold }) : "");
  drawWarnings(verdict?.warnings ?? []);
}

function standing({ vote }, words) {
  const [, weight, votes] = vote.rows[0];
  const all = vote.more[2] + vote.rows.reduce((sum, row) => sum + row[2], 0);
  const weights = vote.more[1] + vote.rows.reduce((sum, row) => sum + row[1], 0);
  const counted = words.say("votesOf", { votes: words.number(votes), all: words.number(all) });
  const share = words.say("ofWeight", { share: words.percent(weights ? weight / weights : 0) });
  return `${counted} · ${share}`;
}

function rightInWords(right, words) {
  return words.say("right", {
    value: words.probability(right.value),
    low: words.percent(right.low),
    high: words.percent(right.high),
    questions: words.number(right.questions),
    pool: right.pool,
  });
}

function endedInWords(verdict, words) {
  const why = words.say(`why.${verdict.ended}`);
  return words.say("endedBy", { why, time: words.time(verdict.seconds * 1000) });
}

function drawWarnings(warnings) {
  const list = find("warnings");
  if (list.childElementCount === warnings.length) return;
  list.replaceChildren(
    ...warnings.map((warning) => {
      const item = document.createElement("li");
      item.textContent = warning;
      return item;
    }),
  );
}

function drawVotes(tape, { vote }, words) {
  const list = find("votes");
  const rows = vote?.rows ?? [];
  const more = vote?.more ?? [0, 0, 0];
  const total = more[1] + rows.reduce((sum, row) => sum + row[1], 0);
  const count = rows.length + (more[0] ? 1 : 0);
  while (list.childElementCount > count) list.lastElementChild.remove();
  while (list.childElementCount < count) {
    const item = document.createElement("li");
    for (const name of ["given", "bar", "share", "count"]) {
      const part = document.createElement("span");
      part.className = name;
      item.append(part);
    }
    item.children[1].append(document.createElement("i"));
    list.append(item);
  }
  [...list.children].forEach((item, place) => {
    const [given, bar, share, votes] = item.children;
    const others = place === rows.length;
    const [number, weight, voters] = others ? [null, more[1], more[2]] : rows[place];
    const part = total ? weight / total : 0;
    item.className = others ? "others" : place ? "" : "leader";
    const names = { answers: words.number(more[0]), votes: words.number(voters) };
    setText(given, others ? words.say("moreAnswers", names) : tape.answers[number]);
    given.title = given.textContent;
    bar.firstElementChild.style.width = `${part * 100}%`;
    setText(share, words.percent(part));
    setText(votes, others ? "" : words.say("voteCount", { count: words.number(voters) }));
  });
}

function drawTokens(tape, moment, words) {
  const budget = tape.run?.budget ?? 0;
  const usage = moment.verdict?.usage;
  const full = usage ? usage.full_budget_estimate : moment.full;
  const generated = usage?.generated ?? moment.generated;
  setText(find("spent"), words.say("spent", { tokens: words.number(generated) }));
  let saved = words.say("fullUnknown");
  if (full && budget > 1) {
    const part = 1 - generated / full;
    const values = { part: words.percent(part), budget: words.number(budget) };
    // Before the end, what runs on will still cost something.
    if (!moment.done) saved = "";
    else saved = part > 0.005 ? words.say("saved", values) : words.say("notSaved", values);
  } else if (budget === 1 || moment.done) saved = "";
  setText(find("saved"), saved);
  drawFates(usage ?? moment.fates, Math.max(full ?? 0, generated), words);
}

function drawFates(tokens, whole, words) {
  const bar = find("fates-bar");
  const list = find("fates");
  for (const fate of FATES) {
    const count = tokens[fate] ?? 0;
    let part = bar.querySelector(`.${fate}`);
    if (!part) {
      part = document.createElement("i");
      part.className = fate;
      bar.append(part);
      const item = document.createElement("li");
      item.className = fate;
      item.append(document.createElement("b"), " ", document.createElement("span"));
      list.append(item);
    }
    part.style.width = `${whole ? (100 * count) / whole : 0}%`;
    const item = list.querySelector(`.${fate}`);
    item.hidden = !count;
    setText(item.firstElementChild, words.number(count));
    setText(item.lastElementChild, words.say(`fate.${fate}`));
  }
}
