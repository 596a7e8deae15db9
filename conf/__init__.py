"""Hydra's configuration groups; other projects reach them with ``hydra.searchpath=[pkg://fvlight.conf]``."""
