"""A sweep as MLflow holds it: its runs, scores with intervals, and figures."""
