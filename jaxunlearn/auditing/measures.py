"""The numbers and curves that an audit shows, in words: what each is and where it should be.

The aim of a number is the oracle's own value ("oracle"), or an end of its scale where the number is
itself a distance from the oracles ("low", "high"). Stored values times `scale` are what is shown.
"""

from typing import NamedTuple


class Measure(NamedTuple):
    """One number, for people."""

    title: str
    family: str
    words: str
    unit: str = ""
    aim: str = "oracle"  # or "low", "high"
    scale: float = 1.0
    digits: int = 2


class CurveWords(NamedTuple):
    """One curve, for people."""

    title: str
    family: str
    words: str
    x_title: str
    y_title: str = "probability of the true label"
    log_x: bool = False


MEASURES: dict[str, Measure] = {
    "klom": Measure(
        "KLoM", "behaviour",
        "Divergence of the oracles' margins on forget rows from the method's, mean over rows.",
        "nats", "low",
    ),
    "wasserstein": Measure(
        "Wasserstein distance of margins", "behaviour",
        "Of margins on forget rows to the oracles', mean over rows.", "nats", "low",
    ),
    "margin_energy": Measure(
        "Energy distance of margins", "behaviour",
        "The same without bias: 0 on average for retrained models, whatever their number.",
        "nats", "low", digits=3,
    ),
    "ks_rejected": Measure(
        "Rows told by Kolmogorov-Smirnov", "behaviour",
        "Share of forget rows whose margins differ from the oracles', corrected for their number.",
        "%", "low", 100.0, 1,
    ),
    "forgetting_quality": Measure(
        "Forgetting quality", "behaviour",
        "Score of the NeurIPS 2023 challenge: near 1 where no rule tells the two worlds. With few "
        "models it is far below 1 for retrained ones too: read it beside its floor.",
        aim="high", digits=3,
    ),
    "epsilon": Measure(
        "Epsilon, at least", "membership",
        "Lower bound at 95 % confidence on how far the two worlds are apart; limited by the number "
        "of models. Each model's score is fitted on the others, so that the confidence is "
        "approximate.",
        aim="low",
    ),
    "lira_accuracy": Measure(
        "Likelihood-ratio attack: accuracy", "membership",
        "How often the margins of a forget row tell an unlearned model from a retrained one; mean "
        "over rows, 50 % is guessing.",
        "%", "low", 100.0, 1,
    ),
    "lira_worst": Measure(
        "Likelihood-ratio attack: worst row", "membership",
        "The same for the row that is told most easily. The largest of many is above 50 % by "
        "chance: read it beside its floor.",
        "%", "low", 100.0, 1,
    ),
    "lira_retain": Measure(
        "Likelihood-ratio attack: retained rows", "membership",
        "The same on retained rows: what unlearning did to the privacy of those who stay.",
        "%", "low", 100.0, 1,
    ),
    "rmia_auc": Measure(
        "RMIA: AUC", "membership",
        "Relative attack with the oracles as reference models: forget rows against unseen rows of "
        "the same kind.",
        digits=3,
    ),
    "forget_loss_auc": Measure(
        "Loss attack: AUC", "membership",
        "Forgotten training rows against unseen rows of the same kind.", digits=3,
    ),
    "forget_tpr_tenth": Measure(
        "Loss attack: found at 10 % false alarms", "membership",
        "Share of the forget rows that look more like training rows than nine in ten unseen ones.",
        "%", scale=100.0, digits=1,
    ),
    "forget_tpr_percent": Measure(
        "Loss attack: found at 1 % false alarms", "membership",
        "Undefined with fewer than 100 unseen rows.", "%", scale=100.0, digits=1,
    ),
    "retain_loss_auc": Measure(
        "Loss attack on retained rows: AUC", "membership",
        "Retained training rows against test rows.", digits=3,
    ),
    "mia_efficacy": Measure(
        "Forget rows called unseen", "membership",
        "By the model's own attacker, trained on retained against test rows.",
        "%", scale=100.0, digits=1,
    ),
    "population": Measure(
        "Population attack", "membership",
        "Share of unseen rows of the same label that a forget row's margin exceeds, mean over "
        "rows; 50 % is what a row that was never seen has.",
        "%", scale=100.0, digits=1,
    ),
    "exposure": Measure(
        "Exposure", "membership",
        "Rank of each forget row's loss among unseen rows, in bits; 1.44 is what a row that was "
        "never seen has.",
        "bits",
    ),
    "relearn_steps": Measure(
        "Steps until relearned", "durability",
        "Minibatches of forget rows until the rows held back are known as well as by the original, "
        "less 0.05; capped at the length of the run.",
        digits=1,
    ),
    "anamnesis": Measure(
        "Anamnesis index", "durability",
        "Those steps in units of the oracles': well below 1, something was left; well above, the "
        "model resists.",
    ),
    "cka_forget": Measure(
        "Similarity to oracles, forget rows", "representation",
        "Debiased CKA of the features, mean over oracles.", digits=3,
    ),
    "cka_test": Measure(
        "Similarity to oracles, unseen rows", "representation", "", digits=3,
    ),
    "neighbours": Measure(
        "Nearest neighbours", "representation",
        "Rows of what was forgotten that 5 neighbours with labels classify rightly.",
        "%", scale=100.0, digits=1,
    ),
    "probe_recall": Measure(
        "Linear probe: recall", "representation",
        "Unseen rows of the forgotten classes that a probe finds.", "%", scale=100.0, digits=1,
    ),
    "probe_auc": Measure("Linear probe: AUC", "representation", "", digits=3),
    "probe_membership": Measure(
        "Probe for membership: AUC", "representation",
        "Forget rows against unseen rows of the same kind, from the features.", digits=3,
    ),
    "transfer": Measure(
        "Transfer", "representation",
        "Accuracy of a probe on a related task: whether the class number is odd, on kinds that "
        "stay.",
        "%", scale=100.0, digits=1,
    ),
}  # fmt: skip

CURVES: dict[str, CurveWords] = {
    "relearning": CurveWords(
        "Relearning", "durability",
        "Trained on one half of the forget rows, watched on the other half.", "minibatches",
    ),
    "few_examples": CurveWords(
        "Relearning from few rows", "durability",
        "The half held back, after training on so many other forget rows.", "forget rows shown",
        log_x=True,
    ),
    "fresh_head": CurveWords(
        "Relearning with a fresh last layer", "durability",
        "The half held back, while a new last layer is trained with the rest of the network.",
        "minibatches",
    ),
    "other_training": CurveWords(
        "Training on other data", "durability",
        "Forget rows while training goes on with retained rows alone.", "minibatches",
    ),
    "pruning": CurveWords(
        "Pruning", "durability", "Forget rows after the smallest weights are set to zero.",
        "share of weights pruned",
    ),
    "quantisation": CurveWords(
        "Quantisation", "durability", "Forget rows after weights are rounded.", "weights",
    ),
    "steering_experts": CurveWords(
        "Steering", "representation",
        "Forget rows while features of the original that stand for them are injected half-way. "
        "Read it beside the two controls below.",
        "strength",
    ),
    "steering_random": CurveWords(
        "Steering, control: random features", "representation",
        "The same with as many features drawn by chance.", "strength",
    ),
    "steering_reconstruction": CurveWords(
        "Steering, control: no features", "representation",
        "The dictionary of the original alone, nothing injected.", "strength",
    ),
}  # fmt: skip
