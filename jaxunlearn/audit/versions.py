"""Versions of the metric definitions, stored with every result.

A version changes when the same models would get another number. Results of different versions are
never compared.
"""

from .verdict import RULE_VERSION

METRIC_VERSIONS: dict[str, str] = {
    "verdict": RULE_VERSION,
    "hellinger_matrix": "1",
    "prediction_matrix": "1",
    "energy": "1",
    "permutation_test": "1",
    "rank_of_one": "1",
    "recipe_floor": "1",
    "gap_closed": "1",
    "collateral": "1",
    "displacement": "1",
    "detectable_contamination": "1",
    "jensen_shannon": "1",
    "activation_distance": "1",
    "prediction_agreement": "1",
    "tug_of_war": "1",
    "loss": "1",
    "accuracy": "1",
    "klom": "1",
    "membership": "1",
    "rmse": "1",
    "explained": "1",
    "pair_accuracy": "1",
    "recall_at_k": "1",
    "ndcg_at_k": "1",
    "overlap_at_k": "1",
    "entry_membership": "1",
    "mae": "1",
    "prediction_distance": "1",
    "wasserstein": "1",
    "evidence": "1",
}
