"""Measures of what the tasks found; pure functions."""

from fvlight.analysis.claims import Claim
from fvlight.analysis.diverse import DiverseResult
from fvlight.analysis.lambda_selection import select_lambda

__all__ = ["Claim", "DiverseResult", "select_lambda"]
