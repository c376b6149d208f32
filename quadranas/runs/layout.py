"""The names of the files in a run folder."""

from quadranas.inspection.records import RECORDS_FILE
from quadranas.space.architecture import ARCHITECTURE_FILE

ARCHITECTURE = ARCHITECTURE_FILE
CHECKPOINTS = "checkpoints"
CONDITIONS = "conditions.json"
"""The images, the number of threads and other conditions under which a run was begun."""

CONFIG = "config.yaml"
DERIVED = "derived"
DEVICE = "device.yaml"
"""The device that the network was found for, if it is not a shipped one."""

EXPORTS = "exports"
GATES = "gates.json"
INHERITED = "inherited.safetensors"
"""The initial weights of a training."""

INSPECTION_PAGE = "inspection.html"
LOCK = ".lock"
"""Names the process that writes to the folder; present while it runs."""

METRICS = "metrics.jsonl"
PREPROCESSING = "preprocessing.json"
RANKING = "importance.json"
RANKING_PLOT = "importance.png"
RECORDS = RECORDS_FILE
REPORT = "report.html"
RESULT = "result.json"
"""Written last: a folder with it holds a finished run."""

SPACE = "space.yaml"
SUPERNET = "supernet.safetensors"
TABLE = "table.json"
TENSORBOARD = "tensorboard"
WEIGHTS = "subnet.safetensors"
"""The trained weights of the run's network."""

RESUMABLE = ("search", "train")
