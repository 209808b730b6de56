"""The words of a report, for people who have not read the definitions: verdicts and metrics.

`VERDICTS` has an entry for every `verdict.Verdict`, `METRICS` one for every classical metric that a
report tabulates (title, one sentence), `RATING_METRICS` the same for recommenders and
`REGRESSION_METRICS` what regressions have besides errors and explained variance. `LIGHTS` says what
may be concluded from an audit, `FAMILIES` what a family of audits asks, `DIRECTIONS` which way
models lie. The definitions are in the modules that compute them.
"""

from jaxunlearn.audit.verdict import Verdict

VERDICTS: dict[str, str] = {
    Verdict.INDISTINGUISHABLE.value: (
        "An exact permutation test at level 5 % does not tell the method's models from true "
        "retrainings on any part. The sentence says how many untouched originals hidden among "
        "them would have shown: that is how much this can be trusted."
    ),
    Verdict.RECIPE_NOISE.value: (
        "The test does tell them apart, but on no part are they farther from retraining than two "
        "recipes that nobody would call different are from each other."
    ),
    Verdict.UNDER_FORGOTTEN.value: (
        "On forget data the models still lie towards the original: influence of the forget data "
        "is left."
    ),
    Verdict.OVER_FORGOTTEN.value: (
        "On forget data the models lie beyond retraining, on the side away from the original: "
        "they answer worse or stranger than a model that never saw the data, which can itself be "
        "noticed."
    ),
    Verdict.ELSEWHERE.value: (
        "The models are not retrained ones, but the difference is neither towards the original "
        "nor away from it, or it lies on data that should not have changed."
    ),
    Verdict.COLLAPSED.value: (
        "Outputs are not finite, or test accuracy fell below half-way from chance to the oracles: "
        "the model was destroyed, not made to forget."
    ),
    Verdict.NOT_INFORMATIVE.value: (
        "There is nothing to measure with: too few models, a base model at chance, forget data "
        "that was never learnt, or no valid oracle. No score is given."
    ),
    Verdict.NOTHING_TO_FORGET.value: "The request holds no example.",
    "damages ... data": (
        "Said in addition: on that part, which should have stayed as it was, the models are "
        "farther from retraining than one recipe floor. The number counts floors."
    ),
}

METRICS: dict[str, tuple[str, str]] = {
    "jensen_shannon": (
        "Jensen-Shannon divergence to the oracles",
        "Mean over examples and oracles, in nats, from 0 (equal) to 0.69. Lower is nearer.",
    ),
    "activation_distance": (
        "Activation distance to the oracles",
        "Mean Euclidean distance of the probability vectors, from 0 to 1.41. Lower is nearer.",
    ),
    "prediction_agreement": (
        "Prediction agreement with the oracles",
        "Share of examples on which both predict the same class. Higher is nearer.",
    ),
    "klom": (
        "KLoM",
        "Divergence of the distribution of margins over models from the oracles', averaged over "
        "examples; so is the interval. Lower is nearer; the floor is far from 0 with few "
        "models.",
    ),
    "tug_of_war": (
        "Tug of war",
        "Product over forget, retain and test of one minus the gap in accuracy to the oracles, "
        "from 0 to 1. Higher is nearer.",
    ),
    "loss": (
        "Loss",
        "Mean cross-entropy in nats. The aim is the oracle's value, not a high or a low one.",
    ),
}

RATING_METRICS: dict[str, tuple[str, str]] = {
    "rmse": (
        "Root mean square error",
        "In the unit of what is predicted. The aim is the oracle's value, not the lowest: a low "
        "error on forget data is memory.",
    ),
    "explained": (
        "Share of the variance explained",
        "1 = every one exactly, 0 = no better than the mean of those in training. The aim is "
        "the oracle's value.",
    ),
    "pair_accuracy": (
        "Pair accuracy",
        "How often an entry's item is ranked above one that its user never met; 0.5 is guessing. "
        "The aim is the oracle's value.",
    ),
    "recall@10": (
        "Recall@10",
        "Share of what somebody chose later that is among ten recommendations, of what ten can "
        "hold; mean over people.",
    ),
    "recall@20": ("Recall@20", "The same among twenty."),
    "ndcg@10": ("NDCG@10", "The same among ten, where an earlier place counts more; 1 is perfect."),
    "overlap@10": (
        "Overlap@10 with the oracles",
        "Share of ten recommendations that a retrained model makes as well, for the people whom "
        "the request concerns and for others. Higher is nearer; the floor is far below 1 where "
        "retrainings disagree among themselves.",
    ),
    "sweeps": (
        "Sweeps",
        "Passes of alternating least squares over all retained ratings, and none more than that "
        "for the affected rows. Newton steps are in results.json.",
    ),
}

REGRESSION_METRICS: dict[str, tuple[str, str]] = {
    "mae": (
        "Mean absolute error",
        "In the unit of the target. The aim is the oracle's value.",
    ),
    "prediction_distance": (
        "Distance of predictions to the oracles",
        "Root mean square difference to a retrained model's predictions, in the unit of the "
        "target, averaged over the oracles. Lower is nearer.",
    ),
    "wasserstein": (
        "Wasserstein-1 distance to the oracles",
        "Between the histograms of predictions, in the unit of the target, averaged over the "
        "oracles: whether the right numbers are predicted, for whichever example. Lower is nearer.",
    ),
}

LIGHTS: dict[str, tuple[str, str]] = {
    "pass": (
        "supported",
        "No audit could tell the method's models from models that never saw the data.",
    ),
    "caution": (
        "doubtful",
        "The models differ from such models, though not by what was to be forgotten.",
    ),
    "fail": (
        "not supported",
        "Traces of what was to be forgotten were found, or the model was destroyed.",
    ),
    "unknown": ("not known", "There is no finding: nothing was shown in either direction."),
}

FAMILIES: dict[str, tuple[str, str]] = {
    "behaviour": ("Behaviour", "Does it answer like a model that never saw the data?"),
    "membership": (
        "Membership",
        "Can somebody who looks at the answers tell which examples were once in training?",
    ),
    "durability": (
        "Durability",
        "Does it stay forgotten when the model is trained a little further, cut or compressed?",
    ),
    "representation": (
        "Representation",
        "Are traces left inside the model, behind answers that look right?",
    ),
}

DIRECTIONS: dict[str, str] = {
    "towards the original": "The models lie on the side of the original: something was kept.",
    "away from it": "They lie beyond retraining, on the far side from the original.",
    "aside": "They differ, but neither towards the original nor away from it.",
}
