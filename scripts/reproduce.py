"""All experiments of Cadena et al. 2018, and one page of their claims: `fvlight-reproduce` for a plain checkout.

    python scripts/reproduce.py --out DIR [--units 64] [--only fig1,fig10] [--precision bf16-mixed] [--images FOLDER]

See docs/reproducing.md.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a checkout works without an installation

from fvlight.command.reproduction import main

if __name__ == "__main__":
    sys.exit(main())
