"""The script that is written beside an ONNX file."""

from __future__ import annotations

from avssl.export.context import Context


def snippet(context: Context, front: bool, file: str) -> str:
    """A script that runs the file with onnxruntime, numpy and the standard library."""
    shape = tuple((context.inputs if front else context.frames)[0].shape)
    rate = getattr(context.model.frontend.config, "rate", 16000)
    if front and len(shape) == 2 and context.names == ("audio",):
        read = f"""    with wave.open(path) as file:
        kind = file.getnchannels(), file.getsampwidth(), file.getframerate()
        assert kind == (1, 2, {rate}), f"need 16-bit mono at {rate} Hz, got {{kind}}"
        pcm = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    sound = pcm[:{shape[1]}].astype(np.float32) / 32768
    return {{"audio": np.pad(sound, (0, {shape[1]} - len(sound)))[None]}}"""
        usage, imports = "SOUND.wav", "import wave\n"
    else:
        read = "    return {k: v.astype(v.dtype) for k, v in np.load(path).items()}"
        usage, imports = f"INPUTS.npz  (arrays {', '.join(context.names)}; {context.names[0]} has shape {shape})", ""
    return f'''"""Run the exported model: python run_onnx.py {usage}. Needs onnxruntime and numpy only."""
import sys
{imports}from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def read(path):
{read}


def main():
    session = onnxruntime.InferenceSession(HERE / "{file}", providers=["CPUExecutionProvider"])
    labels = (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()
    (output,) = session.run(None, read(sys.argv[1]))
    row = output[0]
    if not labels:
        print(*row)
        return
    share = np.exp(row - row.max())
    share /= share.sum()
    for i in np.argsort(-row)[:5]:
        print(f"{{share[i]:.3f}}  {{labels[i]}}")


main()
'''
