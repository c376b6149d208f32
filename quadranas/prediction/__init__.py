"""Latency prediction for ONNX files, operator by operator."""
