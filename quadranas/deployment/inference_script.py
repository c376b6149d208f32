"""The script in a bundle: 20 lines that label images with the runtime alone.

It does what `quadranas run` does, without this package, and prints the five most probable labels.
The facts about a runtime fill three gaps of one template.
"""

from string import Template

from quadranas.latency.runtimes import files_of

TEMPLATE = Template('''\
"""Label images: python infer.py IMAGE...; .npy arrays (R, R, 3), uint8, do without Pillow"""
import json, pathlib, sys, numpy as np, $packages
facts = json.loads(pathlib.Path(__file__).with_name("manifest.json").read_text("utf-8"))
artefact = pathlib.Path(__file__).with_name(facts["artefact"])
batch, _, size, _ = facts["input"]["shape"]  # None: a batch of any size
names = facts["class_names"] or range(facts["architecture"]["num_classes"])
show = lambda text: "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
mean, std = facts["input"]["mean"] or 0, facts["input"]["std"] or 1  # None: unknown
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
    best = np.argsort(-scores)[:5]
    print(show(path), *(f"{scores[i]:7.2%}  {show(names[i])}" for i in best), sep="\\n  ")
''')


def inference_script(file_format: str) -> str:
    """The text of `infer.py` for a bundle of some format."""
    code = files_of(file_format).script
    assert code is not None
    return TEMPLATE.substitute(packages=code.imports, model=code.model, logits=code.logits)
