"""fvlight: what drives a unit of a neural network, to what is it invariant, and which images show it."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

# In a checkout that is not installed, `zoo/` and `conf/` lie beside this folder, not in it: with the
# repository's root on the package path, `fvlight.zoo` and `fvlight.conf` are found all the same.
if not (Path(__file__).parent / "conf").exists():
    __path__.append(str(Path(__file__).parents[1]))

from fvlight.errors import FvlightError
from fvlight.network import InputSpace, Network
from fvlight.readout import Readout
from fvlight.receptive_field import ReceptiveField, receptive_field

__all__ = ["FvlightError", "InputSpace", "Network", "Readout", "ReceptiveField", "receptive_field"]
