"""ONNX export, 8-bit quantization, the Hugging Face Hub."""
