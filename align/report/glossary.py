"""What the names of figures mean, in the order of what a reader looks at first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from align.report import summary

MEANINGS = {
    "loss": "what the optimizer makes smaller; of the stage's own kind, so not to be held against another stage's",
    "eval/loss": "the same on rows that were not trained on, of pairs by their order alone (with dpo's ipo and "
    "sppo_hard by that loss); rising while loss falls means overfitting",
    "reward/mean": "what an answer is paid on average, which reinforcement learning makes larger",
    "reward/spread": "how far several reward models are apart about an answer, as a standard deviation",
    "reward/NAME": "what one of several rewards gives an answer on average, before its weight",
    "kl": "KL: how far the policy has moved from the reference, in nats per answer; 0 is not at all, and the estimate "
    "may come out a little below (of kto, what it takes off rewards: estimated on other prompts' answers, often 0)",
    "eos_rate": "share of answers that end by themselves, with an end-of-turn token (EOS), before they are cut",
    "length": "tokens of an answer",
    "accuracy": "share of pairs in which the reward model scores the chosen answer higher; 0.5 is chance, and it "
    "begins near 0: at the start all scores are equal, which counts as wrong",
    "eval/accuracy": "share of pairs that were not trained on in which the chosen answer is the better one to the "
    "model; 0.5 is chance, and where it begins before the first step",
    "margin": "score of the chosen answer less that of the rejected one",
    "rewards/accuracies": "share of pairs in which the chosen answer gained more probability than the rejected one; "
    "0.5 is chance, and with a reference it begins near 0: at the start all are equal, which counts as wrong",
    "rewards/margins": "how much more the chosen answer gained, times beta",
    "rewards/chosen": "what chosen answers gained over the reference, times beta; falling below 0 means they get rarer",
    "rewards/rejected": "what rejected answers gained over the reference, times beta",
    "logps/chosen_per_token": "what chosen answers gained over the reference, in nats per token",
    "score/mean": "what reward models and judges give, before prices such as that of KL",
    "entropy": "how open the next token is, in nats; near 0 every answer is alike",
    "approx_kl": "how far the policy moved since it sampled these answers, in nats per token (k3)",
    "clip_fraction": "share of tokens whose change was cut by clip",
    "ratio": "probability of the sampled tokens now over that when they were sampled; 1 is no change",
    "value/loss": "error of the values, squared",
    "value/explained_variance": "how well values foretell the returns: 1 is exactly, 0 no better than their mean",
    "value/explained_variance_gae": "the same against GAE's returns",
    "sampler_gap/mean": "difference of log-probs between sampling and training, which should be rounding",
    "sampler_gap/max": "the largest of these",
    "off_policy_gap/mean": "the same where a server drew ahead: rounding, and what one rollout taught",
    "off_policy_gap/max": "the largest of these",
    "eval/kl": "KL on texts that were not trained on",
    "step_accuracy": "share of answers' steps that the reward model calls as the data does; 0.5 is chance",
    "eval/step_accuracy": "the same on answers that were not trained on",
    "nll/chosen": "how unlikely chosen answers are, in nats per token; smaller is likelier",
    "log_odds_ratio": "log of the odds of the chosen answer over those of the rejected one, per token",
    "shift": "what rewards are held against: the mean reward of all answers so far",
    "beta": "beta of these steps, where it follows the data (dynamic_beta)",
    "kl_k2": "how far the policy is from the reference, in nats per token, by the estimator k2",
    "kl_k3": "how far the policy is from the reference, in nats per token, by the estimator k3",
    "reward/NAME/std": "standard deviation of that reward's scores",
    "reward/NAME/unscored": "share of answers that this reward gave no score",
    "unscored": "share of answers that no reward scored",
    "groups_without_variance": "share of groups of answers that all score the same, and so teach nothing",
    "importance/mean": "mean of the weights that set right how the sampler's odds differ from the trainer's",
    "importance/limited": "share of these weights that were cut",
    "reference/moves": "how often the reference has moved to the policy",
    "ranks": "ranks that a matrix of the adapter keeps, on average",
    "orthogonality": "how far the adapter's directions are from orthogonal, squared",
    "win_rate": "share of comparisons that a stage wins against the other one, ties counting half",
    "grad_norm": "length of the gradient before it is clipped; a sudden rise means a step that goes wrong",
    "learning_rate": "how large the optimizer's steps are",
    "perplexity": "e to the held-out loss: as if so many tokens were equally likely",
}
"""Name of a figure -> what it is."""
WITHOUT_REFERENCE = ("simpo", "cpo", "orpo")
"""Stages whose rewards are likelihoods; those of others are relative to a reference."""
KL_OF = {"kto": "its own estimate", "distill": "from the teacher", "merge": "of what was merged"}
"""Stage -> what its KL is, where it is not that of rollouts from their reference."""
MAIN = (
    "loss",
    "eval/loss",
    "reward/mean",
    "kl",
    "eos_rate",
    "length",
    "accuracy",
    "eval/accuracy",
    "rewards/accuracies",
    "rewards/margins",
)
"""Curves that are shown first; a figure that is not known here is of the reader's own, such as a judge's, and stands
with them."""


def by_importance(names: Iterable[str]) -> list[str]:
    """Names of curves, the main ones first, then the reader's own by name, then the others of `MEANINGS`."""
    order = [*MEANINGS]

    def place(name: str) -> tuple[bool, int, str]:
        return not is_main(name), order.index(name) if name in order else len(order), name

    return sorted(names, key=place)


def kind_of(name: str, stage: str, loss: object = None) -> str:
    """What a stage's figure is of, beside its name: only those of one kind are laid over each other. "" where the name
    says it all. `loss` is the setting."""
    if name in ("loss", "eval/loss", "best/loss"):
        return f"{stage}, {loss}" if loss and loss != stage else stage
    if name in ("kl", "eval/kl"):
        return f"{stage}, {KL_OF[stage]}" if stage in KL_OF else "of rollouts"
    if name.startswith("rewards/") or name == "eval/accuracy":
        return stage if stage in WITHOUT_REFERENCE else "relative to a reference"
    return ""


def of_several_kinds(runs: Iterable[tuple[str, object, Iterable[str]]]) -> dict[str, list[str]]:
    """Figures that say nothing beside each other, and their kinds; `runs`: stage, setting `loss`, and what each has."""
    kinds: dict[str, set[str]] = {}
    for stage, loss, names in runs:
        for name in names:
            kinds.setdefault(name, set()).add(kind_of(name, stage, loss))
    return {name: sorted(of) for name, of in kinds.items() if len(of) > 1}


def left_out(mixed: Mapping[str, Sequence[str]]) -> list[str]:
    """Why figures of several kinds but losses are left out, for readers; nothing where they are of one kind."""
    kl = [name for name in by_importance(mixed) if name in ("kl", "eval/kl")]
    found = [name for name in by_importance(mixed) if not name.endswith("loss") and name not in kl]
    some = f"{', '.join(found[:2])}{' and their like' * (len(found) > 2)}"
    said = [f"Not of one kind, with a reference and without, and so left out: {some}."] if found else []
    return said + [f"Not of one kind, and so left out: {name} ({'; '.join(mixed[name])})." for name in kl]


def is_main(name: str) -> bool:
    """Whether a curve is one to look at before the others."""
    return name in MAIN or (name not in MEANINGS and not name.endswith("/std"))


def known_as(name: str) -> str:
    """What `MEANINGS` calls it, where several have one meaning: `reward/NAME` is that of each of several rewards."""
    if name in MEANINGS:
        return name
    if name.startswith("win_rate_vs_"):
        return "win_rate"
    beginning, _, rest = name.partition("/")
    if beginning == "reward" and rest:
        return next((f"reward/NAME/{of}" for of in ("std", "unscored") if rest.endswith(f"/{of}")), "reward/NAME")
    return "ranks" if beginning == "ranks" else name


def explained(names: Iterable[str]) -> list[tuple[str, str]]:
    """(name, meaning) of those that have one, in the order of `MEANINGS`."""
    known = {known_as(name) for name in names}
    return [(name, meaning) for name, meaning in MEANINGS.items() if name in known]


FEW = 5
"""Stages that the legend names."""


def legend(report: summary.Report) -> str:
    """What rows and columns of the summary are, for who reads one for the first time; empty where there are none."""
    found = summary.measures(report)
    if not found:
        return ""
    judged, reference = report.headline in report.judged, report.reference
    named = f" ({', '.join(report.stages)})" if len(report.stages) <= FEW else ""
    text = [f"How to read this: a row is a stage{named}"]
    if "base" in report.stages:
        text[0] += "; base is the model before all training"
    if report.baselines:
        columns = ", ".join(report.baselines)
        text.append(f"The last rows are no models: their answers stand in columns of the data file ({columns})")
    scored = "the mean score that the first judge gives the answers" if judged else "what says which stage is better"
    if report.headline in found:
        better = f"{'lower' if report.lower_is_better else 'higher'} is better"
        text.append(f"{summary.label(report.headline)} is {scored}; {better}")
    if summary.win_rate(report) in found:
        won = summary.label(summary.win_rate(report))
        text.append(f"{won} says on how many prompts a row's answer scores above {reference}'s, ties half: 50% is even")
    if _has_intervals(report, found):
        text.append("95 % is where the mean over all prompts of this kind lies, 19 times in 20")
        text.append("Where two overlap, they are not told apart by it")
    return ". ".join(text) + "."


WORDS = 200
"""Characters of what a judge says of itself."""


def words_of(report: summary.Report, measure: str) -> str:
    """What a judge says of itself, cut, without its last full stop; "" where it says nothing."""
    found = report.said.get(measure, "").strip()
    return f"{found[: WORDS - 1]}…" if len(found) > WORDS else found.rstrip(".")


def paid(report: summary.Report) -> str:
    """What judges say of themselves, for who asks what their figures stand for; empty where none does."""
    told = [f"{summary.label(name)}: {words}" for name in report.judged if (words := words_of(report, name))]
    return f"In the judges' own words, {'; '.join(told)}." if told else ""


def marks(report: summary.Report) -> str:
    """What lines and whiskers in the page's pictures are; empty where there are none."""
    measures = summary.measures(report)
    scored = summary.estimate(report, report.reference, report.headline) is not None
    what = "score" if report.headline in report.judged else summary.label(report.headline)
    lines = [f"{report.reference}’s {what}"] if scored else []
    lines += ["even odds"] if summary.win_rate(report) in measures else []
    pictured = [measure for measure in measures if summary.is_main(report, measure)]
    text = [f"{'Dashed lines mark' if len(lines) > 1 else 'The dashed line marks'} {' and '.join(lines)}"] * bool(lines)
    text += ["whiskers are 95 % intervals"] * _has_intervals(report, pictured)
    said = "; ".join(text)
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _has_intervals(report: summary.Report, measures: Sequence[str]) -> bool:
    found = (summary.estimate(report, name, measure) for name in summary.rows(report) for measure in measures)
    return any(e.interval for e in found if e)


def others(report: summary.Report) -> str:
    """What the measures are that stand beside the headline and the win rate; empty where there are none."""
    there = [measure for measure in summary.measures(report) if not summary.is_main(report, measure)]
    meant = {
        "kl": f"is how far answers have moved from {report.reference}, in nats per answer, an estimate",
        "eos_rate": "says how many answers end by themselves",
        "length": "is the mean of the answers",
        "loss": "is of texts that were not trained on, in nats per token",
        "perplexity": f"is {MEANINGS['perplexity']}",
        "reward": "is the mean score of the learned reward model",
    }
    text = [f"{summary.label(name)} {meaning}" for name, meaning in meant.items() if name in there]
    judges = [summary.label(name) for name in there if name in report.judged]
    if judges:
        few = ", ".join([*judges[:2], *["…"] * (len(judges) > 2)])
        text.append(
            f"{few}: {'the mean score of another judge' if len(judges) == 1 else 'mean scores of other judges'}"
        )
    if "reward" in there and report.headline in report.judged:
        first = summary.label(report.headline)
        text.append(
            f"Look where reward and {first} disagree: a reward that rises while {first} falls is being exploited"
        )
    return "".join(f"{sentence}. " for sentence in text).rstrip()
