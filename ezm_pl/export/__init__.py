"""What leaves the platform: models of MLflow's registry, and policies as ONNX files."""
