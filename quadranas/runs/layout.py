"""The names of the files in a run folder."""

from quadranas.inspection.records import RECORDS_FILE
from quadranas.space.architecture import ARCHITECTURE_FILE

ARCHITECTURE = ARCHITECTURE_FILE
"""The network (`Architecture`); written by search, derive, train, convert and adapt."""

BEST = "best.safetensors"
"""The weights after the epoch with the best validation accuracy, before the phase at other
resolutions; written by search and train if they keep the best epoch."""

CHECKPOINTS = "checkpoints"
"""The newest two checkpoints of search or train, torch files without code: phase, step, number of
lines of metrics, averages of the current epoch, and the state of networks and optimisers. Their
names contain a digest of the content."""

COMPARISON = "comparison.html"
"""The page that puts the run beside others; written by report."""

CONDITIONS = "conditions.json"
"""The images, the number of threads and other conditions under which a search or a training was
begun (`Conditions`)."""

CONFIG = "config.yaml"
"""The command, and its complete configuration (`SearchConfig`, `TrainConfig`), in which paths are
absolute; written first, by search, derive and train. Convert and adapt copy that of the network
they change."""

DERIVED = "derived"
"""The default folder of the networks that derive chooses, each a run folder."""

EXPLORED = "explored"
"""The default folder of the networks that explore chooses, each a run folder."""

DEVICE = "device.yaml"
"""The device (`Device`) that the network was found for, if it is not a shipped one; written by
search and derive, and copied by train, convert and adapt."""

DEVICES = "devices"
"""Per further device that the network was found for a folder with its table and, if it is not a
shipped one, its description; written by search, derive and explore, and copied by train, convert
and adapt."""

EXPORTS = "exports"
"""The default folder of the bundles that export writes."""

GATES = "gates.json"
"""The log-probabilities of all candidates (`GateScores`); written by search after its search
epochs."""

INHERITED = "inherited.safetensors"
"""The initial weights of a training: those that search takes from the supernet, or train from the
given network."""

INSPECTION_PAGE = "inspection.html"
"""A page about the quadratic layers; written by inspect."""

LOCK = ".lock"
"""Names the process that writes to the folder; present while search or train runs."""

METRICS = "metrics.jsonl"
"""One line per epoch (`Epoch`); written by search and train."""

PARETO = "pareto.json"
"""The fronts of accuracy against latency (`Fronts`); written by search for its devices, and by
pareto."""

PREPROCESSING = "preprocessing.json"
"""How images are prepared for the network (`Preprocessing`); written by search, derive, train,
convert and adapt, if the images are known."""

PRETRAINED = "pretrained.json"
"""The network that a search started from, and how it was used (`PretrainedRecord`); written by
search if there is one."""

PRETRAINED_WEIGHTS = "pretrained.safetensors"
"""The weights of that network."""

RANKING = "importance.json"
"""The ranking of the layers: `data`, `num_images`, `removed`, `reverted` and `ranking` of
`ReduceResult`; written by convert."""

RANKING_PLOT = "importance.png"
"""The ranking as a picture; written by convert."""

RECORDS = RECORDS_FILE
"""One line per inspected step (`StepRecord`); written by search and train if `inspect` is set."""

REPORT = "report.html"
"""The report of the run; written by search and report."""

RESULT = "result.json"
"""The result: `SearchResult` of search, `DeriveResult` of derive, `TrainResult` of train and
convert. Written last: a folder with it holds a finished run."""

SPACE = "space.yaml"
"""The complete search space (`SpaceFile`, or `OwnSpaceFile` for a user's own model); written by
search."""

SUPERNET = "supernet.safetensors"
"""The weights of the trained supernet; written by search."""

TABLE = "table.json"
"""A copy of the latency table (`LatencyTable`) that the network was chosen with; written by search
and derive, and copied by train, convert and adapt."""

TENSORBOARD = "tensorboard"
"""The metrics as curves for TensorBoard; written by search and train."""

TRACKING = "mlflow.json"
"""The run on an MLflow tracking server that receives the curves (`TrackedRun`); written by search
and train if there is one."""

WEIGHTS = "subnet.safetensors"
"""The weights of the run's network; written by search, derive, train, convert and adapt."""

RESUMABLE = ("search", "train")

TRIALS = "trials.jsonl"
"""One line per network that a strategy has judged; written by explore."""
