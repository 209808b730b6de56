"""Data: streams of batches, named sources, tasks that say what to forget.

task = class_task(load("digits"), 3);  method.unlearn(model, params, task.request(), key)
"""

from .archives import cifar10 as cifar10
from .archives import cifar100 as cifar100
from .archives import mnist as mnist
from .duplicates import NearDuplicates as NearDuplicates
from .low_rank import low_rank_ratings as low_rank_ratings
from .proxies import proxies as proxies
from .rating_sources import RatingSource as RatingSource
from .rating_sources import is_rating_source as is_rating_source
from .rating_sources import load_ratings as load_ratings
from .rating_tasks import RatingTask as RatingTask
from .rating_tasks import parse_rating_task as parse_rating_task
from .ratings import Ratings as Ratings
from .ratings import ratings as ratings
from .regression import diabetes as diabetes
from .regression import in_units as in_units
from .regression import range_task as range_task
from .regression import standardised as standardised
from .selections import class_task as class_task
from .selections import group_task as group_task
from .selections import index_task as index_task
from .selections import random_task as random_task
from .selections import subclass_task as subclass_task
from .sources import Source as Source
from .sources import Target as Target
from .sources import digits as digits
from .sources import load as load
from .sources import thinned as thinned
from .specs import parse_task as parse_task
from .streams import InMemory as InMemory
from .streams import Stream as Stream
from .streams import as_data as as_data
from .streams import concatenate as concatenate
from .streams import from_batches as from_batches
from .streams import from_grain as from_grain
from .streams import in_memory as in_memory
from .tasks import Task as Task
from .tfds import tfds_source as tfds_source
from .time_splits import time_split as time_split
