"""Student -> what the user takes home: source code, ONNX, torch.export, and a certificate of them all."""
