"""The full suite of audits over a finished comparison: did it forget, what did it cost, would it
come back?

    remade          a finished comparison made again, models and all
    bench           what is measured of an ensemble, under equal conditions
    blocks          rows and models in blocks of one size
    durability, membership, representation    what is asked of one model
    planted         models whose answer is known
    suite           the audits in words, and how each places models apart
    distinguishing  the numbers that need two ensembles
    measures        numbers and curves in words
    shadows         shadow models x unlearning runs: U-LiRA at full strength
    judging         one exact test over all audits, and the verdict
    run             from `results.json` to `audit.json` and the pages
"""

from .bench import Bench as Bench
from .bench import Measured as Measured
from .judging import Settings as Settings
from .run import audit_comparison as audit_comparison
from .run import read as read
from .run import write as write
