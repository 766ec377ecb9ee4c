"""MLflow: runs, sweeps, and what they come to.

`runs` writes a run, `sweep` reads a sweep, `results` draws and tabulates; `store` opens the tracking store.
Importing these packages is cheap: MLflow, Lightning and PyTorch are imported by the functions that use them.
"""
