// All words of the page, in English and Korean. A text is a string, or a function of its values.

const plural = (count, one, many) => (count === "1" ? one : many);

const english = {
  tagline: "Watch a verdict form",
  skip: "Skip to the traces",
  otherLanguage: "한국어",
  otherLanguageLabel: "한국어로 보기",
  theme: "Switch between light and dark",
  questionLabel: "Your question",
  questionHint: "Ask a question that has one answer",
  policy: "Policy",
  budget: "Budget",
  advanced: "More",
  model: "Model",
  settings: "Policy settings",
  answers: "Kind of answer",
  maxTokens: "Tokens per trace",
  temperature: "Temperature",
  seed: "Seed",
  think: "Think",
  keyNeeded: "This server asks for a key. It stays in this tab and is forgotten when you close it.",
  key: "Key",
  useKey: "Use this key",
  keyRefused: "The server does not know this key.",
  verdict: "Verdict",
  soFar: "Leading so far",
  noVote: "No votes yet",
  noAnswer: "no answer",
  abstained: "abstained",
  failed: "No verdict",
  waiting: "Waiting for its turn …",
  starting: "Starting …",
  votes: "Votes",
  votesOf: ({ votes, all }) => `${votes} of ${all} ${plural(all, "vote", "votes")}`,
  ofWeight: ({ share }) => `${share} of the vote`,
  lead: ({ lead }) => `Asked on and on, it would lead, right or wrong: ${lead}`,
  right: ({ value, low, high, questions, pool }) =>
    `Right with a calibrated probability of ${value} (95% interval ${low} to ${high}), by ${questions} questions of ${pool}`,
  endedBy: ({ why, time }) => `Ended after ${time}: ${why}`,
  gold: ({ gold }) => `The recorded right answer: ${gold}`,
  voteCount: ({ count }) => `${count} ${plural(count, "vote", "votes")}`,
  moreAnswers: ({ answers, votes }) =>
    `${answers} more ${plural(answers, "answer", "answers")}, ${votes} ${plural(votes, "vote", "votes")}`,
  tokens: "Tokens",
  spent: ({ tokens }) => `${tokens} spent`,
  saved: ({ part, budget }) =>
    `about ${part} fewer than ${budget} full traces would take (estimate)`,
  notSaved: ({ budget }) => `no fewer than ${budget} full traces would take (estimate)`,
  fullUnknown: "what the whole budget would take is known when a trace is complete",
  fate: {
    thinking: "in thinking traces",
    voted: "in traces that voted",
    unvoted: "in complete traces without a vote",
    stopped: "in traces stopped for low confidence",
    cancelled: "in traces no longer needed",
    failed: "in failed attempts",
  },
  state: {
    thinking: "thinking",
    stop: "finished, no vote",
    voted: "voted",
    length: "cut at the token limit",
    low_confidence: "stopped: low confidence",
    consensus: "no longer needed",
    cancelled: "cancelled",
    error: "failed",
  },
  filter: {
    all: "All",
    thinking: "Thinking",
    voted: "Voted",
    stopped: "Stopped",
    other: "Others",
  },
  traces: "Traces",
  chartLabel: ({ count, window }) =>
    `Group confidence of ${count} traces against tokens, in groups of ${window} tokens`,
  withThreshold: ({ threshold }) => `; the threshold is ${threshold}`,
  groups: ({ window }) => `Lines are group confidence, over ${window} tokens`,
  groupsForShow: ({ window }) =>
    `Lines are confidence over ${window} tokens, for showing only: the policy has chosen no window`,
  noConfidence: "There are no confidences here: bars show tokens",
  threshold: "threshold",
  tokensAxis: "tokens",
  atOnce: ({ count }) => `${count} at once`,
  seconds: ({ seconds }) => `${seconds} s`,
  play: "Play",
  pause: "Pause",
  scrub: "Moment of the run",
  moment: ({ now, all }) => `${now} of ${all}`,
  speed: "Speed",
  live: "Live",
  filters: "Which traces are listed",
  rowsLabel: "Traces; Enter opens one",
  row: ({ number, state, tokens }) => `Trace ${number}, ${state}, ${tokens} tokens`,
  rowAnswer: ({ answer }) => `, answer ${answer}`,
  rowRestarted: ({ lost }) => `, ${lost} tokens lost`,
  keys: "Arrow keys choose a trace, Enter opens it, Space plays and pauses.",
  cancel: "End now, with the votes so far",
  export: "Save as one file",
  saving: "Saving …",
  past: "Past verdicts",
  pastState: { waiting: "waiting", running: "thinking", over: "" },
  welcomeTitle: "One question, many lines of thought, one verdict",
  welcome:
    "Every trace is drawn as it grows. Weak ones are cut off, equal answers are counted as one vote, and the run ends when the vote is settled. You see what it cost, and what it saved.",
  examples: [
    "A baker makes 12 trays of 15 rolls, sells 9 bags of 14 rolls, and gives away a third of the rest. How many rolls are left?",
    "How many primes are below 50?",
    "What is 17 * 23 - 41?",
  ],
  traceTitle: ({ number }) => `Trace ${number}`,
  lessSure: "among the least sure fifth",
  leastSure: "among the least sure 5%",
  legendAll: "Of all passages of this run:",
  textLabel: "Text of the trace",
  before: "Trace before",
  after: "Trace after",
  close: "Close",
  noText: "This recording does not hold what its traces wrote.",
  noTextYet: "Nothing written yet.",
  textCut: ({ characters }) => `${characters} more characters are not kept in this file.`,
  textSpread:
    "A recording does not tell which token wrote what: the text is laid over the tokens evenly, so marks are approximate.",
  markedCount: ({ count }) => `${count} ${plural(count, "passage", "passages")} marked`,
  said: {
    began: ({ budget }) => `Thinking began, with a budget of ${budget} traces.`,
    threshold: ({ threshold }) => `The threshold is set to ${threshold}.`,
    leads: ({ answer, votes }) => `${answer} leads with ${votes} ${plural(votes, "vote", "votes")}.`,
    verdict: ({ answer }) => `Verdict: ${answer}.`,
    failed: ({ reason }) => `No verdict: ${reason}`,
    lost: "The connection broke. Trying again.",
    back: "Connected again.",
  },
  refused: "The server refused:",
  unreachable: "The server cannot be reached.",
  gone: "The server no longer keeps this run.",
  reconnecting: "Connection lost; trying again …",
  why: {
    budget: "the budget is spent",
    consensus: "the traces agree",
    settled: "the vote is settled",
    interrupted: "it was cancelled",
    time: "time is up",
    tokens: "its tokens are spent",
  },
};

const korean = {
  tagline: "평결이 모이는 과정을 지켜보세요",
  skip: "추론 목록으로 건너뛰기",
  otherLanguage: "English",
  otherLanguageLabel: "View in English",
  theme: "밝은 화면과 어두운 화면 전환",
  questionLabel: "질문",
  questionHint: "답이 하나로 정해지는 질문을 적어 보세요",
  policy: "정책",
  budget: "예산",
  advanced: "더 보기",
  model: "모델",
  settings: "정책 설정",
  answers: "답의 종류",
  maxTokens: "추론당 토큰",
  temperature: "온도",
  seed: "시드",
  think: "생각하기",
  keyNeeded: "이 서버를 쓰려면 키가 필요합니다. 키는 이 탭에만 두고, 탭을 닫으면 지웁니다.",
  key: "키",
  useKey: "이 키 사용",
  keyRefused: "서버에 등록되지 않은 키입니다.",
  verdict: "평결",
  soFar: "지금까지 앞선 답",
  noVote: "아직 표가 없습니다",
  noAnswer: "답 없음",
  abstained: "답을 보류함",
  failed: "평결 없음",
  waiting: "차례를 기다리는 중…",
  starting: "시작하는 중…",
  votes: "득표",
  votesOf: ({ votes, all }) => `${all}표 중 ${votes}표`,
  ofWeight: ({ share }) => `득표율 ${share}`,
  lead: ({ lead }) => `계속 더 물어도 (맞든 틀리든) 이 답이 앞설 가능성: ${lead}`,
  right: ({ value, low, high, questions, pool }) =>
    `정답일 확률(보정값) ${value}, 95% 구간 ${low}–${high}, ${pool}의 ${questions}문항 기준`,
  endedBy: ({ why, time }) => `${time} 만에 끝남: ${why}`,
  gold: ({ gold }) => `기록된 정답: ${gold}`,
  voteCount: ({ count }) => `${count}표`,
  moreAnswers: ({ answers, votes }) => `그 밖의 답 ${answers}개, ${votes}표`,
  tokens: "토큰",
  spent: ({ tokens }) => `${tokens}개 사용`,
  saved: ({ part, budget }) => `추론 ${budget}개를 끝까지 돌릴 때보다 약 ${part} 적음(추정)`,
  notSaved: ({ budget }) => `추론 ${budget}개를 끝까지 돌릴 때보다 적지 않음(추정)`,
  fullUnknown: "예산을 다 쓸 때의 양은 추론이 하나 끝나야 알 수 있습니다",
  fate: {
    thinking: "진행 중인 추론",
    voted: "투표한 추론",
    unvoted: "끝났지만 투표하지 않은 추론",
    stopped: "확신도가 낮아 멈춘 추론",
    cancelled: "더 필요 없어진 추론",
    failed: "실패한 시도",
  },
  state: {
    thinking: "생각하는 중",
    stop: "끝남, 투표 안 함",
    voted: "투표함",
    length: "토큰 한도에서 잘림",
    low_confidence: "멈춤: 확신도 낮음",
    consensus: "더 필요 없음",
    cancelled: "취소됨",
    error: "실패",
  },
  filter: {
    all: "전체",
    thinking: "생각 중",
    voted: "투표함",
    stopped: "멈춤",
    other: "기타",
  },
  traces: "추론",
  chartLabel: ({ count, window }) =>
    `추론 ${count}개의 토큰별 그룹 확신도, 그룹 크기 ${window}토큰`,
  withThreshold: ({ threshold }) => `, 임계값 ${threshold}`,
  groups: ({ window }) => `선은 ${window}토큰씩 묶은 그룹 확신도입니다`,
  groupsForShow: ({ window }) =>
    `선은 ${window}토큰씩 묶은 확신도입니다. 정책이 정한 창이 없어 화면용으로만 쓰는 크기입니다`,
  noConfidence: "확신도가 없어 토큰 수를 막대로 보여 줍니다",
  threshold: "임계값",
  tokensAxis: "토큰",
  atOnce: ({ count }) => `동시에 ${count}개`,
  seconds: ({ seconds }) => `${seconds}초`,
  play: "재생",
  pause: "일시 정지",
  scrub: "실행 시점",
  moment: ({ now, all }) => `${all} 중 ${now}`,
  speed: "속도",
  live: "실시간",
  filters: "목록에 보일 추론",
  rowsLabel: "추론 목록, Enter로 열기",
  row: ({ number, state, tokens }) => `추론 ${number}, ${state}, ${tokens}토큰`,
  rowAnswer: ({ answer }) => `, 답 ${answer}`,
  rowRestarted: ({ lost }) => `, ${lost}토큰 손실`,
  keys: "화살표 키로 추론을 고르고 Enter로 엽니다. 스페이스 키로 재생하거나 멈춥니다.",
  cancel: "지금까지의 표로 끝내기",
  export: "파일 하나로 저장",
  saving: "저장하는 중…",
  past: "지난 평결",
  pastState: { waiting: "대기 중", running: "생각하는 중", over: "" },
  welcomeTitle: "질문은 하나, 생각은 여러 갈래, 평결은 하나",
  welcome:
    "추론이 하나하나 자라는 모습을 그대로 그립니다. 약한 추론은 도중에 멈추고, 같은 답끼리 표를 모으며, 결과가 굳어지면 끝냅니다. 얼마나 썼고 얼마나 아꼈는지도 함께 보여 줍니다.",
  examples: [
    "빵집에서 롤빵 15개씩 12판을 굽고, 14개들이 9봉지를 판 다음, 남은 것의 3분의 1을 나누어 주었습니다. 몇 개가 남았을까요?",
    "50보다 작은 소수는 몇 개인가요?",
    "17 * 23 - 41은 얼마인가요?",
  ],
  traceTitle: ({ number }) => `추론 ${number}`,
  lessSure: "확신도 하위 20%",
  leastSure: "확신도 하위 5%",
  legendAll: "이 실행의 모든 구절 가운데",
  textLabel: "추론이 쓴 글",
  before: "이전 추론",
  after: "다음 추론",
  close: "닫기",
  noText: "이 기록에는 추론이 쓴 글이 들어 있지 않습니다.",
  noTextYet: "아직 쓴 글이 없습니다.",
  textCut: ({ characters }) => `이 파일에는 나머지 ${characters}자가 들어 있지 않습니다.`,
  textSpread:
    "기록에는 어느 토큰이 어느 글자를 썼는지 없어서, 글을 토큰에 고르게 나누어 표시했습니다. 표시 위치는 대략적입니다.",
  markedCount: ({ count }) => `표시된 구절 ${count}개`,
  said: {
    began: ({ budget }) => `추론 ${budget}개 예산으로 생각하기 시작했습니다.`,
    threshold: ({ threshold }) => `임계값이 정해졌습니다: ${threshold}`,
    leads: ({ answer, votes }) => `${answer} 답이 ${votes}표로 앞서고 있습니다.`,
    verdict: ({ answer }) => `평결: ${answer}`,
    failed: ({ reason }) => `평결 없음: ${reason}`,
    lost: "연결이 끊겼습니다. 다시 시도합니다.",
    back: "다시 연결되었습니다.",
  },
  refused: "서버가 요청을 거절했습니다:",
  unreachable: "서버에 연결할 수 없습니다.",
  gone: "서버에 이 실행이 더는 남아 있지 않습니다.",
  reconnecting: "연결이 끊겨 다시 시도하는 중…",
  why: {
    budget: "예산을 다 썼습니다",
    consensus: "추론들의 답이 모였습니다",
    settled: "투표 결과가 굳어졌습니다",
    interrupted: "취소되었습니다",
    time: "제한 시간이 지났습니다",
    tokens: "토큰을 다 썼습니다",
  },
};

const LANGUAGES = { en: english, ko: korean };

/** The language to begin with: the first one of the browser's that the page has, else English. */
export function preferredLanguage(languages) {
  for (const tag of languages) {
    const base = tag.toLowerCase().split("-")[0];
    if (base in LANGUAGES) return base;
  }
  return "en";
}

/** The texts of one language, and how it writes numbers. */
export class Words {
  constructor(language) {
    this.language = language;
    this.texts = LANGUAGES[language];
    this.whole = new Intl.NumberFormat(language, { maximumFractionDigits: 0 });
    this.fine = new Intl.NumberFormat(language, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
    this.tenths = new Intl.NumberFormat(language, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  }

  /** A text by its name, as in "said.began", with values where it wants some. */
  say(name, values = {}) {
    const text = name.split(".").reduce((found, part) => found?.[part], this.texts);
    if (text === undefined) return name.split(".").pop();
    return typeof text === "function" ? text(values) : text;
  }

  number(value) {
    return this.whole.format(value);
  }

  decimal(value) {
    return this.fine.format(value);
  }

  /** A part in [0, 1] as percent. */
  percent(part) {
    return `${this.whole.format(part * 100)}%`;
  }

  /** A probability: nothing that was estimated is certain. */
  probability(value) {
    if (value > 0.995) return ">99%";
    return value < 0.005 ? "<1%" : this.percent(value);
  }

  /** Milliseconds as "4.2 s" or "1:04". */
  time(milliseconds) {
    const seconds = milliseconds / 1000;
    if (seconds < 60) return this.say("seconds", { seconds: this.tenths.format(seconds) });
    return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  }
}

/** Put the words into all elements that name one. */
export function translate(root, words) {
  document.documentElement.lang = words.language;
  for (const element of root.querySelectorAll("[data-text]")) {
    element.textContent = words.say(element.dataset.text);
  }
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", words.say(element.dataset.label));
  }
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = words.say(element.dataset.placeholder);
  }
  const other = root.querySelector("#language");
  if (other) other.lang = words.language === "en" ? "ko" : "en";
}
