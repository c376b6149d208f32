"""Prediction: the latency of any ONNX file, operator by operator."""
