"""Sweeps: Optuna studies over specs, run by any number of workers, tracked in MLflow.

Importing this package is cheap: Optuna, MLflow and PyTorch are imported by the functions that use them.
"""
