"""Int8 ONNX artefacts, the integer oracle and the device side. Needs numpy, onnx and onnxruntime; never torch.

The package imports nothing by itself, so that a device can carry ``runtime.py`` and ``errors.py`` alone.
"""
