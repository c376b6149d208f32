"""The script in a bundle, which labels images with the runtime alone.

It does what `quadranas run` does, without this package, and prints the five most probable labels.
The code that reads images is copied from `quadranas.data.decoding`; the facts about a runtime fill
the other gaps of one template.
"""

import inspect
from string import Template

from quadranas.data.decoding import COMMON_FORMATS, NOT_PICTURES, PORTABLE
from quadranas.latency.runtimes import files_of

TEMPLATE = Template('''\
"""Label images: python infer.py IMAGE...; .npy arrays (R, R, 3), uint8, do without Pillow"""
import json, sys, warnings, numpy as np, $packages
from contextlib import suppress
from functools import cache
from pathlib import Path

$preparation
facts = json.loads(Path(__file__).with_name("manifest.json").read_text("utf-8"))
artefact = Path(__file__).with_name(facts["artefact"])
batch, _, size, _ = facts["input"]["shape"]  # None: a batch of any size
names = facts["class_names"] or range(facts["architecture"]["num_classes"])
show = lambda text: "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
mean, std = facts["input"]["mean"] or 0, facts["input"]["std"] or 1  # None: unknown
sys.stdout.reconfigure(errors="backslashreplace")  # names may not be text in its encoding
model = $model
failed = False
for path in sys.argv[1:] or sys.exit(__doc__):
    try:
        pixels = read_pixels(Path(path), size)
    except Exception as error:
        failed = True
        print(f"cannot read image {path}: {error or type(error).__name__}", file=sys.stderr)
        continue
    images = np.float32((pixels / 255 - mean) / std).transpose(2, 0, 1)[None].repeat(batch or 1, 0)
    logits = np.float64($logits)
    if not np.isfinite(logits).all():
        sys.exit("the network computed numbers that are not finite")
    scores = np.exp(logits - np.logaddexp.reduce(logits))
    best = np.argsort(-logits, kind="stable")[:5]
    print(show(path), *(f"{scores[i]:7.2%}  {show(names[i])}" for i in best), sep="\\n  ")
sys.exit(failed)
''')


def _preparation() -> str:
    """The code that reads images."""
    constants = f"COMMON_FORMATS = {COMMON_FORMATS!r}\nNOT_PICTURES = {NOT_PICTURES!r}\n"
    functions = (inspect.getsource(function) for function in PORTABLE)
    return "\n\n".join((constants, *functions)) + "\n"


PREPARATION = _preparation()
"""Taken when this module is imported, as long as the files are those that are running."""


def inference_script(file_format: str) -> str:
    """The text of `infer.py` for a bundle of some format."""
    code = files_of(file_format).script
    assert code is not None
    return TEMPLATE.substitute(
        packages=code.imports, model=code.model, logits=code.logits, preparation=PREPARATION
    )
