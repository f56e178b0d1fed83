"""Packaging of trained detectors as ONNX and TensorRT engine files, and detecting with them."""
