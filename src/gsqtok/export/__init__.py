"""Exported graphs: ONNX and ``torch.export``."""
