"""How parameters are moved, when a problem stops, and which problems are in the batch."""

from fvlight.solvers.adam import Adam, ProblemAdam
from fvlight.solvers.block import Block, Evaluation, solve_block
from fvlight.solvers.pool import Pool, Status
from fvlight.solvers.stopping import Patience

__all__ = ["Adam", "Block", "Evaluation", "Patience", "Pool", "ProblemAdam", "Status", "solve_block"]
