"""How parameters are moved, when a problem stops, and which problems are in the batch."""

from fvlight.solvers.adam import Adam, ProblemAdam
from fvlight.solvers.batched_lbfgs import BatchedLBFGS
from fvlight.solvers.block import Block, Evaluation, solve_block
from fvlight.solvers.lbfgs import LBFGS, Minimum, Stop, minimise
from fvlight.solvers.momentum import Momentum
from fvlight.solvers.polish import polish_block
from fvlight.solvers.pool import Pool, Status
from fvlight.solvers.stopping import Patience

__all__ = [
    "LBFGS",
    "Adam",
    "BatchedLBFGS",
    "Block",
    "Evaluation",
    "Minimum",
    "Momentum",
    "Patience",
    "Pool",
    "ProblemAdam",
    "Status",
    "Stop",
    "minimise",
    "polish_block",
    "solve_block",
]
