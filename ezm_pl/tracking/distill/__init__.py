"""Tracking of distillations: their runs on this disk and in MLflow."""
