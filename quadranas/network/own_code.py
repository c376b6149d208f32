"""A user's own model from a Python file that the command line names, which runs that file."""

import importlib.util
import re
import sys
from pathlib import Path

import torch
from torch import nn

from quadranas.errors import QuadranasError, nearest
from quadranas.files import require_readable
from quadranas.network.own_model import first_line, use_model

CODE = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
"""A Python file and the name of a function in it, such as `model.py:build`."""


def is_code(text: str) -> bool:
    """Whether a text names a function in a Python file."""
    return CODE.fullmatch(text) is not None or text.endswith(".py")


def load_own_code(text: str) -> nn.Module:
    """Run a Python file and call one of its functions, without arguments and with random seed 0.

    Only for texts that the user has typed: it runs code.

    Args:
        text: `FILE.py:FUNCTION`.

    Raises:
        QuadranasError: no such file or function, it fails, or it returns no model.
    """
    found = CODE.fullmatch(text)
    if found is None:
        raise QuadranasError(
            f"{text!r} does not name a function in a Python file",
            "Name both, such as model.py:build; the function returns the torch.nn.Module.",
        )
    path, name = Path(found[1]), found[2]
    require_readable(path, "model code")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = _built(path, name)
    if not isinstance(model, nn.Module):
        raise QuadranasError(
            f"{text} returns a {type(model).__name__}, expected a torch.nn.Module",
            "Let the function return the model.",
        )
    return model


def use_code(text: str) -> None:
    """Give the model of a Python file to this process; arguments and errors as above."""
    use_model(load_own_code(text))


def _built(path: Path, name: str) -> object:
    """What the function returns."""
    spec = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look classes up there
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # as for a script: it may import its neighbours
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, name, None)):
            names = [n for n, value in vars(module).items() if callable(value)]
            raise QuadranasError(
                f"{path} has no function {name!r}{nearest(name, names)}",
                f"Name one that returns the model: {path}:FUNCTION.",
            )
        return getattr(module, name)()
    except QuadranasError:
        raise
    except (Exception, SystemExit) as error:  # of the user's code, perhaps a script with options
        raise QuadranasError(
            f"{path}:{name} fails: {first_line(error)}",
            f"Try it with: python -c 'import {path.stem}; {path.stem}.{name}()'",
        ) from error
    finally:
        sys.path.remove(folder)
