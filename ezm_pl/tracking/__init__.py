"""MLflow: runs, params, artifacts, published curves, figures and tables.

Importing this package is cheap: MLflow, Lightning and PyTorch are imported by the functions that use them.
"""
