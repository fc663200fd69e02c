// A run as the server tells it (see conviction/server/tape.py), and what it looked like at any moment.

/** The run so far. Frames are applied in order; one that says `whole` begins anew. */
export class Tape {
  constructor() {
    this.number = 0;
    this.clear();
  }

  clear() {
    this.at = 0;
    this.run = null;
    this.gates = [];
    this.answers = [];
    this.votes = [];
    this.traces = [];
    this.verdict = null;
    this.failed = null;
    this.over = false;
    // What the axes have to hold: most tokens of a trace, lowest and highest point.
    this.longest = 0;
    this.low = Infinity;
    this.high = -Infinity;
    // Traces whose lines were drawn anew, so that what was painted of them is void.
    this.epoch = (this.epoch ?? 0) + 1;
  }

  apply(frame) {
    if (frame.whole) this.clear();
    this.number = frame.n;
    this.at = Math.max(this.at, frame.at);
    if (frame.run) this.run = frame.run;
    for (const name of ["gates", "answers", "votes"]) {
      if (frame[name]) this[name].push(...frame[name]);
    }
    for (const told of frame.traces ?? []) this.applyTrace(told);
    if (frame.verdict) this.verdict = frame.verdict;
    if (frame.failed) this.failed = frame.failed;
    if (!frame.over) return;
    this.over = true;
    // What was drawn on the way, with another window, needs no room any more.
    this.low = Infinity;
    this.high = -Infinity;
    for (const trace of this.traces) this.makeRoom(trace.points);
  }

  makeRoom(points) {
    for (const point of points) {
      if (point === null) continue;
      this.low = Math.min(this.low, point);
      this.high = Math.max(this.high, point);
    }
  }

  applyTrace(told) {
    let trace = this.traces[told.id];
    if (!trace) {
      trace = { id: told.id, from: 0, gated: false, tokens: 0, lost: 0, end: null };
      this.traces[told.id] = trace;
    }
    if ("from" in told) {
      trace.from = told.from;
      trace.gated = told.gated;
    }
    if ("window" in told) {
      if (trace.points?.length) this.epoch += 1;
      Object.assign(trace, { window: told.window, stride: 1, points: [], times: [], partial: 0 });
    }
    for (let i = 0; i < (told.halved ?? 0); i++) halve(trace);
    let last = trace.times.length ? trace.times.at(-1) : trace.from;
    told.points?.forEach((point, place) => {
      last += told.gaps[place];
      trace.points.push(point);
      trace.times.push(last);
    });
    this.makeRoom(told.points ?? []);
    for (const name of ["partial", "tokens", "lost", "end"]) {
      if (name in told) trace[name] = told[name];
    }
    this.longest = Math.max(this.longest, trace.end?.tokens ?? trace.tokens);
  }

  /** How many traces had begun. Traces begin in the order of their numbers. */
  begunAt(time) {
    return countUntil(this.traces, time, (trace) => trace.from);
  }

  /** The threshold that held, or null. */
  gateAt(time) {
    return this.gates[countUntil(this.gates, time, (gate) => gate.at) - 1] ?? null;
  }

  /** How the vote stood, or null before the first one. */
  voteAt(time) {
    return this.votes[countUntil(this.votes, time, (vote) => vote.at) - 1] ?? null;
  }

  /** Numbers of the traces that voted. */
  votersAt(time) {
    const voters = new Set();
    for (const vote of this.votes) {
      if (vote.at > time) break;
      for (const trace of vote.joined) voters.add(trace);
      for (const trace of vote.left) voters.delete(trace);
    }
    return voters;
  }
}

/** How many of a list in order of time had come. */
export function countUntil(list, time, timeOf = (item) => item) {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (timeOf(list[middle]) <= time) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Every pair of points becomes one, by the rule of conviction/server/lines.py. */
function halve(trace) {
  const { points, times, partial } = trace;
  const half = points.length >> 1;
  for (let i = 0; i < half; i++) {
    points[i] = merged(points[2 * i], points[2 * i + 1], 2 * i < partial);
    times[i] = times[2 * i + 1];
  }
  points.length = times.length = half;
  trace.partial = partial >> 1;
  trace.stride *= 2;
}

function merged(first, second, laterCounts) {
  if (second === null) return first;
  if (first === null || laterCounts) return second;
  return Math.min(first, second);
}

/** Whether a trace had ended, so that `trace.end` holds. */
export function endedAt(trace, time) {
  return trace.end !== null && trace.end.at <= time;
}

/** Points of a trace's line that had been drawn. */
export function pointsAt(trace, time) {
  return countUntil(trace.times, time);
}

/** The token at which a point stands. */
export function tokenOf(trace, place) {
  const token = (place + 1) * trace.stride;
  return trace.end ? Math.min(token, trace.end.tokens) : token;
}

/** Tokens that a trace had generated, between two points in proportion to time. */
export function tokensAt(trace, time) {
  if (endedAt(trace, time)) return trace.end.tokens;
  const place = pointsAt(trace, time);
  const before = place ? tokenOf(trace, place - 1) : 0;
  const since = place ? trace.times[place - 1] : trace.from;
  let next = null;
  if (place < trace.points.length) next = [trace.times[place], tokenOf(trace, place)];
  else if (trace.end) next = [trace.end.at, trace.end.tokens];
  if (!next || next[0] <= since) return Math.max(before, place < trace.points.length ? 0 : trace.tokens);
  return Math.floor(before + ((next[1] - before) * (time - since)) / (next[0] - since));
}

const FATES = { low_confidence: "stopped", consensus: "cancelled", cancelled: "cancelled", error: "failed" };

/** What the tokens of a trace count as, at a moment; `voters` are the numbers of those that vote. */
export function fateAt(trace, time, voters) {
  if (!endedAt(trace, time)) return "thinking";
  const { finish } = trace.end;
  if (finish === "stop" || finish === "length") return voters.has(trace.id) ? "voted" : "unvoted";
  return FATES[finish] ?? "failed";
}

/** The state of a trace in one word of `texts.state`. */
export function stateAt(trace, time, voters) {
  if (!endedAt(trace, time)) return "thinking";
  if (voters.has(trace.id)) return "voted";
  return trace.end.finish;
}

/** What there was to see at a moment: who had begun, how the vote stood, tokens by fate. */
export function momentOf(tape, time) {
  const begun = tape.begunAt(time);
  const done = tape.over && time >= tape.at;
  const voters = done && tape.verdict ? new Set(tape.verdict.voters) : tape.votersAt(time);
  const fates = { voted: 0, thinking: 0, unvoted: 0, stopped: 0, cancelled: 0, failed: 0 };
  let completeTokens = 0;
  let complete = 0;
  for (let i = 0; i < begun; i++) {
    const trace = tape.traces[i];
    const tokens = tokensAt(trace, time);
    const fate = fateAt(trace, time, voters);
    fates[fate] += tokens;
    fates.failed += trace.lost;
    if (fate === "voted" || fate === "unvoted") {
      complete += 1;
      completeTokens += tokens;
    }
  }
  const generated = Object.values(fates).reduce((sum, tokens) => sum + tokens, 0);
  const budget = tape.run?.budget ?? 0;
  return {
    time,
    begun,
    done,
    voters,
    fates,
    generated,
    full: complete ? Math.round((budget * completeTokens) / complete) : null,
    gate: tape.gateAt(time),
    vote: tape.voteAt(time),
    verdict: done ? tape.verdict : null,
    failed: done ? tape.failed : null,
  };
}
