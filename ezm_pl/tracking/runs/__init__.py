"""One run: its MLflow run and folder, metrics and signals, and the commands that train and evaluate it."""
