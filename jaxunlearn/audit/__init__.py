"""Did it forget? Distances between models, exact tests, verdicts, and the classical metrics.

Audits are pure functions of arrays (outputs, labels, distances), NumPy float64 on the host; they
know nothing about methods. A metric of nothing is None ("undefined"), never 0.
"""

from .accuracy import PartScores as PartScores
from .accuracy import cross_entropy as cross_entropy
from .accuracy import margins as margins
from .accuracy import part_scores as part_scores
from .accuracy import scores_by_part as scores_by_part
from .agreement import activation_distance as activation_distance
from .agreement import agreement as agreement
from .agreement import agreement_floor as agreement_floor
from .agreement import halves as halves
from .agreement import jensen_shannon as jensen_shannon
from .agreement import prediction_agreement as prediction_agreement
from .agreement import tug_of_war as tug_of_war
from .contamination import Contamination as Contamination
from .contamination import detectable_contamination as detectable_contamination
from .displacement import Displacement as Displacement
from .displacement import displacement as displacement
from .distances import hellinger_matrix as hellinger_matrix
from .distances import prediction_matrix as prediction_matrix
from .energy import PermutationTest as PermutationTest
from .energy import RankTest as RankTest
from .energy import energy as energy
from .energy import permutation_test as permutation_test
from .energy import rank_of_one as rank_of_one
from .energy import smallest_p_value as smallest_p_value
from .energy import weighted_energy as weighted_energy
from .errors import TooFew as TooFew
from .floors import Floor as Floor
from .floors import recipe_floor as recipe_floor
from .groups import PARTS as PARTS
from .groups import Groups as Groups
from .intervals import Interval as Interval
from .intervals import bootstrap_weights as bootstrap_weights
from .intervals import mean_interval as mean_interval
from .intervals import percentile_interval as percentile_interval
from .klom import KLOM_CEILING as KLOM_CEILING
from .klom import KlomSummary as KlomSummary
from .klom import klom as klom
from .klom import klom_floor as klom_floor
from .klom import klom_null as klom_null
from .klom import klom_summary as klom_summary
from .membership import Attack as Attack
from .membership import RocCurve as RocCurve
from .membership import attack as attack
from .membership import attack_accuracy as attack_accuracy
from .membership import attack_signal as attack_signal
from .membership import auc as auc
from .membership import distance_from_oracle as distance_from_oracle
from .membership import roc_curve as roc_curve
from .membership import tpr_at_fpr as tpr_at_fpr
from .scores import Scores as Scores
from .verdict import RULE_VERSION as RULE_VERSION
from .verdict import Judgement as Judgement
from .verdict import Verdict as Verdict
from .verdict import judge as judge
from .versions import METRIC_VERSIONS as METRIC_VERSIONS
