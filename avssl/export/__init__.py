"""Models out of training: ONNX, C for microcontrollers, and the report that says what each costs and how it agrees."""
