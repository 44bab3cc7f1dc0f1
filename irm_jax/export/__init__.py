"""Trained models as files that need neither this project nor flax: StableHLO and ONNX, with all their users need."""
