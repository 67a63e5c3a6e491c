"""Other formats: the official implementation's checkpoints, the hub, ONNX and ``torch.export``."""
