// The form that asks a question.

const find = (id) => document.getElementById(id);

export class Ask {
  /** @param onAsk Called with what is asked; what it throws is shown. */
  constructor(onAsk) {
    this.form = find("ask");
    this.options = null;
    this.form.addEventListener("submit", async (event) => {
      event.preventDefault();
      this.refuse("");
      find("think").disabled = true;
      try {
        await onAsk(this.asked());
      } finally {
        find("think").disabled = false;
      }
    });
    find("question").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.keepOutOfTheWay();
    find("policy").addEventListener("change", () => this.suggest());
  }

  /** While a run is watched, the form shows its choices only to those who turn to it. */
  keepOutOfTheWay() {
    const leave = (target) => {
      if (!this.form.contains(target)) this.rest();
    };
    this.form.addEventListener("focusin", () => this.form.classList.add("wanted"));
    // Not when focus moves: what is being clicked would move away under the pointer.
    document.addEventListener("click", ({ target }) => leave(target));
    document.addEventListener("keyup", () => leave(document.activeElement));
  }

  /** Hide the choices. */
  rest() {
    this.form.classList.remove("wanted");
  }

  /** Offer what the server can do. */
  offer(options) {
    this.options = options;
    const { defaults } = options;
    choose(find("policy"), options.policies.map((policy) => policy.name), defaults.policy.split(":")[0]);
    choose(find("model"), options.models, options.models[0]);
    choose(find("answers"), options.answers, defaults.answers);
    find("settings").value = defaults.policy.split(":")[1] ?? "";
    find("max-tokens").value = defaults.max_tokens;
    find("max-tokens").max = options.ceilings.max_tokens;
    find("temperature").value = defaults.temperature;
    find("seed").value = defaults.seed;
    find("budget").max = options.ceilings.budget;
    this.suggest();
    this.form.hidden = false;
  }

  suggest() {
    const policy = this.options.policies.find(({ name }) => name === find("policy").value);
    const fixed = !("budget" in policy.settings);
    find("budget").disabled = fixed;
    find("budget").value = fixed ? 1 : (this.options.defaults.budget ?? policy.budget);
    find("settings").title = Object.keys(policy.settings).join(", ");
  }

  asked() {
    const settings = find("settings").value.trim();
    const policy = find("policy").value;
    const number = (id) => (find(id).value === "" ? undefined : Number(find(id).value));
    return {
      question: find("question").value,
      model: find("model").value,
      conviction: {
        policy: settings ? `${policy}:${settings}` : policy,
        budget: find("budget").disabled ? undefined : number("budget"),
        answers: find("answers").value,
      },
      generation: {
        max_tokens: number("max-tokens"),
        temperature: number("temperature"),
        seed: number("seed"),
      },
    };
  }

  refuse(message) {
    const place = find("refusal");
    place.textContent = message;
    place.hidden = !message;
  }
}

function choose(select, names, chosen) {
  select.replaceChildren(
    ...names.map((name) => {
      const option = document.createElement("option");
      option.value = option.textContent = name;
      return option;
    }),
  );
  select.value = chosen;
}
