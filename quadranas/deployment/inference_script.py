"""The script in a bundle that labels images with nothing but the runtime: 20 lines.

It does what `run_bundle` does, without this package, and prints the first five labels. It is one
text with three gaps, which the runtimes fill differently.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Template

from quadranas.deployment.manifest import FileFormat

TEMPLATE = Template('''\
"""Label images: python infer.py IMAGE...; .npy arrays (R, R, 3), uint8, do without Pillow"""
import json, pathlib, sys, numpy as np, $packages
facts = json.loads(pathlib.Path(__file__).with_name("manifest.json").read_text("utf-8"))
artefact = pathlib.Path(__file__).with_name(facts["artefact"])
batch, _, size, _ = facts["input"]["shape"]  # None: a batch of any size
names = facts["class_names"] or range(facts["architecture"]["num_classes"])
mean, std = facts["input"]["mean"] or 0, facts["input"]["std"] or 1  # None: nobody knows them
model = $model
for path in sys.argv[1:] or sys.exit(__doc__):
    pixels = np.load(path).astype(np.uint8, casting="equiv") if path.endswith(".npy") else None
    if pixels is None or pixels.shape != (size, size, 3):
        from PIL import Image, ImageOps
        image = Image.open(path) if pixels is None else Image.fromarray(pixels)
        image = image.point(lambda v: v / 256).convert("L") if image.mode[0] == "I" else image
        image = ImageOps.exif_transpose(image).convert("RGBA")  # on white where transparent:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        pixels = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    images = np.float32((pixels / 255 - mean) / std).transpose(2, 0, 1)[None].repeat(batch or 1, 0)
    scores = np.exp((logits := $logits) - np.logaddexp.reduce(logits))
    print(path, *(f"{scores[i]:7.2%}  {names[i]}" for i in np.argsort(-scores)[:5]), sep="\\n  ")
''')


@dataclass(frozen=True, kw_only=True)
class RuntimeCode:
    """What a runtime puts into the gaps: Python expressions.

    Args:
        packages: to import.
        model: what `artefact` holds, ready to run.
        logits: of the first image of `images`, (num_classes,).
    """

    packages: str
    model: str
    logits: str


CODE: Mapping[FileFormat, RuntimeCode] = {
    "onnx": RuntimeCode(
        packages="onnxruntime",
        model="onnxruntime.InferenceSession(artefact)",
        logits='model.run(None, {"images": images})[0][0]',
    ),
    "openvino": RuntimeCode(
        packages="openvino",
        model='openvino.compile_model(artefact, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
        logits="model(images)[0][0]",
    ),
    "tvm": RuntimeCode(
        packages="tvm, tvm.relax",
        model="tvm.relax.VirtualMachine(tvm.runtime.load_module(str(artefact)), tvm.cpu())",
        logits='model["main"](tvm.runtime.tensor(images)).numpy()[0]',
    ),
    "torch": RuntimeCode(
        packages="torch",
        model="torch.export.load(artefact).module()",
        logits="model(torch.from_numpy(images)).detach().numpy()[0]",
    ),
    "executorch": RuntimeCode(
        packages="torch, executorch.runtime",
        model='executorch.runtime.Runtime.get().load_program(artefact).load_method("forward")',
        logits="model.execute([torch.from_numpy(images)])[0].numpy()[0]",
    ),
}


def inference_script(file_format: FileFormat) -> str:
    """The text of `infer.py` for a bundle of some format."""
    code = CODE[file_format]
    return TEMPLATE.substitute(packages=code.packages, model=code.model, logits=code.logits)
