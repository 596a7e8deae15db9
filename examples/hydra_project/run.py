"""A Hydra project of its own that runs fvlight's task on its own network.

python run.py experiment=orientations
"""

import shlex
import sys
from pathlib import Path

import hydra
import orientation.network  # noqa: F401  (makes the network known)
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fvlight import application
from fvlight.report import print_summary_table


@hydra.main(version_base="1.3", config_path="conf", config_name="project")
def main(config: DictConfig) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    folder = Path(HydraConfig.get().runtime.output_dir)
    outcome = application.run(settings, folder, None, shlex.join(["python", *sys.argv]))
    print_summary_table(outcome.summary, outcome.report)


if __name__ == "__main__":
    main()
