"""Recipes: how the networks that ship with fvlight were trained; scripts/train.py runs them.

Adding one: a module here with a class derived from `Recipe` (base.py) and a function ``recipe(config, run_dir)`` that
makes it, and ``conf/experiment/train/NAME.yaml`` with ``recipe: MODULE`` and its settings.
"""
